"""QEMU's side of a live migration: what to set, how to start it, how it stands."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from novacron.qemu.monitor import Monitor

RATE_UNLIMITED_BYTES_PER_S = 100 * 1000 * 1000 * 1000
CAPABILITIES = {"events": True, "xbzrle": False, "multifd": False, "auto-converge": True}
PAUSED = "pre-switchover"
NEVER_MS, FIRST_PASS_MS = 1, 0
"""Downtime limits. With 1 QEMU goes on sending, pass after pass, unless the guest writes next to nothing. With 0 it
does not look at what was written during a pass, and stops the guest at the end of the first."""
EMULATOR_LOGS_WRITES = 9
"""The first QEMU whose emulator (TCG) logs every write: earlier ones clear a page's bit in the dirty log and let the
guest go on writing to it unseen, so that a second pass would lose writes (docs/adr/0009)."""
DIRTY_RATE_S, DIRTY_RATE_SLACK_S, DIRTY_RATE_LOOK_S = 1, 5.0, 0.1
SAMPLES, SAMPLES_PER_GIB_MIN, SAMPLES_PER_GIB_MAX = 4096, 512, 16384
"""Pages whose changes stand for those of all; the bounds are QEMU's."""
SETUP_S_MAX, SETUP_LOOK_S = 10.0, 0.002
NOW_MS = 60_000
ENDED = ("completed", "failed", "cancelled", "none")
POST_COPY, INTERRUPTED, CANCELLING = "postcopy-active", "postcopy-paused", "cancelling"
NEVER_PERCENT, ALWAYS_PERCENT = 100, 1
"""How much the guest must write, in percent of what was sent, before QEMU slows it down."""
THROTTLE_FIRST_PERCENT, THROTTLE_MORE_PERCENT = 30, 20
"""The first step and the further ones."""


class TransferStatus(msgspec.Struct, frozen=True):
    """``query-migrate``, as far as we need it. Sizes in bytes."""

    status: str
    total_bytes: int = 0
    remaining_bytes: int = 0
    dirty_bytes_per_s: int = 0
    passes: int = 0
    error: str = ""
    throttle_percent: int = 0


async def _set_up(monitor: Monitor, *, pauses: bool, post_copy: bool) -> None:
    states = {**CAPABILITIES, "pause-before-switchover": pauses, "postcopy-ram": post_copy}
    capabilities = [{"capability": name, "state": state} for name, state in states.items()]
    await monitor.execute("migrate-set-capabilities", {"capabilities": capabilities})


async def receive(monitor: Monitor, path: Path, *, post_copy: bool = False) -> None:
    """Let a QEMU that was started with ``-incoming defer`` listen for the stream on a Unix socket."""
    await _set_up(monitor, pauses=False, post_copy=post_copy)
    await monitor.execute("migrate-incoming", {"uri": f"unix:{path}"})


async def logs_every_write(monitor: Monitor) -> bool:
    """Say whether QEMU's dirty log can be trusted for more than one pass."""
    version = (await monitor.execute("query-version"))["qemu"]["major"]
    return bool(version >= EMULATOR_LOGS_WRITES or (await monitor.execute("query-kvm"))["enabled"])


