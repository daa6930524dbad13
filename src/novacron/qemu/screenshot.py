"""What a guest's display shows, as a picture that is in memory only (docs/interop/qemu-qmp-ref: screendump)."""

from __future__ import annotations

import asyncio
import contextlib
import os

from novacron.qemu.command import PICTURE_FDSET, fdset_path
from novacron.qemu.monitor import Monitor, MonitorFailed

PNG_BEGINS = b"\x89PNG"


async def take(monitor: Monitor, bytes_max: int) -> bytes:
    """Return a PNG file; one at a time. Raises MonitorFailed, OSError."""
    memory = os.memfd_create("picture", os.MFD_CLOEXEC)
    try:
        await _remove(monitor)  # what an earlier agent left that was killed meanwhile
        writable = os.open(f"/proc/self/fd/{memory}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            await monitor.add_fd(PICTURE_FDSET, writable)
        finally:
            os.close(writable)
        try:
            await monitor.execute("screendump", {"filename": fdset_path(PICTURE_FDSET), "format": "png"})
        finally:
            await _remove(monitor)
        picture = await asyncio.to_thread(os.pread, memory, bytes_max + 1, 0)
    finally:
        os.close(memory)
    if not picture.startswith(PNG_BEGINS) or len(picture) > bytes_max:
        raise OSError("QEMU made no picture of a reasonable size")
    return picture


async def _remove(monitor: Monitor) -> None:
    with contextlib.suppress(MonitorFailed):  # there is none
        await monitor.execute("remove-fd", {"fdset-id": PICTURE_FDSET})
