"""The block devices of a QEMU that runs: which node of its block layer is behind which (docs/interop/qemu-qmp-ref)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple

from novacron.qemu import dirty_bitmaps
from novacron.qemu.command import DISK, DISK_OPTIONS, encrypted, node_behind
from novacron.qemu.monitor import Monitor, MonitorFailed

COPY_JOB, COPY = "copy0", "copy0-target"
LOOK_S, COPY_S_MAX = 0.1, 6 * 3600.0
Around = Callable[[], AbstractAsyncContextManager[object]]
"""Prepares a guest for a moment, and lets it go on afterwards."""


class CopyPlan(NamedTuple):
    """What of the guest's own layer is copied, and what is recorded from that moment on."""

    since: str = ""
    """The record of what is to be copied; empty: all that the layer holds."""
    begins: str = ""
    """The record that begins; empty: none does."""


Planner = Callable[[Monitor, str], Awaitable[CopyPlan]]
"""Decides on a copy of what a node of the block layer has."""


async def all_of_it(_monitor: Monitor, _node: str) -> CopyPlan:
    """Plan a copy of a layer as a whole, of which nothing is recorded."""
    return CopyPlan()


async def top(monitor: Monitor, device: str = DISK) -> str:
    """Return the node that a device of the guest's has: its own layer. Raises MonitorFailed when there is none."""
    inserted = await _inserted(monitor, device)
    if inserted is None:
        raise MonitorFailed(f"QEMU has no disk {device}")
    return str(inserted["node-name"])


async def size_bytes(monitor: Monitor, device: str = DISK) -> int:
    """Return how large the guest sees the disk, 0 if it has none. Raises MonitorFailed."""
    inserted = await _inserted(monitor, device)
    return 0 if inserted is None else int(inserted["image"]["virtual-size"])


async def _inserted(monitor: Monitor, device: str) -> dict[str, Any] | None:
    for block in await monitor.execute("query-block"):
        # QEMU gives the path of the device or of what is in it: /machine/peripheral/disk0-device/virtio-backend
        if f"{device}-device" in str(block.get("qdev", "")).split("/"):
            inserted: dict[str, Any] | None = block.get("inserted")
            return inserted
    return None


async def put_over(monitor: Monitor, number: int, file: str, key: str) -> None:
    """Have the guest write into ``file``, an empty layer, from now on; what was its layer is below. May be repeated.
    ``key`` is the id of that with which the layer is encrypted, empty for none.

    Raises MonitorFailed.
    """
    current, node = await top(monitor), node_behind(number)
    if current == node:
        return
    if node not in await nodes(monitor):
        layer = {"driver": "qcow2", "node-name": node, "file": {"driver": "file", "filename": file}, "backing": None}
        await monitor.execute("blockdev-add", {**layer, **DISK_OPTIONS, **encrypted(key)})
    await monitor.execute("blockdev-snapshot", {"node": current, "overlay": node})


async def nodes(monitor: Monitor) -> set[str]:
    """Return the names of all nodes of QEMU's block layer. Raises MonitorFailed."""
    return {str(node["node-name"]) for node in await monitor.execute("query-named-block-nodes", {"flat": True})}


async def copy(
    monitor: Monitor, file: str, key: str, around: Around = contextlib.nullcontext, planner: Planner = all_of_it
) -> None:
    """Copy the guest's own layer as it is now into ``file``, an empty one, encrypted with ``key`` unless that is empty;
    the guest goes on. The moment of which the copy is lies within ``around``; a record begins with it if ``planner``
    says so. Raises MonitorFailed."""
    await clear_copy(monitor)
    target = {"driver": "qcow2", "node-name": COPY, "file": {"driver": "file", "filename": file}, "backing": None}
    await monitor.execute("blockdev-add", {**target, **DISK_OPTIONS, **encrypted(key)})
    try:
        node = await top(monitor)
        plan = await planner(monitor, node)
        job = {"job-id": COPY_JOB, "device": node, "target": COPY, "auto-dismiss": False, **_extent_of(plan)}
        actions: list[dict[str, object]] = [{"type": "blockdev-backup", "data": job}]
        if plan.begins:
            actions.append(dirty_bitmaps.begin(node, plan.begins))
        async with around():
            await monitor.execute("transaction", {"actions": actions})
        async with asyncio.timeout(COPY_S_MAX):
            while (job_status := await _job(monitor)) is None or job_status["status"] != "concluded":
                if job_status is None:
                    raise MonitorFailed("QEMU does not copy the disk any more")
                await asyncio.sleep(LOOK_S)
        if job_status.get("error"):
            raise MonitorFailed(f"the disk can't be copied: {job_status['error']}")
    finally:
        await clear_copy(monitor)


def _extent_of(plan: CopyPlan) -> dict[str, str]:
    """Return what a backup job copies. It leaves the record as it is: a backup that fails later can be tried again."""
    return {"sync": "bitmap", "bitmap": plan.since, "bitmap-mode": "never"} if plan.since else {"sync": "top"}


async def clear_copy(monitor: Monitor) -> None:
    """Leave nothing of a copy behind, finished or not. Raises MonitorFailed, TimeoutError."""
    async with asyncio.timeout(10):
        while (job := await _job(monitor)) is not None:
            if job["status"] == "concluded":
                await monitor.execute("job-dismiss", {"id": COPY_JOB})
                continue
            await monitor.execute("job-cancel", {"id": COPY_JOB})
            await asyncio.sleep(LOOK_S)
    if COPY in await nodes(monitor):
        await monitor.execute("blockdev-del", {"node-name": COPY})


async def _job(monitor: Monitor) -> dict[str, Any] | None:
    return next((job for job in await monitor.execute("query-jobs") if job["id"] == COPY_JOB), None)
