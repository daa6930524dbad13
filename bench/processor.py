"""Processor time of the processes that carry a migration, thread by thread (proc(5): ``stat``)."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

SAMPLE_S = 0.1
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
SENT, RECEIVED = "a session was sent", "a session was received"
STAGE = "_cpu_s"
BUSY_PROCESSES = 2


class _Threads(NamedTuple):
    """Processor seconds of a process: all of it, its first thread, and the others that live."""

    whole_s: float
    main_s: float
    others_s: float

    @classmethod
    def of(cls, pid: int) -> _Threads:
        """Raises OSError when the process is gone."""
        process = Path(f"/proc/{pid}")
        whole, each = _seconds(process / "stat"), {}
        for task in (process / "task").iterdir():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                each[int(task.name)] = _seconds(task / "stat")
        main_s = each.pop(pid, 0.0)
        return cls(whole, main_s, sum(each.values()))


def _seconds(stat: Path) -> float:
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


class Spent(NamedTuple):
    """What one process used while it was watched."""

    whole_s: float
    main_s: float
    migrating_s: float
    """Of a QEMU: its first thread and those that have ended, so neither the guest's processors nor what else lives on.
    """


class ProcessorUse:
    """Watches processes while the block runs. ``processes`` names them, also those that come later."""

    def __init__(self, processes: Callable[[], Mapping[str, int]]) -> None:
        self._processes = processes
        self._first: dict[tuple[str, int], _Threads] = {}
        self._last: dict[tuple[str, int], _Threads] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> ProcessorUse:
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self._sample()

    def _sample(self) -> None:
        for key in self._processes().items():
            with contextlib.suppress(OSError, IndexError):  # it is gone
                now = _Threads.of(key[1])
                self._first.setdefault(key, now)
                self._last[key] = now

    def spent(self) -> dict[str, Spent]:
        """Return what each process used, by name."""
        found = {}
        for (name, pid), last in self._last.items():
            first = self._first[name, pid]
            whole_s = last.whole_s - first.whole_s
            found[name] = Spent(whole_s, last.main_s - first.main_s, whole_s - (last.others_s - first.others_s))
        return found


class StageLog:
    """What an agent says in its log about the stages of its sessions, from now on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._from = path.stat().st_size

    def stages(self, event: str) -> dict[str, float] | None:
        """Return processor seconds by stage of the largest session that this ``event`` tells of; None: of none yet."""
        with self._path.open("rb") as file:
            file.seek(self._from)
            lines = [json.loads(line) for line in file if event.encode() in line]
        if not lines:
            return None
        largest = max(lines, key=lambda line: line.get("raw_bytes", 0))
        return {name.removesuffix(STAGE): value for name, value in largest.items() if name.endswith(STAGE)}


@contextlib.contextmanager
def busy(count: int = BUSY_PROCESSES) -> Iterator[None]:
    """Let processes beside use all of the processor that they get, for as long as the block runs."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in others:
            process.kill()
            process.wait()
