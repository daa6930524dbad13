"""What a process uses of its machine, and how late its loop is."""

from __future__ import annotations

import asyncio
import gc
import platform
import resource
import time
from pathlib import Path

from novacron import __version__
from novacron.telemetry.values import counter, gauge, histogram

WATCH_S = 0.5
PAGE_BYTES = resource.getpagesize()


def set_up() -> None:
    """Measure when the metrics are read."""
    gauge("novacron_build_info").set(1, __version__, platform.python_version())
    gauge("novacron_processes").set(1)
    gauge("novacron_process_start_timestamp_seconds").set(time.time())
    gauge("novacron_process_resident_memory_bytes").read = lambda: {(): _resident_bytes()}
    gauge("novacron_process_open_fds").read = lambda: {(): len(list(Path("/proc/self/fd").iterdir()))}


async def watch() -> None:
    """Measure how late the loop is, and what the process has used, until cancelled."""
    set_up()
    lag, used = histogram("novacron_loop_lag_seconds"), counter("novacron_process_cpu_seconds_total")
    collections = counter("novacron_gc_collections_total")
    while True:
        due = time.monotonic() + WATCH_S
        await asyncio.sleep(WATCH_S)
        lag.observe(max(0.0, time.monotonic() - due))
        used.cell()[0] = time.process_time()
        for generation, stats in enumerate(gc.get_stats()):
            collections.cell(str(generation))[0] = stats["collections"]


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES
