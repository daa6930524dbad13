"""Volumes: disks that outlive VMs, in pools of the nodes."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import msgspec

from novacron.model import limits
from novacron.model.devices import BootOrder, DiskBus
from novacron.model.metadata import Metadata
from novacron.model.names import Name
from novacron.model.project import DEFAULT
from novacron.model.vm import BytesPerS, DiskMib, Iops


class PoolKind(StrEnum):
    """What a pool is."""

    LOCAL = "local"
    """A directory of one node."""
    SHARED = "shared"
    """A directory that several nodes share, for example on NFS."""


class Pool(msgspec.Struct, frozen=True):
    """A directory for volumes, as one node sees it. Sizes are in bytes."""

    name: str
    kind: PoolKind
    bytes_total: int
    bytes_free: int
    id: str = ""
    """Id of a local pool's directory. Two nodes that report the same id have the same directory."""


class VolumePhase(StrEnum):
    """How far a volume is."""

    CREATING = "creating"
    READY = "ready"
    DELETING = "deleting"
    FAILED = "failed"
    """It could not be created: only the error is kept."""
    DELETED = "deleted"
    """Reported by nodes only: the volume is gone."""


class Volume(Metadata, frozen=True):
    """A volume as stored and as the API shows it."""

    id: str
    name: str
    pool: str
    kind: PoolKind
    node: str
    """The node that has the volume; in a shared pool: the node that created it."""
    size_mib: DiskMib
    iops: Iops | None
    """Limit of reads and writes a second, together, while it is attached."""
    bytes_per_s: BytesPerS | None
    phase: VolumePhase
    error: str
    used_bytes: int
    vm: str | None
    vm_name: str | None
    lun: int | None
    """Its logical unit number on the VM's SCSI controller."""
    read_only: bool
    boot_order: BootOrder | None
    """The firmware tries the lowest number first. The VM's own disk has 1."""
    detaching: bool
    """The volume is still attached to its VM, and is being detached."""
    image: str | None
    """The image from whose disk the volume was made."""
    revision: int
    created_at: datetime
    project: str = DEFAULT
    trace: str = ""
    """The trace of the last request for this volume (W3C Trace Context: traceparent)."""
    reason_code: str = ""
    """``error``, for programs: one of ``WaitCode``."""
    encryption_key: str = ""
    """The project's key with which it is encrypted; empty: it is not."""
    bus: DiskBus = DiskBus.SCSI
    """Its controller in the VM that has it."""
    with_vm: bool = False
    """It was made with its VM and is deleted with it, unless it is detached before."""


LUNS: dict[DiskBus, int] = {
    DiskBus.VIRTIO: limits.VOLUMES_PER_VM_MAX,
    DiskBus.SCSI: limits.VOLUMES_PER_VM_MAX,
    DiskBus.SATA: limits.SATA_VOLUMES_MAX,
    DiskBus.IDE: limits.IDE_VOLUMES_MAX,
}
"""How many volumes have a place on each bus, beside the VM's own disk."""


class NewDisk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A disk that is made with a VM, beside its own: a volume that is deleted with the VM, unless it is detached."""

    size_mib: DiskMib
    bus: DiskBus | None = None
    """Null: that of the VM's own disk."""
    image: Name | None = None
    """It starts as a copy of this image's disk; null: empty."""
    boot_order: BootOrder | None = None
    pool: Name = limits.LOCAL_POOL
