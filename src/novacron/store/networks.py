"""Networks: their addresses, gateways, and what each node has to know of them."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import asyncpg
import msgspec

from novacron.model import ipv6, limits
from novacron.model.errors import Conflict, InvalidInput, NoCapacity, NotFound
from novacron.model.network import (
    IPV6_MTU_MIN,
    MTU_DEFAULT,
    MTU_MIN,
    NO_NETWORK,
    TUNNEL_BYTES,
    WIREGUARD_BYTES,
    Encryption,
    Network,
    NetworkKind,
    NetworkSpec,
    NicSpec,
    check_spec,
    check_subnet,
    free_subnet,
    give,
)
from novacron.model.node import Node
from novacron.model.vm import VmSpec, mac_addresses
from novacron.store import events, network_encryption, nodes, projects, unreconciled
from novacron.store.database import Connection
from novacron.store.rows import decode_each, object_of


def network_of(row: asyncpg.Record | None) -> Network:
    """Return a row as a network."""
    return object_of(Network, row)


async def all(connection: Connection) -> list[Network]:
    """Return all networks, by name. VMs of one that can't be decoded are placed nowhere."""
    rows = await connection.fetch("SELECT * FROM networks ORDER BY name")
    return decode_each("networks", rows, network_of, key="name")


async def get(connection: Connection, name: str, *, lock: bool = False, field: str | None = None) -> Network:
    """Return a network. Raises NotFound."""
    row = await connection.fetchrow("SELECT * FROM networks WHERE name = $1" + (" FOR UPDATE" if lock else ""), name)
    if row is None:
        raise NotFound(f"there is no network {name!r}", field=field, hint="see: novacron network list")
    return network_of(row)


async def create(
    connection: Connection, project: str, name: str, spec: NetworkSpec, mtu: int | None, actor: str
) -> Network:
    """Make a network of a project. ``mtu`` None: what every node carries.

    Raises Conflict, InvalidInput, NoCapacity, QuotaExceeded.
    """
    check_free_name(name)
    check_spec(spec)
    before = await projects.lock_usage(connection, project)
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext($1))", network_encryption.LOCK)
    others = await all(connection)
    every = await nodes.all(connection)
    required = spec.kind is NetworkKind.OVERLAY and (await network_encryption.get(connection)).always
    _check_vlan(spec, others)
    spec = _with_subnets(spec, others)
    most = mtu_max(spec, every, encrypted=required)
    if mtu is None:
        mtu = most
    check_mtu(mtu, spec, most)
    number = _free_number({other.number for other in others})
    try:
        row = await connection.fetchrow(
            "INSERT INTO networks (name, spec, number, mtu, project, encryption_required)"
            " VALUES ($1, $2, $3, $4, $5, $6) RETURNING *",
            name, msgspec.to_builtins(spec), number, mtu, project, required,
        )  # fmt: skip
    except asyncpg.UniqueViolationError:
        raise Conflict(f"a network named {name!r} exists", field="name", hint="choose another name") from None
    await projects.check_quota(connection, project, before)
    what = spec.subnet or f"bridge {spec.bridge}"
    await events.record(connection, events.NewEvent("network", name, name, "Created", what, actor))
    return network_of(row)


def _with_subnets(spec: NetworkSpec, others: Sequence[Network]) -> NetworkSpec:
    """Return the spec of a new network with its subnets in canonical form. Raises InvalidInput, NoCapacity."""
    if spec.kind is NetworkKind.OVERLAY and spec.subnet is None:
        taken = [other.spec.subnet for other in others if other.spec.subnet is not None]
        spec = msgspec.structs.replace(spec, subnet=free_subnet(taken))
    if spec.subnet is not None:
        spec = msgspec.structs.replace(spec, subnet=str(check_subnet(spec.subnet)))
    if spec.subnet6 == ipv6.AUTO:
        spec = msgspec.structs.replace(spec, subnet6=ipv6.random_prefix(secrets.token_bytes(ipv6.RANDOM_BYTES)))
    if spec.subnet6 is not None:
        spec = msgspec.structs.replace(spec, subnet6=ipv6.check_prefix(spec.subnet6))
    return spec


def _check_vlan(spec: NetworkSpec, others: Sequence[Network]) -> None:
    """Raise Conflict if another network has a VLAN of the hosts' bridge: its guests would be in both."""
    if spec.vlan is None:
        return
    other = next((each for each in others if (each.spec.bridge, each.spec.vlan) == (spec.bridge, spec.vlan)), None)
    if other is not None:
        raise Conflict(
            f"network {other.name} of project {other.project} has VLAN {spec.vlan} of bridge {spec.bridge}",
            field="vlan", hint="choose another VLAN, or use that network",
        )  # fmt: skip


def check_free_name(name: str) -> None:
    """Raise InvalidInput if no network can have a name."""
    if name == NO_NETWORK:
        raise InvalidInput(
            f"a network can't be named {name}", field="name", hint="--network none means that a VM has no network"
        )


