"""Drains: which VMs have yet to leave nodes that are being emptied."""

from __future__ import annotations

from novacron.model import limits
from novacron.store import events
from novacron.store.database import Connection

RETRY_AFTER_S = 30.0
SAID_AGAIN_AFTER_S = 300.0


async def draining_vms(connection: Connection) -> list[tuple[str, str]]:
    """Return ``(node, vm id)`` to move now: within the migration limit of each node, and none that has just failed."""
    rows = await connection.fetch(
        """
        SELECT node, id FROM (
            SELECT v.node, v.id,
                   row_number() OVER (PARTITION BY v.node ORDER BY (v.spec ->> 'memory_mib')::bigint, v.id) AS place,
                   (SELECT count(*) FROM migrations m WHERE m.finished_at IS NULL AND m.source = v.node) AS busy
            FROM vms v JOIN nodes n ON n.name = v.node
            WHERE (n.spec ->> 'draining')::bool AND (n.status ->> 'ready')::bool
              AND v.migration IS NULL AND NOT v.deleting
              AND v.status ->> 'state' IN ('running', 'paused', 'stopped', 'failed')
              AND NOT EXISTS (SELECT FROM migrations m WHERE m.vm = v.id AND m.phase IN ('failed', 'aborted')
                              AND m.finished_at > now() - make_interval(secs => $2))
        ) waiting WHERE place + busy <= $1
        """,
        limits.MIGRATIONS_PER_NODE_MAX,
        RETRY_AFTER_S,
    )
    return [(row["node"], row["id"]) for row in rows]


async def blocked(connection: Connection, node: str, vm: str, why: str) -> None:
    """Record why a VM can't leave, unless the same was said a moment ago."""
    name = await connection.fetchval(
        "SELECT name FROM vms v WHERE id = $1 AND NOT EXISTS (SELECT FROM events e WHERE e.object = v.id"
        " AND e.reason = 'DrainBlocked' AND e.message = $2 AND e.at > now() - make_interval(secs => $3))",
        vm,
        why,
        SAID_AGAIN_AFTER_S,
    )
    if name is not None:
        await events.record(connection, "vm", vm, name, "DrainBlocked", why, f"drain of {node}")
