"""What a virtual machine is: its spec, its status and its states."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from novacron.model import ipv6, limits
from novacron.model.backup_policy import BackupSummary
from novacron.model.backup_source import BackupSource
from novacron.model.constraints import Placement
from novacron.model.cpu import FLAGS_MAX, CpuFlag, CpuKind, CpuModel
from novacron.model.devices import (
    BootDevice,
    BootOrder,
    Cdrom,
    CpuPolicy,
    DiskBus,
    HugePages,
    KernelArguments,
    NicModel,
    NumaNodes,
    Os,
    SerialPorts,
    SmbiosText,
    Usb,
)
from novacron.model.encryption import KeyId
from novacron.model.errors import InvalidInput
from novacron.model.guest_hardware import GuestHardware
from novacron.model.guest_reports import Guest, RestoreProgress
from novacron.model.hardware import DEVICES_PER_VM_MAX, PciId
from novacron.model.mac import MacAddress
from novacron.model.mac import from_id as mac_from_id
from novacron.model.metadata import Metadata
from novacron.model.names import NAME_PATTERN, Name
from novacron.model.network import NicSpec
from novacron.model.project import DEFAULT
from novacron.model.replica_source import ReplicaSource
from novacron.model.scheduled_move import ScheduledMove

ID_PATTERN = re.compile(r"^vm-[a-z2-7]{16}\Z")

Vcpus = Annotated[int, Meta(ge=1, le=limits.VCPUS_MAX)]
MemoryMib = Annotated[int, Meta(ge=limits.MEMORY_MIB_MIN, le=limits.MEMORY_MIB_MAX)]
DiskMib = Annotated[int, Meta(ge=1, le=limits.DISK_MIB_MAX)]
Iops = Annotated[int, Meta(ge=limits.IOPS_MIN, le=limits.IOPS_MAX)]
BytesPerS = Annotated[int, Meta(ge=limits.DISK_BYTES_PER_S_MIN, le=limits.DISK_BYTES_PER_S_MAX)]
StartOrder = Annotated[int, Meta(ge=0, le=limits.START_ORDER_MAX)]
StartDelay = Annotated[int, Meta(ge=0, le=limits.START_DELAY_S_MAX)]
HaPriority = Annotated[int, Meta(ge=0, le=limits.HA_PRIORITY_MAX)]
StopTimeout = Annotated[int, Meta(ge=0, le=limits.STOP_TIMEOUT_S_MAX)]
CpuFlags = Annotated[tuple[CpuFlag, ...], Meta(max_length=FLAGS_MAX)]
ChosenMachine = Annotated[
    str,
    Meta(
        pattern=r"^pc-(i440fx|q35)-[0-9]{1,2}\.[0-9]{1,2}\Z",
        description="pc-i440fx or pc-q35 with a version of QEMU, for example pc-q35-7.2",
    ),
]


class Power(StrEnum):
    """The power state that the user wants the VM to have."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class VmState(StrEnum):
    """The state in which the VM was last seen."""

    PENDING = "pending"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    UNKNOWN = "unknown"
    """Its QEMU runs, or may, and its node can't tell how the guest is: nothing may be done that could run it twice."""
    ABSENT = "absent"


class Restart(StrEnum):
    """When to restart a VM that stopped without a request. Restarts in quick succession wait longer each time."""

    ALWAYS = "always"
    """After a crash, and after the guest powered off."""
    ON_FAILURE = "on-failure"
    """After a crash. A guest that powered itself off stays off."""
    NEVER = "never"


class Firmware(StrEnum):
    """The firmware with which the guest boots."""

    BIOS = "bios"
    UEFI = "uefi"
    UEFI_SECURE = "uefi-secure"
    """UEFI with Secure Boot, which starts only signed boot loaders. Microsoft's keys are enrolled."""


class Display(StrEnum):
    """The guest's graphics card."""

    VGA = "vga"
    NONE = "none"


BLANK_IMAGE = "blank"
"""The image with an empty disk, which every node has."""
ISO, BOOT_FILE = "iso", "boot-file"
"""Kinds of images that are no VM's disk: what is in a CD-ROM drive, and a kernel or initial RAM disk."""

# How to add a field that users set on a VM: CONTRIBUTING.md, "A field of a VM".

