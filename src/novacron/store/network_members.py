"""A node's view of its networks: the other nodes that have them, their VMs, and the rules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from typing import Any, NamedTuple

import asyncpg
import msgspec

from novacron.model.network import (
    Encryption,
    Entrance,
    NetworkKind,
    NetworkOnNode,
    NetworkPeer,
    NicSpec,
    Passing,
    Protocol,
    SecurityGroup,
    VmInterface,
    is_private,
)
from novacron.store import network_problems, networks, sites
from novacron.store.database import Connection
from novacron.store.fleet import PLACED

HOST_ADDRESSES_MAX = 32
HOSTS = """
    SELECT name, number, spec ->> 'site' AS site, status -> 'inventory' ->> 'dwcp_endpoint' AS endpoint,
           coalesce(status -> 'inventory' ->> 'wireguard', '') AS key
    FROM nodes
"""


async def hosts(connection: Connection) -> tuple[str, ...]:
    """Return names and addresses of all hosts of the platform, sorted: as others reach them, and the private ones that
    they have besides. A host may not claim public ones: guests would lose them."""
    rows = await connection.fetch("SELECT status -> 'inventory' AS inventory FROM nodes WHERE status ? 'inventory'")
    has = [row["inventory"] for row in rows if row["inventory"]]
    endpoints = {inventory["dwcp_endpoint"].rpartition(":")[0] for inventory in has}
    own = {address for inventory in has for address in inventory.get("addresses", ())[:HOST_ADDRESSES_MAX]}
    return tuple(sorted((endpoints | {address for address in own if is_private(address)}) - {""}))


def _peer(own: asyncpg.Record, other: asyncpg.Record, encryption: Encryption) -> NetworkPeer | None:
    """Return another node as a peer; None: their traffic must be encrypted, and one of them can't do it."""
    far = encryption is Encryption.ALWAYS or (encryption is Encryption.BETWEEN_SITES and own["site"] != other["site"])
    key = other["key"] if far and own["key"] else ""
    if encryption is Encryption.ALWAYS and not key:
        return None
    return NetworkPeer(other["endpoint"].rpartition(":")[0], other["number"], key)


async def on_node(connection: Connection, node: str) -> tuple[NetworkOnNode, ...]:
    """Return every network that a node has to have: those of its VMs, and those that it is the gateway of."""
    hosts = {row["name"]: row for row in await connection.fetch(HOSTS)}  # by name
    network_rows = await connection.fetch(
        f"SELECT * FROM networks WHERE gateway = $1 OR name IN (SELECT network FROM nics"
        f" JOIN ({PLACED}) placed ON placed.id = nics.vm WHERE placed.node = $1) ORDER BY name",
        node,
    )
    if node not in hosts or not network_rows:
        return ()
    names = [row["name"] for row in network_rows]
    rows = await connection.fetch(
        f"SELECT nics.vm, nics.number, nics.network, nics.address, nics.address6, nics.mac, vms.name, placed.node,"
        f" vms.spec"
        f" FROM nics JOIN vms ON vms.id = nics.vm LEFT JOIN ({PLACED}) placed ON placed.id = nics.vm"
        f" WHERE nics.network = ANY($1) ORDER BY vms.name, nics.number",
        names,
    )
    of: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        of[row["network"]].append(row)
    here = [row for row in rows if row["node"] == node]
    groups = await _groups(connection, {group for row in here for group in _nic(row).groups})
    networks_ = []
    for row in network_rows:
        network = networks.network_of(row)
        members = of[network.name]
        others = {str(name) for name in (network.gateway, *(row["node"] for row in members)) if name}
        is_gateway = network.gateway == node
        floating, entrances = await _ways_in(connection, network.name, hosts[node]["site"]) if is_gateway else ((), ())
        networks_.append(
            NetworkOnNode(
                network.name,
                network.spec,
                network.number,
                network.mtu,
                hosts[node]["number"],
                is_gateway,
                _peers(hosts, node, others, network.encryption),
                tuple(sorted({(row["mac"], row["address"], row["name"]) for row in members if row["address"]})),
                tuple(
                    VmInterface(
                        row["vm"],
                        row["number"],
                        row["mac"],
                        row["address"],
                        _passing(_nic(row), groups),
                        row["address6"],
                    )
                    for row in members
                    if row["node"] == node
                ),
                floating,
                entrances,
                tuple(sorted({(row["mac"], row["address6"], row["name"]) for row in members if row["address6"]})),
            )
        )
    return tuple(networks_)


