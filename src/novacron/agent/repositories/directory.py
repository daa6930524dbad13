"""One repository as this node uses it: begun whole or not at all, opened, and locked while it is open."""

from __future__ import annotations

import contextlib
import enum
import random
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from novacron.agent.repositories.threads import Stopped, WorkStopped, never
from novacron.agent.settings import AgentSettings
from novacron.backup.errors import Locked, NotStored, RepositoryError
from novacron.backup.key_file import ScryptCost
from novacron.backup.locks import RepositoryLock
from novacron.backup.places import Place, storage_at
from novacron.backup.repository import CONFIG_NAME, Repository
from novacron.backup.storage import DirectoryStorage, Kind, Storage
from novacron.disk.errors import Unacceptable
from novacron.model.encryption import DataKey
from novacron.model.waiting import WaitCode

COST = ScryptCost(1 << 12, 8, 1)
"""Of a guess at a password: these are 32 random bytes, which nobody guesses at any cost."""
REPOSITORY = re.compile(r"repo-[0-9a-f]{16}\Z")


LOCK_S_MAX, LOCK_TO_DELETE_S_MAX = 600.0, 30.0
"""For how long somebody else's lock is waited for. A deletion is tried again later: backups behind it can go on."""
LOCK_PAUSES_S = 1.0, 3.0
"""Between attempts to lock, at least and at most."""


class Purpose(enum.Enum):
    """What a repository is opened for."""

    READ = enum.auto()
    """Beside others. Where no lock can be written, nothing can be deleted either, and there is none."""
    WRITE = enum.auto()
    """Beside others, but nobody who deletes."""
    DELETE = enum.auto()
    """Alone."""


class WatchedStorage:
    """A storage, with a count of what is written; each request may be the last, once ``stopped`` says so."""

    def __init__(self, inner: Storage, stopped: Stopped) -> None:
        self.inner, self.stopped = inner, stopped
        self.written_bytes = 0

    def read(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        self._go_on()
        return self.inner.read(kind, name, offset, length)

    def write(self, kind: Kind, name: str, content: bytes) -> None:
        self._go_on()
        self.inner.write(kind, name, content)
        self.written_bytes += len(content)

    def names(self, kind: Kind) -> Iterator[str]:
        for name in self.inner.names(kind):
            self._go_on()
            yield name

    def remove(self, kind: Kind, name: str) -> None:
        self.inner.remove(kind, name)

    def _go_on(self) -> None:
        if self.stopped():
            raise WorkStopped


class OpenRepository(NamedTuple):
    """A repository of this node's, open and locked until it is closed."""

    repository: Repository
    storage: WatchedStorage
    lock: RepositoryLock | None

    def watched(self, stopped: Stopped) -> Stopped:
        """Use it in work of which ``stopped`` says whether it is to end; return what says so, and fails once the lock
        is lost."""

        def end() -> bool:
            if self.lock is not None:
                self.lock.check()
            return stopped()

        self.storage.stopped = end
        return end

    def let_go(self) -> None:
        """Let the lock get stale, if it is not removed."""
        if self.lock is not None:
            self.lock.abandon()

    def close(self) -> None:
        """Let others in. May hang as the storage does."""
        if self.lock is not None:
            self.lock.release()

    def close_watched(self, _stopped: Stopped) -> None:
        self.close()


def root_of(settings: AgentSettings, repository: str) -> Place:
    """Return where a repository is. Raises Unacceptable."""
    if not REPOSITORY.match(repository):
        raise Unacceptable(f"{repository!r} is not a repository id", WaitCode.STEP_FAILED)
    if settings.backup_dir is None:
        raise Unacceptable(
            f"node {settings.name} makes no backups: start its agent with --backup-dir", WaitCode.FILE_LOST
        )
    return settings.backup_dir / repository


def open_repository(
    root: Place, key: DataKey, *, begin: bool, purpose: Purpose = Purpose.WRITE, stopped: Stopped = never
) -> OpenRepository:
    """Open and lock a repository; ``begin``: make it, where there is none. To be closed.

    Raises Unacceptable, RepositoryError, OSError, WorkStopped.
    """
    inner = storage_at(root)
    if not is_begun(inner):
        if not begin:
            hint = (
                f"check that {root.parent} is mounted" if isinstance(root, Path) else "check the agent's --backup-dir"
            )
            raise Unacceptable(f"the repository is not in {root}: {hint}", WaitCode.FILE_LOST)
        _begin(root, key)
    storage = WatchedStorage(inner, stopped)
    try:
        repository = Repository.unlock(storage, key.passphrase())
        lock = _lock(repository, purpose, stopped)
        try:
            repository.read_index()
        except BaseException:
            if lock is not None:
                lock.release()
            raise
    except NotStored as error:
        raise Unacceptable(f"the repository in {root} is incomplete: {error}", WaitCode.FILE_LOST) from error
    return OpenRepository(repository, storage, lock)


def _lock(repository: Repository, purpose: Purpose, stopped: Stopped) -> RepositoryLock | None:
    """Wait until the repository is free, and lock it. Raises Unacceptable, RepositoryError, WorkStopped."""
    assert isinstance(repository.storage, WatchedStorage)
    own = Repository(repository.storage.inner, repository.key, repository.id)
    limit_s = LOCK_TO_DELETE_S_MAX if purpose is Purpose.DELETE else LOCK_S_MAX
    deadline, pause = time.monotonic() + limit_s, threading.Event()
    while not stopped():
        try:
            return RepositoryLock(own, exclusive=purpose is Purpose.DELETE)
        except Locked as error:
            if time.monotonic() > deadline:
                raise Unacceptable(
                    f"{error}; try again once it has ended, or see restic unlock", WaitCode.TIME_LIMIT
                ) from error
        except RepositoryError:
            if purpose is Purpose.READ:
                return None
            raise
        pause.wait(random.uniform(*LOCK_PAUSES_S))  # noqa: S311 - nobody gains by guessing it
    raise WorkStopped


def is_begun(storage: Storage) -> bool:
    """Say whether there is a repository. Raises RepositoryError."""
    try:
        storage.read(Kind.CONFIG, CONFIG_NAME)
    except NotStored:
        return False
    return True


def _begin(root: Place, key: DataKey) -> None:
    """Make a repository, if no other node that shares the place is faster."""
    if not isinstance(root, Path):
        Repository.begin(storage_at(root), key.passphrase(), COST)
        return
    scratch = root.with_name(f".{root.name}.{secrets.token_hex(4)}")
    try:
        scratch.mkdir(mode=0o700)
        Repository.create(DirectoryStorage(scratch), key.passphrase(), COST)
        with contextlib.suppress(FileExistsError, NotADirectoryError):
            _rename(scratch, root)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _rename(scratch: Path, root: Path) -> None:
    """Raises FileExistsError where there is something already."""
    try:
        scratch.rename(root)
    except OSError as error:
        if root.is_dir():
            raise FileExistsError(str(root)) from error
        raise
