"""Volumes: disks that outlive VMs, in pools of the nodes."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from novacron.model import limits
from novacron.model.project import DEFAULT
from novacron.model.vm import BytesPerS, DiskMib, Iops

BootOrder = Annotated[int, Meta(ge=0, le=limits.BOOT_ORDER_MAX)]


class PoolKind(StrEnum):
    LOCAL = "local"
    """A directory of one node."""
    SHARED = "shared"
    """A directory that several nodes have in common, such as one on NFS."""


class Pool(msgspec.Struct, frozen=True):
    """A directory for volumes, as one node sees it. Sizes in bytes."""

    name: str
    kind: PoolKind
    bytes_total: int
    bytes_free: int
    id: str = ""
    """Of a local one's directory: two nodes that say the same have the same directory."""


class VolumePhase(StrEnum):
    CREATING = "creating"
    READY = "ready"
    DELETING = "deleting"
    FAILED = "failed"
    """It was never made: there is nothing but its reason."""
    DELETED = "deleted"
    """Only said by nodes: it is gone."""


class Volume(msgspec.Struct, frozen=True):
    """A volume as stored and as the API shows it."""

    id: str
    name: str
    pool: str
    kind: PoolKind
    node: str
    """Which node has it; of a shared pool: which one made it."""
    size_mib: DiskMib
    iops: Iops | None
    """Reads and writes a second at most, while it is attached."""
    bytes_per_s: BytesPerS | None
    phase: VolumePhase
    error: str
    used_bytes: int
    vm: str | None
    vm_name: str | None
    lun: int | None
    """Its place at the VM's SCSI controller."""
    read_only: bool
    boot_order: BootOrder | None
    """Firmware tries the lowest first; the VM's own disk has 1."""
    detaching: bool
    """It is still in its VM's hands, but should not be."""
    image: str | None
    """Of which image's disk it began as a copy."""
    revision: int
    created_at: datetime
    project: str = DEFAULT
    trace: str = ""
    """To which trace belongs what was last asked of it (W3C Trace Context: traceparent)."""
