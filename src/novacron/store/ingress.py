"""Ways into networks from outside: floating addresses, and ports that lead to those of VMs."""

from __future__ import annotations

import secrets
from typing import NamedTuple

import asyncpg

from novacron.model import limits
from novacron.model.errors import Conflict, IllegalState, InvalidInput, NoCapacity, NotFound
from novacron.model.network import FloatingAddress, Forward, NetworkKind, Protocol, check_address
from novacron.model.node import SITE_DEFAULT
from novacron.model.vm import Vm
from novacron.store import events, network_members, networks, projects, sites, vms
from novacron.store.database import Connection
from novacron.store.rows import object_of


def _floating(row: asyncpg.Record | None) -> FloatingAddress:
    return object_of(FloatingAddress, row)


def _forward(row: asyncpg.Record | None) -> Forward:
    return object_of(Forward, row)


async def add_address(connection: Connection, project: str, address: str, actor: str) -> FloatingAddress:
    """Say that a project may give an address of the hosts' network to its VMs. Raises InvalidInput, Conflict."""
    text = str(check_address(address))
    if text in await network_members.hosts(connection):
        raise InvalidInput(f"{text} is the address of a host", field="address", hint="use an address that no host has")
    try:
        row = await connection.fetchrow(
            "INSERT INTO floating_addresses (address, project) VALUES ($1, $2) RETURNING *", text, project
        )
    except asyncpg.UniqueViolationError:
        raise Conflict(f"{text} is already a floating address", field="address") from None
    await events.record(
        connection, events.NewEvent("floating-address", text, text, "Added", "it is not attached", actor)
    )
    return _floating(row)


async def _address(connection: Connection, address: str, project: str | None = None) -> FloatingAddress:
    row = await connection.fetchrow("SELECT * FROM floating_addresses WHERE address = $1 FOR UPDATE", address)
    if row is None or project not in (None, row["project"]):
        raise NotFound(f"{address!r} is not a floating address", hint="see: novacron floating-address list")
    return _floating(row)


async def remove_address(connection: Connection, address: str, actor: str) -> FloatingAddress:
    """Forget a floating address that leads nowhere. Raises NotFound, Conflict."""
    floating = await _address(connection, address)
    if floating.network is not None:
        raise Conflict(
            f"{address} is attached to {floating.vm_name or f'ports of network {floating.network}'}",
            hint=f"novacron floating-address detach {address}",
        )
    await connection.execute("DELETE FROM floating_addresses WHERE address = $1", address)
    await events.record(
        connection, events.NewEvent("floating-address", address, address, "Removed", "it was not attached", actor)
    )
    return floating


async def _inside(connection: Connection, vm: Vm, network: str | None) -> str:
    """Return the overlay through which a VM is to be reached. Raises InvalidInput."""
    overlays = [
        network_.name
        for network_ in await networks.of_nics(connection, vm.spec.nics)
        if network_.spec.kind is NetworkKind.OVERLAY
    ]
    if network is not None:
        if network not in overlays:
            raise InvalidInput(f"VM {vm.name} is not in an overlay network {network!r}", field="network")
        return network
    if len(overlays) != 1:
        raise InvalidInput(
            f"VM {vm.name} is in {len(overlays)} overlays{': ' if overlays else ''}{', '.join(overlays)}",
            field="network" if overlays else "vm", hint="choose one" if overlays else "create it with a network",
        )  # fmt: skip
    return overlays[0]


async def _vm(connection: Connection, id: str) -> Vm:
    try:
        vm = await vms.get(connection, id, lock=True)
    except NotFound as error:
        raise NotFound(error.detail, field="vm", hint=error.hint) from None
    if vm.deleting:
        raise IllegalState(f"VM {vm.name} is being deleted", field="vm")
    return vm


async def attach(connection: Connection, address: str, vm_id: str, network: str | None, actor: str) -> FloatingAddress:
    """Let a floating address lead to a VM, wherever that is. Raises NotFound, Conflict, InvalidInput."""
    vm = await _vm(connection, vm_id)
    floating = await _address(connection, address, vm.project)
    if floating.vm not in (None, vm.id):
        raise Conflict(
            f"{address} is attached to VM {floating.vm_name}", hint=f"novacron floating-address detach {address}"
        )
    through = await _inside(connection, vm, network)
    if await connection.fetchval("SELECT 1 FROM forwards WHERE address = $1 LIMIT 1", address):
        raise Conflict(f"ports of {address} are forwarded to VMs", hint="see: novacron forward list")
    row = await connection.fetchrow(
        "UPDATE floating_addresses SET vm = $2, vm_name = $3, network = $4 WHERE address = $1 RETURNING *",
        address, vm.id, vm.name, through,
    )  # fmt: skip
    await events.record(
        connection, events.NewEvent("vm", vm.id, vm.name, "AddressAttached", f"floating address {address}", actor)
    )
    return _floating(row)


