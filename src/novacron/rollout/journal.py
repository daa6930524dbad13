"""What a rollout has done so far, on disk before each step; who may work on it; what operators ask of it meanwhile.

``rollouts/000007.json`` is the record of one rollout; the last of them says what serves. ``request.json`` is what an
operator asks of the process that works. All are 0600, written whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from novacron import private_file
from novacron.rollout.model import Rollout, RolloutError, RolloutRecord
from novacron.state_lock import FolderInUse, FolderLock

FILE_BYTES_MAX = 4 << 20
KEPT = 500
"""Rollouts whose records are kept."""


class OperatorAsk(StrEnum):
    """What operators can ask of a rollout that runs."""

    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"


class OperatorRequest(msgspec.Struct, frozen=True):
    """What is asked of which rollout, by whom."""

    number: int
    ask: OperatorAsk
    by: str = ""


R = TypeVar("R", bound=RolloutRecord)


class RecordJournal(Generic[R]):
    """The records of one kind of rollouts of an installation."""

    def __init__(self, directory: Path, kind: type[R]) -> None:
        self.directory, self._kind = directory, kind
        self._records, self._request = directory / "rollouts", directory / "request.json"

    def open(self) -> None:
        """Make the folders. Raises RolloutError."""
        try:
            self._records.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise RolloutError(f"can't make {self._records}: {error.strerror}; name another --state-dir") from None

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Be the one process that works on rollouts. Raises RolloutError."""
        self.open()
        try:
            lock = FolderLock(self.directory)
        except FolderInUse as error:
            raise RolloutError(
                f"process {error.pid} works on a rollout already; see it with: novacron rollout status"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def is_worked_on(self) -> bool:
        """Say whether a process works on a rollout now."""
        if not self._records.is_dir():
            return False
        try:
            FolderLock(self.directory).release()
        except FolderInUse:
            return True
        return False

    def save(self, rollout: R) -> None:
        """Write a record durably: file, name and folder. Raises OSError."""
        private_file.write(self._path(rollout.number), msgspec.json.format(msgspec.json.encode(rollout)))
        folder = os.open(self._records, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _path(self, number: int) -> Path:
        return self._records / f"{number:06}.json"

    def all(self) -> list[R]:
        """Return the records, oldest first. Raises RolloutError."""
        return [self._read(path) for path in sorted(self._records.glob("[0-9]*.json"))]

    def last(self) -> R | None:
        """Return the newest record. Raises RolloutError."""
        paths = sorted(self._records.glob("[0-9]*.json"))
        return self._read(paths[-1]) if paths else None

    def get(self, number: int) -> R:
        """Return one record. Raises RolloutError."""
        if not self._path(number).exists():
            raise RolloutError(f"there is no rollout {number}; novacron rollout history lists them")
        return self._read(self._path(number))

    def _read(self, path: Path) -> R:
        try:
            if path.stat().st_size > FILE_BYTES_MAX:
                raise RolloutError(f"{path} is larger than {FILE_BYTES_MAX >> 20} MiB: that is no record of a rollout")
            return msgspec.json.decode(path.read_bytes(), type=self._kind)
        except (OSError, msgspec.MsgspecError) as error:
            raise RolloutError(f"can't read {path}: {error}; mend it, or move it away if its rollout is over") from None

    def forget_old(self) -> None:
        """Remove the oldest records beyond those that are kept."""
        for path in sorted(self._records.glob("[0-9]*.json"))[:-KEPT]:
            path.unlink(missing_ok=True)

    def ask(self, request: OperatorRequest) -> None:
        """Tell the process that works what an operator wants. Raises OSError."""
        private_file.write(self._request, msgspec.json.encode(request))

    def asked(self, number: int) -> OperatorRequest | None:
        """Return what is asked of a rollout, if anything is."""
        try:
            request = msgspec.json.decode(self._request.read_bytes(), type=OperatorRequest)
        except (OSError, msgspec.MsgspecError):
            return None  # nothing is asked, or by nobody who uses our command
        return request if request.number == number else None

    def answered(self) -> None:
        """Forget what was asked."""
        self._request.unlink(missing_ok=True)


class RolloutJournal(RecordJournal[Rollout]):
    """The records of the rollouts of servers."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, Rollout)
