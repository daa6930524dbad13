"""What only nodes know of VMs, and nothing may be given out against: names, addresses, volumes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import NamedTuple

from novacron.model.errors import Conflict
from novacron.model.vm import Vm
from novacron.store import leases
from novacron.store.database import Connection

NOT_OF_ONE = (
    "NOT EXISTS (SELECT FROM unreconciled_vms u, jsonb_array_elements(u.description -> 'volumes') AS described"
    " WHERE described ->> 'id' = {} AND u.proven)"
)
"""Of a volume: no node knows that an unreconciled VM has it."""


UNHEARD = "an older database was put back, and node %s, which may have the VM, has not connected since"
HEAR = "start its agent; if that host is gone for good: novacron node remove NODE --force; see: novacron node list"
ENDS = "ends what it has of it"
"""In the reason of a VM of which the database is right: adopting or forgetting it once more ends nothing."""
NOT_HEARD = "l.renewed_at < r.found_at AND NOT (l.cut_off AND coalesce(l.fenced_at >= r.found_at, false))"
"""Of a lease ``l``: its node may know more than the database, which was put back."""


def way_out(name: str) -> str:
    """Return what ends a contradiction."""
    return f"if the node is right: novacron vm adopt {name}; if the database is: novacron vm forget {name}"


def check(vm: Vm, action: str) -> None:
    """Raise Conflict when a node knows more of the VM than the database."""
    if vm.unreconciled is not None:
        hint = "see: novacron vm unreconciled" if ENDS in vm.unreconciled else way_out(vm.name)
        raise Conflict(f"cannot {action} VM {vm.name}: {vm.unreconciled}", hint=hint)


async def restored(connection: Connection) -> None:
    """Note that the database is older than what a node knows. Nodes that could not read all that they have written
    down, and were believed, have to connect again."""
    await connection.execute(
        "INSERT INTO database_restored (found_at) VALUES (clock_timestamp())"
        " ON CONFLICT (single) DO UPDATE SET found_at = excluded.found_at"
    )
    await connection.execute(
        f"UPDATE node_leases SET generation = {leases.GENERATION}, record_damaged = false WHERE record_damaged"
    )


async def unheard_since(connection: Connection, node: str) -> datetime | None:
    """Return when the database was found to be older, if a node may have been given VMs before, and was not heard
    since."""
    found_at: datetime | None = await connection.fetchval(
        "SELECT r.found_at FROM database_restored r WHERE NOT EXISTS"
        f" (SELECT FROM node_leases l WHERE l.node = $1 AND NOT ({NOT_HEARD}))",
        node,
    )
    return found_at


async def not_heard(connection: Connection, but: str | None = None) -> list[str]:
    """Return the nodes, ``but`` one, that may have been given VMs which an older database does not know: those that
    were neither heard nor cut off since it was found to be older."""
    rows = await connection.fetch(
        f"SELECT l.node FROM node_leases l, database_restored r WHERE {NOT_HEARD} AND l.node IS DISTINCT FROM $1"
        " ORDER BY l.node",
        but,
    )
    return [row["node"] for row in rows]


async def check_heard(connection: Connection, what: str, but: str | None = None) -> None:
    """Raise Conflict while a node, ``but`` one, may have a VM of which an older database does not know: it would end
    and remove what is begun anew elsewhere, or counts as forgotten."""
    unheard = await not_heard(connection, but)
    if unheard:
        raise Conflict(
            f"cannot {what}: {UNHEARD % unheard[0]}",
            hint=f"start its agent, or, if the host is gone for good: novacron node remove {unheard[0]} --force",
        )


class Hold(NamedTuple):
    """The database is older than what nodes know, or may be. ``nodes``: those that are waited for."""

    found_at: datetime
    nodes: tuple[str, ...]


async def hold(connection: Connection) -> Hold | None:
    """Return what VMs that may be elsewhere have to wait for."""
    row = await connection.fetchrow(
        f"SELECT r.found_at, array(SELECT l.node FROM node_leases l WHERE {NOT_HEARD} ORDER BY l.node) AS nodes"
        " FROM database_restored r"
    )
    return None if row is None else Hold(row["found_at"], tuple(row["nodes"]))


async def withheld(connection: Connection, vms: Mapping[str, str]) -> dict[str, str]:
    """Return those of VMs, given with their nodes, that these must not begin yet, and why: another node may have them,
    for all that a database knows which is older."""
    held = await hold(connection)
    if held is None or not held.nodes:
        return {}
    rows = await connection.fetch("SELECT id FROM vms WHERE id = ANY($1) AND created_at < $2", list(vms), held.found_at)
    others = {row["id"]: [node for node in held.nodes if node != vms[row["id"]]] for row in rows}
    return {id: UNHEARD % nodes[0] for id, nodes in others.items() if nodes}


async def at_unknown_epochs(connection: Connection, epochs: Mapping[str, int]) -> list[str]:
    """Return those of VMs, with the epochs at which a host owns them, of which the database knows no such epoch. At the
    one at which a VM was deleted nobody owns it."""
    rows = await connection.fetch(
        "SELECT h.id FROM unnest($1::text[], $2::bigint[]) AS h (id, epoch) WHERE NOT EXISTS"
        " (SELECT FROM vms v WHERE v.id = h.id AND v.epoch >= h.epoch) AND NOT EXISTS"
        " (SELECT FROM vm_tombstones t WHERE t.vm = h.id AND t.epoch > h.epoch)",
        list(epochs), list(epochs.values()),
    )  # fmt: skip
    return [row["id"] for row in rows]


async def undescribed(connection: Connection, node: str) -> bool:
    """Say whether a node has a VM of which nothing else is known here: its networks and volumes stay as they are."""
    held: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM unreconciled_vms WHERE node = $1 AND claim <> 'none' AND description IS NULL)", node
    )
    return held


async def check_name(connection: Connection, project: str, name: str) -> None:
    """Raise Conflict if a VM that only a node knows has this name."""
    row = await connection.fetchrow(
        "SELECT vm, node FROM unreconciled_vms WHERE vm_name = $1 AND project IS NOT DISTINCT FROM $2"
        " AND proven AND NOT EXISTS (SELECT FROM vms WHERE id = vm) LIMIT 1",
        name, project,
    )  # fmt: skip
    if row is not None:
        raise Conflict(
            f"node {row['node']} has a VM named {name!r}, which is not in the database", field="name",
            hint=way_out(name),
        )  # fmt: skip


async def addresses(connection: Connection, network: str) -> dict[str, str]:
    """Return the addresses in a network that nodes know of unreconciled VMs, with the names of these."""
    rows = await connection.fetch(
        "SELECT vm_name, address FROM unreconciled_vms,"
        " jsonb_array_elements(description -> 'spec' -> 'nics') AS nic,"
        " LATERAL (VALUES (nic ->> 'address'), (nic ->> 'address6')) AS has (address)"
        " WHERE nic ->> 'network' = $1 AND address IS NOT NULL AND proven",
        network,
    )
    return {row["address"]: row["vm_name"] for row in rows}


async def check_volumes(connection: Connection, ids: Collection[str]) -> None:
    """Raise Conflict if an unreconciled VM has one of these volumes."""
    name = await connection.fetchval(
        "SELECT vm_name FROM unreconciled_vms, jsonb_array_elements(description -> 'volumes') AS volume"
        " WHERE volume ->> 'id' = ANY($1) AND proven ORDER BY vm_name LIMIT 1",
        list(ids),
    )
    if name is not None:
        raise Conflict(f"VM {name}, which is unreconciled, has the volume", hint=way_out(name))