async def detach(connection: Connection, address: str, actor: str) -> FloatingAddress:
    """Let a floating address lead nowhere; ports that it had lead nowhere, too. Raises NotFound."""
    floating = await _address(connection, address)
    await connection.execute("DELETE FROM forwards WHERE address = $1", address)
    row = await connection.fetchrow(
        "UPDATE floating_addresses SET vm = NULL, vm_name = NULL, network = NULL WHERE address = $1 RETURNING *",
        address,
    )
    if floating.vm is not None:
        await events.record(
            connection,
            events.NewEvent(
                "vm",
                floating.vm,
                floating.vm_name or floating.vm,
                "AddressDetached",
                f"floating address {address}",
                actor,
            ),
        )
    return _floating(row)


class NewForward(NamedTuple):
    """A port that is to lead to one of a VM: of a floating address, or of the gateway; ``network`` None: the VM's only
    one. ``port`` None: the same as the VM's of a floating address, a free one of the gateway."""

    vm_port: int
    protocol: Protocol
    port: int | None
    address: str | None = None
    network: str | None = None


async def _gateway_port(connection: Connection, node: str | None, protocol: Protocol, port: int | None) -> int:
    """Return the port of gateways that a forward gets: ``port`` if it may have that one, without one the first that is
    free. The host of the gateway, and the platform on it, need the others. Raises InvalidInput, NoCapacity."""
    site = await connection.fetchval("SELECT spec ->> 'site' FROM nodes WHERE name = $1", node) or SITE_DEFAULT
    ports = await sites.forward_ports_of(connection, site)
    if port is None:
        # One after the other, until the end of the transaction: two would find the same one free.
        await connection.execute("SELECT pg_advisory_xact_lock(hashtext('ports of gateways'))")
        port = await connection.fetchval(
            "SELECT free FROM generate_series($1::int, $2::int) AS free WHERE NOT EXISTS (SELECT FROM forwards"
            " WHERE address IS NULL AND protocol = $3 AND port = free) ORDER BY free LIMIT 1",
            *ports, protocol,
        )  # fmt: skip
        if port is None:
            raise NoCapacity(f"all {protocol} ports of {ports} are forwarded", field="port", hint="delete a forward")
    elif port not in ports:
        raise InvalidInput(
            f"port {port} of gateways at site {site} can't be forwarded",
            field="port", hint=f"use a port from {ports}, none for any free one, or a floating address",
        )  # fmt: skip
    return int(port)


async def forward(connection: Connection, vm_id: str, new: NewForward, actor: str) -> Forward:
    """Let a port lead to one of a VM. Raises NotFound, Conflict, InvalidInput."""
    vm_port, protocol, wanted_port, address, network = new
    if protocol not in (Protocol.TCP, Protocol.UDP):
        raise InvalidInput(f"{protocol} has no ports", field="protocol", hint="tcp or udp")
    vm = await _vm(connection, vm_id)
    through = await _inside(connection, vm, network)
    inside = await networks.get(connection, through, lock=True)
    before = await projects.lock_usage(connection, vm.project)
    count = await connection.fetchval("SELECT count(*) FROM forwards WHERE network = $1", through)
    if count >= limits.FORWARDS_PER_NETWORK_MAX:
        raise Conflict(f"network {through} has {count} ports forwarded to VMs", hint="delete one first")
    if address is not None:
        floating = await _address(connection, address, vm.project)
        if floating.vm is not None or floating.network not in (None, through):
            raise Conflict(f"{address} is used by {floating.vm_name or f'network {floating.network}'}", field="address")
        await connection.execute("UPDATE floating_addresses SET network = $2 WHERE address = $1", address, through)
        port = vm_port if wanted_port is None else wanted_port
    else:
        port = await _gateway_port(connection, inside.gateway or vm.node, protocol, wanted_port)
    try:
        row = await connection.fetchrow(
            "INSERT INTO forwards (id, network, address, protocol, port, vm, vm_name, vm_port)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING *",
            f"fwd-{secrets.token_hex(8)}", through, address, protocol, port, vm.id, vm.name, vm_port,
        )  # fmt: skip
    except asyncpg.UniqueViolationError:
        raise Conflict(
            f"{protocol} port {port} of {address or 'gateways'} is already forwarded to a VM", field="port"
        ) from None
    await projects.check_quota(connection, vm.project, before)
    created = _forward(row)
    what = f"{protocol} port {port} of {address or 'the gateway'} is forwarded to its port {vm_port}"
    await events.record(connection, events.NewEvent("vm", vm.id, vm.name, "PortForwarded", what, actor))
    return created


async def remove_forward(connection: Connection, id: str, actor: str) -> Forward:
    """Let a port lead nowhere. Raises NotFound."""
    row = await connection.fetchrow("DELETE FROM forwards WHERE id = $1 RETURNING *", id)
    if row is None:
        raise NotFound(f"there is no forward {id!r}", hint="see: novacron forward list")
    removed = _forward(row)
    if removed.address is not None:
        await connection.execute(
            "UPDATE floating_addresses SET network = NULL WHERE address = $1 AND vm IS NULL"
            " AND NOT EXISTS (SELECT FROM forwards WHERE address = $1)",
            removed.address,
        )
    what = f"{removed.protocol} port {removed.port} of {removed.address or 'the gateway'} is no longer forwarded to it"
    await events.record(connection, events.NewEvent("vm", removed.vm, removed.vm_name, "PortForwardEnded", what, actor))
    return removed
