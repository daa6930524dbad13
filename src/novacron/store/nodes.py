"""Nodes: identity, inventory, liveness."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import asyncpg
import msgspec

from novacron.model.condition import NodeCondition, PeersSeen
from novacron.model.devices import HugePages
from novacron.model.drain import TIME_LIMIT_S_DEFAULT, DrainPolicy
from novacron.model.errors import Conflict, NotFound, PreconditionFailed
from novacron.model.node import Capacity, Inventory, Load, Node, NodeSpec, NodeStatus, counted
from novacron.model.waiting import WaitCode
from novacron.store import drains, events, hindered, network_problems
from novacron.store.database import Connection
from novacron.store.rows import decode_each, object_of


def _node(row: asyncpg.Record | None) -> Node:
    return object_of(Node, row)


async def take_turn(connection: Connection) -> None:
    """Wait until nobody else places anything; nobody does until the transaction ends.

    This is no write, and so no transaction id: a placement decision holds up no reader of the feed.
    """
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext('novacron.place'))")


async def get(connection: Connection, name: str, *, lock: bool = False, field: str | None = None) -> Node:
    """Return the node. Raises NotFound, naming ``field`` as the input that was wrong."""
    row = await connection.fetchrow("SELECT * FROM nodes WHERE name = $1" + (" FOR UPDATE" if lock else ""), name)
    if row is None:
        raise NotFound(f"there is no node {name!r}", field=field, hint="see: novacron node list")
    return _node(row)


async def all(connection: Connection) -> list[Node]:
    """Return all nodes, by name. One that can't be decoded is left out: nothing is placed on it or moved to it."""
    return decode_each("nodes", await connection.fetch("SELECT * FROM nodes ORDER BY name"), _node, key="name")


async def some(connection: Connection, names: Collection[str]) -> list[Node]:
    """Return those of these nodes that there are, as ``all`` does."""
    rows = await connection.fetch("SELECT * FROM nodes WHERE name = ANY($1) ORDER BY name", list(names))
    return decode_each("nodes", rows, _node, key="name")


async def others_hold_image(connection: Connection, name: str, image: str) -> bool:
    """Say whether a node other than ``name``, which is ready, holds an image, and can give it to others."""
    held: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM nodes WHERE name <> $1 AND status -> 'ready' = 'true'"
        " AND status -> 'inventory' -> 'images' @> jsonb_build_array(jsonb_build_object('name', $2::text)))",
        name, image,
    )  # fmt: skip
    return held


async def dwcp_endpoint(connection: Connection, name: str) -> str | None:
    """Return where a node takes migrations, as it said last."""
    endpoint: str | None = await connection.fetchval(
        "SELECT status->'inventory'->>'dwcp_endpoint' FROM nodes WHERE name = $1", name
    )
    return endpoint


async def others_hold(connection: Connection, name: str, digest: str) -> bool:
    """Say whether another node, which is ready, holds the image with this digest."""
    return any(
        image.digest == digest
        for node in await all(connection)
        if node.name != name and node.status.ready and node.status.inventory is not None
        for image in node.status.inventory.images
    )


OWN_PARTS = "(spec ->> 'cpu_policy' = 'dedicated' OR spec ->> 'hugepages' IN ('2M', '1G'))"
"""Of a VM that has CPUs or huge pages for itself: an index has these (schema version 0068)."""
OWN_VCPUS = "CASE WHEN spec ->> 'cpu_policy' = 'dedicated' THEN (spec ->> 'vcpus')::bigint ELSE 0 END"
SHARED_MIB = "CASE WHEN coalesce(spec ->> 'hugepages', 'none') = 'none' THEN (spec ->> 'memory_mib')::bigint ELSE 0 END"


def huge_mib(size: HugePages) -> str:
    """Return what of a VM's memory consists of huge pages of a size, in SQL."""
    return f"CASE WHEN spec ->> 'hugepages' = '{size}' THEN (spec ->> 'memory_mib')::bigint ELSE 0 END"


