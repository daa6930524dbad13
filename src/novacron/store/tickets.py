"""Tickets for consoles: each opens one, once, on whichever server it is shown to."""

from __future__ import annotations

import secrets
from typing import NamedTuple

from novacron.model import limits
from novacron.model.console import PREFIX, ConsoleKind, Ticket
from novacron.model.errors import IllegalState, Unauthenticated
from novacron.model.token import hash_secret
from novacron.model.vm import Display
from novacron.store import events, vms
from novacron.store.database import Connection


class Holder(NamedTuple):
    """Who asks for a ticket: the user's name, and the id of their token or session."""

    user: str
    token: str


class Admitted(NamedTuple):
    """What a ticket was for, and the token or session that asked for it."""

    vm: str
    node: str
    kind: ConsoleKind
    token: str


async def create(connection: Connection, ref: str, kind: ConsoleKind, holder: Holder) -> Ticket:
    """Make a ticket for a VM's console. Raises NotFound, IllegalState."""
    vm = await vms.get(connection, ref)
    if vm.node is None:
        raise IllegalState(f"VM {vm.name} is not on any node yet: {vm.status.reason or vm.status.state}")
    if kind is ConsoleKind.DISPLAY and vm.spec.display is Display.NONE:
        raise IllegalState(f"VM {vm.name} has no display", hint=f"novacron vm console {vm.name}")
    secret = PREFIX + secrets.token_urlsafe(32)
    expires_at = await connection.fetchval(
        "INSERT INTO tickets (hash, vm, kind, actor, token, expires_at)"
        " VALUES ($1, $2, $3, $4, $5, now() + make_interval(secs => $6)) RETURNING expires_at",
        hash_secret(secret), vm.id, kind, holder.user, holder.token, float(limits.TICKET_S),
    )  # fmt: skip
    opened = events.NewEvent("vm", vm.id, vm.name, "ConsoleOpened", f"{kind} console", holder.user)
    await events.record(connection, opened)
    return Ticket(secret, vm.id, kind, f"/api/v1/console?ticket={secret}", expires_at)


async def use(connection: Connection, secret: str) -> Admitted:
    """Use a ticket up. Raises Unauthenticated, NotFound, IllegalState."""
    row = await connection.fetchrow(
        "DELETE FROM tickets WHERE hash = $1 AND expires_at > now() RETURNING vm, kind, token", hash_secret(secret)
    )
    if row is None or row["token"] is None:
        raise Unauthenticated(
            "the ticket is wrong, was used or has expired", field="ticket", hint="ask for another one"
        )
    vm = await vms.get(connection, row["vm"])
    if vm.node is None:
        raise IllegalState(f"VM {vm.name} is on no node")
    return Admitted(vm.id, vm.node, ConsoleKind(row["kind"]), row["token"])
