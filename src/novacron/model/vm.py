"""What a virtual machine is: its spec, its status and its states."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from novacron.model import limits
from novacron.model.constraints import Placement
from novacron.model.cpu import FLAGS_MAX, CpuFlag, CpuKind, CpuModel
from novacron.model.errors import InvalidInput
from novacron.model.hardware import DEVICES_PER_VM_MAX, PciId
from novacron.model.network import NicSpec
from novacron.model.project import DEFAULT

NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
ID_PATTERN = re.compile(r"^vm-[a-z2-7]{16}$")

Name = Annotated[
    str,
    Meta(
        pattern=NAME_PATTERN,
        max_length=limits.NAME_LENGTH_MAX,
        description="1 to 63 lower-case letters, digits and hyphens; starts and ends with a letter or digit",
    ),
]
Vcpus = Annotated[int, Meta(ge=1, le=limits.VCPUS_MAX)]
MemoryMib = Annotated[int, Meta(ge=limits.MEMORY_MIB_MIN, le=limits.MEMORY_MIB_MAX)]
DiskMib = Annotated[int, Meta(ge=1, le=limits.DISK_MIB_MAX)]
Iops = Annotated[int, Meta(ge=limits.IOPS_MIN, le=limits.IOPS_MAX)]
BytesPerS = Annotated[int, Meta(ge=limits.DISK_BYTES_PER_S_MIN, le=limits.DISK_BYTES_PER_S_MAX)]
StartOrder = Annotated[int, Meta(ge=0, le=limits.START_ORDER_MAX)]
HaPriority = Annotated[int, Meta(ge=0, le=limits.HA_PRIORITY_MAX)]
StopTimeout = Annotated[int, Meta(ge=0, le=limits.STOP_TIMEOUT_S_MAX)]


class Power(StrEnum):
    """What the user wants the VM to be."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class VmState(StrEnum):
    """What the VM was last seen to be."""

    PENDING = "pending"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    ABSENT = "absent"


class Restart(StrEnum):
    """When a VM that ended without being asked to is started again; each time soon after the last, later."""

    ALWAYS = "always"
    """... whatever it ended by, also when its guest powered off."""
    ON_FAILURE = "on-failure"
    """... when it crashed. A guest that powered itself off stays off."""
    NEVER = "never"


class Firmware(StrEnum):
    """What the guest boots with."""

    BIOS = "bios"
    UEFI = "uefi"
    UEFI_SECURE = "uefi-secure"
    """... which starts only what is signed: its variables hold Microsoft's keys."""


class Display(StrEnum):
    """What the guest has for a display."""

    VGA = "vga"
    NONE = "none"


# How to add a field that users set on a VM:
#   1. Add it to VmFields, with its type, default and a docstring. VmSpec (what is stored) and the API's CreateVm then
#      have it, and so do the OpenAPI document and whatever reads the list from it.
#   2. If it can change later, add it to VmChanges too, with the same type.
#   3. It is stored inside ``vms.spec`` (JSON; an old row has the default). Only a field that queries need as a column
#      of its own takes a schema migration (store/schema/versions).
#   4. Let the agent act on it (agent/vm), and check combinations that make no sense in store/sizes.py.


class VmFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The fields of a VM that its user sets when creating it: the one list of them."""

    image: Name
    vcpus: Vcpus = 1
    memory_mib: MemoryMib = 256
    vcpus_max: Vcpus | None = None
    """Limit to which the virtual CPUs can grow while the VM runs; None: they cannot."""
    memory_max_mib: MemoryMib | None = None
    """Limit to which the memory can grow while the VM runs; None: it cannot."""
    address: str | None = None
    """IPv4 address with prefix length for the guest's interface, for example ``10.77.0.10/24``."""
    power: Power = Power.RUNNING
    restart: Restart = Restart.ON_FAILURE
    start_order: StartOrder = limits.START_ORDER_DEFAULT
    """VMs that start at the same time on a node start in this order, lowest first."""
    protected: bool = False
    """The VM cannot be deleted while this is set."""
    display: Display = Display.VGA
    firmware: Firmware = Firmware.BIOS
    tpm: bool = False
    """The VM has a TPM 2.0."""
    disk_mib: DiskMib | None = None
    """Size of the disk; None: the size of the image's. A disk only grows."""
    disk_iops: Iops | None = None
    """Limit of reads and writes a second on the VM's disk."""
    disk_bytes_per_s: BytesPerS | None = None
    """Limit of bytes a second read from and written to the VM's disk."""
    placement: Placement = msgspec.field(default_factory=Placement)
    ha: bool = False
    """Restart the VM on another node when its node fails. From its next start on, it stops when its node's lease
    ends."""
    ha_priority: HaPriority = limits.HA_PRIORITY_DEFAULT
    """After a node failed, its VMs restart in this order, highest first."""
    own_disk: bool = True
    """The VM has a disk made from its image; otherwise it boots from a volume, or from its image's kernel."""
    cpu: CpuKind = CpuKind.BASELINE
    cpu_flags: Annotated[tuple[CpuFlag, ...], Meta(max_length=FLAGS_MAX)] = ()
    """CPU features beyond those of ``cpu``, by QEMU's names. The VM only runs on nodes that have them."""
    devices: Annotated[tuple[PciId, ...], Meta(max_length=DEVICES_PER_VM_MAX)] = ()
    """PCI devices of the node, by vendor and device, passed through while the VM runs. Such a VM cannot migrate."""
    nics: Annotated[tuple[NicSpec, ...], Meta(max_length=limits.NICS_PER_VM_MAX)] = ()
    """Network interfaces. Without any, the VM has one on its node's bridge, or QEMU's user-mode network where the node
    has no bridge."""


