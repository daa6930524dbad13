"""Replicas of VMs: what users ask for, what nodes have of them, and VMs that go on from one."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import asyncpg
import msgspec

from novacron.model import limits
from novacron.model.errors import Conflict, IllegalState, InvalidInput, NotFound, PreconditionFailed
from novacron.model.fit import refusal_of_all
from novacron.model.node import SITE_DEFAULT, Node
from novacron.model.replica import (
    FIRST_COPY_S,
    POINTS,
    RPO_S,
    Replica,
    ReplicaPhase,
    ReplicaPoint,
    RoundKind,
    late_after_s,
)
from novacron.model.vm import Vm
from novacron.store import events, nodes, projects, vms, volumes
from novacron.store.database import Connection
from novacron.store.hindered import ERROR_LENGTH_MAX, hindrance
from novacron.store.rows import Decoded, decode, decode_whole, object_of

FOLLOWED = (
    "r.phase = 'following' AND v.node <> r.node AND NOT v.deleting AND v.migration IS NULL AND v.clone_of IS NULL"
    " AND v.unreconciled IS NULL"
)
"""Replica ``r`` gets rounds from the node of VM ``v``."""


def of_row(row: asyncpg.Record | None) -> Replica:
    """Return a row of ``replicas``. Raises msgspec.ValidationError."""
    return object_of(Replica, row)


class NewReplica(NamedTuple):
    """A replica that is asked for, on a node or on any one of a site."""

    site: str | None
    node: str | None
    rpo_s: int = RPO_S
    points_kept: int = POINTS


async def create(connection: Connection, ref: str, new: NewReplica, actor: str) -> Replica:
    """Let a VM be replicated. Raises NotFound, IllegalState, Conflict, InvalidInput, QuotaExceeded."""
    vm = await vms.get(connection, ref, lock=True)
    if vm.deleting or vm.node is None:
        raise IllegalState(f"VM {vm.name} has not been placed on a node", hint=f"see: novacron vm show {vm.name}")
    await _check_disk(connection, vm)
    usage = await connection.fetchval("SELECT count(*) FROM replicas WHERE vm = $1", vm.id)
    if usage >= limits.REPLICAS_PER_VM_MAX:
        raise Conflict(f"VM {vm.name} has {usage} replicas", hint="delete one: novacron replica list")
    before = await projects.lock_usage(connection, vm.project)
    node = await _choose(connection, vm, new)
    try:
        row = await connection.fetchrow(
            "INSERT INTO replicas (id, vm, vm_name, node, site, phase, rpo_s, points_kept, project, late_at)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, now() + make_interval(secs => $10)) RETURNING *",
            f"replica-{secrets.token_hex(8)}", vm.id, vm.name, node.name, node.spec.site, ReplicaPhase.FOLLOWING,
            new.rpo_s, new.points_kept, vm.project, float(max(FIRST_COPY_S, late_after_s(new.rpo_s))),
        )  # fmt: skip
    except asyncpg.UniqueViolationError:
        raise Conflict(
            f"VM {vm.name} already has a replica on node {node.name}", field="node", hint="see: novacron replica list"
        ) from None
    await projects.check_quota(connection, vm.project, before)
    replica = of_row(row)
    await _record(connection, replica, "ReplicaAsked", f"on node {node.name}, every {new.rpo_s} s", actor)
    return replica


async def turn(connection: Connection, vm: Vm, of: Replica, node: str | None, actor: str) -> str:
    """A VM is about to go on where its replica ``of`` is: let it be replicated as before to ``node``, where it was, so
    that it can come back with what changed. Return the new replica's id; empty where that can't be, or is so
    already."""
    row = None if node is None else await connection.fetchrow("SELECT spec FROM nodes WHERE name = $1", node)
    count = await connection.fetchval("SELECT count(*) FROM replicas WHERE vm = $1", vm.id)
    if row is None or node == of.node or count >= limits.REPLICAS_PER_VM_MAX:
        return ""
    late_s, site = float(max(FIRST_COPY_S, late_after_s(of.rpo_s))), row["spec"].get("site", SITE_DEFAULT)
    turned = await connection.fetchrow(
        "INSERT INTO replicas (id, vm, vm_name, node, site, phase, rpo_s, points_kept, project, late_at)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, now() + make_interval(secs => $10))"
        " ON CONFLICT (vm, node) DO NOTHING RETURNING *",
        f"replica-{secrets.token_hex(8)}", vm.id, vm.name, node, site, ReplicaPhase.FOLLOWING, of.rpo_s,
        of.points_kept, vm.project, late_s,
    )  # fmt: skip
    if turned is None:
        return ""
    replica = of_row(turned)
    await _record(connection, replica, "ReplicaTurned", f"{of.id} is replaced by one on node {node}", actor)
    return replica.id


async def turn_back(connection: Connection, vm: Vm, id: str, actor: str) -> None:
    """A VM stays where it is: delete the replica that ``turn`` has made there, unless it has become one of use."""
    try:
        replica = await get(connection, id, lock=True)
    except NotFound:
        return
    if replica.node == vm.node and not replica.points and replica.phase is ReplicaPhase.FOLLOWING:
        await delete(connection, id, actor)


async def _check_disk(connection: Connection, vm: Vm) -> None:
    """Raise IllegalState unless all that a VM has can be replicated."""
    if not vm.spec.own_disk:
        raise IllegalState(f"VM {vm.name} has no disk of its own to replicate")
    if vm.spec.encryption_key:
        raise IllegalState(f"the disk of VM {vm.name} is encrypted, and such a disk can't be replicated yet")
    if vm.clone_of is not None:
        raise Conflict(f"the disk of VM {vm.name} is still being created", hint="wait until that is done")
    attached = await volumes.of_vm(connection, vm.id)
    if attached:
        raise IllegalState(
            f"VM {vm.name} has volume {attached[0].name}, and volumes are not replicated yet",
            hint=f"detach it first: novacron volume detach {attached[0].name}",
        )


async def _choose(connection: Connection, vm: Vm, new: NewReplica) -> Node:
    """Return the node that is to keep a replica. Raises NotFound, InvalidInput."""
    if new.node is not None:
        node = await nodes.get(connection, new.node)
        why = why_not(node, vm)
        if why:
            raise InvalidInput(f"node {node.name} can't keep a replica of VM {vm.name}: {why}", field="node")
        return node
    of_site = [node for node in await nodes.all(connection) if node.spec.site == new.site]
    if not of_site:
        raise InvalidInput(f"there is no node in site {new.site}", field="site", hint="see: novacron site list")
    reasons = {node.name: why_not(node, vm) for node in of_site}
    able = [node for node in of_site if not reasons[node.name]]
    if not able:
        said = "; ".join(f"{name}: {why}" for name, why in sorted(reasons.items()))
        raise InvalidInput(f"no node of site {new.site} can keep a replica of VM {vm.name}: {said}", field="site")
    counts = await _counts(connection)
    return min(able, key=lambda node: (counts.get(node.name, 0), node.name))


async def _counts(connection: Connection) -> dict[str, int]:
    rows = await connection.fetch("SELECT node, count(*) AS count FROM replicas GROUP BY node")
    return {row["node"]: row["count"] for row in rows}


def why_not(node: Node, vm: Vm) -> str:
    """Say why a node can't keep a replica of a VM; empty: it can. Pure."""
    inventory = node.status.inventory
    if node.name == vm.node:
        return "the VM itself runs there"
    if not node.status.ready or inventory is None:
        return "it is not connected"
    if (why := refusal_of_all(node, named=True)) is not None:
        return why
    if not inventory.dwcp_endpoint:
        return "it does not accept migrations"
    held = next((image for image in inventory.images if image.name == vm.spec.image), None)
    if held is None or (vm.image_digest is not None and held.digest != vm.image_digest):
        return f"it has no image {vm.spec.image}; novacron image copy {vm.spec.image} {node.name}"
    return ""


