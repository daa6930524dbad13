"""Snapshots: a VM's disk, and on request its memory, at one moment."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import msgspec

from novacron.model.errors import IllegalState
from novacron.model.project import DEFAULT


class SnapshotPhase(StrEnum):
    CREATING = "creating"
    READY = "ready"
    REVERTING = "reverting"
    """The VM is being reverted to it."""
    DELETING = "deleting"
    FAILED = "failed"
    """It could not be created: only the error is kept."""


TRANSITIONS: dict[SnapshotPhase, frozenset[SnapshotPhase]] = {
    SnapshotPhase.CREATING: frozenset({SnapshotPhase.READY, SnapshotPhase.FAILED}),
    SnapshotPhase.READY: frozenset({SnapshotPhase.REVERTING, SnapshotPhase.DELETING}),
    SnapshotPhase.REVERTING: frozenset({SnapshotPhase.READY}),
    SnapshotPhase.DELETING: frozenset(),
    SnapshotPhase.FAILED: frozenset({SnapshotPhase.DELETING}),
}
"""The phases that may follow each phase. After DELETING the snapshot is gone."""
WORKING = frozenset({SnapshotPhase.CREATING, SnapshotPhase.REVERTING, SnapshotPhase.DELETING})
"""The phases in which a node has work to do."""


class Snapshot(msgspec.Struct, frozen=True):
    """A snapshot as stored and as the API shows it."""

    id: str
    vm: str
    vm_name: str
    name: str
    parent: str | None
    """The snapshot that had been created or reverted to last, before this one was created."""
    memory: bool
    quiesce: bool
    vcpus: int
    memory_mib: int
    phase: SnapshotPhase
    error: str
    pause_ms: float | None
    """How long the guest was paused for the snapshot."""
    revision: int
    created_at: datetime
    project: str = DEFAULT


def check_transition(snapshot: Snapshot, phase: SnapshotPhase) -> None:
    """Raise IllegalState if the snapshot can't enter ``phase`` from its present one."""
    if phase not in TRANSITIONS[snapshot.phase]:
        raise IllegalState(
            f"snapshot {snapshot.name} of VM {snapshot.vm_name} is {snapshot.phase}, and can't become {phase}",
            hint=f"see: novacron snapshot list {snapshot.vm_name}",
        )