def check_mtu(mtu: int, spec: NetworkSpec, most: int) -> None:
    """Raise InvalidInput unless all nodes carry an MTU, and IPv6 can. ``most``: what an overlay can have."""
    if spec.subnet6 is not None and mtu < IPV6_MTU_MIN:
        raise InvalidInput(f"IPv6 needs an MTU of {IPV6_MTU_MIN} or more", field="mtu")
    if not MTU_MIN <= mtu <= (most if spec.kind is NetworkKind.OVERLAY else 65535):
        raise InvalidInput(f"MTU {mtu} does not suit the nodes: use {MTU_MIN} to {most}", field="mtu")


def _free_number(used: set[int]) -> int:
    """Return the number for a network. Raises NoCapacity."""
    number = next((n for n in range(1, limits.NETWORKS_MAX + 1) if n not in used), None)
    if number is None:
        raise NoCapacity(
            f"there are already {limits.NETWORKS_MAX} networks, which is the limit",
            hint="delete one that has no VMs",
        )
    return number


def tunnel_mtu(node: Node) -> int:
    return MTU_DEFAULT if node.status.inventory is None else node.status.inventory.tunnel_mtu


async def delete(connection: Connection, name: str, actor: str) -> Network:
    """Delete a network that no VM has. Raises NotFound, Conflict."""
    network = await get(connection, name, lock=True)
    vm = await connection.fetchval(
        "SELECT v.name FROM nics JOIN vms v ON v.id = vm WHERE network = $1 ORDER BY v.name LIMIT 1", name
    )
    if vm is not None:
        raise Conflict(f"VM {vm} is in network {name}", hint="delete its VMs first")
    await connection.execute("UPDATE floating_addresses SET network = NULL WHERE network = $1", name)
    await connection.execute("DELETE FROM networks WHERE name = $1", name)
    await events.record(connection, events.NewEvent("network", name, name, "Deleted", "it had no VMs", actor))
    return network


def mtu_max(spec: NetworkSpec, every: Sequence[Node], *, encrypted: bool) -> int:
    """Return the largest MTU that all nodes carry. ``encrypted``: between all of them, whatever the spec says."""
    if spec.kind is not NetworkKind.OVERLAY:
        return MTU_DEFAULT
    narrowest = min((tunnel_mtu(node) for node in every if node.status.inventory), default=MTU_DEFAULT)
    sites = {node.spec.site for node in every}
    encrypted |= spec.encryption is Encryption.ALWAYS or (spec.encryption is not Encryption.NEVER and len(sites) > 1)
    return narrowest - TUNNEL_BYTES - (WIREGUARD_BYTES if encrypted else 0)


async def give_addresses(connection: Connection, spec: VmSpec, project: str) -> VmSpec:
    """Return the spec of a new VM with the addresses that it gets; its networks are locked until it is stored.

    Raises NotFound, InvalidInput, NoCapacity.
    """
    if spec.nics and spec.address is not None:
        raise InvalidInput(
            "leave this out: with nics, each interface names its own addresses",
            field="address",
            hint="nics: [{address}]",
        )
    locked = {
        name: await get(connection, name, lock=True, field="nics") for name in sorted({n.network for n in spec.nics})
    }
    for network in locked.values():
        if network.project != project:
            raise NotFound(f"project {project} has no network {network.name!r}", field="nics")
    taken = {name: await _taken(connection, name) for name in locked}
    held = {name: await unreconciled.addresses(connection, name) for name in locked}
    named = {name: {nic.address for nic in spec.nics if nic.network == name and nic.address} for name in locked}
    await check_groups(connection, spec.nics, project)
    nics = []
    for nic in spec.nics:
        subnet = locked[nic.network].spec.subnet
        if subnet is None:
            if nic.address is not None:
                raise InvalidInput(f"network {nic.network} has no subnet", field="nics", hint="leave the address out")
            nics.append(nic)
            continue
        if nic.address in held[nic.network]:
            other = held[nic.network][nic.address]
            raise Conflict(
                f"VM {other}, which is unreconciled, has {nic.address}", field="nics", hint=unreconciled.way_out(other)
            )
        try:
            others = named[nic.network] if nic.address is None else set[str]()
            address = give(subnet, taken[nic.network] | held[nic.network].keys() | others, nic.address)
        except InvalidInput as error:
            raise InvalidInput(f"network {nic.network}: {error.detail}", field="nics", hint=error.hint) from None
        taken[nic.network].add(address)
        nics.append(msgspec.structs.replace(nic, address=address))
    taken6 = {name: await _taken6(connection, name) | held[name].keys() for name in locked}
    nics = [_with_address6(nic, locked[nic.network].spec.subnet6, taken6[nic.network]) for nic in nics]
    return msgspec.structs.replace(spec, nics=tuple(nics))


