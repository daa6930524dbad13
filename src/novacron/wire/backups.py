"""Messages about backups."""

from __future__ import annotations

import msgspec

from novacron.model.backup import BackupPhase, BackupResult
from novacron.model.backup_source import RepositoryId, SnapshotId
from novacron.model.encryption import DataKey
from novacron.wire.base import Message


class BackupWanted(msgspec.Struct, frozen=True):
    """A backup that is to be made, read back or taken out of its repository."""

    id: str
    vm: str
    vm_name: str
    phase: BackupPhase
    repository: RepositoryId
    begins: bool
    """The repository's directory may be made here: no backup is known to be in it."""
    snapshot: SnapshotId
    """Id of the snapshot in the repository; empty: it is not made yet, or not known."""
    description: bytes
    """What is kept of the VM beside its disk, as JSON."""
    key: DataKey | None
    """Opens the repository; None: the server can't unwrap it now. Only to be kept in memory."""
    trace: str = ""
    project: str = ""
    """Whose repository it is: projects have their turns in rotation."""
    content_key: DataKey | None = None
    """Encrypts what is stored, as the VM's disk or its image is encrypted with it. Only to be kept in memory."""


class Backups(Message, frozen=True):
    """All backups that this node is to work on; work on others is given up."""

    backups: tuple[BackupWanted, ...]
    unreadable: tuple[str, ...] = ()
    """Ids of more, of which the server can't read how they are to be: what was said of them last holds, and their files
    stay."""


class BackupStands(Message, frozen=True):
    """What became of a backup that this node was to work on: ``done`` is the phase that it was told of."""

    id: str
    done: BackupPhase
    phase: BackupPhase
    result: BackupResult | None = None
    error: str = ""
    code: str = ""
    """``error``, for programs: one of ``WaitCode``."""
