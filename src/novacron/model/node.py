"""Nodes: hosts that run an agent."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta

from novacron.model import limits
from novacron.model.condition import NodeCondition, PeersSeen
from novacron.model.constraints import Labels, Overcommit, Taints
from novacron.model.cpu import CpuModel
from novacron.model.devices import CpuPolicy, HugePages
from novacron.model.hardware import HostHardware, PciAddress
from novacron.model.metadata import Metadata
from novacron.model.names import NAME_PATTERN
from novacron.model.vm import Firmware
from novacron.model.volume import Pool

NodeName = Annotated[str, Meta(pattern=NAME_PATTERN, max_length=limits.NAME_LENGTH_MAX)]


HugeMib = Annotated[int, Meta(ge=0, le=limits.NODE_MEMORY_MIB_MAX)]


class AcceleratorKind(StrEnum):
    """What runs the guests: the processor (KVM), or an emulator (TCG)."""

    KVM = "kvm"
    TCG = "tcg"


class Accelerator(msgspec.Struct, frozen=True):
    """The accelerator that runs guest code on this host, and why not a faster one."""

    kind: AcceleratorKind
    reason: str


class ImageInfo(msgspec.Struct, frozen=True):
    """An image on one node. ``digest`` is the SHA-256 of its manifest."""

    name: Annotated[str, Meta(pattern=NAME_PATTERN, max_length=limits.NAME_LENGTH_MAX)]
    """Also the name of a directory, on nodes that get a copy."""
    digest: str
    size_bytes: int
    kind: str
    description: str = ""
    disk_bytes: int = 0
    """Size of the disk in the image; 0: it has none."""


SITE_DEFAULT = "default"


class Inventory(msgspec.Struct, frozen=True):
    """What a host offers, as its agent reports it when it connects."""

    cpus: Annotated[int, Meta(ge=1, le=limits.NODE_CPUS_MAX)]
    memory_mib: Annotated[int, Meta(ge=1, le=limits.NODE_MEMORY_MIB_MAX)]
    architecture: str
    kernel: str
    qemu_version: str
    accelerator: Accelerator
    images: tuple[ImageInfo, ...]
    bridge: str | None
    dwcp_endpoint: str
    agent_version: str
    missing: tuple[str, ...] = ()
    """What this host lacks, one sentence each."""
    firmware: tuple[Firmware, ...] = (Firmware.BIOS,)
    tpm: bool = False
    pools: tuple[Pool, ...] = ()
    """Storage pools for volumes."""
    cpu: CpuModel | None = None
    """The processor with all features that guests can have here."""
    machines: tuple[str, ...] = ()
    """Versioned QEMU machine types that this host can run."""
    hardware: HostHardware | None = None
    networks: bool = False
    """This host can take part in networks of VMs."""
    bridges: tuple[str, ...] = ()
    """Bridges of this host that VMs may use."""
    wireguard: str = ""
    """This host's public key; empty: it can't encrypt networks."""
    tunnel_mtu: int = 1500
    """MTU of the path to other nodes, in bytes."""
    plugs_nics: bool = False
    """It can take guests whose interfaces came or went while they ran."""
    addresses: tuple[str, ...] = ()
    """IPv4 addresses of the host, which guests can't reach through their gateway."""
    huge_2m_mib: HugeMib = 0
    """Memory that is set aside as huge pages of 2 MiB, in use or not."""
    huge_1g_mib: HugeMib = 0
    vlan_bridges: tuple[str, ...] | None = None
    """Those of ``bridges`` that filter VLANs. None: agents of earlier versions don't say."""


class Capacity(msgspec.Struct, frozen=True):
    """CPUs and memory of a node."""

    cpus: int
    memory_mib: int

    @classmethod
    def of(cls, inventory: Inventory) -> Capacity:
        return cls(inventory.cpus, inventory.memory_mib)


class NodeSpec(msgspec.Struct, frozen=True):
    """What operators have set on a node."""

    cordoned: bool = False
    accepted: bool = True
    """The host was accepted by an administrator. One that is not accepted is cordoned, and its images, pools and
    networks do not count."""
    capacity: Capacity | None = None
    """The most that the node's CPUs and memory count for, whatever its agent reports: what was reported when it was
    accepted. None: it has not reported yet."""
    draining: bool = False
    site: str = SITE_DEFAULT
    """The site where the node is. Links between sites have budgets."""
    migration_rate_bytes_per_s: int | None = None
    """The rate that all migrations from and to the node share; None: no limit."""
    migrations_at_once: Annotated[int, Meta(ge=1, le=limits.MIGRATIONS_PER_NODE_MAX)] | None = None
    """Migrations from and to the node at the same time; None: one for every two CPUs, at most two."""
    zone: str = "default"
    """The part of its site that fails together, such as a rack."""
    labels: Labels = {}
    taints: Taints = ()
    vcpu_overcommit: Overcommit = limits.VCPU_OVERCOMMIT_DEFAULT
    """vCPUs that may be placed for each logical CPU."""
    passthrough: Annotated[tuple[PciAddress, ...], Meta(max_length=limits.PASSTHROUGH_MAX)] = ()
    """PCI devices that may be passed through to guests."""
    memory_overcommit: Overcommit = 1.0
    """Memory that may be placed for each MiB that the node has for VMs. More than 1 needs swap, or idle guests."""


