"""How many processors VMs use: what rebalancing is decided by."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Loads:
    """Compares what QEMUs have used of processors with what they had when they were looked at last."""

    def __init__(self) -> None:
        self._before: dict[tuple[str, int], tuple[float, float]] = {}

    def look(self, running: Iterable[tuple[str, int]]) -> list[tuple[str, float]]:
        """Return for each VM, given with its process id, how many processors it has used since."""
        now, found, before = time.monotonic(), [], self._before
        self._before = {}
        for vm, pid in running:
            used_s = _used_s(pid)
            if used_s is None:
                continue
            self._before[vm, pid] = now, used_s
            at, was_s = before.get((vm, pid), (now, 0.0))
            if now > at:
                found.append((vm, round(max(0.0, used_s - was_s) / (now - at), 4)))
        return found


def _used_s(pid: int) -> float | None:
    """Return the processor time that a process has used, in seconds (proc_pid_stat(5))."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    except (OSError, IndexError, ValueError):
        return None
