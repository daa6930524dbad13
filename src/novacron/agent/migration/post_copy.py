"""Memory that follows its guest: after an interruption both ends go on with the rest, in a new session.

QEMU notices that nobody carries its post-copy any more, and waits. Nothing is lost: the source has all of the memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
from pathlib import Path

from novacron import pki
from novacron.agent.host.endpoint import parse_endpoint
from novacron.agent.migration import qemu_sockets
from novacron.agent.migration.qemu_sockets import listening
from novacron.agent.migration.source_stream import pump
from novacron.agent.migration.target_stream import BackPipe
from novacron.agent.settings import AgentSettings
from novacron.agent.vm.directory import INCOMING_SOCKET, OUTGOING_SOCKET
from novacron.agent.vm.hypervisor import VirtualMachine
from novacron.agent.vm.journal import PostCopy
from novacron.dwcp.backoff import Backoff
from novacron.dwcp.connection import ConnectionPool
from novacron.dwcp.frames import ErrorCode
from novacron.dwcp.listener import Listener
from novacron.dwcp.pipes import SocketPipe
from novacron.dwcp.receiver import ReceiveFailed, ReceiveOptions
from novacron.dwcp.sender import Sender, SendFailed, SendOptions
from novacron.qemu import transfer
from novacron.qemu.monitor import MonitorFailed
from novacron.telemetry import logs

log = logs.get(__name__)

AGAIN_S, AGAIN_S_MAX = 1.0, 5.0
"""Between attempts. The guest stands still meanwhile wherever it needs memory, so the pause stays short."""
LOOK_S = 0.2
INTERRUPT_S = 2.0
"""So long QEMU may take to notice by itself."""
UNKNOWN_S = 300.0
"""A target that answers for so long that it expects nothing has all it needs, or the VM is gone."""
BEGIN_S_MAX = 600.0


def _key(moving: PostCopy) -> bytes:
    """Return what both ends have in common: such a session knows no pages but its own."""
    return hashlib.sha256(f"post-copy {moving.migration}".encode()).digest()


def session_of(moving: PostCopy) -> str:
    """Return the name of the session that carries the rest."""
    return f"{moving.migration}.rest"


async def _interrupted(machine: VirtualMachine) -> bool:
    """Wait until QEMU waits for somebody to go on; say whether it does, or else has ended. Raises MonitorFailed."""
    waited_s = 0.0
    while True:
        if machine.pid is None:
            return False
        if machine.monitor is None:
            await machine.status()  # connects
        assert machine.monitor is not None
        status = machine.migration_status or (await transfer.status(machine.monitor)).status
        if status == transfer.INTERRUPTED:
            return True
        if status in transfer.ENDED:
            return False
        if waited_s >= INTERRUPT_S:
            waited_s = 0.0
            with contextlib.suppress(MonitorFailed):
                await transfer.interrupt(machine.monitor)
        await asyncio.sleep(LOOK_S)
        waited_s += LOOK_S


async def give_rest(machine: VirtualMachine, moving: PostCopy, pool: ConnectionPool, settings: AgentSettings) -> None:
    """Send the rest of the memory until the target has it all, or is known to need no more. Raises MonitorFailed."""
    refusals = Refusals()
    backoff = Backoff(AGAIN_S, AGAIN_S_MAX)
    loop = asyncio.get_running_loop()
    while await _interrupted(machine):
        assert machine.monitor is not None
        options = SendOptions(_key(moving), settings.rings_dir, outage_s=settings.outage_s, encrypted=True)
        peer = pki.node_host(moving.peer)
        sender = Sender(parse_endpoint(moving.endpoint), peer, session_of(moving), pool, options)
        try:
            async with listening(machine.home) as server, sender:
                refusals.end()
                backoff.reset()
                sender.shallow(urgent=True)
                await transfer.resume(machine.monitor, Path(OUTGOING_SOCKET))
                log.info("the rest of a guest's memory goes on", vm=machine.id, migration=moving.migration)
                await pump(server, sender, back=True)
        except (SendFailed, OSError, TimeoutError) as error:
            log.warning("a guest's memory can't be sent at the moment", vm=machine.id, error=str(error))
            if refusals.are_final(error.code if isinstance(error, SendFailed) else None, loop.time()):
                log.warning("the target needs no more of the memory", vm=machine.id, migration=moving.migration)
                return
        await asyncio.sleep(backoff.next_s())


class Refusals:
    """Tells from a target's answers when it needs no more memory: only if it has said for ``UNKNOWN_S``, without an
    exception, that it expects no such session. A target that says so in words alone (it knows no codes) is tried on:
    to stop too early would lose the guest."""

    def __init__(self) -> None:
        self._since: float | None = None

    def end(self) -> None:
        """The target took the session."""
        self._since = None

    def are_final(self, code: ErrorCode | None, now: float) -> bool:
        """Take the target's answer, None if it gave none, at ``now`` (seconds); say whether to stop."""
        if code is not ErrorCode.NOT_EXPECTED:
            self._since = None
            return False
        if self._since is None:
            self._since = now
        return now - self._since > UNKNOWN_S


async def take_rest(machine: VirtualMachine, moving: PostCopy, listener: Listener, settings: AgentSettings) -> None:
    """Receive the rest of the memory until QEMU has it all, or has ended. Raises MonitorFailed."""
    path = machine.directory / INCOMING_SOCKET
    loop = asyncio.get_running_loop()
    terms = ReceiveOptions(
        _key(moving), settings.rings_dir, outage_s=settings.outage_s, replaceable=True, encrypted=True
    )  # whose memory it is may not be known yet: an agent that was started again goes on before the server is there
    backoff = Backoff(AGAIN_S, AGAIN_S_MAX)
    while await _interrupted(machine):
        assert machine.monitor is not None
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            with listener.expect(session_of(moving), moving.peer, terms) as session:
                await qemu_sockets.remove(machine.home, [INCOMING_SOCKET])
                await transfer.recover(machine.monitor, Path(INCOMING_SOCKET))
                await loop.sock_connect(connection, str(path))
                machine.check_peer(connection)
                async with BackPipe(connection, session):
                    await session.receive(SocketPipe(connection), BEGIN_S_MAX)
        except (ReceiveFailed, OSError, TimeoutError) as error:
            if isinstance(error, ReceiveFailed) and error.code is ErrorCode.REPLACED:
                backoff.reset()  # the source is there and begins anew: be ready for it
            log.warning("a guest's memory does not arrive at the moment", vm=machine.id, error=str(error))
        finally:
            connection.close()
            await qemu_sockets.remove(machine.home, [INCOMING_SOCKET])
        await asyncio.sleep(backoff.next_s())
