"""Snapshots: a VM's disk, and if asked for its memory, as they were at one moment."""

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
    """The VM goes back to it."""
    DELETING = "deleting"
    FAILED = "failed"
    """It was never made: there is nothing but its reason."""


TRANSITIONS: dict[SnapshotPhase, frozenset[SnapshotPhase]] = {
    SnapshotPhase.CREATING: frozenset({SnapshotPhase.READY, SnapshotPhase.FAILED}),
    SnapshotPhase.READY: frozenset({SnapshotPhase.REVERTING, SnapshotPhase.DELETING}),
    SnapshotPhase.REVERTING: frozenset({SnapshotPhase.READY}),
    SnapshotPhase.DELETING: frozenset(),
    SnapshotPhase.FAILED: frozenset({SnapshotPhase.DELETING}),
}
"""What may follow what; after DELETING it is gone."""
WORKING = frozenset({SnapshotPhase.CREATING, SnapshotPhase.REVERTING, SnapshotPhase.DELETING})
"""In these a node has something to do."""


class Snapshot(msgspec.Struct, frozen=True):
    """A snapshot as stored and as the API shows it."""

    id: str
    vm: str
    vm_name: str
    name: str
    parent: str | None
    """The snapshot to which the VM had gone back, or which it had made, before."""
    memory: bool
    quiesce: bool
    vcpus: int
    memory_mib: int
    phase: SnapshotPhase
    error: str
    pause_ms: float | None
    """How long the guest stood still for it."""
    revision: int
    created_at: datetime
    project: str = DEFAULT


def check_transition(snapshot: Snapshot, phase: SnapshotPhase) -> None:
    """Raise IllegalState when ``phase`` does not follow the snapshot's."""
    if phase not in TRANSITIONS[snapshot.phase]:
        raise IllegalState(
            f"snapshot {snapshot.name} of VM {snapshot.vm_name} is {snapshot.phase}, and can't become {phase}",
            hint=f"see: novacron snapshot list {snapshot.vm_name}",
        )