class VmChanges(msgspec.Struct, forbid_unknown_fields=True):
    """The fields of ``VmFields`` that can change later; what is left out stays as it is."""

    vcpus: Vcpus | UnsetType = UNSET
    memory_mib: MemoryMib | UnsetType = UNSET
    vcpus_max: Vcpus | UnsetType | None = UNSET
    memory_max_mib: MemoryMib | UnsetType | None = UNSET
    restart: Restart | UnsetType = UNSET
    start_order: StartOrder | UnsetType = UNSET
    protected: bool | UnsetType = UNSET
    disk_mib: DiskMib | UnsetType = UNSET
    disk_iops: Iops | UnsetType | None = UNSET
    disk_bytes_per_s: BytesPerS | UnsetType | None = UNSET
    placement: Placement | UnsetType = UNSET
    """Takes effect the next time the VM moves."""
    ha: bool | UnsetType = UNSET
    ha_priority: HaPriority | UnsetType = UNSET


class VmSpec(VmFields, frozen=True):
    """What the user asked for. Only the user changes it."""

    starts: int = 0
    """How often a start was requested: a guest that powered itself off stays off until this grows."""
    reboots: int = 0
    """How often a reboot was requested; the agent has done ``status.reboots`` of them."""
    resets: int = 0
    """How often a reset was requested; the agent has done ``status.resets`` of them."""
    stop_timeout_s: StopTimeout = limits.STOP_TIMEOUT_S_DEFAULT
    """How long the guest may take to power off before it is forced to; 0 forces at once."""

    def disk_bytes(self, of_image: int) -> int:
        """Return the size of the VM's disk, given that of its image's disk; 0 for none."""
        return max(of_image, (self.disk_mib or 0) << 20) if of_image and self.own_disk else 0


class GuestHardware(msgspec.Struct, frozen=True):
    """What a guest has, and how it came by it: a QEMU to which it moves has to have the same."""

    vcpus: int
    memory_mib: int
    """With which it was started: also what depends on their number, such as queues of devices, is then settled."""
    vcpus_added: int = 0
    dimms_mib: tuple[int, ...] = ()
    """What it was given while it ran, in order."""
    balloon: bool = False

    @property
    def vcpus_in_all(self) -> int:
        return self.vcpus + self.vcpus_added

    @property
    def memory_in_all_mib(self) -> int:
        return self.memory_mib + sum(self.dimms_mib)


class VmStatus(msgspec.Struct, frozen=True):
    """What the owning node reported last."""

    state: VmState = VmState.PENDING
    reason: str = ""
    accelerator: str = ""
    machine: str = ""
    """Versioned QEMU machine type that the VM was started with; replayed when it moves."""
    pid: int = 0
    reboots: int = 0
    halted_at_start: int | None = None
    """``spec.starts`` when the guest powered itself off, if it has: it stays off until it is started again."""
    crashes: int = 0
    resets: int = 0
    guest: Guest | None = None
    """None: no guest agent answers."""
    hardware: GuestHardware | None = None
    """None: it does not run."""
    cpu: CpuModel | None = None
    """Its processor, since its first start; replayed when it moves or starts."""
    kept: bool = False
    """It ends with its node's lease, so it may be started elsewhere after that."""
    record_lost: bool = False
    """What its node remembered of it is damaged, so the node leaves it as it is. To start, stop or delete it begins the
    next epoch, which the node obeys again."""


class Guest(msgspec.Struct, frozen=True):
    """What the guest says of itself, through its agent. It may not be true."""

    hostname: str = ""
    addresses: tuple[str, ...] = ()


class CloneOf(msgspec.Struct, frozen=True):
    """From which VM, on the same node, a clone's disk is still to be made."""

    source: str
    source_name: str
    linked: bool
    """It shares what its source had written; else it has a copy."""


