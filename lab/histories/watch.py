"""Looks, while a history happens, whether the guest of a VM runs in two QEMUs at once.

Two QEMUs of one VM are no harm by themselves: in a migration one of the two stands still. A guest that runs uses
processor time in the threads of its vCPUs, and one that stands still uses none there, whatever others do meanwhile:
one takes its memory, others write the disk that comes along. So two QEMUs of one VM whose vCPUs have both used some in
two looks one after the other, run it twice.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.histories import census
from lab.histories.verdict import Process

WINDOW_S = 1.5
RUNS_NS = 8_000_000
"""A thread that has used so much in one window runs a guest: an idle one wakes up for its clock and its ticks."""

Used = Mapping[Process, Mapping[int, int]]
"""Processor time of each vCPU's thread, in nanoseconds."""

VCPU = "CPU "
"""What QEMU's names of these threads begin with (``novacron.qemu.command.NAMED_THREADS``)."""


def running(before: Used, now: Used) -> set[Process]:
    """Return the QEMUs whose guests have run between two looks. Pure."""
    return {
        process
        for process, threads in now.items()
        if any(used - before.get(process, {}).get(thread, used) >= RUNS_NS for thread, used in threads.items())
    }


def twice(first: set[Process], second: set[Process]) -> dict[str, list[Process]]:
    """Return the VMs of which two QEMUs have run in both of two windows that follow one another, with these. Pure."""
    of = defaultdict[str, list[Process]](list)
    for process in sorted(first & second):
        of[process.vm].append(process)
    return {vm: processes for vm, processes in of.items() if len(processes) > 1}


def used(process: Process) -> dict[int, int]:
    """Return how much processor time each vCPU's thread of a QEMU has used, in nanoseconds, by the thread's id."""
    threads = {}
    for path in Path(f"/proc/{process.pid}/task").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # it ends at this moment
            if (path / "comm").read_text().startswith(VCPU):
                threads[int(path.name)] = int((path / "schedstat").read_text().split()[0])
    return threads


class TwiceWatch:
    """Looks in a thread of its own for as long as the block runs."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="twice-watch")
        self.found: list[str] = []
        self.looks = 0
        """At QEMUs that had been seen before."""
        self.ran = 0
        """... whose guests were seen to run."""

    def __enter__(self) -> TwiceWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        before, ran_before = dict[Process, dict[int, int]](), set[Process]()
        while not self._over.wait(WINDOW_S):
            now = {process: used(process) for process in _all(self._directory)}
            ran = running(before, now)
            self.looks += len(before.keys() & now.keys())
            self.ran += len(ran)
            self.found += [
                f"TWICE: at {time.strftime('%X')} the guest of {vm} ran in {processes}"
                for vm, processes in twice(ran_before, ran).items()
            ]
            before, ran_before = now, ran


def _all(directory: Path) -> Sequence[Process]:
    with contextlib.suppress(OSError):  # what goes while it is looked at
        return census.processes(directory)
    return ()
