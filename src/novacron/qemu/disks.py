"""Disks that a guest gets and loses while it runs, and how fast each may be (docs/interop/qemu-qmp-ref)."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec

from novacron.model.waiting import WaitCode
from novacron.qemu import block
from novacron.qemu.command import DISK, QemuVolume, fdset_of, volume_device, volume_node
from novacron.qemu.monitor import Monitor, MonitorFailed

GONE_S_MAX, LOOK_S = 5.0, 0.05


class DiskLimits(msgspec.Struct, frozen=True):
    """Limits of a disk per second; None: unlimited."""

    iops: int | None = None
    bytes_per_s: int | None = None


async def plugged(monitor: Monitor) -> dict[str, int]:
    """Return the volumes that the guest has, and their sizes in bytes. Raises MonitorFailed."""
    sizes = {}
    for device in await monitor.execute("query-block"):
        names = [part for part in str(device.get("qdev", "")).split("/") if part.startswith("vol-")]
        if names and device.get("inserted"):
            sizes[names[0].removesuffix("-device")] = int(device["inserted"]["image"]["virtual-size"])
    return sizes


class GuestHoldsIt(MonitorFailed):
    """A guest was asked to let go of a volume, and has not."""

    code = WaitCode.GUEST_HOLDS_IT


async def plug(monitor: Monitor, volume: QemuVolume) -> None:
    """Plug a volume into a running guest; the caller keeps its descriptor. Raises MonitorFailed."""
    await _forget(monitor, volume.id, volume.lun)
    await monitor.add_fd(fdset_of(volume), volume.descriptor)
    try:
        await monitor.execute("blockdev-add", volume_node(volume))
        await monitor.execute("device_add", volume_device(volume))
    except BaseException:
        with contextlib.suppress(MonitorFailed):
            await _forget(monitor, volume.id, volume.lun)
        raise


async def have_key(monitor: Monitor, id: str, passphrase: bytes) -> None:
    """Let QEMU have a key for encrypted volumes, if it does not have it yet. Raises MonitorFailed."""
    if id not in {str(entry["name"]) for entry in await monitor.execute("qom-list", {"path": "/objects"})}:
        await monitor.execute("object-add", {"qom-type": "secret", "id": id, "data": passphrase.decode()})


async def unplug(monitor: Monitor, id: str, lun: int) -> None:
    """Unplug a volume from a running guest, even while it is in use. Raises MonitorFailed, GuestHoldsIt."""
    await monitor.execute("device_del", {"id": f"{id}-device"})
    try:
        async with asyncio.timeout(GONE_S_MAX):
            while id in await plugged(monitor):  # noqa: ASYNC110
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        raise GuestHoldsIt(f"the guest does not let go of volume {id}") from None
    await _forget(monitor, id, lun)


async def _forget(monitor: Monitor, id: str, lun: int) -> None:
    """Remove a volume's node and descriptors, once no device uses it."""
    if id in await block.nodes(monitor):
        await monitor.execute("blockdev-del", {"node-name": id})
    with contextlib.suppress(MonitorFailed):  # there is none
        await monitor.execute("remove-fd", {"fdset-id": fdset_of(lun)})


async def resize(monitor: Monitor, id: str, size_bytes: int) -> None:
    """Show the guest the new size of a volume. Raises MonitorFailed."""
    await monitor.execute("block_resize", {"node-name": id, "size": size_bytes})


async def limit(monitor: Monitor, id: str, limits: DiskLimits) -> None:
    """Limit the throughput of a volume, or of the VM's own disk. Raises MonitorFailed."""
    values = {"bps": limits.bytes_per_s or 0, "iops": limits.iops or 0}
    none = dict.fromkeys(("bps_rd", "bps_wr", "iops_rd", "iops_wr"), 0)
    await monitor.execute("block_set_io_throttle", {"id": f"{id}-device", **values, **none})


OWN = DISK
"""The name of the VM's own disk."""
