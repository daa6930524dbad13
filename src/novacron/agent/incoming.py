"""The target's part of a live migration: a DWCP session into the Unix socket of a QEMU that waits."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

from novacron.agent import disks
from novacron.agent.machine import INCOMING_SOCKET, Machine
from novacron.disk.images import Image
from novacron.dwcp.pipes import SocketPipe
from novacron.dwcp.receiver import Incoming, ReceiveFailed
from novacron.qemu import transfer
from novacron.qemu.monitor import MonitorFailed


class LoadFailed(Exception):
    """The memory could not be loaded: says why. The VM stays at the source."""


async def load(
    machine: Machine,
    incoming: Incoming,
    ready: Callable[[], Awaitable[None]],
    status_changed: asyncio.Event,
    loaded: Callable[[], Awaitable[None]],
    disk: tuple[Incoming, Image] | None = None,
) -> None:
    """Load the guest's memory from a session, and what the VM wrote over its image's disk from another; calls
    ``loaded`` as soon as QEMU has everything, still paused.

    Raises LoadFailed.
    """
    assert machine.monitor is not None
    path = machine.directory / INCOMING_SOCKET
    path.unlink(missing_ok=True)
    loop = asyncio.get_running_loop()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        await transfer.receive(machine.monitor, path)
        await loop.sock_connect(connection, str(path))
        if disk is not None:
            await disks.offer(machine)
        await ready()
        tasks = [
            asyncio.create_task(incoming.receive(SocketPipe(connection))),
            asyncio.create_task(_completed(machine, status_changed)),
        ]
        if disk is not None:
            tasks.append(asyncio.create_task(disks.take(machine, *disk)))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task_ in tasks:
                if task_.done():
                    task_.result()
            if disk is not None:
                await disks.withdraw(machine)
            await loaded()
        finally:
            for task_ in tasks:
                task_.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    except (ReceiveFailed, MonitorFailed, OSError, TimeoutError) as error:
        raise LoadFailed(str(error) or type(error).__name__) from error
    finally:
        connection.close()
        path.unlink(missing_ok=True)


async def _completed(machine: Machine, status_changed: asyncio.Event) -> None:
    assert machine.monitor is not None
    while True:
        status_changed.clear()
        status = await transfer.status(machine.monitor)
        if status.status == "completed":
            return
        if status.status == "failed" or machine.pid is None:
            raise LoadFailed(f"QEMU could not load the VM: {status.error or machine.last_words() or status.status}")
        await status_changed.wait()