async def get(connection: Connection, id: str, *, lock: bool = False) -> Replica:
    """Return the replica. Raises NotFound."""
    query = "SELECT * FROM replicas WHERE id = $1" + (" FOR UPDATE" if lock else "")
    row = await connection.fetchrow(query, id)
    if row is None:
        raise NotFound(f"there is no replica {id!r}", hint="see: novacron replica list")
    return of_row(row)


async def of_vm(connection: Connection, vm: str) -> Sequence[Replica]:
    """Return the replicas of a VM, the one with the newest point first."""
    rows = await connection.fetch("SELECT * FROM replicas WHERE vm = $1 AND phase = 'following'", vm)
    replicas = decode_whole("replicas", rows, of_row)
    return sorted(replicas, key=lambda replica: replica.points[-1].at.timestamp() if replica.points else 0.0)[::-1]


async def configure(
    connection: Connection, id: str, changes: dict[str, int], if_match: int | None, actor: str
) -> Replica:
    """Change how a replica follows. Raises NotFound, PreconditionFailed."""
    before = await get(connection, id, lock=True)
    if if_match is not None and if_match != before.revision:
        raise PreconditionFailed(
            f"replica {id} is at revision {before.revision}, not {if_match}", field="If-Match",
            hint="read it again, look at what changed, and repeat",
        )  # fmt: skip
    after = msgspec.structs.replace(before, **changes)
    row = await connection.fetchrow(
        "UPDATE replicas SET rpo_s = $2, points_kept = $3, late_at = $4 WHERE id = $1 RETURNING *",
        id, after.rpo_s, after.points_kept, await _due(connection, after, after.points),
    )  # fmt: skip
    await _record(connection, before, "ReplicaConfigured", f"every {after.rpo_s} s", actor)
    return of_row(row)