Cdroms = Annotated[tuple[Cdrom, ...], Meta(max_length=limits.CDROMS_PER_VM_MAX)]
Nics = Annotated[tuple[NicSpec, ...], Meta(max_length=limits.NICS_PER_VM_MAX)]


class VmFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The fields of a VM that its user sets when creating it: the one list of them."""

    image: Name = BLANK_IMAGE
    """Without one, the VM's disk is empty, and it has one only if ``disk_mib`` is given."""
    vcpus: Vcpus = 1
    memory_mib: MemoryMib = 256
    vcpus_max: Vcpus | None = None
    """The most virtual CPUs that the VM can have while it runs; None: their number can't grow."""
    memory_max_mib: MemoryMib | None = None
    """The most memory that the VM can have while it runs; None: it can't grow."""
    address: str | None = None
    """IPv4 address with prefix length for the guest's interface, for example ``10.77.0.10/24``."""
    mac: MacAddress | None = None
    """MAC address of the one interface of a VM without ``nics``; None: a free one is assigned when it is created."""
    power: Power = Power.RUNNING
    restart: Restart = Restart.ON_FAILURE
    start_order: StartOrder = limits.START_ORDER_DEFAULT
    """VMs that start at the same time on a node start in this order, lowest first."""
    start_delay_s: StartDelay = 0
    """How long after this VM's start its node starts no VM of its project with a higher ``start_order``."""
    protected: bool = False
    """While this is set, the VM can't be deleted."""
    display: Display = Display.VGA
    firmware: Firmware = Firmware.BIOS
    tpm: bool = False
    """The VM has a TPM 2.0."""
    disk_mib: DiskMib | None = None
    """Size of the disk; None: that of the image's disk. A disk can grow, but not shrink."""
    disk_iops: Iops | None = None
    """Limit of the VM's disk: reads and writes a second, together."""
    disk_bytes_per_s: BytesPerS | None = None
    """Limit of the VM's disk: bytes read and written a second, together."""
    placement: Placement = msgspec.field(default_factory=Placement)
    ha: bool = False
    """High availability: restart the VM on another node when its node fails. From its next start on, the VM stops
    when its node's lease expires."""
    ha_priority: HaPriority = limits.HA_PRIORITY_DEFAULT
    """After a node has failed, its VMs restart in this order, highest first."""
    own_disk: bool = True
    """The VM has a disk made from its image. Without one it boots from a volume, or from its image's kernel."""
    cpu: CpuKind = CpuKind.BASELINE
    cpu_flags: CpuFlags = ()
    """CPU features beyond those of ``cpu``, by QEMU's names. The VM runs only on nodes that have them."""
    machine: ChosenMachine | None = None
    """Versioned machine type, for example ``pc-q35-7.2``; None: the newest one of its node that suits ``firmware``, at
    its first start, and kept."""
    devices: Annotated[tuple[PciId, ...], Meta(max_length=DEVICES_PER_VM_MAX)] = ()
    """PCI devices of the node, by vendor and device id, passed through to the guest. Such a VM can't migrate while it
    runs."""
    nics: Nics = ()
    """Network interfaces. Without any, the VM has one on its node's bridge, or QEMU's user-mode network where the node
    has no bridge."""
    os: Os = Os.OTHER
    disk_bus: DiskBus = DiskBus.VIRTIO
    """The controller of the VM's own disk."""
    disk_boot_order: BootOrder | None = limits.DISK_BOOT_ORDER
    """Of the VM's own disk: the firmware tries the lowest number first; null: never."""
    nic_model: NicModel = NicModel.VIRTIO
    """The model of its network interfaces."""
    network_boot_order: BootOrder | None = None
    """Of its network interfaces, over PXE; null: it does not boot from the network."""
    cdroms: Cdroms = ()
    boot_once: BootDevice | None = None
    """From which kind of device its next start boots, whatever the boot order says. Reboots of the guest, and later
    starts, follow the boot order again."""
    kernel: Name | None = None
    """Image of kind boot-file: the kernel that the VM boots instead of its image's, or its disk's boot loader."""
    initrd: Name | None = None
    """Image of kind boot-file: the initial RAM disk of ``kernel``."""
    kernel_arguments: KernelArguments = ""
    smbios_manufacturer: SmbiosText = ""
    """SMBIOS manufacturer shown to the guest; empty: QEMU's default."""
    smbios_serial: SmbiosText = ""
    smbios_asset_tag: SmbiosText = ""
    serial_ports: SerialPorts = 0
    """Serial ports beyond the console's, which the guest has as COM2 to COM4 (``ttyS1`` to ``ttyS3``)."""
    usb: Usb = ()
    """USB devices, one of each kind at most, on a USB 3 controller (xHCI)."""
    cpu_policy: CpuPolicy = CpuPolicy.SHARED
    hugepages: HugePages = HugePages.NONE
    """Its memory consists of huge pages that its node has set aside."""
    numa_nodes: NumaNodes = 1
    """Into how many NUMA nodes its virtual CPUs and its memory are split, evenly."""

    @property
    def media(self) -> dict[str, str]:
        """Return the images that the VM uses beside its own, each with the kind that it must be of."""
        isos = {drive.iso: ISO for drive in self.cdroms if drive.iso is not None}
        return isos | {name: BOOT_FILE for name in (self.kernel, self.initrd) if name is not None}


