"""Hosts whose node was removed, or whose place another host has taken, and that want to connect.

They are refused, and before that told to end what they still have of VMs that run elsewhere by now, or are deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection

from websockets.asyncio.server import ServerConnection

from novacron.model.ownership import Claim, Order, OrderKind
from novacron.server.session import NodeSession
from novacron.store import events, owned, unreconciled
from novacron.store.certificates import REJOIN
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
    database: Database, session: NodeSession, socket: ServerConnection, held: Collection[wire.HeldVm], log_now: Rarely
) -> None:
    """Let a host end what it must not run, and refuse it. Raises NovaError, ConnectionClosed."""
    async with database.connection() as connection:
        epochs = await owned.epochs(connection, [vm.vm for vm in held])
    await _tell_of_unknown(database, session.node, held, log_now)
    statements = tuple(
        wire.Statement(vm, Order(OrderKind.GONE, epoch), deleted=deleted) for vm, (epoch, deleted) in epochs.items()
    )
    if statements:
        await session.send(wire.Desired(statements, whole=False))
        remaining = await _until_removed(socket, set(epochs))
        ended = sorted(epochs.keys() - remaining)
        message = f"a host that was removed as {session.node} has connected: it has ended {len(ended)} VMs"
        if remaining:
            message += f", and still has to end {', '.join(sorted(remaining)[:NAMED_MAX])} yet"
        async with database.transaction() as connection:
            await events.record(connection, events.NewEvent("node", session.node, session.node, "Dismissed", message))
    if log_now.due(f"dismissed {session.node}"):
        log.warning(
            "a host that is no node any more is refused", node=session.node, held=len(held), told=len(statements)
        )
    await session.refuse(REASON)


async def _tell_of_unknown(database: Database, node: str, held: Collection[wire.HeldVm], log_now: Rarely) -> None:
    """Record that a host has VMs of which the database knows less: it may have joined after a backup was made."""
    sound = {vm.vm: vm.record for vm in held if vm.record is not None}
    owns = {vm: record.epoch for vm, record in sound.items() if record.claim is Claim.OWNER}
    owns |= {vm.vm: 0 for vm in held if vm.record is None}
    async with database.connection() as connection:
        later = await unreconciled.at_unknown_epochs(connection, owns)
    if later:
        shown = ", ".join(sorted(later)[:NAMED_MAX]) + ("..." if len(later) > NAMED_MAX else "")
        message = (
            f"a host that is not a node here has {len(later)} VMs with newer records than the database: {shown}."
            f" If an older database was put back, let it join again: {REJOIN.format(name=node)}"
        )
        async with database.transaction() as connection:
            await events.record(connection, events.NewEvent("node", node, node, "UnknownHost", message))
        if log_now.due(f"unknown VMs of {node}"):
            log.warning("a host that is no node has VMs that the database does not know", node=node, vms=len(later))


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
