"""The source's part of a live migration: QEMU's stream from its Unix socket into a DWCP session."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

from novacron.agent.migration.outgoing import OutgoingMigration
from novacron.agent.migration.phases import SourcePhase
from novacron.agent.migration.pre_copy import PreCopy, TransferFailed
from novacron.agent.migration.qemu_sockets import listening
from novacron.agent.vm.directory import OUTGOING_SOCKET
from novacron.agent.vm.hypervisor import VirtualMachine
from novacron.dwcp.pipes import SocketPipe
from novacron.dwcp.sender import Sender, SendFailed
from novacron.model.forecast import PASSES_MAX
from novacron.qemu import mirror, transfer
from novacron.qemu.monitor import MonitorFailed
from novacron.qemu.stream import RamSplitter
from novacron.telemetry import logs

CONNECT_TIMEOUT_S = 10.0
CANCEL_TIMEOUT_S = 10.0
CANCEL_INTERRUPTED_S = 2.0

log = logs.get(__name__)


async def send(migration: OutgoingMigration) -> None:
    """Send the guest's memory; returns when the peer has all of it. The migration's disks, if it has any, are mirrored
    first, and on until the guest stands still.

    The promise is given as soon as QEMU has handed on everything and the guest stands still, or all but memory that
    follows it (post-copy). Raises TransferFailed before it; what fails after it is the peer's to report. On any end
    without a promise, cancellation too, QEMU's migration is cancelled.
    """
    machine = migration.machine
    try:
        await _send(migration)
    except (SendFailed, TransferFailed, MonitorFailed, OSError, TimeoutError) as error:
        if migration.promised:
            log.warning("the session ended before the peer confirmed it", vm=machine.id, error=str(error))
            return
        await _undo(machine)
        raise TransferFailed(str(error) or type(error).__name__) from error
    except BaseException:
        if not migration.promised:
            await _undo(machine)
        raise


async def _send(migration: OutgoingMigration) -> None:
    monitor, disk = migration.monitor, migration.disk
    async with contextlib.AsyncExitStack() as stack:
        pre_copy = PreCopy(migration, PASSES_MAX if await transfer.logs_every_write(monitor) else 1)
        if disk is not None:
            migration.enter(SourcePhase.MIRRORING)
            await stack.enter_async_context(disk)
            await disk.ready(pre_copy.report)
        sender = await migration.open_memory_session()
        stack.push_async_exit(sender)
        server = await stack.enter_async_context(listening(migration.machine.home))
        migration.enter(SourcePhase.PRE_COPY)
        await transfer.send(
            monitor, Path(OUTGOING_SOCKET), pauses=disk is not None, post_copy=migration.post_copies
        )  # fmt: skip
        pumping = asyncio.create_task(
            pump(server, sender, back=migration.post_copies, splitter=pre_copy.splitter)
        )  # fmt: skip
        try:
            await pre_copy.run(sender, pumping)
            await migration.promise(memory_follows=False)
            await pumping
            if disk is not None:
                await disk.sent
        finally:
            pumping.cancel()
            await asyncio.gather(pumping, return_exceptions=True)


async def _undo(machine: VirtualMachine) -> None:
    """The guest goes on here."""
    machine.interfaces.drop_late_frames()
    await cancel(machine)


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


async def abandon(machine: VirtualMachine) -> None:
    """Give up what an earlier agent was sending of a QEMU that goes on here. Raises MonitorFailed."""
    assert machine.monitor is not None
    if await machine.status() == "inmigrate":
        return
    if (await transfer.status(machine.monitor)).status not in transfer.ENDED:
        await cancel(machine)
    with contextlib.suppress(TimeoutError):
        await mirror.clear(machine.monitor)


async def cancel(machine: VirtualMachine) -> None:
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
            log.error("QEMU can't resume its guest: it is killed and started again", vm=machine.id)
            await machine.kill()
