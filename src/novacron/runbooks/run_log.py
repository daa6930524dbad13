"""The log of a run: a private file of JSON lines, from which the run can go on."""

from __future__ import annotations

import fcntl
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

from novacron.runbooks.model import Runbook, RunbookError

LOG_BYTES_MAX = 256 << 20
DONE = ("done", "skipped")
"""Outcomes after which a step is not run again."""


class RunState(NamedTuple):
    """What a log says of a run: its values, and the steps that are done."""

    name: str
    digest: str
    values: dict[str, str]
    done: frozenset[str]


class RunLog:
    """Writes what happens, each line durably before the run goes on."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    @classmethod
    def begin(cls, path: Path) -> RunLog:
        """Begin a log. Raises RunbookError if there is such a file, or none can be made."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            return cls._locked(path, os.O_CREAT | os.O_EXCL)
        except OSError as error:
            raise RunbookError(f"can't write the log {path}: {error.strerror}") from None

    @classmethod
    def resume(cls, path: Path) -> tuple[RunLog, RunState]:
        """Go on with a log. Raises RunbookError."""
        try:
            log = cls._locked(path, 0)
        except OSError as error:
            raise RunbookError(f"can't go on with the log {path}: {error.strerror}") from None
        try:
            state = _state(path)
        except BaseException:
            log.close()
            raise
        log._file.write(b"\n")  # behind a line that was cut off
        return log, state

    @classmethod
    def _locked(cls, path: Path, flags: int) -> RunLog:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)
        file = os.fdopen(descriptor, "ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise RunbookError(f"another run writes to the log {path}") from None
        return cls(file)

    def write(self, event: str, **fields: object) -> None:
        """Add a line. Raises OSError."""
        line = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
        self._file.write(msgspec.json.encode(line) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _state(path: Path) -> RunState:
    """Return what a log says; a line that was cut off when a machine ended is none. Raises RunbookError, OSError."""
    if path.stat().st_size > LOG_BYTES_MAX:
        raise RunbookError(f"the log {path} is too long to go on with: begin anew with --from STEP")
    name, digest, values, done = "", "", dict[str, str](), set[str]()
    for line in path.read_bytes().splitlines():
        try:
            record = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
            event = msgspec.json.decode(record["event"], type=str)
            if event == "begun":
                name = msgspec.json.decode(record["runbook"], type=str)
                digest = msgspec.json.decode(record["digest"], type=str)
                values = msgspec.json.decode(record["values"], type=dict[str, str])
            elif event == "step" and msgspec.json.decode(record["outcome"], type=str) in DONE:
                done.add(msgspec.json.decode(record["step"], type=str))
        except (msgspec.DecodeError, KeyError):
            continue
    if not name:
        raise RunbookError(f"{path} is no log of a runbook")
    return RunState(name, digest, values, frozenset(done))


def check_resumable(state: RunState, runbook: Runbook) -> None:
    """Raise RunbookError unless a run can go on with this runbook."""
    if state.name != runbook.name:
        raise RunbookError(f"the log is of runbook {state.name}, not of {runbook.name}")
    if state.digest != runbook.digest:
        raise RunbookError(f"runbook {runbook.name} has changed since the run began: begin anew with --from STEP")