async def delete(connection: Connection, id: str, actor: str) -> Replica:
    """Let a replica go from its node. Raises NotFound."""
    replica = await get(connection, id, lock=True)
    await _check_needed(connection, replica)
    row = await connection.fetchrow(
        "UPDATE replicas SET phase = 'deleting', error = '', reason_code = '', late_at = NULL"
        " WHERE id = $1 RETURNING *",
        id,
    )
    await _record(connection, replica, "ReplicaDeleted", id, actor)
    return of_row(row)


async def _check_needed(connection: Connection, replica: Replica) -> None:
    """Raise Conflict if a VM is being made of a replica, or would be left without one though highly available."""
    name = await connection.fetchval(
        "SELECT name FROM vms WHERE clone_of -> 'replica' ->> 'replica' = $1 AND NOT deleting LIMIT 1", replica.id
    )
    if name is not None:
        raise Conflict(f"VM {name} is being created from replica {replica.id}", hint="wait until it has its disk")
    try:
        vm = await vms.get(connection, replica.vm, lock=True)
    except NotFound:
        return
    is_last = replica.node != vm.node and not await vms.is_replicated(connection, vm.id, replica.id)
    if vm.spec.ha and vm.spec.own_disk and not vm.deleting and is_last:
        raise Conflict(
            f"VM {vm.name} is highly available, and has no other replica",
            hint=f"replicate it elsewhere first, or: novacron vm set {vm.name} --no-ha",
        )


# what nodes are told, and say


class FollowedReplica(NamedTuple):
    """A replica, with what its nodes need to know of the VM."""

    replica: Replica
    owner: str | None
    """The node that sends rounds."""
    image: str
    image_digest: str | None
    disk_mib: int
    """Of its disk, if that is larger than its image's; 0: it is not."""
    project_id: str


