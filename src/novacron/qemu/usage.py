"""What one QEMU and its guest use, as QEMU tells (docs/interop/qemu-qmp-ref, virtio-balloon-stats)."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec

from novacron.qemu.monitor import Monitor, MonitorFailed

BALLOON = "balloon0"
STATS_S = 10
"""How often the guest's balloon driver is asked how much memory it has left."""
NS = 1e-9


class DiskUse(msgspec.Struct, frozen=True):
    """What a guest did with a disk since its QEMU began. Times in seconds, all operations together."""

    disk: str
    read_bytes: int
    written_bytes: int
    reads: int
    writes: int
    flushes: int
    read_s: float
    write_s: float
    flush_s: float
    failed: int


class Balloon(msgspec.Struct, frozen=True):
    """Bytes that the guest has, and that it could still use; None: its driver does not say."""

    actual_bytes: int
    available_bytes: int | None


async def disks(monitor: Monitor) -> list[DiskUse]:
    """Return what the guest did with each disk. Raises MonitorFailed."""
    return [_disk(entry) for entry in await monitor.execute("query-blockstats") if _name(entry)]


def _name(entry: dict[str, Any]) -> str:
    """Return the name of a disk's device: QEMU gives its path, or that of what is in it."""
    places = [place for place in str(entry.get("qdev", "")).split("/") if place.endswith("-device")]
    return places[0].removesuffix("-device") if places else ""


def _disk(entry: dict[str, Any]) -> DiskUse:
    stats = entry["stats"]
    return DiskUse(
        _name(entry),
        stats["rd_bytes"], stats["wr_bytes"], stats["rd_operations"], stats["wr_operations"], stats["flush_operations"],
        stats["rd_total_time_ns"] * NS, stats["wr_total_time_ns"] * NS, stats["flush_total_time_ns"] * NS,
        stats["failed_rd_operations"] + stats["failed_wr_operations"] + stats["failed_flush_operations"],
    )  # fmt: skip


async def has_balloon(monitor: Monitor) -> bool:
    """Say whether the guest was started with a balloon."""
    try:
        await monitor.execute("query-balloon")
    except MonitorFailed:
        return False
    return True


async def watch_balloon(monitor: Monitor) -> None:
    """Have the guest's driver, if it has one, say from time to time what memory it has left. Raises MonitorFailed."""
    property_ = {"path": f"/machine/peripheral/{BALLOON}", "property": "guest-stats-polling-interval", "value": STATS_S}
    await monitor.execute("qom-set", property_)


async def balloon(monitor: Monitor) -> Balloon:
    """Return what the balloon leaves the guest. Raises MonitorFailed when there is none."""
    actual = int((await monitor.execute("query-balloon"))["actual"])
    available = None
    with contextlib.suppress(MonitorFailed):
        property_ = {"path": f"/machine/peripheral/{BALLOON}", "property": "guest-stats"}
        available_memory = (await monitor.execute("qom-get", property_))["stats"]["stat-available-memory"]
        available = available_memory if 0 <= available_memory < 1 << 63 else None  # the guest's word; all ones: none
    return Balloon(actual, available)
