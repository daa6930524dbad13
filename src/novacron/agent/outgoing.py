"""The source's part of a live migration: QEMU's stream from its Unix socket into a DWCP session."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable

from novacron import pki
from novacron.agent.machine import OUTGOING_SOCKET, Machine
from novacron.dwcp.connection import Pool
from novacron.dwcp.sender import Options, Sender, SendFailed
from novacron.model.migration import Progress
from novacron.qemu import transfer
from novacron.qemu.monitor import MonitorFailed
from novacron.qemu.stream import Splitter
from novacron.wire.messages import Task

PROGRESS_INTERVAL_S = 0.5
CONNECT_TIMEOUT_S = 10.0
READ_BYTES = 256 * 1024
CANCEL_TIMEOUT_S = 10.0
ENDED = ("completed", "failed", "cancelled", "none")


class TransferFailed(Exception):
    """The memory could not be sent: says on whose side, and why. The guest goes on at the source."""


async def send(
    machine: Machine,
    task: Task,
    pool: Pool,
    options: Options,
    downtime_limit_ms: int,
    report: Callable[[Progress], Awaitable[None]],
    status_changed: asyncio.Event,
    completed: Callable[[], None],
) -> None:
    """Send the guest's memory to ``task.endpoint``; returns when the peer has all of it.

    ``completed`` is called as soon as QEMU has given everything and the guest stands still; what fails after it is the
    peer's to report. Before it, raises TransferFailed, and on any end, cancellation too, QEMU's migration is cancelled.
    """
    assert task.endpoint is not None and machine.monitor is not None
    path = machine.directory / OUTGOING_SOCKET
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.setblocking(False)
    started = time.monotonic()
    promised = False
    try:
        server.bind(str(path))
        server.listen(1)
        sender = Sender(address(task.endpoint), pki.node_host(task.peer), task.migration, pool, options)
        async with sender:
            await transfer.send(machine.monitor, path, downtime_limit_ms)
            pump = asyncio.create_task(_pump(server, sender))
            try:
                await _follow(machine, sender, pump, report, status_changed, started)
                completed()
                promised = True
                await pump
            finally:
                pump.cancel()
                await asyncio.gather(pump, return_exceptions=True)
    except (SendFailed, MonitorFailed, OSError, TimeoutError) as error:
        if not promised:
            await _cancel(machine)
        raise TransferFailed(str(error) or type(error).__name__) from error
    except BaseException:
        if not promised:
            await _cancel(machine)
        raise
    finally:
        server.close()
        path.unlink(missing_ok=True)


def address(endpoint: str) -> tuple[str, int]:
    """Return host and port of ``host:port`` or ``[address]:port``."""
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)


async def _pump(server: socket.socket, sender: Sender) -> None:
    loop = asyncio.get_running_loop()
    connection, _ = await asyncio.wait_for(loop.sock_accept(server), CONNECT_TIMEOUT_S)
    with connection:
        connection.setblocking(False)
        await sender.send(lambda: loop.sock_recv(connection, READ_BYTES), Splitter())


async def _follow(
    machine: Machine,
    sender: Sender,
    pump: asyncio.Task[None],
    report: Callable[[Progress], Awaitable[None]],
    status_changed: asyncio.Event,
    started: float,
) -> None:
    """Report progress until QEMU has completed. Raises TransferFailed when it fails, or the session breaks."""
    assert machine.monitor is not None
    last, last_at = 0, started
    while True:
        status_changed.clear()
        status = await transfer.status(machine.monitor)
        now = time.monotonic()
        counters = sender.counters
        rate = int((counters.wire_bytes - last) / max(now - last_at, 1e-3))
        last, last_at = counters.wire_bytes, now
        progress = Progress(
            total_bytes=status.total_bytes,
            remaining_bytes=status.remaining_bytes,
            raw_bytes=counters.raw_bytes,
            wire_bytes=counters.wire_bytes,
            dirty_bytes_per_s=status.dirty_bytes_per_s,
            rate_bytes_per_s=rate,
            passes=status.passes,
            streams=counters.streams,
            elapsed_s=round(now - started, 3),
        )
        if status.status == "completed":
            await report(progress)
            return
        if status.status in ("failed", "cancelled"):
            if pump.done():
                pump.result()
            raise TransferFailed(f"QEMU gave up: {status.error or status.status}")
        if pump.done() and pump.exception() is not None:
            pump.result()
        await report(progress)
        changed = asyncio.create_task(status_changed.wait())
        waiting = {changed} if pump.done() else {changed, pump}
        await asyncio.wait(waiting, timeout=PROGRESS_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED)
        changed.cancel()


async def _cancel(machine: Machine) -> None:
    """Make sure that QEMU migrates no more. What it then is, the worker finds out."""
    if machine.monitor is None or machine.pid is None:
        return
    with contextlib.suppress(MonitorFailed, TimeoutError):
        async with asyncio.timeout(CANCEL_TIMEOUT_S):
            await machine.monitor.execute("migrate_cancel")
            while (await transfer.status(machine.monitor)).status not in ENDED:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
