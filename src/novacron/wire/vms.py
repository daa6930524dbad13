"""Messages about VMs: how each is to be on a node, and how it is."""

from __future__ import annotations

from typing import Any

import msgspec

from novacron.model.cloud_init import StoredSeed
from novacron.model.cpu import CpuModel
from novacron.model.devices import DiskBus
from novacron.model.encryption import DataKey
from novacron.model.finite import Finite
from novacron.model.firmware_state import FirmwareState
from novacron.model.guest_hardware import GuestHardware
from novacron.model.migration import MigrationKind, MigrationPolicy, Side
from novacron.model.ownership import Order, OwnershipRecord
from novacron.model.plugged import NicPorts
from novacron.model.snapshot import MachineLayout, SnapshotPhase
from novacron.model.vm import CloneOf, MachineType, VmSpec, VmStatus
from novacron.wire.base import Message, Proof


class SnapshotWanted(msgspec.Struct, frozen=True):
    """A snapshot on which there is something to do."""

    id: str
    phase: SnapshotPhase
    memory: bool
    quiesce: bool
    asked: int
    """Another number each time that it is asked for: going back twice is to be done twice."""
    layout: MachineLayout | None = None
    """What its memory fits, as far as that is known."""
    starts_vm: bool = False
    """The VM was off when it was asked to go back."""


class VolumeAttached(msgspec.Struct, frozen=True):
    """A volume that a VM has, or, ``detaching``, should not have any more."""

    id: str
    pool: str
    lun: int
    size_mib: int
    read_only: bool
    boot_order: int | None
    iops: int | None
    bytes_per_s: int | None
    detaching: bool
    moves: bool
    """It is on the VM's node only, and moves with it."""
    encryption_key: str = ""
    """With which of the VM's ``keys`` it is encrypted; empty: it is not."""
    bus: DiskBus = DiskBus.SCSI
    making: bool = False
    """It is being made: the VM waits for it."""


class Assignment(msgspec.Struct, frozen=True):
    """A VM that the node owns, or is to receive."""

    vm: str
    name: str
    spec: VmSpec
    deleting: bool
    machine: MachineType
    reboots: int
    halted_at_start: int | None
    project: str
    page_key: bytes
    """Makes the digests of the project's pages: 32 bytes, secret, the same on every node."""
    seed: StoredSeed | None = None
    resets: int = 0
    snapshots: tuple[SnapshotWanted, ...] = ()
    clone_of: CloneOf | None = None
    """Its disk is to be made from this VM's, before anything else."""
    volumes: tuple[VolumeAttached, ...] = ()
    hardware: GuestHardware | None = None
    """Of a guest that is to come here while it runs."""
    passthrough: tuple[str, ...] = ()
    """Devices of the node's that VMs may have."""
    image_digest: str | None = None
    """Of the image that it is made of; None: whatever the node has under the name."""
    cpu: CpuModel | None = None
    """The processor that its guest has, or is to have; None: all that the node can give."""
    firmware_state: FirmwareState | None = None
    """What firmware and TPM of a VM that has not run yet begin with."""
    trace: str = ""
    """To which trace belongs what was last asked of it."""
    withheld: str = ""
    """Why its guest must not begin to run here yet; one that runs goes on."""
    keys: tuple[DataKey, ...] = ()
    """The keys of its encrypted disks, as far as the server has them. Only to be kept in memory."""
    other_page_keys: tuple[bytes, ...] = ()
    """Keys with which pages of the project may have been kept, while the key is rotated."""
    hardware_renewals: int = 0
    """How many of the spec's ``hardware_renewals`` a start has followed."""
    nic_ports: NicPorts = 0
    """For so many interfaces that come while its guest runs a start gives it ports, if its machine needs them."""
    booted_once_at: int = -1
    """The spec's ``starts`` when its guest last began from ``boot_once``, on any node; -1: it never has."""


class Task(msgspec.Struct, frozen=True):
    """The node's part in an active migration."""

    migration: str
    side: Side
    kind: MigrationKind
    peer: str
    epoch: int
    endpoint: str | None
    """Where the source sends, once the target waits there."""
    warm: str | None = None
    """Where the target will wait: the source may open connections already. To the target: where the VM came from."""
    rate_bytes_per_s: int | None = None
    """What the source may use of the link now."""
    policy: MigrationPolicy = MigrationPolicy.THROTTLE
    trace: str = ""
    voted: bool = False
    """The server has the source's vote at this epoch: it binds a source whose journal is an older copy, too."""


class Statement(msgspec.Struct, frozen=True):
    """All that the server says about one VM to one node."""

    vm: str
    order: Order
    assignment: Assignment | None = None
    task: Task | None = None
    deleted: bool = False
    """The VM is nowhere any more: nobody needs memory of it."""
    proof: Proof = ""
    """For the node to keep with the order's epoch, and to show to a server whose database knows less."""


class Desired(Message, frozen=True):
    """How things are to be on this node: of every VM that it owns, receives, or should no longer hold, or, if it is not
    the ``whole``, of those of which something else is to be now."""

    statements: tuple[Statement, ...]
    whole: bool = True


class Observed(Message, frozen=True):
    """What a VM is on this node, at the epoch that the node knows."""

    vm: str
    epoch: int
    status: VmStatus


class Cloned(Message, frozen=True):
    """A VM that was to become a clone, or to get the disk of a backup, has its disk."""

    vm: str
    epoch: int
    error: str = ""
    """Why the disk that it had stays. Only of what was to replace one."""
    code: str = ""
    """The same for programs: one of ``WaitCode``."""


class Contradicted(Message, frozen=True):
    """What the server says of a VM, or leaves out, is not what this node knows. ``description`` is what it was told
    last of a VM that it has: a ``VmDescription``."""

    vm: str
    record: OwnershipRecord
    description: dict[str, Any] | None = None
    proof: Proof = ""
    """As in ``HeldVm``."""


class Removed(Message, frozen=True):
    """Nothing of this VM is left on this node."""

    vm: str


class SnapshotStands(Message, frozen=True):
    """What became of a snapshot that this node was to work on: ``done`` is the phase that it was told of."""

    vm: str
    epoch: int
    id: str
    done: SnapshotPhase
    error: str = ""
    pause_ms: Finite | None = None
    layout: MachineLayout | None = None
    """What the memory that was kept fits."""
    code: str = ""
    """``error``, for programs: one of ``WaitCode``."""
