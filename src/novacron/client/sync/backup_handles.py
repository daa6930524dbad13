# Made of aio/backup_handles.py by script/generate: change that, and run it.
"""Backups of VMs and their repositories, as objects with methods."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self

from novacron.client.sync.handles import WAIT_S, Findable, Followed, Listed, Removable, Watched
from novacron.client.sync.vm_handles import VmHandle
from novacron.client.typed import (
    Backup,
    BackupFileSystem,
    BackupListing,
    BackupPolicy,
    BackupRepository,
    Vm,
    read,
)

if TYPE_CHECKING:
    from typing import Unpack

    from novacron.client.bodies import (
        BackupPolicyChangesBody,
        BackupRepositoryChangesBody,
        CreateBackupPolicyBody,
        CreateBackupRepositoryBody,
        ProofProbeBody,
        RestoreBackupBody,
    )


class BackupRepositoryHandle(Watched[BackupRepository], Removable[BackupRepository]):
    """Where backups of a project are kept."""

    @property
    def id(self) -> str:
        return self.object.id

    @property
    def name(self) -> str:
        return self.object.name

    def configure(self, *, if_unchanged: bool = False, **changes: Unpack[BackupRepositoryChangesBody]) -> Self:
        """Change how often the room of deleted backups is freed."""
        return self._change(changes, if_unchanged)

    def prune(self) -> Self:
        """Have that done now, on each of its nodes; ``object.prunes`` says how it went."""
        return self._take(self._act("prune"))

    def password(self) -> str:
        """Return what opens it, also with restic. It is secret."""
        return self._connection.backup_repository_password(self.id)


class BackupRepositoryCollection(
    Listed[BackupRepository, BackupRepositoryHandle],
    Findable[BackupRepository, BackupRepositoryHandle],
    Followed[BackupRepository, BackupRepositoryHandle],
):
    """All repositories that the caller may see."""

    _type, _handle = BackupRepository, BackupRepositoryHandle

    def create(
        self, *, idempotency_key: str | None = None, **fields: Unpack[CreateBackupRepositoryBody]
    ) -> BackupRepositoryHandle:
        return self._create(fields, idempotency_key)


class BackupPolicyHandle(Watched[BackupPolicy], Removable[BackupPolicy]):
    """Which VMs are backed up when."""

    @property
    def id(self) -> str:
        return self.object.id

    @property
    def name(self) -> str:
        return self.object.name

    def configure(self, *, if_unchanged: bool = False, **changes: Unpack[BackupPolicyChangesBody]) -> Self:
        """Change what it does."""
        return self._change(changes, if_unchanged)

    def run(self) -> Self:
        """Have all of its VMs backed up now."""
        return self._take(self._act("run"))


class BackupPolicyCollection(
    Listed[BackupPolicy, BackupPolicyHandle],
    Findable[BackupPolicy, BackupPolicyHandle],
    Followed[BackupPolicy, BackupPolicyHandle],
):
    """All policies that the caller may see."""

    _type, _handle = BackupPolicy, BackupPolicyHandle

    def create(
        self, *, idempotency_key: str | None = None, **fields: Unpack[CreateBackupPolicyBody]
    ) -> BackupPolicyHandle:
        return self._create(fields, idempotency_key)


class BackupHandle(Watched[Backup], Removable[Backup]):
    """A backup of a VM."""

    @property
    def id(self) -> str:
        return self.object.id

    def wait_until_done(self, timeout_s: float = WAIT_S) -> Self:
        """Wait until it is kept, damaged or failed: ``object.phase`` says which. Raises TimeoutError."""
        return self.wait_until(lambda now: now.phase in ("kept", "damaged", "failed"), timeout_s)

    def verify(self) -> Self:
        """Begin to read all of it back; ``wait_until_done`` waits for the verdict."""
        return self._take(self._act("verify"))

    def prove(self, **probe: Unpack[ProofProbeBody]) -> Self:
        """Begin to prove it: a VM made of it has to start; ``wait_until_proved`` waits for the verdict."""
        return self._take(self._act("prove", dict(probe)))

    def wait_until_proved(self, timeout_s: float = WAIT_S) -> Self:
        """Wait until its proof has ended: ``object.proof`` says how. Raises TimeoutError."""
        return self.wait_until(lambda now: now.proof is not None and now.proof.phase in ("proved", "failed"), timeout_s)

    def picture(self) -> bytes:
        """Return what the VM showed that was made of it to prove it, as PNG."""
        return self._connection.backup_picture(self.id)

    def file_systems(self) -> list[BackupFileSystem]:
        """Return the file systems on its disk."""
        return [read(BackupFileSystem, body) for body in self._connection.backup_file_systems(self.id)]

    def files(self, file_system: str, path: str = "/") -> BackupListing:
        """Return a directory in it."""
        return read(BackupListing, self._connection.backup_files(self.id, file_system, path))

    def pull(self, file_system: str, path: str, file: Path) -> int:
        """Read a file in it into ``file``, which appears once it is complete, and return its length."""
        return self._connection.pull_backup_file(self.id, file_system, path, file)

    def replace(self) -> VmHandle:
        """Begin to put it in the place of the disk of its VM, which is off."""
        return VmHandle(self._connection, Vm, self._act("replace"))

    def restore(self, **fields: Unpack[RestoreBackupBody]) -> VmHandle:
        """Begin to make a new VM of it."""
        return VmHandle(self._connection, Vm, self._act("restore", dict(fields)))


class BackupCollection(Findable[Backup, BackupHandle], Followed[Backup, BackupHandle]):
    """All backups that the caller may see."""

    _type, _handle = Backup, BackupHandle

    def list(
        self, *, vm: str | None = None, repository: str | None = None, policy: str | None = None,
        limit: int | None = None, sort: str | None = None,
    ) -> Iterator[BackupHandle]:  # fmt: skip
        return self._list(limit, vm=vm, repository=repository, policy=policy, sort=sort)
