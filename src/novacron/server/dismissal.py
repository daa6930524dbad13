"""Hosts whose node was removed, or whose place another host has taken, and that want to connect.

They are refused, and before that told to end what they still have of VMs that run elsewhere by now, or are deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection

from websockets.asyncio.server import ServerConnection

from novacron.model.ownership import Order, OrderKind
from novacron.server.session import NodeSession
from novacron.store import events, owned
from novacron.store.database import Database
from novacron.supervise import Rarely
from novacron.telemetry import logs
from novacron.wire import codec
from novacron.wire import messages as wire

log = logs.get(__name__)

ENDS_S_MAX = 10.0
"""How long the host is listened to while it ends its VMs. It goes on by itself, and is told again when it connects."""
REASON = "this node was removed, or another host has taken its place"
NAMED_MAX = 5


async def dismiss(
    database: Database, session: NodeSession, socket: ServerConnection, held: Collection[str], log_now: Rarely
) -> None:
    """Let a host end what it must not run, and refuse it. Raises NovaError, ConnectionClosed."""
    async with database.connection() as connection:
        epochs = await owned.epochs(connection, list(held))
    statements = tuple(
        wire.Statement(vm, Order(OrderKind.GONE, epoch), deleted=deleted) for vm, (epoch, deleted) in epochs.items()
    )
    if statements:
        await session.send(wire.Desired(statements, whole=False))
        remaining = await _until_removed(socket, set(epochs))
        ended = sorted(epochs.keys() - remaining)
        message = f"a host that was removed as {session.node} has connected: it has ended {len(ended)} VMs"
        if remaining:
            message += f", and has not ended {', '.join(sorted(remaining)[:NAMED_MAX])} yet"
        async with database.transaction() as connection:
            await events.record(connection, events.NewEvent("node", session.node, session.node, "Dismissed", message))
    if log_now.due(f"dismissed {session.node}"):
        log.warning(
            "a host that is no node any more is refused", node=session.node, held=len(held), told=len(statements)
        )
    await session.refuse(REASON)


async def _until_removed(socket: ServerConnection, vms: set[str]) -> set[str]:
    """Wait until a host has nothing left of these VMs; return those of which it has."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ENDS_S_MAX):
            while vms:
                raw = await socket.recv(decode=False)
                with contextlib.suppress(codec.Undecodable):
                    message = codec.decode_from_agent(raw)
                    if isinstance(message, wire.Removed):
                        vms.discard(message.vm)
    return vms
