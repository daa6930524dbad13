"""Exports: a VM's disk as one file, kept on the VM's node for download."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import msgspec

from novacron.model.project import DEFAULT
from novacron.model.vm import VmSpec


class ExportPhase(StrEnum):
    """How far an export is."""

    MAKING = "making"
    READY = "ready"
    FAILED = "failed"


class Export(msgspec.Struct, frozen=True):
    """An export as stored and as the API shows it."""

    id: str
    vm: str
    vm_name: str
    node: str
    spec: VmSpec
    """The VM's spec when the export was requested."""
    phase: ExportPhase
    size_bytes: int
    """Size of the file."""
    disk_bytes: int
    """Size of the disk in the file."""
    sha256: str
    error: str
    revision: int
    created_at: datetime
    project: str = DEFAULT
    trace: str = ""
    """The trace to which all work on this export belongs (W3C Trace Context: traceparent)."""
    reason_code: str = ""
    """``error``, for programs: one of ``WaitCode``."""