_OWN = ("dedicated_vcpus", "huge_2m_mib", "huge_1g_mib")
SUMS = {
    "vcpus": "(spec ->> 'vcpus')::bigint", "memory_mib": SHARED_MIB, "dedicated_vcpus": OWN_VCPUS,
    "huge_2m_mib": huge_mib(HugePages.SIZE_2M), "huge_1g_mib": huge_mib(HugePages.SIZE_1G),
}  # fmt: skip
"""What of a VM is in each field of a ``Load``, in SQL."""
OWN_OF_NODES = f"""
    SELECT node, {", ".join(f"sum({SUMS[field]})::bigint AS {field}" for field in SUMS if field in _OWN)}
    FROM vms WHERE node IS NOT NULL AND {OWN_PARTS} GROUP BY node
"""
"""What the VMs on each node have for themselves, without nodes whose VMs have nothing. ``node_loads`` counts all memory
alike."""


async def load(connection: Connection, name: str) -> Load:
    """Return the VMs on the node and those on their way to it."""
    row: Any = await connection.fetchrow(
        f"""
        SELECT {", ".join(f"coalesce(sum({value}), 0)::bigint AS {field}" for field, value in SUMS.items())}
        FROM vms
        WHERE node = $1 OR id IN (SELECT vm FROM migrations WHERE target = $1 AND finished_at IS NULL)
        """,
        name,
    )
    return msgspec.convert(dict(row), Load)


async def connected(connection: Connection, name: str, inventory: Inventory) -> None:
    """Store what the node has and that it is alive. What it reports first is what counts of it from then on."""
    node = await get(connection, name, lock=True)
    spec, says = node.spec, Capacity.of(inventory)
    if spec.accepted and spec.capacity is None:
        spec = msgspec.structs.replace(spec, capacity=says)
        await connection.execute("UPDATE nodes SET spec = $2 WHERE name = $1", name, msgspec.to_builtins(spec))
    counts = await _with_own_key(connection, name, counted(inventory, spec))
    if spec.accepted:
        await _define_images(connection, name, counts)
    foreign = await _foreign_images(connection, name, counts)
    if foreign:
        counts = msgspec.structs.replace(counts, images=tuple(i for i in counts.images if i.name not in foreign))
    status = msgspec.structs.replace(
        node.status, ready=True, reason="", inventory=counts, reported=None if Capacity.of(counts) == says else says,
        foreign_images=foreign,
    )  # fmt: skip
    if status != node.status:
        await _set_status(connection, name, status)
    if status.reported not in (None, node.status.reported):
        message = (
            f"it reports {says.cpus} CPUs and {says.memory_mib} MiB, but {counts.cpus} and {counts.memory_mib} were"
            f" accepted, and only those are used; if it has grown: novacron node accept {name}"
        )
        await events.record(connection, events.NewEvent("node", name, name, "MoreThanAccepted", message))
    for image in sorted(set(foreign) - set(node.status.foreign_images)):
        message = f"what it has as image {image} is not the image that this name means, and does not count"
        await events.record(connection, events.NewEvent("node", name, name, "ForeignImage", message))
    if not node.status.ready:
        await hindered.node_back(connection, name)
        await events.record(connection, events.NewEvent("node", name, name, "Ready", "its agent is connected"))


async def _with_own_key(connection: Connection, node: str, inventory: Inventory) -> Inventory:
    """Return what a node reports without a WireGuard key that is another node's: hosts would take one for the other."""
    other = await connection.fetchval(
        "SELECT name FROM nodes WHERE name <> $1 AND status -> 'inventory' ->> 'wireguard' = $2 AND $2 <> ''"
        " ORDER BY name LIMIT 1",
        node, inventory.wireguard,
    )  # fmt: skip
    if other is None:
        return inventory
    why = (
        f"networks between sites are not encrypted: its WireGuard key is that of node {other}; if this host was copied"
        " from that one: remove wireguard.key from its state folder, and restart its agent"
    )
    return msgspec.structs.replace(inventory, wireguard="", missing=(*inventory.missing, why))


