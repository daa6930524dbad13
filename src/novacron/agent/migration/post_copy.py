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
from novacron.agent.migration.source_stream import address, listening, pump
from novacron.agent.migration.target_stream import BackPipe
from novacron.agent.settings import Settings
from novacron.agent.vm.directory import INCOMING_SOCKET, OUTGOING_SOCKET
from novacron.agent.vm.journal import PostCopy
from novacron.agent.vm.machine import Machine
from novacron.dwcp.connection import Pool
from novacron.dwcp.pipes import SocketPipe
from novacron.dwcp.receiver import Listener, ReceiveFailed, Terms
from novacron.dwcp.sender import Options, Sender, SendFailed
from novacron.qemu import transfer
from novacron.qemu.monitor import MonitorFailed
from novacron.telemetry import logs

log = logs.get(__name__)

AGAIN_S = 1.0
LOOK_S = 0.2
INTERRUPT_S = 2.0
"""So long QEMU may take to notice by itself."""
UNKNOWN_S = 300.0
"""A target that answers for so long that it expects nothing has all it needs, or the VM is gone."""
BEGIN_S_MAX = 600.0
UNKNOWN = "is expected from"


def _key(moving: PostCopy) -> bytes:
    """Return what both ends have in common: such a session knows no pages but its own."""
    return hashlib.sha256(f"post-copy {moving.migration}".encode()).digest()


def session_of(moving: PostCopy) -> str:
    """Return the name of the session that carries the rest."""
    return f"{moving.migration}.rest"


async def _interrupted(machine: Machine) -> bool:
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


async def give_rest(machine: Machine, moving: PostCopy, pool: Pool, settings: Settings) -> None:
    """Send the rest of the memory until the target has it all, or is known to need no more. Raises MonitorFailed."""
    unknown_since: float | None = None
    loop = asyncio.get_running_loop()
    while await _interrupted(machine):
        assert machine.monitor is not None
        options = Options(_key(moving), settings.rings_dir, outage_s=settings.outage_s)
        peer = pki.node_host(moving.peer)
        sender = Sender(address(moving.endpoint), peer, session_of(moving), pool, options)
        try:
            with listening(machine.home) as server:
                async with sender:
                    unknown_since = None
                    sender.shallow(urgent=True)
                    await transfer.resume(machine.monitor, Path(OUTGOING_SOCKET))
                    log.info("the rest of a guest's memory goes on", vm=machine.id, migration=moving.migration)
                    await pump(server, sender, back=True)
        except (SendFailed, OSError, TimeoutError) as error:
            log.warning("a guest's memory can't follow it just now", vm=machine.id, error=str(error))
            if UNKNOWN not in str(error):
                unknown_since = None
            else:
                unknown_since = unknown_since or loop.time()
                if loop.time() - unknown_since > UNKNOWN_S:
                    log.warning("the target needs no more of the memory", vm=machine.id, migration=moving.migration)
                    return
        await asyncio.sleep(AGAIN_S)


async def take_rest(machine: Machine, moving: PostCopy, listener: Listener, settings: Settings) -> None:
    """Receive the rest of the memory until QEMU has it all, or has ended. Raises MonitorFailed."""
    path = machine.directory / INCOMING_SOCKET
    loop = asyncio.get_running_loop()
    terms = Terms(_key(moving), settings.rings_dir, outage_s=settings.outage_s, replaceable=True)
    while await _interrupted(machine):
        assert machine.monitor is not None
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            with listener.expect(session_of(moving), moving.peer, terms) as session:
                path.unlink(missing_ok=True)
                await transfer.recover(machine.monitor, Path(INCOMING_SOCKET))
                await loop.sock_connect(connection, str(path))
                machine.check_peer(connection)
                async with BackPipe(connection, session):
                    await session.receive(SocketPipe(connection), BEGIN_S_MAX)
        except (ReceiveFailed, OSError, TimeoutError) as error:
            log.warning("a guest's memory does not come just now", vm=machine.id, error=str(error))
        finally:
            connection.close()
            path.unlink(missing_ok=True)
        await asyncio.sleep(AGAIN_S)
