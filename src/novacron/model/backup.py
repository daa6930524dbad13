"""Backups: VMs as they were at one moment, kept in repositories."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec

from novacron.model.backup_proof import BackupProof
from novacron.model.backup_source import SnapshotId
from novacron.model.encryption import KeyId
from novacron.model.errors import IllegalState
from novacron.model.metadata import Metadata
from novacron.model.project import DEFAULT
from novacron.model.snapshot import ExcludedVolume
from novacron.model.vm import VmSpec

MODE_REASON_LENGTH_MAX = 500
PRUNE_WORDS_MAX = 300
PRUNE_DAYS = 7
PRUNES_MAX = 1000
"""Nodes of which a repository remembers how it was pruned there."""
PruneDays = Annotated[int, msgspec.Meta(ge=1, le=400)]
DISK_BYTES_MAX = 1 << 50
"""What a node reports is refused beyond that."""
Bytes = Annotated[int, msgspec.Meta(ge=0, le=DISK_BYTES_MAX)]


class BackupPhase(StrEnum):
    """How far a backup is."""

    MAKING = "making"
    KEPT = "kept"
    """It is in its repository. Whether it can be read back is known once it was verified."""
    VERIFYING = "verifying"
    """All of it is being read back."""
    DAMAGED = "damaged"
    """Something of it could not be read back."""
    DELETING = "deleting"
    FAILED = "failed"
    """It could not be made: only the error is kept."""


TRANSITIONS: Mapping[BackupPhase, frozenset[BackupPhase]] = {
    BackupPhase.MAKING: frozenset({BackupPhase.KEPT, BackupPhase.FAILED, BackupPhase.DELETING}),
    BackupPhase.KEPT: frozenset({BackupPhase.VERIFYING, BackupPhase.DELETING}),
    BackupPhase.VERIFYING: frozenset({BackupPhase.KEPT, BackupPhase.DAMAGED, BackupPhase.DELETING}),
    BackupPhase.DAMAGED: frozenset({BackupPhase.VERIFYING, BackupPhase.DELETING}),
    BackupPhase.DELETING: frozenset(),
    BackupPhase.FAILED: frozenset({BackupPhase.DELETING}),
}
"""The phases that may follow each phase. After DELETING the backup is gone."""
WORKING = frozenset({BackupPhase.MAKING, BackupPhase.VERIFYING, BackupPhase.DELETING})
"""The phases in which a node has work to do."""


class BackupMode(StrEnum):
    """What a backup had to read."""

    FULL = "full"
    """All blocks of the disk that hold data. The repository still stores only those that it lacks."""
    INCREMENTAL = "incremental"
    """The blocks that QEMU recorded as written since the VM's last backup in the repository."""


class RepositoryPrune(msgspec.Struct, frozen=True):
    """The last attempt to free the space of deleted backups in a repository, by one node that has written to it."""

    node: str
    at: datetime | None = None
    """When it ended. None: it was not done yet."""
    freed: str = ""
    """How much room, as restic says."""
    error: str = ""


class BackupRepository(msgspec.Struct, frozen=True):
    """Where backups of a project are kept, as stored and as the API shows it."""

    id: str
    name: str
    key: KeyId
    """The key that opens it, among the keys of projects."""
    revision: int
    created_at: datetime
    project: str = DEFAULT
    prune_days: int | None = PRUNE_DAYS
    """How often the space of deleted backups is freed, in days, by each node with backups in it. None: never."""
    prune_asked_at: datetime | None = None
    """When somebody last asked for that at once."""
    prunes: tuple[RepositoryPrune, ...] = ()
    """The last result on each node."""


class BackupResult(msgspec.Struct, frozen=True):
    """What a backup consists of, and what it took to make it."""

    snapshot: SnapshotId = ""
    """Id of the snapshot in the repository."""
    mode: BackupMode = BackupMode.FULL
    mode_reason: Annotated[str, msgspec.Meta(max_length=MODE_REASON_LENGTH_MAX)] = ""
    """Why a full read was needed."""
    quiesced: bool = False
    """The guest agent had written out and stopped the guest's file systems."""
    disk_bytes: Bytes = 0
    """Size of the disk as the guest sees it."""
    read_bytes: Bytes = 0
    """Read from the disk on its node."""
    written_bytes: Bytes = 0
    """Written to the repository."""
    parent: SnapshotId = ""
    """The snapshot whose disk was taken where nothing was written since; empty: all of the disk was read."""


class Backup(msgspec.Struct, frozen=True):
    """A backup as stored and as the API shows it."""

    id: str
    vm: str
    vm_name: str
    repository: str
    repository_name: str
    node: str
    """The node that made it."""
    spec: VmSpec
    """The VM's spec when the backup was requested."""
    phase: BackupPhase
    result: BackupResult
    excluded_volumes: tuple[ExcludedVolume, ...]
    """Volumes that were attached. The backup does not contain them."""
    verified_at: datetime | None
    """When it was last verified successfully."""
    error: str
    revision: int
    created_at: datetime
    finished_at: datetime | None
    project: str = DEFAULT
    trace: str = ""
    """The trace to which all work on this backup belongs (W3C Trace Context: traceparent)."""
    reason_code: str = ""
    """``error``, for programs: one of ``WaitCode``."""
    policy: str = ""
    """Id of the policy that requested it; empty: a user requested it."""
    verify_asked_at: datetime | None = None
    """When it was last to be read back."""
    proof: BackupProof | None = None
    """The result of its last proof: whether a VM restored from it starts."""
    encryption_key: KeyId = ""
    """Id of the project key that encrypts its content, inside the repository's own encryption; empty: none."""
    described: Metadata = Metadata()
    """The VM's display name, description and tags when the backup was requested. A VM that is restored has them."""


def check_transition(backup: Backup, phase: BackupPhase) -> None:
    """Raise IllegalState if the backup can't enter ``phase`` from its present one."""
    if phase not in TRANSITIONS[backup.phase]:
        raise IllegalState(
            f"backup {backup.id} of VM {backup.vm_name} is {backup.phase}, and can't become {phase}",
            hint=f"see: novacron backup show {backup.id}",
        )