def _with_address6(nic: NicSpec, prefix: str | None, taken: set[str]) -> NicSpec:
    """Return an interface of a new VM with its IPv6 address, which is among those ``taken`` then. Raises
    InvalidInput."""
    if prefix is None:
        if nic.address6 is not None:
            raise InvalidInput(f"network {nic.network} has no IPv6 prefix", field="nics", hint="leave address6 out")
        return nic
    assert nic.mac is not None, "MAC addresses are assigned earlier"
    try:
        address = ipv6.give(prefix, nic.mac, taken, nic.address6)
    except InvalidInput as error:
        raise InvalidInput(f"network {nic.network}: {error.detail}", field="nics", hint=error.hint) from None
    taken.add(address)
    return msgspec.structs.replace(nic, address6=address)


async def _taken6(connection: Connection, network: str) -> set[str]:
    """Return the IPv6 addresses of a network that interfaces use."""
    rows = await connection.fetch("SELECT address6 FROM nics WHERE network = $1 AND address6 IS NOT NULL", network)
    return {row["address6"] for row in rows}


async def _taken(connection: Connection, network: str) -> set[str]:
    """Return the addresses of a network that interfaces and floating addresses use."""
    rows = await connection.fetch(
        "SELECT address FROM nics WHERE network = $1 AND address IS NOT NULL"
        " UNION SELECT address FROM floating_addresses WHERE network = $1",
        network,
    )
    return {row["address"] for row in rows}


async def check_groups(connection: Connection, nics: Sequence[NicSpec], project: str) -> None:
    """Raise NotFound unless a project has all security groups; they stay until the transaction ends."""
    names = sorted({group for nic in nics for group in nic.groups})
    rows = await connection.fetch(
        "SELECT name FROM security_groups WHERE name = ANY($1) AND project = $2 FOR SHARE", names, project
    )
    missing = set(names) - {row["name"] for row in rows}
    if missing:
        raise NotFound(
            f"there is no security group {min(missing)!r}", field="nics", hint="see: novacron security-group list"
        )


async def check_given(connection: Connection, nics: Sequence[NicSpec], project: str) -> None:
    """Raise Conflict or NotFound unless a VM can keep the addresses that it has, in networks that may be gone."""
    for nic in nics:
        row = await connection.fetchrow(
            "SELECT name FROM networks WHERE name = $1 AND project = $2 FOR UPDATE", nic.network, project
        )
        if row is None:
            raise Conflict(
                f"project {project} has no network {nic.network}, which one of its interfaces uses", field="nics",
                hint=f"create it again as it was: novacron network create {nic.network} --help",
            )  # fmt: skip
        taken = await _taken(connection, nic.network) | await _taken6(connection, nic.network)
        address = next((address for address in (nic.address, nic.address6) if address in taken), None)
        if address is not None:
            raise Conflict(
                f"its address {address} in network {nic.network} now belongs to another VM", field="nics",
                hint="delete that VM, or detach the floating address, first",
            )  # fmt: skip
    await check_groups(connection, nics, project)


async def attach(connection: Connection, vm: str, spec: VmSpec) -> None:
    """Store the interfaces of a new VM."""
    for number, (nic, mac) in enumerate(zip(spec.nics, mac_addresses(vm, spec), strict=False)):
        await connection.execute(
            "INSERT INTO nics (vm, number, network, address, mac, address6) VALUES ($1, $2, $3, $4, $5, $6)",
            vm, number, nic.network, nic.address, mac, nic.address6,
        )  # fmt: skip


async def of_nics(connection: Connection, nics: Sequence[NicSpec]) -> list[Network]:
    """Return the networks of a VM."""
    rows = await connection.fetch(
        "SELECT * FROM networks WHERE name = ANY($1) ORDER BY name", sorted({nic.network for nic in nics})
    )
    return [network_of(row) for row in rows]


async def release(connection: Connection, vm: str) -> None:
    """Let nothing lead to a VM that is about to go."""
    await connection.execute("DELETE FROM forwards WHERE vm = $1", vm)
    await connection.execute(
        "UPDATE floating_addresses SET vm = NULL, vm_name = NULL, network = NULL WHERE network IS NOT NULL"
        " AND (vm = $1 OR (vm IS NULL AND NOT EXISTS (SELECT FROM forwards f"
        " WHERE f.address = floating_addresses.address)))",
        vm,
    )


async def move_gateway(connection: Connection, name: str, before: str | None, now: str | None) -> None:
    """Let another node be a network's gateway, unless somebody else has decided meanwhile."""
    done = await connection.execute(
        "UPDATE networks SET gateway = $3 WHERE name = $1 AND gateway IS NOT DISTINCT FROM $2", name, before, now
    )
    if done == "UPDATE 1":
        what = f"the gateway is {now or 'nowhere'}" + (f", it was {before}" if before else "")
        await events.record(connection, events.NewEvent("network", name, name, "GatewayMoved", what))
        # The new gateway says what is wrong with the ways in.
        for table in ("forwards", "floating_addresses"):
            await connection.execute(f"UPDATE {table} SET reason_code = '', reason = '' WHERE network = $1", name)
