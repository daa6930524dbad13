"""QEMU's side of a disk's migration: a job that mirrors it to an NBD export, and an export that takes it in."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from novacron.qemu import block
from novacron.qemu.command import DISK
from novacron.qemu.monitor import Monitor, MonitorFailed

JOBS = "mirror"
"""How the names of jobs begin; numbers follow."""
EXPORT = "disk0"
GONE_S_MAX, LOOK_S = 10.0, 0.02


class MirrorStatus(msgspec.Struct, frozen=True):
    """``query-block-jobs``, as far as we need it. Sizes in bytes."""

    ready: bool
    total_bytes: int
    done_bytes: int
    error: str = ""

    @property
    def left_bytes(self) -> int:
        return max(0, self.total_bytes - self.done_bytes)


def _target(number: int) -> str:
    return f"{JOBS}{number}-target"


async def start(monitor: Monitor, number: int, path: Path, node: str, *, whole: bool) -> None:
    """Mirror what a disk's uppermost layer holds, and all that the guest writes, to the export at ``path``.

    ``whole`` has all that is below it mirrored, too.
    """
    server = {"type": "unix", "path": str(path)}
    target = {"driver": "nbd", "node-name": _target(number), "server": server, "export": EXPORT}
    await monitor.execute("blockdev-add", target)
    device = await block.top(monitor) if node == DISK else node
    job = {"job-id": f"{JOBS}{number}", "device": device, "target": _target(number), "auto-dismiss": False}
    await monitor.execute("blockdev-mirror", {**job, "sync": "full" if whole else "top"})


async def status(monitor: Monitor, count: int) -> MirrorStatus:
    """Return how the first ``count`` jobs stand, together. Raises MonitorFailed when one is gone."""
    by_device = {job["device"]: job for job in await monitor.execute("query-block-jobs")}
    jobs = [by_device.get(f"{JOBS}{number}") for number in range(count)]
    if None in jobs:
        raise MonitorFailed("QEMU does not mirror the disk any more")
    present = [job for job in jobs if job is not None]
    errors = (job.get("error", "") or _failed(job.get("io-status", "ok")) for job in present)
    return MirrorStatus(
        all(job["ready"] for job in present), sum(job["len"] for job in present), sum(job["offset"] for job in present),
        next((error for error in errors if error), ""),
    )  # fmt: skip


def _failed(io_status: str) -> str:
    return "" if io_status == "ok" else f"the mirrored disk: {io_status}"


async def _jobs(monitor: Monitor) -> dict[str, dict[str, Any]]:
    return {job["id"]: job for job in await monitor.execute("query-jobs") if job["id"].startswith(JOBS)}


async def finish(monitor: Monitor, count: int) -> None:
    """The guest stands still: return when all that it wrote has been handed on. Raises MonitorFailed."""
    for number in range(count):
        await monitor.execute("block-job-cancel", {"device": f"{JOBS}{number}"})
    async with asyncio.timeout(GONE_S_MAX):
        jobs = await _jobs(monitor)
        while any(job["status"] != "concluded" for job in jobs.values()):
            await asyncio.sleep(LOOK_S)
            jobs = await _jobs(monitor)
    failed = next((job["error"] for job in jobs.values() if job.get("error")), None)
    if failed is not None:
        raise MonitorFailed(f"the disk was not mirrored to its end: {failed}")


async def clear(monitor: Monitor) -> None:
    """Leave nothing of mirrors behind, finished or not. Raises MonitorFailed, TimeoutError."""
    async with asyncio.timeout(GONE_S_MAX):
        while jobs := await _jobs(monitor):
            for id, job in jobs.items():
                with contextlib.suppress(MonitorFailed):  # it may be between two states
                    if job["status"] == "concluded":
                        await monitor.execute("job-dismiss", {"id": id})
                    else:
                        await monitor.execute("block-job-cancel", {"device": id, "force": True})
            await asyncio.sleep(LOOK_S)
    for node in await monitor.execute("query-named-block-nodes", {"flat": True}):
        if node["node-name"].startswith(JOBS):
            await monitor.execute("blockdev-del", {"node-name": node["node-name"]})


async def serve(monitor: Monitor, path: Path, nodes: Sequence[str]) -> None:
    """Let disks be written to over NBD on a Unix socket, each by its name, before their VM runs."""
    address = {"type": "unix", "data": {"path": str(path)}}
    await monitor.execute("nbd-server-start", {"addr": address, "max-connections": len(nodes)})
    for node in nodes:
        export = {"type": "nbd", "id": node, "node-name": node, "name": node, "writable": True}
        await monitor.execute("block-export-add", export)


async def close(monitor: Monitor) -> None:
    """Nothing is written to disks over NBD any more."""
    await monitor.execute("nbd-server-stop")
