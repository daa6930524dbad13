"""Exports: a VM's disk as one file, kept on its node until it is fetched."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import msgspec

from novacron.model.project import DEFAULT
from novacron.model.vm import VmSpec


class ExportPhase(StrEnum):
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
    """The VM's, when the export was asked for."""
    phase: ExportPhase
    size_bytes: int
    """Of the file."""
    disk_bytes: int
    """Of the disk in it."""
    sha256: str
    error: str
    revision: int
    created_at: datetime
    project: str = DEFAULT
    trace: str = ""
    """To which trace all belongs that is done for it (W3C Trace Context: traceparent)."""
