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
from novacron.dwcp.pipes import SocketPipe
from novacron.dwcp.ring import PAGE
from novacron.dwcp.sender import Options, Sender, SendFailed
from novacron.model.forecast import PASSES_MAX, SHRINKS, Forecast, Path, downtime_s, forecast
from novacron.model.migration import Progress, Savings
from novacron.qemu import transfer
from novacron.qemu.monitor import Monitor, MonitorFailed
from novacron.qemu.stream import Splitter
from novacron.qemu.transfer import TransferStatus
from novacron.telemetry import logs
from novacron.wire.messages import Task

PROGRESS_INTERVAL_S = 0.5
LOOK_S, LOOK_CLOSELY_S = 0.1, 0.02
"""How often QEMU is asked how it stands: in the first pass, and after it."""
NEAR_END_BYTES = 96 << 20
"""With so little of the first pass left, nothing may queue up any more."""
RATIO_AFTER_BYTES, RATIO_GUESS = 16 << 20, 0.4
STUCK_PASSES = 4
AIM, SETTLED_PASSES = 0.6, 5
"""The first passes are to bring the downtime below this share of its limit; after so many the limit is enough."""
CONNECT_TIMEOUT_S = 10.0
CANCEL_TIMEOUT_S = 10.0
REOPEN_S = 0.05
OPENING_TIMEOUT_S = 15.0
ENDED = ("completed", "failed", "cancelled", "none")

log = logs.get(__name__)


class TransferFailed(Exception):
    """The memory could not be sent: says on whose side, and why. The guest goes on at the source."""


