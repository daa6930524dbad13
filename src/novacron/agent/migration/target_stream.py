"""The target's part of a live migration: a DWCP session into the Unix socket of a QEMU that waits."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from novacron.agent.migration import disk_mirror, qemu_sockets
from novacron.agent.migration.direct_placement import DirectPlacement
from novacron.agent.vm.directory import INCOMING_SOCKET
from novacron.agent.vm.hypervisor import VirtualMachine
from novacron.dwcp.pipes import SocketPipe, StreamSink
from novacron.dwcp.receiver import ReceiveFailed, ReceiveSession
from novacron.dwcp.return_channel import BYTES_MAX
from novacron.qemu import transfer
from novacron.qemu.monitor import MonitorFailed

LOOK_S = 0.02
CHECK_MS = 100
SEND_LOOK_S = 0.001


class BackPipe:
    """Carries what QEMU says on a connection back to the source, for as long as the block runs.

    In a thread: an event loop that watches a socket makes it non-blocking, for the thread that writes to it, too.
    """

    def __init__(self, connection: socket.socket, incoming: ReceiveSession) -> None:
        self._connection, self._incoming = connection, incoming
        self._over = threading.Event()

    async def __aenter__(self) -> BackPipe:
        loop = asyncio.get_running_loop()
        self._carrying = asyncio.ensure_future(asyncio.to_thread(self._carry, loop))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        await asyncio.gather(self._carrying, return_exceptions=True)

    def _carry(self, loop: asyncio.AbstractEventLoop) -> None:
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        while not self._over.is_set():
            if not poll.poll(CHECK_MS):
                continue
            data = self._connection.recv(BYTES_MAX)
            if not data:
                return
            sending = asyncio.run_coroutine_threadsafe(self._incoming.back.send(data), loop)
            while not sending.done() and not self._over.wait(SEND_LOOK_S):
                pass
            sending.cancel()


class LoadFailed(Exception):
    """The memory could not be loaded: says why. The VM stays at the source."""


class Arrival(msgspec.Struct, frozen=True):
    """A guest that comes here while it runs."""

    machine: VirtualMachine
    session: ReceiveSession
    """Brings its memory."""
    disk: disk_mirror.Coming | None
    """The disks that move with it, if any do."""
    post_copies: bool
    """It may run here before all of its memory has come."""
    changed: asyncio.Event
    """Set whenever QEMU says something about its migration."""
    ready: Callable[[], Awaitable[None]]
    """To be called once everything waits for the source."""
    loaded: Callable[[bool], Awaitable[None]]
    """To be called once QEMU has everything, still paused; with True: all but memory that follows."""


async def load(arrival: Arrival, placement: DirectPlacement) -> None:
    """Load a guest's memory, and what the VM wrote over its image's disk; returns once the memory is all here, also
    where it follows its guest.

    Raises LoadFailed.
    """
    machine, incoming, disk, post_copy = arrival.machine, arrival.session, arrival.disk, arrival.post_copies
    assert machine.monitor is not None
    path = machine.directory / INCOMING_SOCKET
    await qemu_sockets.remove(machine.home, [INCOMING_SOCKET])
    loop = asyncio.get_running_loop()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        await transfer.receive(machine.monitor, Path(INCOMING_SOCKET), post_copy=post_copy)
        await loop.sock_connect(connection, str(path))
        machine.check_peer(connection)
        sink: StreamSink = SocketPipe(connection)
        if not post_copy:  # there QEMU has to know which pages have come, and asks for the others
            sink = await placement.sink(machine, connection, incoming.peer)
        if disk is not None:
            await disk_mirror.offer(machine, disk)
        await arrival.ready()
        receiving = asyncio.create_task(incoming.receive(sink))
        wait = _completed_by_event if post_copy else _completed
        completed = asyncio.create_task(wait(machine, arrival.changed))
        before = [asyncio.create_task(_devices(machine))] if post_copy else []
        if disk is not None:
            before.append(asyncio.create_task(disk_mirror.take(machine, disk)))
        tasks = [receiving, completed, *before]
        try:
            async with BackPipe(connection, incoming) if post_copy else contextlib.nullcontext():
                await _all(before if post_copy else tasks, tasks)
                if disk is not None:
                    await disk_mirror.withdraw(machine, disk)
                await arrival.loaded(not completed.done())
                await _all(tasks, tasks)
        finally:
            for task_ in tasks:
                task_.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    except (ReceiveFailed, MonitorFailed, OSError, TimeoutError) as error:
        raise LoadFailed(str(error) or type(error).__name__) from error
    finally:
        connection.close()
        await qemu_sockets.remove(machine.home, [INCOMING_SOCKET])


async def _all(awaited: list[asyncio.Task[None]], tasks: list[asyncio.Task[None]]) -> None:
    """Wait until all of the ``wanted`` have ended, or any of the ``tasks`` has failed; raises what it raised."""
    while any(not task.done() for task in awaited):
        pending = [task for task in tasks if not task.done()]
        await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    for task in awaited:
        task.result()


async def _completed(machine: VirtualMachine, status_changed: asyncio.Event) -> None:
    assert machine.monitor is not None
    while True:
        status_changed.clear()
        status = await transfer.status(machine.monitor)
        if status.status == "completed":
            return
        if status.status == "failed" or machine.pid is None:
            raise LoadFailed(f"QEMU could not load the VM: {status.error or machine.last_words() or status.status}")
        await status_changed.wait()


async def _completed_by_event(machine: VirtualMachine, status_changed: asyncio.Event) -> None:
    """Wait for the event that QEMU has completed: QEMU can't be asked while it waits for memory (post-copy)."""
    while machine.migration_status != "completed":
        if machine.migration_status in ("failed", transfer.INTERRUPTED) or machine.pid is None:
            raise LoadFailed(f"QEMU could not load the VM: {machine.last_words() or machine.migration_status}")
        status_changed.clear()
        await status_changed.wait()


async def _devices(machine: VirtualMachine) -> None:
    """Wait until the guest could run, though its memory is not there (post-copy)."""
    while machine.migration_status not in (transfer.POST_COPY, "completed"):  # noqa: ASYNC110
        await asyncio.sleep(LOOK_S)
    while await machine.status() != "paused":  # noqa: ASYNC110 (no event tells)
        await asyncio.sleep(LOOK_S)
