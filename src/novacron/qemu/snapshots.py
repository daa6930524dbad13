"""Snapshots inside the disk of a VM that runs (QEMU's docs/interop/qemu-qmp-ref: snapshot-save and its kin)."""

from __future__ import annotations

import asyncio
import contextlib
from typing import NamedTuple

from novacron.qemu import block, dirty_bitmaps
from novacron.qemu.monitor import Monitor, MonitorFailed

JOB = "snapshot0"
JOB_S_MAX, LOOK_S = 900.0, 0.02


class StoredSnapshot(NamedTuple):
    """A snapshot in the disk."""

    name: str
    memory_bytes: int
    """0: without memory."""


async def stored(monitor: Monitor) -> dict[str, StoredSnapshot]:
    """Return the snapshots that there are, by name. Raises MonitorFailed."""
    disk = await block.top(monitor)
    for node in await monitor.execute("query-named-block-nodes", {"flat": True}):
        if node["node-name"] == disk:
            every = [
                StoredSnapshot(str(s["name"]), int(s["vm-state-size"])) for s in node["image"].get("snapshots", ())
            ]
            return {snapshot.name: snapshot for snapshot in every}
    return {}


async def create(monitor: Monitor, name: str, *, memory: bool) -> None:
    """Keep the disk as it is now, and the ``memory``, for which the guest stands still. Raises MonitorFailed."""
    disk = await block.top(monitor)
    if memory:
        await _job(monitor, "snapshot-save", {"tag": name, "vmstate": disk, "devices": [disk]})
    else:
        await monitor.execute("blockdev-snapshot-internal-sync", {"device": disk, "name": name})


async def load(monitor: Monitor, name: str) -> None:
    """Have disk and memory be as they were then; the guest goes on from there. Raises MonitorFailed."""
    disk = await block.top(monitor)
    await dirty_bitmaps.end_all(monitor)  # QEMU records nothing of what changes then, and refuses
    await _job(monitor, "snapshot-load", {"tag": name, "vmstate": disk, "devices": [disk]})


async def delete(monitor: Monitor, name: str) -> None:
    """Let go of one; the guest goes on. Raises MonitorFailed."""
    await _job(monitor, "snapshot-delete", {"tag": name, "devices": [await block.top(monitor)]})


async def settle(monitor: Monitor) -> None:
    """Wait for what an earlier agent may have begun. Raises MonitorFailed."""
    with contextlib.suppress(MonitorFailed):
        await _ended(monitor)


async def _job(monitor: Monitor, command: str, arguments: dict[str, object]) -> None:
    await monitor.execute(command, {"job-id": JOB, **arguments})
    await _ended(monitor)


async def _ended(monitor: Monitor) -> None:
    try:
        async with asyncio.timeout(JOB_S_MAX):
            while jobs := [job for job in await monitor.execute("query-jobs") if job["id"] == JOB]:
                if jobs[0]["status"] == "concluded":
                    await monitor.execute("job-dismiss", {"id": JOB})
                    if jobs[0].get("error"):
                        raise MonitorFailed(str(jobs[0]["error"]))
                    return
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        raise MonitorFailed(f"the snapshot took longer than {JOB_S_MAX:.0f} s") from None