class Opening:
    """A session that is being opened, perhaps while the target still prepares: then its handshake and what the target
    has to tell cost no time of their own."""

    def __init__(
        self, task: Task, endpoint: str, pool: Pool, options: Callable[[], Awaitable[Options]], *, early: bool
    ) -> None:
        self.migration, self.endpoint = task.migration, endpoint
        self._early = early
        self._task = asyncio.create_task(self._open(pki.node_host(task.peer), pool, options))

    async def _open(self, peer_host: str, pool: Pool, options: Callable[[], Awaitable[Options]]) -> Sender:
        wanted = await options()
        while True:
            sender = Sender(address(self.endpoint), peer_host, self.migration, pool, wanted)
            try:
                return await sender.__aenter__()
            except SendFailed:
                if not self._early:
                    raise
            await asyncio.sleep(REOPEN_S)

    async def session(self) -> Sender:
        """Return the session once it is open, to be entered by who takes it. Raises SendFailed, TimeoutError."""
        try:
            return await asyncio.wait_for(asyncio.shield(self._task), OPENING_TIMEOUT_S)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Give the session up, open or not."""
        self._task.cancel()
        opened = (await asyncio.gather(self._task, return_exceptions=True))[0]
        if isinstance(opened, Sender):
            await opened.__aexit__(SendFailed)


async def send(
    machine: Machine,
    sender: Sender,
    downtime_limit_ms: int,
    report: Callable[[Progress], Awaitable[None]],
    status_changed: asyncio.Event,
    completed: Callable[[], None],
) -> None:
    """Send the guest's memory over an open session, which is closed at the end; returns when the peer has all of it.

    ``completed`` is called as soon as QEMU has given everything and the guest stands still; what fails after it is the
    peer's to report. Before it, raises TransferFailed, and on any end, cancellation too, QEMU's migration is cancelled.
    """
    assert machine.monitor is not None
    path = machine.directory / OUTGOING_SOCKET
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.setblocking(False)
    promised = False
    try:
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_exit(sender)
            server.bind(str(path))
            server.listen(1)
            await transfer.send(machine.monitor, path)
            passes_max = PASSES_MAX if await transfer.logs_every_write(machine.monitor) else 1
            pump = asyncio.create_task(_pump(server, sender))
            try:
                follower = _Follower(machine.monitor, sender, downtime_limit_ms / 1e3, passes_max)
                await follower.run(pump, report, status_changed)
                completed()
                promised = True
                await pump
            finally:
                pump.cancel()
                await asyncio.gather(pump, return_exceptions=True)
    except (SendFailed, MonitorFailed, OSError, TimeoutError) as error:
        if promised:
            log.warning("the session ended before the peer confirmed it", vm=machine.id, error=str(error))
            return
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
        await sender.send(SocketPipe(connection), Splitter())


class _Follower:
    """Watches one migration at its source: tells how it stands, and decides when the guest stops."""

    def __init__(self, monitor: Monitor, sender: Sender, downtime_limit_s: float, passes_max: int) -> None:
        self._monitor = monitor
        self._sender = sender
        self._limit_s = downtime_limit_s
        self._passes_max = passes_max
        self._started = self._pass_at = self._last_at = self._first_at = time.monotonic()
        self._passes = self._last_wire = 0
        self._first: Forecast | None = None
        self._forecast: Forecast | None = None
        self._switching = self._throttling = False
        self._left_at_pass: list[int] = []
        self._dirty_rate = 0.0

    async def run(
        self,
        pump: asyncio.Task[None],
        report: Callable[[Progress], Awaitable[None]],
        status_changed: asyncio.Event,
    ) -> None:
        """Follow until QEMU has completed. Raises TransferFailed when it fails, or the session breaks."""
        reported_at = 0.0
        while True:
            status_changed.clear()
            status = await transfer.status(self._monitor)
            now = time.monotonic()
            ended = status.status in ENDED
            if not ended and not self._switching:
                await self._steer(status, now)
            if ended or now - reported_at > PROGRESS_INTERVAL_S:
                reported_at = now
                await report(self._progress(status, now))
            if status.status == "completed":
                return
            if ended and status.status != "none":
                if pump.done():
                    pump.result()
                raise TransferFailed(f"QEMU gave up: {status.error or status.status}")
            if pump.done() and pump.exception() is not None:
                pump.result()
            changed = asyncio.create_task(status_changed.wait())
            waiting = {changed} if pump.done() else {changed, pump}
            pause_s = LOOK_S if status.passes <= 1 or self._switching else LOOK_CLOSELY_S
            await asyncio.wait(waiting, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()

    async def _steer(self, status: TransferStatus, now: float) -> None:
        """Foresee the rest; stop the guest once that is short enough, slow it down if it would never be."""
        sender = self._sender
        if status.passes > 1 or 0 < status.remaining_bytes < NEAR_END_BYTES:
            sender.shallow()
        if status.passes != self._passes:
            if self._passes > 0:  # what a pass begins with was written in the one before
                self._dirty_rate = status.remaining_bytes / max(now - self._pass_at, 1e-3)
            self._passes, self._pass_at = status.passes, now
            self._left_at_pass.append(status.remaining_bytes)
        dirty_rate = max(self._dirty_rate, status.dirty_bytes_per_s)
        counters = sender.counters
        ratio = counters.wire_bytes / counters.raw_bytes if counters.raw_bytes > RATIO_AFTER_BYTES else RATIO_GUESS
        path = Path(sender.rate_bytes_per_s, counters.rtt_ms / 1e3, ratio, sender.backlog_bytes)
        left = status.remaining_bytes + dirty_rate * (now - self._pass_at) * (status.passes > 1)
        self._forecast = forecast(left, dirty_rate, path, self._limit_s, self._passes_max)
        if self._first is None and counters.raw_bytes > RATIO_AFTER_BYTES:
            self._first, self._first_at = self._forecast, now
        if status.passes <= 1:
            return
        down_s = downtime_s(left, path)
        settled = self._throttling or status.passes >= SETTLED_PASSES
        if down_s <= (self._limit_s if settled else self._limit_s * AIM):
            self._forecast = Forecast(True, 0.0, round(down_s * 1e3, 1))
            self._switching = True
            await transfer.switch(self._monitor)
        elif not self._throttling and self._stuck():
            self._throttling = True
            log.info(
                "the guest writes faster than the link takes it: it is slowed down", dirty=status.dirty_bytes_per_s
            )
            await transfer.throttle(self._monitor)

    def _stuck(self) -> bool:
        """Say whether the last passes did not become shorter."""
        last = self._left_at_pass[-STUCK_PASSES:]
        return len(last) == STUCK_PASSES and last[-1] > last[0] * SHRINKS

    def _progress(self, status: TransferStatus, now: float) -> Progress:
        counters = self._sender.counters
        rate = int((counters.wire_bytes - self._last_wire) / max(now - self._last_at, 1e-3))
        self._last_wire, self._last_at = counters.wire_bytes, now
        return Progress(
            total_bytes=status.total_bytes,
            remaining_bytes=status.remaining_bytes,
            raw_bytes=counters.raw_bytes,
            wire_bytes=counters.wire_bytes,
            dirty_bytes_per_s=status.dirty_bytes_per_s,
            rate_bytes_per_s=rate,
            passes=status.passes,
            streams=counters.streams,
            rtt_ms=counters.rtt_ms,
            retransmits=counters.retransmits,
            resumed=counters.resumed,
            repaired_pages=counters.repaired_pages,
            savings=_savings(self._sender),
            elapsed_s=round(now - self._started, 3),
            throttle_percent=status.throttle_percent,
            first_forecast=self._first,
            first_forecast_at_s=round(self._first_at - self._started, 3),
            forecast=self._forecast,
        )


def _savings(sender: Sender) -> Savings:
    told = sender.savings
    return Savings(
        zero=told.zero * PAGE,
        session=told.session * PAGE,
        image=told.image * PAGE,
        sibling=told.sibling * PAGE,
        checkpoint=told.checkpoint * PAGE,
        difference=told.difference * PAGE,
        compression=max(0, told.before_compression - told.after_compression),
    )


async def _cancel(machine: Machine) -> None:
    """Make sure that QEMU migrates no more. What it then is, the worker finds out."""
    if machine.monitor is None or machine.pid is None:
        return
    with contextlib.suppress(MonitorFailed, TimeoutError):
        async with asyncio.timeout(CANCEL_TIMEOUT_S):
            await machine.monitor.execute("migrate_cancel")
            while (await transfer.status(machine.monitor)).status not in ENDED:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
