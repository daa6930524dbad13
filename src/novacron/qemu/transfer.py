"""QEMU's side of a live migration: what to set, how to start it, how it stands."""

from __future__ import annotations

from pathlib import Path

import msgspec

from novacron.qemu.monitor import Monitor

RATE_UNLIMITED_BYTES_PER_S = 100 * 1000 * 1000 * 1000
CAPABILITIES = {"events": True, "xbzrle": False, "multifd": False, "postcopy-ram": False}


class TransferStatus(msgspec.Struct, frozen=True):
    """``query-migrate``, as far as we need it. Sizes in bytes."""

    status: str
    total_bytes: int = 0
    remaining_bytes: int = 0
    dirty_bytes_per_s: int = 0
    passes: int = 0
    error: str = ""


async def _set_up(monitor: Monitor) -> None:
    capabilities = [{"capability": name, "state": state} for name, state in CAPABILITIES.items()]
    await monitor.execute("migrate-set-capabilities", {"capabilities": capabilities})


async def receive(monitor: Monitor, path: Path) -> None:
    """Let a QEMU that was started with ``-incoming defer`` listen for the stream on a Unix socket."""
    await _set_up(monitor)
    await monitor.execute("migrate-incoming", {"uri": f"unix:{path}"})


async def send(monitor: Monitor, path: Path, downtime_limit_ms: int) -> None:
    """Let QEMU migrate to a Unix socket; the guest stops when the rest fits into ``downtime_limit_ms``."""
    await _set_up(monitor)
    await monitor.execute(
        "migrate-set-parameters",
        {"max-bandwidth": RATE_UNLIMITED_BYTES_PER_S, "downtime-limit": downtime_limit_ms},
    )
    await monitor.execute("migrate", {"uri": f"unix:{path}"})


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
    )
