"""CD-ROM drives of a guest that runs: what is in them (docs/interop/qemu-qmp-ref)."""

from __future__ import annotations

import contextlib

from novacron.qemu import block, boot
from novacron.qemu.command import QemuCd, cd_fdset, cd_node
from novacron.qemu.monitor import Monitor, MonitorFailed


async def media(monitor: Monitor) -> dict[int, str | None]:
    """Return the node of what is in each drive, by the drive's number; None: it is empty. Raises MonitorFailed."""
    by_drive: dict[int, str | None] = {}
    for device in await monitor.execute("query-block"):
        for part in str(device.get("qdev", "")).split("/"):
            if part.startswith("cd") and part.endswith("-device"):
                inserted = device.get("inserted")
                by_drive[int(part[2:].removesuffix("-device"))] = (
                    None if inserted is None else str(inserted["node-name"])
                )
    return by_drive


async def eject(monitor: Monitor, number: int) -> None:
    """Take out what is in a drive, even if the guest has locked it; the drive is closed then. Raises MonitorFailed."""
    drive = {"id": boot.cd_device(number)}
    node = (await media(monitor)).get(number)
    await monitor.execute("blockdev-open-tray", {**drive, "force": True})
    if node is not None:
        await monitor.execute("blockdev-remove-medium", drive)
    await _forget(monitor, number, node)
    await monitor.execute("blockdev-close-tray", drive)


async def insert(monitor: Monitor, cd: QemuCd) -> None:
    """Put something into a drive instead of what is there; the caller keeps its descriptor. Raises MonitorFailed."""
    assert cd.node is not None and cd.descriptor is not None
    await eject(monitor, cd.number)
    drive = {"id": boot.cd_device(cd.number)}
    await _forget(monitor, cd.number, cd.node)  # of an attempt that failed
    await monitor.add_fd(cd_fdset(cd.number), cd.descriptor)
    try:
        await monitor.execute("blockdev-add", cd_node(cd))
        await monitor.execute("blockdev-open-tray", {**drive, "force": True})
        await monitor.execute("blockdev-insert-medium", {**drive, "node-name": cd.node})
    except BaseException:
        with contextlib.suppress(MonitorFailed):
            await _forget(monitor, cd.number, cd.node)
        raise
    finally:
        await monitor.execute("blockdev-close-tray", drive)


async def _forget(monitor: Monitor, number: int, node: str | None) -> None:
    """Remove the node of what was in a drive, and its descriptors."""
    if node is not None and node in await block.nodes(monitor):
        await monitor.execute("blockdev-del", {"node-name": node})
    with contextlib.suppress(MonitorFailed):  # there is none
        await monitor.execute("remove-fd", {"fdset-id": cd_fdset(number)})
