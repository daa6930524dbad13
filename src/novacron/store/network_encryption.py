"""The fleet's setting that all traffic of networks between nodes is encrypted."""

from __future__ import annotations

from novacron.model.errors import Conflict
from novacron.model.network import NetworkEncryption, NetworkKind
from novacron.store import events
from novacron.store.database import Connection

LOCK = "networks"
"""Networks are made, and this is set, by one transaction at a time."""


async def get(connection: Connection) -> NetworkEncryption:
    return NetworkEncryption(bool(await connection.fetchval("SELECT always FROM network_encryption")))


async def configure(connection: Connection, desired: NetworkEncryption, actor: str) -> NetworkEncryption:
    """Set it for all networks, present and later ones. Raises Conflict while a node could not take part any more."""
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext($1))", LOCK)
    if desired.always:
        await _check_nodes(connection)
    before = await get(connection)
    await connection.execute("UPDATE network_encryption SET always = $1", desired.always)
    await connection.execute(  # each is announced, so its nodes are told
        "UPDATE networks SET encryption_required = $1 WHERE encryption_required <> $1 AND spec ->> 'kind' = $2",
        desired.always, NetworkKind.OVERLAY,
    )  # fmt: skip
    if before != desired:
        what = (
            "all traffic of networks between nodes is encrypted"
            if desired.always
            else "each network by its own setting"
        )
        new = events.NewEvent("network", "network-encryption", "network encryption", "Configured", what, actor)
        await events.record(connection, new)
    return desired


async def _check_nodes(connection: Connection) -> None:
    """Raise Conflict if a node has networks and can't encrypt them."""
    name = await connection.fetchval(
        "SELECT name FROM nodes WHERE status -> 'inventory' -> 'networks' = 'true'"
        " AND coalesce(status -> 'inventory' ->> 'wireguard', '') = '' ORDER BY name LIMIT 1"
    )
    if name is not None:
        raise Conflict(
            f"node {name} can't encrypt networks: its VMs would lose their network",
            field="always", hint=f"install what is listed as MISSING in: novacron node show {name}",
        )  # fmt: skip
