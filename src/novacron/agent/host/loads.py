"""How many processors VMs use: what rebalancing is decided by."""

from __future__ import annotations

import time
from collections.abc import Iterable

from novacron.qemu import process


class Loads:
    """Compares what QEMUs have used of processors with what they had when they were looked at last."""

    def __init__(self) -> None:
        self._before: dict[tuple[str, int], tuple[float, float]] = {}

    def look(self, running: Iterable[tuple[str, int]]) -> list[tuple[str, float]]:
        """Return for each VM, given with its process id, how many processors it has used since."""
        now, loads, before = time.monotonic(), [], self._before
        self._before = {}
        for vm, pid in running:
            try:
                used_s = process.used(pid).cpu_s
            except (OSError, IndexError, ValueError):  # it has ended
                continue
            self._before[vm, pid] = now, used_s
            at, was_s = before.get((vm, pid), (now, 0.0))
            if now > at:
                loads.append((vm, round(max(0.0, used_s - was_s) / (now - at), 4)))
        return loads