async def send(monitor: Monitor, path: Path, *, pauses: bool = False, post_copy: bool = False) -> None:
    """Let QEMU migrate to a Unix socket, pass after pass, until it is asked to stop the guest (``switch``); where its
    dirty log can't be trusted, in one pass and what was written during it. If it ``pauses``, it waits in between, in
    state ``pre-switchover``, until it is asked to ``go_on``. With ``post_copy`` it can stop the guest at once
    and send its memory after it.

    Nobody may read from the socket before this returns: the guest may stand still for a moment while the log begins.
    """
    await _set_up(monitor, pauses=pauses, post_copy=post_copy)
    trusted = await logs_every_write(monitor)
    parameters = {
        "max-bandwidth": RATE_UNLIMITED_BYTES_PER_S,
        "downtime-limit": NEVER_MS if trusted else FIRST_PASS_MS,
        "throttle-trigger-threshold": NEVER_PERCENT,
        "cpu-throttle-initial": THROTTLE_FIRST_PERCENT,
        "cpu-throttle-increment": THROTTLE_MORE_PERCENT,
    }
    await monitor.execute("migrate-set-parameters", parameters)
    stop = not trusted and await monitor.status() == "running"
    if stop:
        await monitor.execute("stop")
    try:
        await monitor.execute("migrate", {"uri": f"unix:{path}"})
        async with asyncio.timeout(SETUP_S_MAX):
            while (await status(monitor)).status == "setup":  # noqa: ASYNC110
                await asyncio.sleep(SETUP_LOOK_S)
    finally:
        if stop:
            await monitor.execute("cont")


async def switch(monitor: Monitor) -> None:
    """Let QEMU stop the guest and send the rest, however much it thinks that is."""
    await monitor.execute("migrate-set-parameters", {"downtime-limit": NOW_MS})


async def go_on(monitor: Monitor) -> None:
    """All else that the guest had to hand on is handed on: send the rest of it."""
    await monitor.execute("migrate-continue", {"state": PAUSED})


async def start_post_copy(monitor: Monitor) -> None:
    """Let QEMU stop the guest, send its devices, and then its memory: what the target asks for, and all else."""
    await monitor.execute("migrate-start-postcopy")


async def resume(monitor: Monitor, path: Path) -> None:
    """Let a source whose post-copy was interrupted go on over a Unix socket."""
    await monitor.execute("migrate", {"uri": f"unix:{path}", "resume": True})


async def recover(monitor: Monitor, path: Path) -> None:
    """Let a target whose post-copy was interrupted listen for the rest on a Unix socket."""
    await monitor.execute("migrate-recover", {"uri": f"unix:{path}"}, out_of_band=True)


async def interrupt(monitor: Monitor) -> None:
    """Let QEMU notice at once that nobody carries its post-copy any more."""
    await monitor.execute("migrate-pause", out_of_band=True)


async def throttle(monitor: Monitor) -> None:
    """Let QEMU slow the guest down, more with every pass in which it still writes much."""
    await monitor.execute("migrate-set-parameters", {"throttle-trigger-threshold": ALWAYS_PERCENT})


async def dirty_rate(monitor: Monitor, memory_bytes: int) -> int:
    """Return how many bytes a second the guest writes to, each page counted once, measured for a second by samples: as
    many of a small guest's pages as of a large one's, or one of them would stand for megabytes."""
    per_gib = min(SAMPLES_PER_GIB_MAX, max(SAMPLES_PER_GIB_MIN, (SAMPLES << 30) // memory_bytes))
    await monitor.execute("calc-dirty-rate", {"calc-time": DIRTY_RATE_S, "sample-pages": per_gib})
    async with asyncio.timeout(DIRTY_RATE_S + DIRTY_RATE_SLACK_S):
        while True:
            await asyncio.sleep(DIRTY_RATE_LOOK_S)
            measurement = await monitor.execute("query-dirty-rate")
            if measurement["status"] == "measured":
                return int(measurement["dirty-rate"]) << 20


async def status(monitor: Monitor) -> TransferStatus:
    answer = await monitor.execute("query-migrate")
    ram = answer.get("ram", {})
    return TransferStatus(
        status=answer.get("status", "none"),
        total_bytes=ram.get("total", 0),
        remaining_bytes=ram.get("remaining", 0),
        dirty_bytes_per_s=ram.get("dirty-pages-rate", 0) * ram.get("page-size", 4096),
        passes=ram.get("dirty-sync-count", 0),
        error=answer.get("error-desc", ""),
        throttle_percent=answer.get("cpu-throttle-percentage", 0),
    )
