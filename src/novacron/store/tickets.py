"""Tickets for consoles and ports of VMs: each opens one, once, on whichever server it is shown to."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import NamedTuple

from novacron.model import limits
from novacron.model.console import PREFIX, ConsoleKind, ConsoleLine, PortTicket, Ticket
from novacron.model.errors import IllegalState, Unauthenticated
from novacron.model.token import hash_secret
from novacron.model.vm import Display
from novacron.store import events, vms
from novacron.store.database import Connection

PATH = "/api/v1/console?ticket="


class Holder(NamedTuple):
    """Who asks for a ticket: the user's name, and the id of their token or session."""

    user: str
    token: str


class Admitted(NamedTuple):
    """What a ticket was for, and the token or session that asked for it."""

    vm: str
    node: str
    line: ConsoleLine
    port: int
    """Not 0: this TCP port, and no console."""
    token: str


async def create(connection: Connection, ref: str, kind: ConsoleKind, serial: int, holder: Holder) -> Ticket:
    """Make a ticket for a VM's console. Raises NotFound, IllegalState."""
    vm = await vms.get(connection, ref)
    if vm.node is None:
        raise IllegalState(f"VM {vm.name} is not on any node yet: {vm.status.reason or vm.status.state}")
    if kind is ConsoleKind.DISPLAY and vm.spec.display is Display.NONE:
        raise IllegalState(f"VM {vm.name} has no display", hint=f"novacron vm console {vm.name}")
    if kind is ConsoleKind.SERIAL and serial > vm.spec.serial_ports:
        raise IllegalState(
            f"VM {vm.name} has {vm.spec.serial_ports or 'no'} further serial ports: there is no port {serial}",
            field="serial", hint=f"while it is off: novacron vm set {vm.name} --serial-ports {serial}",
        )  # fmt: skip
    line = ConsoleLine.of(kind, serial)
    secret, expires_at = await _insert(connection, vm.id, line, 0, holder)
    opened = events.NewEvent("vm", vm.id, vm.name, "ConsoleOpened", f"{line} console", holder.user)
    await events.record(connection, opened)
    return Ticket(secret, vm.id, kind, PATH + secret, expires_at, serial=line.serial or 0)


async def create_for_port(connection: Connection, ref: str, port: int, holder: Holder) -> PortTicket:
    """Make a ticket for a TCP port of a VM. Raises NotFound, IllegalState."""
    vm = await vms.get(connection, ref)
    if vm.node is None:
        raise IllegalState(f"VM {vm.name} is not on any node yet: {vm.status.reason or vm.status.state}")
    if not any(nic.address for nic in vm.spec.nics):
        raise IllegalState(
            f"VM {vm.name} has no address in a network of kind overlay: its ports can't be reached",
            hint=f"novacron vm console {vm.name}",
        )
    secret, expires_at = await _insert(connection, vm.id, ConsoleLine.SERIAL, port, holder)
    await events.record(
        connection, events.NewEvent("vm", vm.id, vm.name, "PortOpened", f"TCP port {port}", holder.user)
    )
    return PortTicket(secret, vm.id, port, PATH + secret, expires_at)


async def _insert(
    connection: Connection, vm: str, line: ConsoleLine, port: int, holder: Holder
) -> tuple[str, datetime]:
    """Return a ticket's secret, and when it ends."""
    secret = PREFIX + secrets.token_urlsafe(32)
    expires_at = await connection.fetchval(
        "INSERT INTO tickets (hash, vm, kind, port, actor, token, expires_at)"
        " VALUES ($1, $2, $3, $4, $5, $6, now() + make_interval(secs => $7)) RETURNING expires_at",
        hash_secret(secret), vm, line, port, holder.user, holder.token, float(limits.TICKET_S),
    )  # fmt: skip
    return secret, expires_at


async def use(connection: Connection, secret: str) -> Admitted:
    """Use a ticket up. Raises Unauthenticated, NotFound, IllegalState."""
    row = await connection.fetchrow(
        "DELETE FROM tickets WHERE hash = $1 AND expires_at > now() RETURNING vm, kind, port, token",
        hash_secret(secret),
    )
    if row is None or row["token"] is None:
        raise Unauthenticated(
            "the ticket is wrong, was used or has expired", field="ticket", hint="request a new ticket"
        )
    vm = await vms.get(connection, row["vm"])
    if vm.node is None:
        raise IllegalState(f"VM {vm.name} has not been placed on a node")
    return Admitted(vm.id, vm.node, ConsoleLine(row["kind"]), row["port"], row["token"])
