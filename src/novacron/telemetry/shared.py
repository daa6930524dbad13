"""What the processes of one server have counted, put together: each writes its own into a file every second, and who is
asked writes and adds them up. What a process that has ended counted stays: a counter never becomes less."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import msgspec

from novacron.telemetry import logs
from novacron.telemetry.declared import BY_NAME, MetricKind, Together
from novacron.telemetry.values import Cells, Labels, counted

log = logs.get(__name__)

_STARTED_NS = time.time_ns()
"""Tells this process from another with its number."""
WRITE_S = 1.0
GONE_MAX = 500
"""Files of processes that have ended; the oldest are let go of."""

Counts = dict[str, list[tuple[Labels, list[float]]]]


class Processes:
    """The processes that share ``directory``. ``run`` must run in each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._own = directory / f"{os.getpid()}-{_STARTED_NS}"
        self._writes = True
        self._unreadable: set[str] = set()
        """Files of which was said that they can't be read."""

    def begin(self) -> None:
        """Forget what was counted before: for the first process, before it starts the others."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in self._directory.iterdir():
                path.unlink()
        except OSError as error:
            log.warning("counters can't be shared with the other processes", error=str(error))

    async def run(self) -> None:
        """Write what this process has counted, until cancelled; then once more."""
        try:
            while True:
                self.write()
                await asyncio.sleep(WRITE_S)
        finally:
            self.write()

    def write(self) -> None:
        """Write what this process has counted. A disk that takes nothing costs the others its figures, no more."""
        counts: Counts = {
            name: list(cells.items()) for name, cells in counted().items() if BY_NAME[name].together != Together.SEEN
        }
        new = self._own.with_name(f".{self._own.name}")
        try:
            new.write_bytes(msgspec.msgpack.encode(counts))
            new.replace(self._own)
            self._writes = True
        except OSError as error:
            if self._writes:  # said once, not every second
                log.warning("counters can't be shared with the other processes", error=str(error))
            self._writes = False

    def all(self) -> dict[str, Cells]:
        """Return what all of them have counted, this one until now, the others until a second ago. What is said is
        written, too: whichever of them is asked next, and were this one killed, no counter becomes less."""
        totals = {name: {labels: cell.copy() for labels, cell in cells.items()} for name, cells in counted().items()}
        gone, others = [], False
        for path in sorted(self._directory.glob("[0-9]*")) if self._directory.exists() else ():
            if path == self._own:
                continue
            alive = Path(f"/proc/{path.name.partition('-')[0]}").exists()
            others |= alive
            if not alive:
                gone.append(path)
            _add(totals, self._read(path), alive=alive)
        for path in sorted(gone, key=lambda path: path.name.partition("-")[2])[:-GONE_MAX]:
            path.unlink(missing_ok=True)
        if others:
            self.write()
        return totals

    def _read(self, path: Path) -> Counts:
        """Return what another process has written; nothing, if that can't be read."""
        try:
            return msgspec.msgpack.decode(path.read_bytes(), type=Counts)
        except OSError:  # it is taken away just now
            return {}
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            if path.name not in self._unreadable:
                log.warning("what another process has counted can't be read", file=path.name, error=str(error))
            self._unreadable = {*list(self._unreadable)[-GONE_MAX:], path.name}
            return {}


def _add(totals: dict[str, Cells], counts: Counts, *, alive: bool) -> None:
    for name, cells in counts.items():
        family = BY_NAME.get(name)
        if family is None or (family.kind is MetricKind.GAUGE and not alive):
            continue
        into = totals.setdefault(name, {})
        for labels, cell in cells:
            total = into.get(labels)
            if total is None or len(total) != len(cell):
                into[labels] = cell
            else:
                _merge(total, cell, family.together)


def _merge(into: list[float], cell: list[float], together: Together) -> None:
    """Add what another process has counted."""
    if together is Together.MAX:
        into[0] = max(into[0], cell[0])
        return
    for place, value in enumerate(cell):
        into[place] += value