async def _define_images(connection: Connection, node: str, inventory: Inventory) -> None:
    """Let names of images that nobody has imported mean what the first node reports, for as long as a node has that."""
    await connection.execute(
        "INSERT INTO image_digests (name, digest, reported) SELECT DISTINCT ON (r.name) r.name, r.digest, true"
        " FROM unnest($2::text[], $3::text[]) AS r (name, digest) WHERE NOT EXISTS"
        " (SELECT FROM imports i WHERE i.spec ->> 'name' = r.name AND i.finished_at IS NULL AND i.node <> $1)"
        " ORDER BY r.name ON CONFLICT (name) DO UPDATE SET digest = excluded.digest"
        " WHERE image_digests.reported AND image_digests.digest <> excluded.digest AND NOT EXISTS (SELECT FROM nodes n,"
        " jsonb_path_query(n.status, '$.inventory.images[*]') AS image WHERE n.name <> $1"
        " AND image ->> 'name' = image_digests.name AND image ->> 'digest' = image_digests.digest)",
        node, [image.name for image in inventory.images], [image.digest for image in inventory.images],
    )  # fmt: skip


async def _foreign_images(connection: Connection, node: str, inventory: Inventory) -> tuple[str, ...]:
    """Return the names under which a node reports something else than what was imported, or what another node is just
    importing."""
    rows = await connection.fetch(
        "SELECT r.name FROM unnest($2::text[], $3::text[]) AS r (name, digest)"
        " WHERE EXISTS (SELECT FROM image_digests d WHERE d.name = r.name AND d.digest <> r.digest)"
        " OR EXISTS (SELECT FROM imports i WHERE i.spec ->> 'name' = r.name AND i.finished_at IS NULL AND i.node <> $1)"
        " ORDER BY 1",
        node, [image.name for image in inventory.images], [image.digest for image in inventory.images],
    )  # fmt: skip
    return tuple(row["name"] for row in rows)


async def certified(connection: Connection, name: str, ends_at_s: float, authority: str) -> None:
    """Store when the certificate of a node's agent ends, and which CA has issued it."""
    node = await get(connection, name, lock=True)
    status = msgspec.structs.replace(node.status, certificate_ends_at_s=ends_at_s, certificate_authority=authority)
    if status != node.status:
        await _set_status(connection, name, status)


async def trusting(connection: Connection, name: str, authorities: Sequence[str]) -> None:
    """Store which CAs a node trusts."""
    node = await get(connection, name, lock=True)
    status = msgspec.structs.replace(node.status, trusted_authorities=tuple(authorities))
    if status != node.status:
        await _set_status(connection, name, status)


async def skewed(connection: Connection, name: str, skew_s: float) -> None:
    """Store by how much a node's clock is ahead. Its leases do not depend on it, but certificates and logs do."""
    node = await get(connection, name, lock=True)
    await _set_status(connection, name, msgspec.structs.replace(node.status, clock_skew_s=skew_s))
    message = (
        f"its clock is {abs(skew_s):.1f} s {'ahead' if skew_s > 0 else 'behind'}" if skew_s else "its clock is right"
    )
    await events.record(
        connection, events.NewEvent("node", name, name, "ClockSkewed" if skew_s else "ClockRight", message)
    )


async def set_conditions(
    connection: Connection, name: str, peers: PeersSeen | None, conditions: Collection[NodeCondition]
) -> None:
    """Store what is right with a node and what is not."""
    changes = {"peers": msgspec.to_builtins(peers), "conditions": msgspec.to_builtins(conditions)}
    await connection.execute("UPDATE nodes SET status = status || $2 WHERE name = $1", name, changes)


async def _set_status(connection: Connection, name: str, status: NodeStatus) -> None:
    await connection.execute("UPDATE nodes SET status = $2 WHERE name = $1", name, msgspec.to_builtins(status))


SILENT = "l.renewed_at < clock_timestamp() - make_interval(secs => $1)"


async def lost_or_back(connection: Connection, after_s: float) -> list[str]:
    """Return the nodes that are ready without a heartbeat for ``after_s`` seconds, or not ready with one."""
    rows = await connection.fetch(
        f"SELECT n.name FROM nodes n JOIN node_leases l ON l.node = n.name"
        f" WHERE n.status -> 'ready' = to_jsonb({SILENT}) ORDER BY n.name",
        after_s,
    )
    return [row["name"] for row in rows]