class VmChanges(msgspec.Struct, forbid_unknown_fields=True):
    """The fields of ``VmFields`` that can change later. An omitted field keeps its value."""

    vcpus: Vcpus | UnsetType = UNSET
    memory_mib: MemoryMib | UnsetType = UNSET
    vcpus_max: Vcpus | UnsetType | None = UNSET
    memory_max_mib: MemoryMib | UnsetType | None = UNSET
    display: Display | UnsetType = UNSET
    firmware: Firmware | UnsetType = UNSET
    tpm: bool | UnsetType = UNSET
    restart: Restart | UnsetType = UNSET
    start_order: StartOrder | UnsetType = UNSET
    start_delay_s: StartDelay | UnsetType = UNSET
    protected: bool | UnsetType = UNSET
    disk_mib: DiskMib | UnsetType = UNSET
    disk_iops: Iops | UnsetType | None = UNSET
    disk_bytes_per_s: BytesPerS | UnsetType | None = UNSET
    placement: Placement | UnsetType = UNSET
    """Takes effect the next time the VM moves."""
    ha: bool | UnsetType = UNSET
    ha_priority: HaPriority | UnsetType = UNSET
    cdroms: Cdroms | UnsetType = UNSET
    """All drives. What is in them can change while the VM runs; how many there are, and ``boot_order``, while it is
    off."""
    boot_once: BootDevice | UnsetType | None = UNSET
    os: Os | UnsetType = UNSET
    disk_bus: DiskBus | UnsetType = UNSET
    disk_boot_order: BootOrder | UnsetType | None = UNSET
    nic_model: NicModel | UnsetType = UNSET
    network_boot_order: BootOrder | UnsetType | None = UNSET
    kernel: Name | UnsetType | None = UNSET
    initrd: Name | UnsetType | None = UNSET
    kernel_arguments: KernelArguments | UnsetType = UNSET
    smbios_manufacturer: SmbiosText | UnsetType = UNSET
    smbios_serial: SmbiosText | UnsetType = UNSET
    smbios_asset_tag: SmbiosText | UnsetType = UNSET
    serial_ports: SerialPorts | UnsetType = UNSET
    usb: Usb | UnsetType = UNSET
    cpu_policy: CpuPolicy | UnsetType = UNSET
    hugepages: HugePages | UnsetType = UNSET
    numa_nodes: NumaNodes | UnsetType = UNSET
    cpu: CpuKind | UnsetType = UNSET
    """While the VM is off, as ``cpu_flags`` and ``machine`` are: each of them, also with its present value, lets the
    next start choose processor and machine type anew."""
    cpu_flags: CpuFlags | UnsetType = UNSET
    machine: ChosenMachine | UnsetType | None = UNSET


