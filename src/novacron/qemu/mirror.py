"""QEMU's side of a disk's migration: a job that mirrors it to an NBD export, and an export that takes it in."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import msgspec

from novacron.qemu import block
from novacron.qemu.command import DISK
from novacron.qemu.monitor import Monitor, MonitorFailed

JOB, TARGET, EXPORT = "mirror0", "mirror0-target", "disk0"
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


async def start(monitor: Monitor, path: Path, *, whole: bool = False) -> None:
    """Mirror what the VM's own layer of its disk holds, and all that the guest writes, to the export at ``path``.

    ``whole`` has all that is below its layer mirrored, too.
    """
    server = {"type": "unix", "path": str(path)}
    target = {"driver": "nbd", "node-name": TARGET, "server": server, "export": EXPORT}
    await monitor.execute("blockdev-add", target)
    device, sync = await block.top(monitor), "full" if whole else "top"
    job = {"job-id": JOB, "device": device, "target": TARGET, "sync": sync, "auto-dismiss": False}
    await monitor.execute("blockdev-mirror", job)


async def status(monitor: Monitor) -> MirrorStatus:
    """Return how the job stands. Raises MonitorFailed when there is none."""
    for job in await monitor.execute("query-block-jobs"):
        if job["device"] == JOB:
            return MirrorStatus(
                job["ready"], job["len"], job["offset"], job.get("error", "") or _failed(job.get("io-status", "ok"))
            )
    raise MonitorFailed("QEMU does not mirror the disk any more")


def _failed(io_status: str) -> str:
    return "" if io_status == "ok" else f"the mirrored disk: {io_status}"


async def finish(monitor: Monitor) -> None:
    """The guest stands still: return when all that it wrote has been handed on. Raises MonitorFailed."""
    await monitor.execute("block-job-cancel", {"device": JOB})
    async with asyncio.timeout(GONE_S_MAX):
        while True:
            found = [job for job in await monitor.execute("query-jobs") if job["id"] == JOB]
            if not found or found[0]["status"] == "concluded":
                break
            await asyncio.sleep(LOOK_S)
    if found and found[0].get("error"):
        raise MonitorFailed(f"the disk was not mirrored to its end: {found[0]['error']}")


async def clear(monitor: Monitor) -> None:
    """Leave nothing of a mirror behind, finished or not. Raises MonitorFailed, TimeoutError."""
    async with asyncio.timeout(GONE_S_MAX):
        while found := [job for job in await monitor.execute("query-jobs") if job["id"] == JOB]:
            with contextlib.suppress(MonitorFailed):  # it may be between two states
                if found[0]["status"] == "concluded":
                    await monitor.execute("job-dismiss", {"id": JOB})
                    continue
                await monitor.execute("block-job-cancel", {"device": JOB, "force": True})
            await asyncio.sleep(LOOK_S)
    if any(node["node-name"] == TARGET for node in await monitor.execute("query-named-block-nodes", {"flat": True})):
        await monitor.execute("blockdev-del", {"node-name": TARGET})


async def serve(monitor: Monitor, path: Path) -> None:
    """Let the disk be written to over NBD on a Unix socket, before its VM runs."""
    address = {"type": "unix", "data": {"path": str(path)}}
    await monitor.execute("nbd-server-start", {"addr": address, "max-connections": 1})
    export = {"type": "nbd", "id": EXPORT, "node-name": DISK, "name": EXPORT, "writable": True}
    await monitor.execute("block-export-add", export)


async def is_served(monitor: Monitor) -> bool:
    """Say whether something can still be written to the disk over NBD: it may lack what is on its way."""
    return bool(await monitor.execute("query-block-exports"))


async def close(monitor: Monitor) -> None:
    """Nothing is written to the disk over NBD any more."""
    await monitor.execute("nbd-server-stop")