async def mark_lost(connection: Connection, names: Sequence[str], after_s: float) -> None:
    """Mark those of the nodes without a heartbeat for ``after_s`` seconds as not ready, and those with one as ready."""
    rows = await connection.fetch(
        f"""
        SELECT n.name, n.status, extract(epoch FROM clock_timestamp() - l.renewed_at)::float AS age_s
        FROM nodes n JOIN node_leases l ON l.node = n.name
        WHERE n.status -> 'ready' = to_jsonb({SILENT}) AND n.name = ANY($2)
        ORDER BY n.name FOR UPDATE OF n
        """,
        after_s,
        names,
    )
    for row in rows:
        status = msgspec.convert(row["status"], NodeStatus)
        lost = status.ready
        reason = "no heartbeat" if lost else ""
        await _set_status(connection, row["name"], msgspec.structs.replace(status, ready=not lost, reason=reason))
        if lost:
            message = f"no heartbeat for {row['age_s']:.0f} s; its VMs may still run"
            if waiting := await _hold_up(connection, row["name"]):
                message += f"; waiting for it: {', '.join(waiting)}"
        else:
            await hindered.node_back(connection, row["name"])
            message = "heartbeats are back"
        await events.record(
            connection, events.NewEvent("node", row["name"], row["name"], "Lost" if lost else "Ready", message)
        )


async def _hold_up(connection: Connection, name: str) -> list[str]:
    """Say of all that waits for a node that is lost what it waits for: its agent can't. It does once it is back. Return
    how many objects of each kind wait."""
    result = await connection.execute(
        "UPDATE vms SET status = status || $2 WHERE node = $1 AND status ->> 'state' IN ('pending', 'starting')",
        name, {"reason": hindered.waits_for(name), "reason_code": WaitCode.NODE_LOST},
    )  # fmt: skip
    return [*hindered.counted(result, "vms"), *await hindered.node_lost(connection, name)]


async def set_spec(connection: Connection, name: str, spec: NodeSpec, if_match: int | None, actor: str) -> Node:
    """Cordon, uncordon, drain or configure. Raises NotFound, PreconditionFailed."""
    node = await get(connection, name, lock=True)
    if if_match is not None and if_match != node.revision:
        raise PreconditionFailed(
            f"node {name} is at revision {node.revision}, not {if_match}",
            field="If-Match",
            hint="read it again",
        )
    if spec == node.spec:
        return node
    row = await connection.fetchrow(
        "UPDATE nodes SET spec = $2 WHERE name = $1 RETURNING *", name, msgspec.to_builtins(spec)
    )
    await events.record(connection, _configured(name, node.spec, spec, actor))
    return _node(row)


def _configured(name: str, was: NodeSpec, spec: NodeSpec, actor: str) -> events.NewEvent:
    """Return the event that tells of a change to a node."""
    if spec.accepted and not was.accepted:
        return events.NewEvent("node", name, name, "Accepted", "accepted as a node", actor)
    if (spec.cordoned, spec.draining) != (was.cordoned, was.draining):
        word = "draining" if spec.draining else "cordoned" if spec.cordoned else "schedulable"
        return events.NewEvent("node", name, name, word.capitalize(), f"{word} on request", actor)
    before, after = msgspec.to_builtins(was), msgspec.to_builtins(spec)
    changed = ", ".join(
        f"{field} {before[field]} to {value}" for field, value in after.items() if value != before[field]
    )
    return events.NewEvent("node", name, name, "Configured", changed[:500], actor)


async def accept(connection: Connection, name: str, if_match: int | None, actor: str) -> Node:
    """Let a host that has joined be a node, and let what it reports now count. Raises NotFound, PreconditionFailed."""
    node = await get(connection, name, lock=True)
    says = node.status.reported or (Capacity.of(node.status.inventory) if node.status.inventory else None)
    spec = msgspec.structs.replace(
        node.spec, accepted=True, cordoned=node.spec.cordoned and node.spec.accepted, capacity=says
    )
    return await set_spec(connection, name, spec, if_match, actor)


async def drain(
    connection: Connection, name: str, policy: DrainPolicy, if_match: int | None, actor: str,
    time_limit_s: int = TIME_LIMIT_S_DEFAULT,
) -> Node:  # fmt: skip
    """Cordon a node and begin to move its VMs away. Raises NotFound, PreconditionFailed."""
    spec = msgspec.structs.replace((await get(connection, name, lock=True)).spec, cordoned=True, draining=True)
    await set_spec(connection, name, spec, if_match, actor)
    await drains.begin(connection, name, policy, actor, time_limit_s)
    return await _touched(connection, name)


