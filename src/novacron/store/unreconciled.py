"""What only nodes know of VMs, and nothing may be given out against: names, addresses, volumes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from novacron.model.errors import Conflict
from novacron.model.vm import Vm
from novacron.store.database import Connection

NOT_OF_ONE = (
    "NOT EXISTS (SELECT FROM unreconciled_vms u, jsonb_array_elements(u.description -> 'volumes') AS described"
    " WHERE described ->> 'id' = {})"
)
"""Of a volume: no node knows that an unreconciled VM has it."""


UNHEARD = "an older database was put back, and node %s, which may have the VM, was not heard since"


def way_out(name: str) -> str:
    """Return what ends a contradiction."""
    return f"if the node is right: novacron vm adopt {name}; if the database is: novacron vm forget {name}"


def check(vm: Vm, action: str) -> None:
    """Raise Conflict when a node knows more of the VM than the database."""
    if vm.unreconciled is not None:
        raise Conflict(f"cannot {action} VM {vm.name}: {vm.unreconciled}", hint=way_out(vm.name))


async def restored(connection: Connection) -> None:
    """Note that the database is older than what a node knows."""
    await connection.execute(
        "INSERT INTO database_restored (found_at) VALUES (clock_timestamp())"
        " ON CONFLICT (single) DO UPDATE SET found_at = excluded.found_at"
    )


async def not_heard(connection: Connection, but: str | None = None) -> list[str]:
    """Return the nodes, ``but`` one, that may have been given VMs which an older database does not know: those that
    were not heard since it was found to be older."""
    rows = await connection.fetch(
        "SELECT node FROM node_leases, database_restored WHERE renewed_at < found_at AND node IS DISTINCT FROM $1"
        " ORDER BY node",
        but,
    )
    return [row["node"] for row in rows]


async def later(connection: Connection, epochs: Mapping[str, int]) -> list[str]:
    """Return those of VMs, with the epochs that a host knows, of which the database knows no such epoch."""
    rows = await connection.fetch(
        "SELECT h.id FROM unnest($1::text[], $2::bigint[]) AS h (id, epoch) WHERE NOT EXISTS"
        " (SELECT FROM vms v WHERE v.id = h.id AND v.epoch >= h.epoch) AND NOT EXISTS"
        " (SELECT FROM vm_tombstones t WHERE t.vm = h.id AND t.epoch >= h.epoch)",
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
        " AND NOT EXISTS (SELECT FROM vms WHERE id = vm) LIMIT 1",
        name, project,
    )  # fmt: skip
    if row is not None:
        raise Conflict(
            f"node {row['node']} has a VM named {name!r}, which the database does not know", field="name",
            hint=way_out(name),
        )  # fmt: skip


async def addresses(connection: Connection, network: str) -> dict[str, str]:
    """Return the addresses in a network that nodes know of unreconciled VMs, with the names of these."""
    rows = await connection.fetch(
        "SELECT vm_name, nic ->> 'address' AS address FROM unreconciled_vms,"
        " jsonb_array_elements(description -> 'spec' -> 'nics') AS nic"
        " WHERE nic ->> 'network' = $1 AND nic ->> 'address' IS NOT NULL",
        network,
    )
    return {row["address"]: row["vm_name"] for row in rows}


async def check_volumes(connection: Connection, ids: Collection[str]) -> None:
    """Raise Conflict if an unreconciled VM has one of these volumes."""
    name = await connection.fetchval(
        "SELECT vm_name FROM unreconciled_vms, jsonb_array_elements(description -> 'volumes') AS volume"
        " WHERE volume ->> 'id' = ANY($1) ORDER BY vm_name LIMIT 1",
        list(ids),
    )
    if name is not None:
        raise Conflict(f"VM {name}, which is unreconciled, has the volume", hint=way_out(name))
