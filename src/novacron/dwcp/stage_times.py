"""Processor time of a session's stages: what each costs, however busy the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

PROCESSORS = Path("/proc/stat")
TICKS_PER_S = 100
"""USER_HZ: the same on every Linux that Python runs on."""


class StageTimes:
    """Processor seconds by stage. Each stage runs in one thread only, so none waits for another here."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(self, stage: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``work`` and count the time that its thread had a processor."""
        began = time.thread_time()
        try:
            return work(*args, **kwargs)
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.thread_time() - began

    def as_log_fields(self) -> dict[str, float]:
        """Return what logs tell, by names like ``compress_cpu_s``."""
        return {f"{stage}_cpu_s": round(seconds, 3) for stage, seconds in self.seconds.items()}


def idle_processor_s(source: Path = PROCESSORS) -> float:
    """Return for how long this host's processors have idled, together, since it started; 0 where nobody can tell."""
    try:
        name, *ticks = source.read_bytes().split(b"\n", 1)[0].split()
        return (int(ticks[3]) + int(ticks[4])) / TICKS_PER_S if name == b"cpu" else 0.0
    except (OSError, IndexError, ValueError):
        return 0.0
