"""Backups of VMs and their repositories, as objects with methods."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Self

from novacron.client.aio.handles import WAIT_S, AsyncFindable, AsyncFollowed, AsyncListed, AsyncRemovable, AsyncWatched
from novacron.client.aio.vm_handles import AsyncVmHandle
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


class AsyncBackupRepositoryHandle(AsyncWatched[BackupRepository], AsyncRemovable[BackupRepository]):
    """Where backups of a project are kept."""

    @property
    def id(self) -> str:
        return self.object.id

    @property
    def name(self) -> str:
        return self.object.name

    async def configure(self, *, if_unchanged: bool = False, **changes: Unpack[BackupRepositoryChangesBody]) -> Self:
        """Change how often the room of deleted backups is freed."""
        return await self._change(changes, if_unchanged)

    async def prune(self) -> Self:
        """Have that done now, on each of its nodes; ``object.prunes`` says how it went."""
        return self._take(await self._act("prune"))

    async def password(self) -> str:
        """Return what opens it, also with restic. It is secret."""
        return await self._connection.backup_repository_password(self.id)


class AsyncBackupRepositoryCollection(
    AsyncListed[BackupRepository, AsyncBackupRepositoryHandle],
    AsyncFindable[BackupRepository, AsyncBackupRepositoryHandle],
    AsyncFollowed[BackupRepository, AsyncBackupRepositoryHandle],
):
    """All repositories that the caller may see."""

    _type, _handle = BackupRepository, AsyncBackupRepositoryHandle

    async def create(
        self, *, idempotency_key: str | None = None, **fields: Unpack[CreateBackupRepositoryBody]
    ) -> AsyncBackupRepositoryHandle:
        return await self._create(fields, idempotency_key)


class AsyncBackupPolicyHandle(AsyncWatched[BackupPolicy], AsyncRemovable[BackupPolicy]):
    """Which VMs are backed up when."""

    @property
    def id(self) -> str:
        return self.object.id

    @property
    def name(self) -> str:
        return self.object.name

    async def configure(self, *, if_unchanged: bool = False, **changes: Unpack[BackupPolicyChangesBody]) -> Self:
        """Change what it does."""
        return await self._change(changes, if_unchanged)

    async def run(self) -> Self:
        """Have all of its VMs backed up now."""
        return self._take(await self._act("run"))


class AsyncBackupPolicyCollection(
    AsyncListed[BackupPolicy, AsyncBackupPolicyHandle],
    AsyncFindable[BackupPolicy, AsyncBackupPolicyHandle],
    AsyncFollowed[BackupPolicy, AsyncBackupPolicyHandle],
):
    """All policies that the caller may see."""

    _type, _handle = BackupPolicy, AsyncBackupPolicyHandle

    async def create(
        self, *, idempotency_key: str | None = None, **fields: Unpack[CreateBackupPolicyBody]
    ) -> AsyncBackupPolicyHandle:
        return await self._create(fields, idempotency_key)


class AsyncBackupHandle(AsyncWatched[Backup], AsyncRemovable[Backup]):
    """A backup of a VM."""

    @property
    def id(self) -> str:
        return self.object.id

    async def wait_until_done(self, timeout_s: float = WAIT_S) -> Self:
        """Wait until it is kept, damaged or failed: ``object.phase`` says which. Raises TimeoutError."""
        return await self.wait_until(lambda now: now.phase in ("kept", "damaged", "failed"), timeout_s)

    async def verify(self) -> Self:
        """Begin to read all of it back; ``wait_until_done`` waits for the verdict."""
        return self._take(await self._act("verify"))

    async def prove(self, **probe: Unpack[ProofProbeBody]) -> Self:
        """Begin to prove it: a VM made of it has to start; ``wait_until_proved`` waits for the verdict."""
        return self._take(await self._act("prove", dict(probe)))

    async def wait_until_proved(self, timeout_s: float = WAIT_S) -> Self:
        """Wait until its proof has ended: ``object.proof`` says how. Raises TimeoutError."""
        return await self.wait_until(
            lambda now: now.proof is not None and now.proof.phase in ("proved", "failed"), timeout_s
        )

    async def picture(self) -> bytes:
        """Return what the VM showed that was made of it to prove it, as PNG."""
        return await self._connection.backup_picture(self.id)

    async def file_systems(self) -> list[BackupFileSystem]:
        """Return the file systems on its disk."""
        return [read(BackupFileSystem, body) for body in await self._connection.backup_file_systems(self.id)]

    async def files(self, file_system: str, path: str = "/") -> BackupListing:
        """Return a directory in it."""
        return read(BackupListing, await self._connection.backup_files(self.id, file_system, path))

    async def pull(self, file_system: str, path: str, file: Path) -> int:
        """Read a file in it into ``file``, which appears once it is complete, and return its length."""
        return await self._connection.pull_backup_file(self.id, file_system, path, file)

    async def replace(self) -> AsyncVmHandle:
        """Begin to put it in the place of the disk of its VM, which is off."""
        return AsyncVmHandle(self._connection, Vm, await self._act("replace"))

    async def restore(self, **fields: Unpack[RestoreBackupBody]) -> AsyncVmHandle:
        """Begin to make a new VM of it."""
        return AsyncVmHandle(self._connection, Vm, await self._act("restore", dict(fields)))


class AsyncBackupCollection(AsyncFindable[Backup, AsyncBackupHandle], AsyncFollowed[Backup, AsyncBackupHandle]):
    """All backups that the caller may see."""

    _type, _handle = Backup, AsyncBackupHandle

    def list(
        self, *, vm: str | None = None, repository: str | None = None, policy: str | None = None,
        limit: int | None = None, sort: str | None = None,
    ) -> AsyncIterator[AsyncBackupHandle]:  # fmt: skip
        return self._list(limit, vm=vm, repository=repository, policy=policy, sort=sort)
