"""Files of backups: a backup that somebody looks into is open until nobody has for a minute.

What is read of its disk is fetched from the repository as it is needed, by this process; a confined tool understands
the file systems, which may be hostile.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import AsyncIterator

import msgspec

from novacron.agent.repositories import directory
from novacron.agent.repositories.contents import KeptContent
from novacron.agent.repositories.directory import Purpose
from novacron.agent.repositories.threads import Stopped, WorkStopped, in_thread, never
from novacron.agent.settings import AgentSettings
from novacron.agent.vm.directory import UIDS_MAX
from novacron.backup.content_cipher import ContentCipher
from novacron.backup.errors import RepositoryError
from novacron.disk import file_systems
from novacron.disk.errors import Unacceptable
from novacron.disk.file_systems import FileSystemReader
from novacron.disk.mounted_file import mounted
from novacron.model.backup_files import BackupFileSystem, BackupListing
from novacron.model.guest_command import FilePiece
from novacron.model.waiting import WaitCode
from novacron.qemu.confine import Account, confined
from novacron.telemetry import logs
from novacron.wire import questions
from novacron.wire.questions import RepositoryBackup

log = logs.get(__name__)

OPEN_MAX = 2
"""Backups that are open at once: the index of each repository is in memory."""
IDLE_S_MAX = 60.0
OPEN_S_MAX = 25.0
"""What opening may take; it goes on if somebody asks again."""


class _Open(msgspec.Struct):
    """A backup that is open, or is being opened."""

    task: asyncio.Task[None]
    reader: asyncio.Future[FileSystemReader]
    users: int = 0
    used_at: float = 0.0

    @property
    def is_gone(self) -> bool:
        """Whether what served its disk has ended unasked."""
        ready = self.reader
        return ready.done() and not ready.cancelled() and ready.exception() is None and ready.result().has_ended()


class BackupFiles:
    """All backups of this node that somebody looks into."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._uid = None if settings.uid_base is None else settings.uid_base + UIDS_MAX - 1
        self._open: dict[tuple[str, str], _Open] = {}
        self._left: list[threading.Thread] = []

    async def systems(self, question: questions.ListBackupFileSystems) -> tuple[BackupFileSystem, ...]:
        """Return its file systems. Raises Unacceptable, OSError."""
        async with self._reader(question.backup) as reader:
            return tuple(await file_systems.systems(reader))

    async def listing(self, question: questions.ListBackupFiles) -> BackupListing:
        """Return a directory. Raises InvalidInput, Unacceptable, OSError."""
        async with self._reader(question.backup) as reader:
            return await file_systems.listing(reader, question.file_system, question.path)

    async def read(self, question: questions.ReadBackupFile) -> FilePiece:
        """Return a piece of a file. Raises InvalidInput, Unacceptable, OSError."""
        async with self._reader(question.backup) as reader:
            data, ends = await file_systems.read(
                reader, question.file_system, question.path, question.offset, question.bytes_max
            )
        return FilePiece(data, ends)

    async def end(self) -> None:
        """Close all of them."""
        tasks = [opened.task for opened in self._open.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _reader(self, backup: RepositoryBackup) -> AsyncIterator[FileSystemReader]:
        key = backup.repository, backup.snapshot
        opened = self._open.get(key)
        if opened is not None and opened.is_gone:
            self._close(key)
            opened = None
        opened = opened or self._begin(key, backup)
        opened.users += 1
        try:
            try:
                async with asyncio.timeout(OPEN_S_MAX):
                    reader = await asyncio.shield(opened.reader)
            except TimeoutError:
                raise Unacceptable("the backup is still being opened: try again", WaitCode.TIME_LIMIT) from None
            yield reader
        finally:
            opened.users -= 1
            opened.used_at = time.monotonic()

    def _begin(self, key: tuple[str, str], backup: RepositoryBackup) -> _Open:
        if len(self._open) >= OPEN_MAX:
            idle = {other: opened.used_at for other, opened in self._open.items() if not opened.users}
            if not idle:
                raise Unacceptable(f"{OPEN_MAX} other backups are open on this node: try again in a minute")
            self._close(min(idle, key=lambda other: idle[other]))
        ready: asyncio.Future[FileSystemReader] = asyncio.get_running_loop().create_future()
        ready.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody may wait for it
        task = asyncio.create_task(self._keep_open(key, backup, ready), name=f"files of {backup.snapshot[:8]}")
        opened = self._open[key] = _Open(task, ready, used_at=time.monotonic())
        return opened

    def _close(self, key: tuple[str, str]) -> None:
        self._open.pop(key).task.cancel()

    async def _keep_open(
        self, key: tuple[str, str], backup: RepositoryBackup, ready: asyncio.Future[FileSystemReader]
    ) -> None:
        """Have a backup open until nobody has used it for a while."""
        task = asyncio.current_task()
        try:
            async with self._opened(backup) as reader:
                ready.set_result(reader)
                await self._until_idle(self._open[key])
        except (Unacceptable, RepositoryError, WorkStopped, OSError, TimeoutError) as error:
            if not ready.done():
                ready.set_exception(Unacceptable(str(error) or type(error).__name__))
        except Exception as error:  # a defect: who asked must not wait in vain
            log.exception("defect in the files of a backup", snapshot=backup.snapshot)
            if not ready.done():
                ready.set_exception(Unacceptable(f"internal error in its agent: {type(error).__name__}; see its log"))
        finally:
            if not ready.done():
                ready.set_exception(Unacceptable("the backup was closed: try again"))
            if (opened := self._open.get(key)) is not None and opened.task is task:
                del self._open[key]

    async def _until_idle(self, opened: _Open) -> None:
        while True:
            idle_s = 0.0 if opened.users else time.monotonic() - opened.used_at
            if idle_s >= IDLE_S_MAX:
                return
            await asyncio.sleep(IDLE_S_MAX - idle_s)

    @contextlib.asynccontextmanager
    async def _opened(self, backup: RepositoryBackup) -> AsyncIterator[FileSystemReader]:
        root = directory.root_of(self._settings, backup.repository)

        def work(stopped: Stopped) -> KeptContent:
            opened = directory.open_repository(root, backup.key, begin=False, purpose=Purpose.READ, stopped=stopped)
            try:
                opened.watched(stopped)
                cipher = None if backup.content_key is None else ContentCipher(backup.content_key)
                return KeptContent(opened.repository, backup.snapshot, cipher)
            finally:
                opened.close()  # nobody waits for whoever looks; what is pruned meanwhile can't be read
                opened.storage.stopped = never

        content = await in_thread(work, self._left)
        reader = content.reader()

        def read(offset: int, length: int) -> bytes:
            try:
                return reader.read(offset, length)
            except RepositoryError as error:
                log.warning("a backup's disk can't be read", snapshot=backup.snapshot, error=str(error))
                raise OSError(str(error)) from error

        async with mounted(content.disk.size, read, self._uid) as file:
            yield FileSystemReader(file.path, functools.partial(self._confined, file.enter), file.has_ended)

    def _confined(self, enter: tuple[str, ...], command: list[str]) -> list[str]:
        return [*enter, *(command if self._uid is None else confined(command, Account(self._uid)))]
