"""Locks of a repository, as restic has them: many may read and write at once, whoever deletes is alone.

A lock is a file that its owner replaces now and then. One that was not replaced for long is stale, and so is one of a
process of this host that is gone; stale ones are taken away.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import msgspec

from novacron.backup.errors import Damaged, Locked, NotStored, RepositoryError
from novacron.backup.repository import Repository
from novacron.backup.storage import Kind
from novacron.telemetry import logs

log = logs.get(__name__)

STALE_AFTER = timedelta(minutes=30)
"""restic's, too."""
REFRESH_S = 300.0
LOST_AFTER_S = 1500.0
"""An own lock that could not be replaced for so long counts for nothing any more: soon others take it for stale."""
SETTLE_S = 0.2
"""After a lock was written, until it is looked at whether somebody else wrote one at the same moment."""
NO_LOCK = "0" * 64
"""A name that no lock has."""
LOCKS_MAX = 1000
"""Files that are looked at; more are not made by anything that works."""


class LockFile(msgspec.Struct, omit_defaults=True):
    """A lock: since when it is, and who has it."""

    time: datetime
    exclusive: bool
    hostname: str
    username: str
    pid: int
    uid: int = 0
    gid: int = 0

    def is_stale(self, now: datetime) -> bool:
        """Say whether its owner is gone, as far as this host can tell."""
        if now - self.time > STALE_AFTER:
            return True
        return self.hostname == socket.gethostname() and not Path(f"/proc/{self.pid}").exists()

    def __str__(self) -> str:
        how = "exclusively" if self.exclusive else "for shared use"
        since = f"{self.time:%Y-%m-%d %H:%M:%S %z}"
        return f"process {self.pid} on {self.hostname} has locked the repository {how} since {since}"


def _own(*, exclusive: bool) -> LockFile:
    name = str(os.getuid())
    with contextlib.suppress(KeyError, OSError):  # no name is known
        name = getpass.getuser()
    return LockFile(datetime.now(UTC), exclusive, socket.gethostname(), name, os.getpid(), os.getuid(), os.getgid())


def locks(repository: Repository) -> Iterator[tuple[str, LockFile]]:
    """Yield the locks that there are, stale ones too. Raises Damaged, RepositoryError."""
    for number, name in enumerate(repository.storage.names(Kind.LOCK)):
        if number >= LOCKS_MAX:
            raise Damaged(f"the repository has more than {LOCKS_MAX} locks: see restic unlock")
        try:
            content = repository.load_unpacked(Kind.LOCK, name)
        except NotStored:
            continue  # it was released just now
        try:
            yield name, msgspec.json.decode(content, type=LockFile)
        except msgspec.MsgspecError as error:
            raise Damaged(f"lock {name} is damaged: {error}; see restic unlock --remove-all") from None


def survive_hangups() -> None:
    """Let SIGHUP do nothing to this process. ``restic unlock`` sends it to the process that a lock names, to see
    whether it is there; without this it is so no longer. To be called by the main thread before a lock is taken."""
    signal.signal(signal.SIGHUP, lambda *_: None)  # not ignored: children would inherit that


class RepositoryLock:
    """A lock that is held until ``release``. A thread of its own replaces its file."""

    def __init__(self, repository: Repository, *, exclusive: bool) -> None:
        """Take it at once, if it could be removed again: otherwise it would keep others out until it is stale. Raises
        Locked, NotAllowed, RepositoryError."""
        assert signal.getsignal(signal.SIGHUP) != signal.SIG_DFL, "see survive_hangups"
        self._repository, self._exclusive = repository, exclusive
        self._released = threading.Event()
        self._written_at = time.monotonic()
        repository.storage.remove(Kind.LOCK, NO_LOCK)
        self._check_others(None)
        self._name = self._write()
        try:
            self._released.wait(SETTLE_S)
            self._check_others(self._name)
        except BaseException:
            repository.storage.remove(Kind.LOCK, self._name)
            raise
        self._refreshing = threading.Thread(target=self._refresh, name="repository-lock", daemon=True)
        self._refreshing.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _write(self) -> str:
        lock = msgspec.json.encode(_own(exclusive=self._exclusive))
        return self._repository.save_unpacked(Kind.LOCK, lock)

    def _check_others(self, own: str | None) -> None:
        now = datetime.now(UTC)
        for name, lock in locks(self._repository):
            if name == own:
                continue
            if lock.is_stale(now):
                with contextlib.suppress(RepositoryError):  # whoever may not delete lets it be
                    self._repository.storage.remove(Kind.LOCK, name)
            elif self._exclusive or lock.exclusive:
                raise Locked(str(lock))

    def check(self) -> None:
        """Raise Locked if it may not be held any more: then nothing that was written counts."""
        silent_s = time.monotonic() - self._written_at
        if silent_s > LOST_AFTER_S:
            raise Locked(f"this host's lock on the repository could not be renewed for {silent_s / 60:.0f} minutes")

    def _refresh(self) -> None:
        while not self._released.wait(REFRESH_S):
            try:
                former, self._name = self._name, self._write()
                self._written_at = time.monotonic()
                self._repository.storage.remove(Kind.LOCK, former)
            except RepositoryError as error:
                log.warning("a lock of a repository could not be renewed", error=str(error))

    def abandon(self) -> None:
        """Do not renew it any more. Returns at once."""
        self._released.set()

    def release(self) -> None:
        """Let others in. What can't be removed gets stale."""
        self._released.set()
        self._refreshing.join()
        try:
            self._repository.storage.remove(Kind.LOCK, self._name)
        except RepositoryError as error:
            log.warning("a lock of a repository stays until it is stale", error=str(error))