async def on_node(connection: Connection, node: str) -> tuple[Decoded[FollowedReplica], set[str]]:
    """Return the replicas that a node keeps, or sends the rounds of, and the ids, and VMs, of those that can't be
    decoded."""
    rows = await connection.fetch(
        f"SELECT r.*, CASE WHEN {FOLLOWED} THEN v.node END AS owner, coalesce(v.spec ->> 'image', '') AS image,"
        " v.image_digest, coalesce((v.spec ->> 'disk_mib')::bigint, 0) AS disk_mib,"
        " p.id AS project_id"
        " FROM replicas r JOIN projects p ON p.name = r.project LEFT JOIN vms v ON v.id = r.vm"
        f" WHERE r.node = $1 OR (v.node = $1 AND {FOLLOWED}) ORDER BY r.id",
        node,
    )  # fmt: skip
    followed = decode("replicas", rows, _followed)
    return followed, {row["vm"] for row in rows if row["id"] in followed.unreadable}


def _followed(row: asyncpg.Record) -> FollowedReplica:
    about = ("owner", "image", "image_digest", "disk_mib", "project_id")
    return FollowedReplica(of_row(row), *(row[name] for name in about))


class PointReport(NamedTuple):
    """A point that a node has."""

    number: int
    age_s: float
    sent_bytes: int
    quiesced: bool


async def stands(connection: Connection, node: str, id: str, reported: Sequence[PointReport], used_bytes: int) -> None:
    """Store what a node has of a replica that it keeps. Anyone else's report is ignored."""
    row = await connection.fetchrow("SELECT * FROM replicas WHERE id = $1 AND node = $2 FOR UPDATE", id, node)
    if row is None:
        return
    replica = of_row(row)
    now: datetime = await connection.fetchval("SELECT clock_timestamp()")
    known = {point.number: point.at for point in replica.points}
    newest = sorted({point.number: point for point in reported}.items())[-limits.REPLICA_POINTS_MAX :]
    points = tuple(
        ReplicaPoint(number, known.get(number, now - timedelta(seconds=point.age_s)), point.sent_bytes, point.quiesced)
        for number, point in newest
    )
    is_new = bool(points) and points[-1].number not in known
    error, code = ("", "") if is_new else (replica.error, replica.reason_code)
    await connection.execute(
        "UPDATE replicas SET points = $2, used_bytes = $3, late_at = $4, error = $5, reason_code = $6 WHERE id = $1",
        id, msgspec.to_builtins(points), used_bytes, await _due(connection, replica, points), error, code,
    )  # fmt: skip
    if is_new and (not replica.points or replica.error):
        await _record(connection, replica, "Replicated", f"node {node} has point {points[-1].number}")


async def _due(connection: Connection, replica: Replica, points: Sequence[ReplicaPoint]) -> datetime | None:
    """Return from when on a replica with these points is late; None: its VM is where it is, or it is being deleted."""
    is_away = "SELECT EXISTS (SELECT FROM vms WHERE id = $1 AND node <> $2)"
    if replica.phase is not ReplicaPhase.FOLLOWING or not await connection.fetchval(is_away, replica.vm, replica.node):
        return None
    return _late_at(replica.created_at, points, replica.rpo_s)


def _late_at(created_at: datetime, points: Sequence[ReplicaPoint], rpo_s: int) -> datetime:
    if not points:
        return created_at + timedelta(seconds=max(FIRST_COPY_S, late_after_s(rpo_s)))
    return points[-1].at + timedelta(seconds=late_after_s(rpo_s))


async def gone(connection: Connection, node: str, id: str) -> None:
    """A node has nothing of a replica any more, as was asked."""
    await connection.execute("DELETE FROM replicas WHERE id = $1 AND node = $2 AND phase = 'deleting'", id, node)


class RoundReport(NamedTuple):
    """How the last round ended at its sender."""

    id: str
    error: str
    code: str
    unchanged: bool
    kind: RoundKind | None = None
    reason: str = ""