class VmSpec(VmFields, frozen=True):
    """What the user asked for. Only the user changes it."""

    starts: int = 0
    """How many starts were requested. A guest that powered itself off stays off until this grows."""
    reboots: int = 0
    """How many reboots were requested; the agent has performed ``status.reboots`` of them."""
    resets: int = 0
    """How many resets were requested; the agent has performed ``status.resets`` of them."""
    hardware_renewals: int = 0
    """How many times processor and machine type were to be chosen anew; ``status.hardware_renewals`` is how many of
    these a start has followed. Until they are equal, the status's values of both are not binding."""
    stop_timeout_s: StopTimeout = limits.STOP_TIMEOUT_S_DEFAULT
    """How long the guest may take to power off before it is forced off; 0: force it off at once."""
    balloon_mib: MemoryMib | None = None
    """How much of its memory the guest is to have while it runs, so the rest is given back; None: all. It still counts
    with all of it, which a guest can take again; at its next start it has this much."""
    encryption_key: KeyId = ""
    """The project's key with which its disk is encrypted, as the project had it when the VM was created; empty: it is
    not."""
    boot_once_at: int = 0
    """The value of ``starts`` to which ``boot_once`` applies."""

    connected: bool = True
    """False: the VM's only interface is disconnected."""
    media_digests: dict[str, str] = {}
    """Digests of the ISO and kernel images, by name; nodes use no others."""

    def disk_bytes(self, of_image: int) -> int:
        """Return the size of the VM's disk, given the size of its image's disk; 0: it has none."""
        return max(of_image, (self.disk_mib or 0) << 20) if of_image and self.own_disk else 0


MachineType = Annotated[str, Meta(pattern=r"^([A-Za-z0-9][A-Za-z0-9._+-]{0,63})?\Z")]
"""As nodes report it, and other nodes give it to QEMU."""


class VmStatus(msgspec.Struct, frozen=True):
    """The owning node's latest report."""

    state: VmState = VmState.PENDING
    reason: str = ""
    reason_code: Annotated[str, Meta(pattern=r"^[A-Za-z]{0,40}\Z")] = ""
    """What prevents the desired state, for programs: one of ``WaitCode``; empty: nothing."""
    accelerator: str = ""
    machine: MachineType = ""
    """Versioned QEMU machine type with which the VM was started; it keeps this type when it migrates."""
    pid: int = 0
    reboots: int = 0
    halted_at_start: int | None = None
    """``spec.starts`` at the time when the guest powered itself off; it stays off until ``spec.starts`` is greater."""
    crashes: int = 0
    resets: int = 0
    hardware_renewals: int = 0
    booted_once_at: int = -1
    """``spec.starts`` when a guest last began from ``boot_once``; -1: none has. This happens once only."""
    guest: Guest | None = None
    """What the guest agent reports; None: no guest agent answers."""
    hardware: GuestHardware | None = None
    """None: the VM does not run."""
    balloon_mib: int | None = None
    """How much memory the guest has, while it has given some back."""
    cpu: CpuModel | None = None
    """The processor that the guest sees, chosen at its first start; it keeps this one when it starts or migrates."""
    kept: bool = False
    """The VM stops when its node's lease expires, so it can then start on another node."""
    record_lost: bool = False
    """The node's own record of the VM is damaged, so the node does nothing with the VM. Start, stop or delete the VM to
    begin its next epoch, which the node obeys again."""
    restore: RestoreProgress | None = None
    """The VM runs while its disk is restored from a backup; None: it does not, or all of its disk is there."""


ReplaceRequest = Annotated[str, Meta(pattern=r"^([0-9a-f]{16})?\Z")]


class CloneOf(msgspec.Struct, frozen=True):
    """The source that a VM's disk is still being created from: a VM on the same node, a replica, or a backup."""

    source: str
    source_name: str
    linked: bool
    """The clone shares the source's disk layers; otherwise it has a full copy."""
    backup: BackupSource | None = None
    """The disk comes out of a repository: ``source`` is the backup's id. None: from a VM."""
    replica: ReplicaSource | None = None
    """The disk is a point of a replica of VM ``source``, on the node of the new one. None: it comes from elsewhere."""
    replaces: ReplaceRequest = ""
    """The VM has a disk, which the backup's is to replace: the id of that request. Empty: it has none yet."""
    live: bool = False
    """The VM runs while its disk is made: it reads from the backup what is not there yet."""
    bytes_per_s: BytesPerS | None = None
    """How much of the disk is copied in a second while it runs, beside what the guest itself reads; None: as much as
    the guest leaves room for."""


