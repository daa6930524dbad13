"""Who a node is: the key with which it joined, and the name that it had before."""

from __future__ import annotations

import msgspec

from novacron.model.errors import Conflict, NotFound
from novacron.model.node import Node, NodeSpec, NodeStatus
from novacron.store import events, nodes
from novacron.store.database import Connection

ELSEWHERE = (
    ("volumes", "node"), ("exports", "node"), ("backups", "node"), ("imports", "node"), ("drains", "node"),
    ("replicas", "node"),
    ("migrations", "source"),
    ("migrations", "target"),
)  # fmt: skip
"""Where nodes are named beside what refers to them, which follows by itself."""


async def join(connection: Connection, name: str, key_hash: str, *, accepted: bool = True) -> None:
    """Store a node that joins with this key. One whose name is known takes the other's place, unless that is there.

    A host that is not accepted yet is cordoned, also in another's place.

    The same host may join again while it is there: it gets another certificate, and nothing else changes.

    Raises Conflict.
    """
    if await holder(connection, name, key_hash) == name:
        message = "the same host has joined again, with a new certificate"
        await events.record(connection, events.NewEvent("node", name, name, "Rejoined", message))
        return
    new = NodeSpec(cordoned=not accepted, accepted=accepted)
    inserted = await connection.fetchval(
        "INSERT INTO nodes (name, spec, status, key_hash) VALUES ($1, $2, $3, $4)"
        " ON CONFLICT DO NOTHING RETURNING name",
        name, msgspec.to_builtins(new), msgspec.to_builtins(NodeStatus()), key_hash,
    )  # fmt: skip
    if not inserted:
        node = await nodes.get(connection, name, lock=True)
        if node.status.ready:
            raise Conflict(
                f"node {name} is connected", field="name", hint="to replace it with this host, stop its agent first"
            )
        spec = msgspec.structs.replace(
            node.spec, accepted=accepted, cordoned=node.spec.cordoned or not accepted, capacity=None
        )
        await nodes.revoke(connection, name)
        await connection.execute(
            "UPDATE nodes SET key_hash = $2, was = NULL, spec = $3 WHERE name = $1",
            name, key_hash, msgspec.to_builtins(spec),
        )  # fmt: skip
    await connection.execute("DELETE FROM revoked_keys WHERE key_hash = $1", key_hash)
    if await connection.fetchval("SELECT EXISTS (SELECT FROM nodes WHERE was = $1)", name):
        raise Conflict(
            f"{name} was the name of another node until recently", field="name", hint="try again in a moment"
        )
    await connection.execute(
        "UPDATE volumes SET error = '' WHERE node = $1 AND kind = 'local' AND phase = 'ready' AND error <> ''", name
    )
    message = "joined" if inserted else "replaced by another host, or by the same host with a new installation"
    if not accepted:
        message += f"; it is cordoned until it is accepted: novacron node accept {name}"
    await events.record(connection, events.NewEvent("node", name, name, "Joined", message))


async def strange_keys(connection: Connection) -> list[str]:
    """Return the keys that have good certificates and are no nodes': of those removed or replaced, and of hosts that
    were not accepted."""
    rows = await connection.fetch(
        "SELECT key_hash FROM revoked_keys UNION"
        " SELECT key_hash FROM nodes WHERE key_hash IS NOT NULL AND spec -> 'accepted' = 'false' ORDER BY 1"
    )
    return [row["key_hash"] for row in rows]


async def holder(connection: Connection, said: str, key_hash: str) -> str | None:
    """Return the name of the node that has this key and is, or was until lately, called ``said``."""
    name: str | None = await connection.fetchval(
        "SELECT name FROM nodes WHERE (name = $1 OR was = $1) AND key_hash = $2", said, key_hash
    )
    return name


async def node_of(connection: Connection, said: str, key_hash: str) -> str | None:
    """Return the name of the node whose certificate says ``said``; None if it is none any more, or another's by now."""
    row = await connection.fetchrow("SELECT name, key_hash FROM nodes WHERE name = $1 OR was = $1", said)
    if row is None or row["key_hash"] not in (None, key_hash):
        return None
    return str(row["name"])


async def renamed(connection: Connection, name: str) -> None:
    """A node uses its new name: the one before is free."""
    await connection.execute("UPDATE nodes SET was = NULL WHERE name = $1 AND was IS NOT NULL", name)


async def rename(connection: Connection, name: str, new: str, actor: str) -> Node:
    """Give a node another name: its agent takes it over when it connects next. Raises NotFound, Conflict."""
    node = await nodes.get(connection, name, lock=True)
    if name == new:
        return node
    if await connection.fetchval("SELECT EXISTS (SELECT FROM nodes WHERE name = $1 OR was = $1)", new):
        raise Conflict(f"a node named {new!r} exists", field="name", hint="choose another name")
    if await connection.fetchval("SELECT was FROM nodes WHERE name = $1", name):
        raise Conflict(f"node {name} has not applied its new name yet", hint="wait until its agent is connected")
    for what, sql in (
        ("takes part in a migration", "SELECT 1 FROM migrations WHERE finished_at IS NULL AND $1 IN (source, target)"),
        ("is being drained", "SELECT 1 FROM drains WHERE finished_at IS NULL AND node = $1"),
    ):
        if await connection.fetchval(f"{sql} LIMIT 1", name):
            raise Conflict(f"node {name} {what}", hint="wait until it has ended")
    status = msgspec.structs.replace(node.status, ready=False, reason="its agent is taking its new name")
    await connection.execute(
        "UPDATE nodes SET name = $2, was = $1, status = $3 WHERE name = $1", name, new, msgspec.to_builtins(status)
    )
    await connection.execute(  # its VMs' rows and this one took the new name in whichever order
        "UPDATE node_loads SET (vcpus, memory_mib) = (SELECT coalesce(sum((spec ->> 'vcpus')::bigint), 0),"
        " coalesce(sum((spec ->> 'memory_mib')::bigint), 0) FROM vms WHERE vms.node = $1) WHERE node = $1",
        new,
    )
    for table, column in ELSEWHERE:
        await connection.execute(f"UPDATE {table} SET {column} = $2 WHERE {column} = $1", name, new)
    await events.record(connection, events.NewEvent("node", new, new, "Renamed", f"its name was {name}", actor))
    row = await connection.fetchrow("SELECT * FROM nodes WHERE name = $1", new)
    if row is None:
        raise NotFound(f"there is no node {new!r}")
    return msgspec.convert(dict(row), Node)