async def round_ended(connection: Connection, node: str, report: RoundReport) -> None:
    """Store how a round ended, as the VM's node says. Anyone else's report is ignored."""
    row = await connection.fetchrow(
        f"SELECT r.* FROM replicas r JOIN vms v ON v.id = r.vm WHERE r.id = $1 AND v.node = $2 AND {FOLLOWED}"
        " FOR UPDATE OF r",
        report.id, node,
    )  # fmt: skip
    if row is None:
        return
    replica = of_row(row)
    if report.unchanged and replica.points:
        *before, newest = replica.points
        now: datetime = await connection.fetchval("SELECT clock_timestamp()")
        points = (*before, msgspec.structs.replace(newest, at=now))
        await connection.execute(
            "UPDATE replicas SET points = $2, late_at = $3, error = '', reason_code = '' WHERE id = $1",
            replica.id, msgspec.to_builtins(points), _late_at(replica.created_at, points, replica.rpo_s),
        )  # fmt: skip
        return
    if report.kind is not None:
        await _round_came(connection, replica, report.kind, report.reason[:ERROR_LENGTH_MAX])
        return
    error, code = report.error[:ERROR_LENGTH_MAX], hindrance(report.error, report.code)
    if not error or (error, code) == (replica.error, replica.reason_code):
        return
    await connection.execute("UPDATE replicas SET error = $2, reason_code = $3 WHERE id = $1", replica.id, error, code)
    if not replica.error:
        await _record(connection, replica, "ReplicaFailed", error)


async def _round_came(connection: Connection, replica: Replica, kind: RoundKind, reason: str) -> None:
    if (kind, reason) == (replica.round_kind, replica.round_reason):
        return
    await connection.execute(
        "UPDATE replicas SET round_kind = $2, round_reason = $3 WHERE id = $1", replica.id, kind, reason
    )
    if kind is RoundKind.WHOLE:
        await _record(connection, replica, "ReplicaSentWhole", reason)


# the controller's


async def left_over(connection: Connection) -> Sequence[str]:
    """Return the replicas whose VM or whose node is gone, and those whose VM has come to them or left them."""
    rows = await connection.fetch(
        "SELECT r.id FROM replicas r LEFT JOIN vms v ON v.id = r.vm"
        " WHERE NOT EXISTS (SELECT FROM nodes n WHERE n.name = r.node)"
        " OR (r.phase = 'following' AND (v.id IS NULL OR (r.node = v.node) = (r.late_at IS NOT NULL)))"
    )
    return [row["id"] for row in rows]


async def clear(connection: Connection, id: str) -> None:
    """Let a replica go whose VM or whose node is gone; one whose VM has come to it is not late. Raises NotFound."""
    replica = await get(connection, id, lock=True)
    if not await connection.fetchval("SELECT EXISTS (SELECT FROM nodes WHERE name = $1)", replica.node):
        await connection.execute("DELETE FROM replicas WHERE id = $1", id)
        await _record(connection, replica, "ReplicaLost", f"node {replica.node} is gone")
    elif not await connection.fetchval("SELECT EXISTS (SELECT FROM vms WHERE id = $1)", replica.vm):
        await connection.execute("UPDATE replicas SET phase = 'deleting', late_at = NULL WHERE id = $1", id)
    else:
        is_away = await connection.fetchval("SELECT node <> $2 FROM vms WHERE id = $1", replica.vm, replica.node)
        late_s = float(max(FIRST_COPY_S, late_after_s(replica.rpo_s)))
        await connection.execute(
            "UPDATE replicas SET late_at = CASE WHEN $2 THEN now() + make_interval(secs => $3) END WHERE id = $1",
            id, bool(is_away), late_s,
        )  # fmt: skip


async def _record(connection: Connection, replica: Replica, reason: str, message: str, actor: str = "system") -> None:
    new = events.NewEvent("vm", replica.vm, replica.vm_name, reason, message, actor, project=replica.project)
    await events.record(connection, new)