class Vm(Metadata, frozen=True):
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
    """The snapshot that was created or restored last: the next one's parent."""
    clone_of: CloneOf | None
    """None: the VM is no clone, or its disk is finished."""
    revision: int
    created_at: datetime
    project: str = DEFAULT
    lost_on: str | None = None
    """The removed node that had its disk: it stays where it is until it is recovered or deleted."""
    image_digest: str | None = None
    """Which image the name meant when it was created: no node runs it with another one. None: any, for VMs of earlier
    versions."""
    unreconciled: str | None = None
    """Why the VM is unreconciled; it is left unchanged until adopted or forgotten."""
    backups: BackupSummary = BackupSummary()
    proof_of: str = ""
    """Id of the backup that this temporary VM proves; empty: it is no such VM."""
    scheduled_move: ScheduledMove | None = None


class VmAction(StrEnum):
    """What a user can do with a VM."""

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
    BACKUP = "back up"
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
    VmAction.BACKUP: frozenset({VmState.RUNNING, VmState.PAUSED, VmState.STOPPED, VmState.FAILED}),
    VmAction.DELETE: frozenset(VmState),
}
"""The observed states in which each action is allowed."""

BEGIN_ANEW = frozenset({VmAction.START, VmAction.STOP, VmAction.DELETE})
"""Actions that begin a new epoch where the VM's node has lost its record of the VM."""

BARRED_BY_MIGRATION = frozenset(VmAction) - {VmAction.STOP}
"""Actions that are refused while the VM migrates."""
DISTURB_CLONING = frozenset({VmAction.MIGRATE, VmAction.SNAPSHOT, VmAction.DELETE})
"""Actions that are refused while a clone is made of the VM's disk: they move the disk, or change its layers."""


def is_off(vm: Vm) -> bool:
    """Say whether a VM is off because its user wants it so: what its next start is to find can be changed."""
    return vm.spec.power is Power.STOPPED and vm.status.state in (VmState.STOPPED, VmState.PENDING)


def bound_to(spec: VmSpec, status: VmStatus) -> VmStatus:
    """Return a VM's status with the processor and machine type that its next start has to have: those of its last one,
    unless they are to be chosen anew."""
    if spec.hardware_renewals <= status.hardware_renewals:
        return status
    return msgspec.structs.replace(status, machine="", cpu=None)


def vm_id(random: bytes) -> str:
    """Return a new VM id from 10 random bytes."""
    if len(random) != 10:
        raise ValueError(f"a VM id takes 10 random bytes, got {len(random)}")
    return "vm-" + base64.b32encode(random).decode().lower()


def mac_addresses(id: str, spec: VmFields) -> tuple[str, ...]:
    """Return the MAC addresses of a VM's interfaces, in order. A VM without ``nics`` has one interface."""
    in_spec = [nic.mac for nic in spec.nics] if spec.nics else [spec.mac]
    return tuple(mac or mac_from_id(id, number) for number, mac in enumerate(in_spec))


def with_mac_addresses(id: str, spec: VmSpec) -> VmSpec:
    """Return a VM's spec with all its MAC addresses, also those of a VM created before specs had them."""
    return with_addresses(spec, mac_addresses(id, spec))


def with_addresses(spec: VmSpec, macs: Sequence[str | None]) -> VmSpec:
    """Return a VM's spec in which its interfaces have these MAC addresses."""
    if not spec.nics:
        return msgspec.structs.replace(spec, mac=macs[0])
    nics = tuple(
        msgspec.structs.replace(nic, mac=mac, address6=ipv6.after_mac_change(nic.address6, nic.mac, mac))
        for nic, mac in zip(spec.nics, macs, strict=True)
    )
    return msgspec.structs.replace(spec, nics=nics)


def tap_name(id: str, nic: int = 0) -> str:
    """Return the name of the tap device of a VM's interface; Linux allows 15 characters."""
    return "nv" + id.removeprefix("vm-")[:12] + (str(nic) if nic else "")


def check_name(name: str, field: str = "name") -> str:
    """Return ``name``, or raise InvalidInput if it is not a valid VM name or looks like an id."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidInput(
            f"{name!r} is not a valid name",
            field=field,
            hint="use 1 to 63 lower-case letters, digits and hyphens",
        )
    if ID_PATTERN.match(name):
        raise InvalidInput(f"{name!r} has the form of an id", field=field, hint="choose another name")
    return name