def _nic(row: asyncpg.Record) -> NicSpec:
    return msgspec.convert(row["spec"]["nics"][row["number"]], NicSpec)


def _peers(
    hosts: Mapping[str, asyncpg.Record], node: str, others: Set[str], encryption: Encryption
) -> tuple[NetworkPeer, ...]:
    """Return the other nodes that have a network and may have its traffic, those that have said where they are
    reached."""
    there = [hosts[other] for other in sorted(others & hosts.keys() - {node}) if hosts[other]["endpoint"]]
    peers = (_peer(hosts[node], other, encryption) for other in there)
    return tuple(peer for peer in peers if peer is not None)


async def _groups(connection: Connection, names: Iterable[str]) -> dict[str, tuple[Passing, ...]]:
    """Return the rules of groups, with the addresses of those that they name."""
    rows = await connection.fetch("SELECT * FROM security_groups WHERE name = ANY($1)", sorted(names))
    groups = [msgspec.convert(dict(row), SecurityGroup) for row in rows]
    named = sorted({rule.group for group in groups for rule in group.rules if rule.group is not None})
    members: dict[str, list[str]] = defaultdict(list)
    for row in await connection.fetch(
        "SELECT grp, nics.address, nics.address6 FROM nics JOIN vms ON vms.id = nics.vm,"
        " LATERAL jsonb_array_elements_text(vms.spec -> 'nics' -> nics.number -> 'groups') AS grp"
        " WHERE nics.address IS NOT NULL AND grp = ANY($1) ORDER BY nics.address",
        named,
    ):
        members[row["grp"]] += [row["address"], *([row["address6"]] if row["address6"] else [])]
    return {
        group.name: tuple(
            Passing(
                rule.direction,
                rule.protocol,
                rule.port_range,
                (rule.cidr,) if rule.cidr else tuple(members[rule.group]) if rule.group else None,
            )
            for rule in group.rules
        )
        for group in groups
    }


def _passing(nic: NicSpec, groups: dict[str, tuple[Passing, ...]]) -> tuple[Passing, ...] | None:
    if not nic.groups:
        return None
    return tuple(dict.fromkeys(rule for group in nic.groups for rule in groups.get(group, ())))


async def _ways_in(
    connection: Connection, network: str, site: str
) -> tuple[tuple[tuple[str, str], ...], tuple[Entrance, ...]]:
    """Return the floating addresses of a network's guests, and the ports that lead to them; those of its gateway only
    as far as the gateway's site forwards them."""
    ports = await sites.forward_ports_of(connection, site)
    floating = await connection.fetch(
        "SELECT f.address, nics.address AS guest FROM floating_addresses f JOIN nics ON nics.vm = f.vm"
        " AND nics.network = f.network WHERE f.network = $1 AND nics.address IS NOT NULL ORDER BY f.address",
        network,
    )
    forwards = await connection.fetch(
        "SELECT f.*, nics.address AS guest FROM forwards f JOIN nics ON nics.vm = f.vm AND nics.network = f.network"
        " WHERE f.network = $1 AND nics.address IS NOT NULL ORDER BY f.id",
        network,
    )
    return (
        tuple((row["address"], row["guest"]) for row in floating),
        tuple(
            Entrance(row["address"], Protocol(row["protocol"]), row["port"], row["guest"], row["vm_port"])
            for row in forwards
            if row["address"] is not None or row["port"] in ports
        ),
    )


class Overlay(NamedTuple):
    """An overlay network: its gateway, and the nodes where its VMs are."""

    name: str
    gateway: str | None
    nodes: frozenset[str]
    encrypted: bool
    """All its traffic has to be: only nodes that can encrypt have it."""
    lacks_gateway: bool = False
    """It is said of it that no node can be its gateway."""


async def overlays(connection: Connection) -> list[Overlay]:
    """Return every overlay network, by name."""
    rows = await connection.fetch(
        f"SELECT name, gateway, encryption_required OR spec ->> 'encryption' = $2 AS encrypted,"
        f" problems ? $3 AS lacks_gateway, (SELECT array_agg(DISTINCT placed.node) FROM nics JOIN ({PLACED}) placed"
        f" ON placed.id = nics.vm WHERE nics.network = networks.name) AS nodes FROM networks"
        f" WHERE spec ->> 'kind' = $1 ORDER BY name",
        NetworkKind.OVERLAY, Encryption.ALWAYS, network_problems.SERVER,
    )  # fmt: skip
    return [
        Overlay(
            row["name"], row["gateway"], frozenset(row["nodes"] or ()), bool(row["encrypted"]), row["lacks_gateway"]
        )
        for row in rows
    ]