class Vm(msgspec.Struct, frozen=True):
    """A VM as stored and as the API shows it."""

    id: str
    name: str
    spec: VmSpec
    status: VmStatus
    node: str | None
    epoch: int
    migration: str | None
    deleting: bool
    snapshot: str | None
    """The snapshot that it made, or went back to, last."""
    clone_of: CloneOf | None
    """None: it has its disk."""
    revision: int
    created_at: datetime
    project: str = DEFAULT


class VmAction(StrEnum):
    """What a user can do to a VM that exists."""

    START = "start"
    STOP = "stop"
    PAUSE = "pause"
    RESUME = "resume"
    REBOOT = "reboot"
    RESET = "reset"
    MIGRATE = "migrate"
    CONFIGURE = "configure"
    SNAPSHOT = "snapshot"
    CLONE = "clone"
    EXPORT = "export"
    DELETE = "delete"


ALLOWED_IN: dict[VmAction, frozenset[VmState]] = {
    VmAction.START: frozenset({VmState.STOPPED, VmState.FAILED, VmState.STOPPING, VmState.PENDING}),
    VmAction.STOP: frozenset(VmState) - {VmState.ABSENT},
    VmAction.PAUSE: frozenset({VmState.RUNNING, VmState.PAUSED, VmState.STARTING}),
    VmAction.RESUME: frozenset({VmState.PAUSED, VmState.RUNNING}),
    VmAction.REBOOT: frozenset({VmState.RUNNING}),
    VmAction.RESET: frozenset({VmState.RUNNING}),
    VmAction.MIGRATE: frozenset({VmState.RUNNING, VmState.PAUSED, VmState.STOPPED, VmState.FAILED}),
    VmAction.CONFIGURE: frozenset(VmState) - {VmState.ABSENT},
    VmAction.SNAPSHOT: frozenset({VmState.RUNNING, VmState.PAUSED, VmState.STOPPED, VmState.FAILED}),
    VmAction.CLONE: frozenset({VmState.RUNNING, VmState.PAUSED, VmState.STOPPED, VmState.FAILED}),
    VmAction.EXPORT: frozenset({VmState.RUNNING, VmState.PAUSED, VmState.STOPPED, VmState.FAILED}),
    VmAction.DELETE: frozenset(VmState),
}
"""The observed states in which each action makes sense."""

BEGIN_ANEW = frozenset({VmAction.START, VmAction.STOP, VmAction.DELETE})
"""Actions with which the VM's node, if it has lost its record of the VM, may go on with it."""

BARRED_BY_MIGRATION = frozenset(VmAction) - {VmAction.STOP}
"""Actions refused while the VM is being migrated."""


DISTURB_CLONING = frozenset({VmAction.MIGRATE, VmAction.SNAPSHOT, VmAction.DELETE})
"""Actions that change where a VM's disk is, or what is in it."""


def vm_id(random: bytes) -> str:
    """Return a new VM id from 10 random bytes."""
    if len(random) != 10:
        raise ValueError(f"a VM id takes 10 random bytes, got {len(random)}")
    return "vm-" + base64.b32encode(random).decode().lower()


def mac_address(id: str, nic: int = 0) -> str:
    """Return the MAC address of a VM's interface: QEMU's prefix and 24 bits that follow from the VM's id."""
    digest = hashlib.sha256(f"{id}/{nic}".encode() if nic else id.encode()).digest()
    return f"52:54:00:{digest[0]:02x}:{digest[1]:02x}:{digest[2]:02x}"


def tap_name(id: str, nic: int = 0) -> str:
    """Return the name of the tap of a VM's interface, within Linux' 15 characters."""
    return "nv" + id.removeprefix("vm-")[:12] + (str(nic) if nic else "")


def check_name(name: str, field: str = "name") -> str:
    """Return ``name``, or raise InvalidInput when it is no VM name or looks like an id."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidInput(
            f"{name!r} is not a valid name",
            field=field,
            hint="use 1 to 63 lower-case letters, digits and hyphens",
        )
    if ID_PATTERN.match(name):
        raise InvalidInput(f"{name!r} has the form of an id", field=field, hint="choose another name")
    return name


def check_address(address: str) -> str:
    """Return the address in canonical form, or raise InvalidInput."""
    try:
        parsed = ipaddress.IPv4Interface(address)
    except ValueError:
        raise InvalidInput(
            f"{address!r} is not an IPv4 address with a prefix length",
            field="address",
            hint="write it like 10.77.0.10/24",
        ) from None
    if "/" not in address:
        raise InvalidInput(f"{address!r} lacks its prefix length", field="address", hint=f"write {address}/24")
    return str(parsed)
