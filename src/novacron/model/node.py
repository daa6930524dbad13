"""What a node is: a host that runs an agent."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from novacron.model import limits
from novacron.model.vm import NAME_PATTERN, Firmware, VmSpec
from novacron.model.volume import Pool

NodeName = Annotated[str, Meta(pattern=NAME_PATTERN, max_length=limits.NAME_LENGTH_MAX)]


class AcceleratorKind(StrEnum):
    KVM = "kvm"
    TCG = "tcg"


class Accelerator(msgspec.Struct, frozen=True):
    """What the probe found: which accelerator runs guest code here, and why not the better one."""

    kind: AcceleratorKind
    reason: str


class ImageInfo(msgspec.Struct, frozen=True):
    """An image as one node holds it. ``digest`` is the SHA-256 of its manifest."""

    name: str
    digest: str
    size_bytes: int
    kind: str
    description: str = ""
    disk_bytes: int = 0
    """Size of the disk that a VM of it has; 0 for none."""


class Inventory(msgspec.Struct, frozen=True):
    """What a host has, as its agent reports it on connecting."""

    cpus: int
    memory_mib: int
    architecture: str
    kernel: str
    qemu_version: str
    accelerator: Accelerator
    images: tuple[ImageInfo, ...]
    bridge: str | None
    dwcp_endpoint: str
    agent_version: str
    missing: tuple[str, ...] = ()
    """What this host can't offer, each in one sentence."""
    firmware: tuple[Firmware, ...] = (Firmware.BIOS,)
    tpm: bool = False
    pools: tuple[Pool, ...] = ()
    """Where volumes can be."""


class NodeSpec(msgspec.Struct, frozen=True):
    cordoned: bool = False
    draining: bool = False
    site: str = "default"
    """Where it stands: links between sites have budgets."""
    migration_rate_bytes_per_s: int | None = None
    """What all migrations from and to the node may use together."""


class NodeStatus(msgspec.Struct, frozen=True):
    ready: bool = False
    reason: str = "has not connected yet"
    inventory: Inventory | None = None


class Node(msgspec.Struct, frozen=True):
    name: str
    spec: NodeSpec
    status: NodeStatus
    revision: int
    created_at: datetime


class Load(msgspec.Struct, frozen=True):
    """What is placed on a node, VMs on their way in included."""

    vcpus: int = 0
    memory_mib: int = 0


def holds(node: Node, image: str) -> bool:
    """Say whether a node holds an image of this name."""
    inventory = node.status.inventory
    return inventory is not None and any(found.name == image for found in inventory.images)


def refusal(node: Node, load: Load, vm: VmSpec, *, fetches: bool = False) -> str | None:
    """Say why ``vm`` can't be placed on ``node`` that carries ``load``, or None if it can. A node that ``fetches`` may
    lack the image."""
    inventory = node.status.inventory
    if not node.status.ready or inventory is None:
        return f"node {node.name} is not ready: {node.status.reason}"
    if node.spec.cordoned:
        return f"node {node.name} is cordoned"
    if not fetches and not holds(node, vm.image):
        return f"node {node.name} does not hold image {vm.image}"
    if vm.firmware not in inventory.firmware:
        return f"node {node.name} has no firmware {vm.firmware}: apt-get install ovmf"
    if vm.tpm and not inventory.tpm:
        return f"node {node.name} has no TPM for VMs: apt-get install swtpm"
    return no_room(node, load, vm)


def no_room(node: Node, load: Load, vm: VmSpec) -> str | None:
    """Say why ``vm`` would overfill ``node`` that carries ``load``, or None if it would not."""
    inventory = node.status.inventory
    if inventory is None:
        return f"node {node.name} has not said what it has"
    room_mib = inventory.memory_mib - limits.NODE_MEMORY_RESERVE_MIB - load.memory_mib
    if vm.memory_mib > room_mib:
        return f"node {node.name} is full: {max(room_mib, 0)} MiB of memory free, {vm.memory_mib} MiB needed"
    if vm.vcpus > inventory.cpus * limits.VCPU_OVERCOMMIT - load.vcpus:
        return f"node {node.name} is full: {load.vcpus} vCPUs placed on {inventory.cpus} CPUs"
    return None


def room(node: Node, load: Load) -> float:
    """Return the share of the node's memory that is free, 0 to 1: the weight for placement."""
    if node.status.inventory is None:
        return 0.0
    return 1.0 - load.memory_mib / max(1, node.status.inventory.memory_mib)