async def uncordon(connection: Connection, name: str, if_match: int | None, actor: str, *, bring_back: bool) -> Node:
    """Take a node into use again. Raises NotFound, Conflict, PreconditionFailed."""
    node = await get(connection, name, lock=True)
    if not node.spec.accepted:
        raise Conflict(f"node {name} has not been accepted", hint=f"let it be a node with: novacron node accept {name}")
    spec = msgspec.structs.replace(node.spec, cordoned=False, draining=False)
    await set_spec(connection, name, spec, if_match, actor)
    await drains.end(connection, name, bring_back=bring_back)
    return await _touched(connection, name)


async def _touched(connection: Connection, name: str) -> Node:
    """Return a node at the revision of this transaction: who reads after it sees what became of its drain, too."""
    return _node(await connection.fetchrow("UPDATE nodes SET spec = spec WHERE name = $1 RETURNING *", name))


async def of_site(connection: Connection, site: str) -> list[str]:
    """Return the nodes of a site, locked, by name. Raises NotFound."""
    rows = await connection.fetch("SELECT name FROM nodes WHERE spec ->> 'site' = $1 ORDER BY name FOR UPDATE", site)
    if not rows:
        raise NotFound(f"there is no site {site!r}", hint="see: novacron site list")
    return [row["name"] for row in rows]


async def remove(connection: Connection, name: str, actor: str) -> None:
    """Forget a node. Raises NotFound, and Conflict while it holds VMs or takes part in a migration."""
    await take_turn(connection)
    await get(connection, name, lock=True)
    vms = await connection.fetchval(
        "SELECT count(*) FROM vms WHERE node = $1"
        " OR id IN (SELECT vm FROM migrations WHERE finished_at IS NULL AND target = $1)",
        name,
    )
    if vms:
        raise Conflict(
            f"node {name} holds {vms} VMs",
            hint=f"move them away first: novacron node drain {name}; if it is gone for good: node remove --force",
        )
    unreconciled = await connection.fetchval(
        "SELECT vm_name FROM unreconciled_vms WHERE node = $1 ORDER BY vm_name LIMIT 1", name
    )
    if unreconciled is not None:
        raise Conflict(
            f"node {name} has VM {unreconciled}, which is unreconciled", hint="see: novacron vm unreconciled"
        )
    local = await connection.fetch(
        "SELECT name FROM volumes WHERE node = $1 AND kind = 'local' ORDER BY name LIMIT 5", name
    )
    if local:
        names = ", ".join(row["name"] for row in local)
        raise Conflict(f"node {name} holds volumes: {names}", hint="delete them first: novacron volume delete")
    await forget(connection, name, actor, "removed")


async def revoke(connection: Connection, name: str) -> None:
    """Let the key of a node be nobody's: other nodes refuse it from then on."""
    await connection.execute(
        "INSERT INTO revoked_keys (key_hash, node) SELECT key_hash, name FROM nodes"
        " WHERE name = $1 AND key_hash IS NOT NULL ON CONFLICT DO NOTHING",
        name,
    )


async def forget(connection: Connection, name: str, actor: str, message: str) -> None:
    """Let a node be gone, on which nothing is."""
    await drains.end(connection, name, bring_back=False)
    for table in ("imports", "exports"):
        await connection.execute(
            f"UPDATE {table} SET phase = 'failed', error = $2, reason_code = $3 WHERE node = $1"
            + (" AND finished_at IS NULL" if table == "imports" else ""),
            name, f"node {name} was removed", WaitCode.NODE_REMOVED,
        )  # fmt: skip
    await connection.execute("UPDATE imports SET finished_at = now() WHERE node = $1 AND finished_at IS NULL", name)
    await connection.execute(
        "UPDATE backups SET phase = CASE phase WHEN 'making' THEN 'failed' ELSE 'kept' END, error = $2,"
        " reason_code = $3 WHERE node = $1 AND phase IN ('making', 'verifying')",
        name, f"node {name} was removed", WaitCode.NODE_REMOVED,
    )  # fmt: skip
    await network_problems.node_removed(connection, name)
    await revoke(connection, name)
    await connection.execute("DELETE FROM nodes WHERE name = $1", name)
    await events.record(connection, events.NewEvent("node", name, name, "Removed", message, actor))