class NodeStatus(msgspec.Struct, frozen=True):
    """The status of a node."""

    ready: bool = False
    reason: str = "has not connected yet"
    inventory: Inventory | None = None
    """What counts of the agent's report."""
    reported: Capacity | None = None
    """What the agent reports, where that is more than was accepted."""
    foreign_images: tuple[str, ...] = ()
    """Names of images on the node that differ from the imported ones; they are ignored."""
    clock_skew_s: float = 0.0
    """How far the node's clock is ahead of the control plane's. Less than half a second counts as 0."""
    certificate_ends_at_s: float = 0.0
    """When the certificate of the node's agent ends, in seconds since 1970; 0: not known yet."""
    certificate_authority: str = ""
    """Which CA has issued that certificate: SHA-256 of its public key."""
    trusted_authorities: tuple[str, ...] = ()
    """Which CAs the agent trusts."""
    unreconciled_vms: int = 0
    """VMs of which the node knows more than the database."""
    peers: PeersSeen | None = None
    """Which of the nodes that it watches answer it, as its agent reported last."""
    conditions: tuple[NodeCondition, ...] = ()
    """The node's conditions."""


class Node(Metadata, frozen=True):
    """A host that runs VMs, as stored and as the API shows it."""

    name: str
    spec: NodeSpec
    status: NodeStatus
    revision: int
    created_at: datetime

    @property
    def migrations_at_once(self) -> int:
        """Return how many migrations from and to the node may run at the same time."""
        if self.spec.migrations_at_once is not None:
            return self.spec.migrations_at_once
        cpus = self.status.inventory.cpus if self.status.inventory else 1
        return min(limits.MIGRATIONS_PER_NODE_DEFAULT_MAX, max(1, cpus // limits.CPUS_PER_MIGRATION))


class RoomTaken(Protocol):
    """What of a VM takes room on a node. A ``VmSpec`` has it."""

    @property
    def vcpus(self) -> int: ...
    @property
    def memory_mib(self) -> int: ...
    @property
    def cpu_policy(self) -> CpuPolicy: ...
    @property
    def hugepages(self) -> HugePages: ...


def ordinary_memory_mib(vm: RoomTaken) -> int:
    """Return how much memory a VM takes from its node, beside the huge pages that the node has set aside."""
    return vm.memory_mib if vm.hugepages is HugePages.NONE else 0


class Load(msgspec.Struct, frozen=True):
    """The sum of the VMs placed on a node, including VMs that migrate to it."""

    vcpus: int = 0
    memory_mib: int = 0
    """Without that which consists of huge pages."""
    dedicated_vcpus: int = 0
    """Those of ``vcpus`` that have a CPU for themselves."""
    huge_2m_mib: int = 0
    huge_1g_mib: int = 0

    def changed(self, vm: RoomTaken, by: int) -> Load:
        """Return the load with a VM more (``by`` is 1), or less (-1)."""
        more, huge = by * vm.memory_mib, vm.hugepages
        return Load(
            self.vcpus + by * vm.vcpus,
            self.memory_mib + by * ordinary_memory_mib(vm),
            self.dedicated_vcpus + (by * vm.vcpus if vm.cpu_policy is CpuPolicy.DEDICATED else 0),
            self.huge_2m_mib + (more if huge is HugePages.SIZE_2M else 0),
            self.huge_1g_mib + (more if huge is HugePages.SIZE_1G else 0),
        )


def counted(reported: Inventory, spec: NodeSpec) -> Inventory:
    """Return what of an agent's report counts: no more CPUs and memory than were accepted, and no images, pools or
    networks of a host that was not accepted as a node."""
    if not spec.accepted:
        return msgspec.structs.replace(reported, images=(), pools=(), networks=False, wireguard="", bridges=())
    if spec.capacity is None:
        return reported
    cpus, memory_mib = spec.capacity.cpus, spec.capacity.memory_mib
    return msgspec.structs.replace(
        reported, cpus=min(reported.cpus, cpus), memory_mib=min(reported.memory_mib, memory_mib),
        huge_2m_mib=min(reported.huge_2m_mib, memory_mib), huge_1g_mib=min(reported.huge_1g_mib, memory_mib),
    )  # fmt: skip


def holds(node: Node, image: str) -> bool:
    """Say whether a node holds an image of this name."""
    inventory = node.status.inventory
    return inventory is not None and any(held.name == image for held in inventory.images)
