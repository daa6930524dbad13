"""The source's part of a live migration: QEMU's stream from its Unix socket into a DWCP session."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from novacron import pki
from novacron.agent.host.endpoint import parse_endpoint
from novacron.agent.migration.disk_mirror import Leaving
from novacron.agent.migration.pre_copy import Follower, TransferFailed
from novacron.agent.vm.directory import OUTGOING_SOCKET, VmDirectory
from novacron.agent.vm.machine import Machine
from novacron.dwcp.connection import ConnectionPool
from novacron.dwcp.pipes import SocketPipe
from novacron.dwcp.sender import Sender, SendFailed, SendOptions
from novacron.model.forecast import PASSES_MAX
from novacron.model.migration import Policy, Progress
from novacron.net.tap import NetworkFailed
from novacron.qemu import mirror, transfer
from novacron.qemu.monitor import MonitorFailed
from novacron.qemu.stream import RamSplitter
from novacron.telemetry import logs, traces
from novacron.wire.messages import Task

CONNECT_TIMEOUT_S = 10.0
CANCEL_TIMEOUT_S = 10.0
CANCEL_INTERRUPTED_S = 2.0
REOPEN_S = 0.05
OPENING_TIMEOUT_S = 15.0

log = logs.get(__name__)


class Opening:
    """A session that is being opened, perhaps while the target still prepares: then its handshake and what the target
    has to tell cost no time of their own."""

    def __init__(
        self,
        task: Task,
        endpoint: str,
        pool: ConnectionPool,
        options: Callable[[], Awaitable[SendOptions]],
        *,
        early: bool,
    ) -> None:
        self.migration, self.endpoint = task.migration, endpoint
        self._early, self._trace = early, task.trace
        self._task = asyncio.create_task(self._open(pki.node_host(task.peer), pool, options))

    async def _open(
        self, peer_host: str, pool: ConnectionPool, options: Callable[[], Awaitable[SendOptions]]
    ) -> Sender:
        wanted = await options()
        while True:
            sender = Sender(parse_endpoint(self.endpoint), peer_host, self.migration, pool, wanted)
            try:
                with traces.span("migration's session is opened", parent=self._trace, migration=self.migration):
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
    open_: Callable[[], Awaitable[Sender]],
    downtime_limit_ms: int,
    report: Callable[[Progress], Awaitable[None]],
    status_changed: asyncio.Event,
    completed: Callable[[bool], None],
    disk: Leaving | None = None,
    policy: Policy = Policy.THROTTLE,
) -> None:
    """Send the guest's memory over the session that ``open_`` returns, open; returns when the peer has all of it.
    Its ``disk``, if it has one, is mirrored first, and on until the guest stands still.

    ``completed`` is called as soon as QEMU has given everything and the guest stands still, or all but memory that
    follows (post-copy), of which it tells by ``True``; what fails after it is the peer's to report. Before it, raises
    TransferFailed, and on any end, cancellation too, QEMU's migration is cancelled.
    """
    assert machine.monitor is not None
    post_copy = policy is Policy.POST_COPY
    promised = False

    def near_end() -> None:
        with contextlib.suppress(NetworkFailed):  # said when it stops
            machine.expect_late_frames()

    def promise(follows: bool) -> None:
        nonlocal promised
        if not promised:
            completed(follows)
            promised = True

    try:
        async with contextlib.AsyncExitStack() as stack:
            passes_max = PASSES_MAX if await transfer.logs_every_write(machine.monitor) else 1
            follower = Follower(
                machine.monitor, downtime_limit_ms / 1e3, passes_max, report, disk, policy, promise, near_end
            )  # fmt: skip
            if disk is not None:
                await stack.enter_async_context(disk)
                await disk.ready(follower.report)
            sender = await open_()
            stack.push_async_exit(sender)
            server = stack.enter_context(listening(machine.home))
            await transfer.send(machine.monitor, Path(OUTGOING_SOCKET), pauses=disk is not None, post_copy=post_copy)
            pumping = asyncio.create_task(pump(server, sender, back=post_copy, splitter=follower.splitter))
            try:
                await follower.run(sender, pumping, status_changed)
                promise(False)
                await pumping
                if disk is not None:
                    await disk.sent
            finally:
                pumping.cancel()
                await asyncio.gather(pumping, return_exceptions=True)
    except (SendFailed, TransferFailed, MonitorFailed, OSError, TimeoutError) as error:
        if promised:
            log.warning("the session ended before the peer confirmed it", vm=machine.id, error=str(error))
            return
        machine.drop_late_frames()
        await cancel(machine)
        raise TransferFailed(str(error) or type(error).__name__) from error
    except BaseException:
        if not promised:
            machine.drop_late_frames()
            await cancel(machine)
        raise


@contextlib.contextmanager
def listening(home: VmDirectory) -> Iterator[socket.socket]:
    """Listen for one connection of QEMU's, which brings its memory."""
    with home.listen(OUTGOING_SOCKET) as server:
        server.setblocking(False)
        try:
            yield server
        finally:
            (home.path / OUTGOING_SOCKET).unlink(missing_ok=True)


async def pump(
    server: socket.socket, sender: Sender, *, back: bool = False, splitter: RamSplitter | None = None
) -> None:
    """Send what QEMU gives, and if ``back`` give it what the target's says.

    Raises SendFailed, OSError, TimeoutError.
    """
    loop = asyncio.get_running_loop()
    connection, _ = await asyncio.wait_for(loop.sock_accept(server), CONNECT_TIMEOUT_S)

    def give_back(data: bytes) -> None:
        if connection.send(data, socket.MSG_DONTWAIT) != len(data):
            raise OSError("QEMU does not take what the target asks for")

    with connection:
        if back:
            sender.on_back = give_back
        await sender.send(SocketPipe(connection), splitter or RamSplitter())


async def abandon(machine: Machine) -> None:
    """Give up what an earlier agent was sending of a QEMU that goes on here. Raises MonitorFailed."""
    assert machine.monitor is not None
    if await machine.status() == "inmigrate":
        return
    if (await transfer.status(machine.monitor)).status not in transfer.ENDED:
        await cancel(machine)
    with contextlib.suppress(TimeoutError):
        await mirror.clear(machine.monitor)


async def cancel(machine: Machine) -> None:
    """Make sure that QEMU migrates no more. What it then is, the worker finds out.

    A post-copy that was interrupted before the switch can't be cancelled (QEMU stays ``cancelling``): then it is ended.
    """
    if machine.monitor is None or machine.pid is None:
        return
    interrupted = machine.migration_status == transfer.INTERRUPTED
    try:
        async with asyncio.timeout(CANCEL_INTERRUPTED_S if interrupted else CANCEL_TIMEOUT_S):
            await machine.monitor.execute("migrate_cancel")
            while (await transfer.status(machine.monitor)).status not in transfer.ENDED:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    except (MonitorFailed, TimeoutError):
        if machine.migration_status in (transfer.INTERRUPTED, transfer.CANCELLING):
            log.error("QEMU can't take its guest back: it is ended, and starts afresh", vm=machine.id)
            await machine.kill()
