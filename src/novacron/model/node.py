"""What a node is: a host that runs an agent."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from novacron.model import limits
from novacron.model.constraints import Labels, Overcommit, Taints
from novacron.model.cpu import CpuModel
from novacron.model.hardware import HostHardware, PciAddress
from novacron.model.vm import NAME_PATTERN, Firmware
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
    cpu: CpuModel | None = None
    """All that guests' processors can have here."""
    machines: tuple[str, ...] = ()
    """Versioned QEMU machine types that it can run."""
    hardware: HostHardware | None = None
    networks: bool = False
    """It can have networks of VMs."""
    bridges: tuple[str, ...] = ()
    """Of this host, for VMs."""
    wireguard: str = ""
    """Its public key, if networks can be encrypted there."""
    tunnel_mtu: int = 1500
    """What the way to other nodes carries, in bytes."""


class NodeSpec(msgspec.Struct, frozen=True):
    cordoned: bool = False
    draining: bool = False
    site: str = "default"
    """Where it stands: links between sites have budgets."""
    migration_rate_bytes_per_s: int | None = None
    """What all migrations from and to the node may use together."""
    migrations_at_once: Annotated[int, Meta(ge=1, le=limits.MIGRATIONS_PER_NODE_MAX)] | None = None
    """How many may be under way; None: as its processors allow, one for every two of them, and two at most."""
    zone: str = "default"
    """What of its site fails with it, such as a rack."""
    labels: Labels = {}
    taints: Taints = ()
    vcpu_overcommit: Overcommit = limits.VCPU_OVERCOMMIT_DEFAULT
    """vCPUs placed for each logical CPU."""
    passthrough: Annotated[tuple[PciAddress, ...], Meta(max_length=limits.PASSTHROUGH_MAX)] = ()
    """PCI devices that may be handed to guests."""
    memory_overcommit: Overcommit = 1.0
    """Memory placed for each MiB that VMs may have: more than 1 needs swap, or guests that do not use theirs."""


class NodeStatus(msgspec.Struct, frozen=True):
    ready: bool = False
    reason: str = "has not connected yet"
    inventory: Inventory | None = None
    clock_skew_s: float = 0.0
    """By how much its clock is ahead of the control plane's; less than half a second counts as none."""


class Node(msgspec.Struct, frozen=True):
    name: str
    spec: NodeSpec
    status: NodeStatus
    revision: int
    created_at: datetime

    @property
    def migrations_at_once(self) -> int:
        """Return how many migrations may touch the node at once."""
        if self.spec.migrations_at_once is not None:
            return self.spec.migrations_at_once
        cpus = self.status.inventory.cpus if self.status.inventory else 1
        return min(limits.MIGRATIONS_PER_NODE_DEFAULT_MAX, max(1, cpus // limits.CPUS_PER_MIGRATION))


class Load(msgspec.Struct, frozen=True):
    """What is placed on a node, VMs on their way in included."""

    vcpus: int = 0
    memory_mib: int = 0


def holds(node: Node, image: str) -> bool:
    """Say whether a node holds an image of this name."""
    inventory = node.status.inventory
    return inventory is not None and any(held.name == image for held in inventory.images)
