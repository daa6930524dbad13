"""Migrations: from the request to the one transaction in which the owner changes."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime

import asyncpg
import msgspec

from novacron.model import forecast, limits
from novacron.model.devices import HugePages
from novacron.model.errors import Conflict, IllegalState, InvalidInput, NoCapacity, NotFound
from novacron.model.fit import cannot_run
from novacron.model.migration import (
    ACTIVE,
    TRANSITIONS,
    Cause,
    Migration,
    MigrationKind,
    MigrationPhase,
    MigrationPolicy,
    Progress,
    Side,
    migration_id,
    switches,
)
from novacron.model.node import Node
from novacron.model.placement import Verdict, Wish
from novacron.model.vm import Power, Vm, VmAction, VmState, bound_to
from novacron.model.volume import Volume
from novacron.model.waiting import WaitCode
from novacron.store import events, fleet, nodes, projects, snapshots, unreconciled, vms, volumes
from novacron.store.database import Connection
from novacron.store.fleet_index import FleetIndex
from novacron.store.rows import Decoded, decode, decode_each, object_of
from novacron.telemetry import traces

MEGABYTE = 1_000_000
ROTATION_S = 24 * 3600
"""How far back turns of projects are looked for."""
COLUMNS = (
    "id, vm, vm_name, kind, source, target, epoch, phase, source_vote, target_vote, endpoint, weight,"
    " rate_limit_bytes_per_s, rate_bytes_per_s, waits_for, policy, cause, progress, error, revision, created_at,"
    " started_at, finished_at, project, trace"
)


def _migration(row: asyncpg.Record | None) -> Migration:
    return object_of(Migration, row)


class MoveRequest(msgspec.Struct, frozen=True, kw_only=True):
    """How a VM is to be moved. ``target`` None: to the best node. ``if_match``: only at that revision of the VM."""

    actor: str
    target: str | None = None
    if_match: int | None = None
    weight: int = 1
    rate_limit_bytes_per_s: int | None = None
    policy: MigrationPolicy = MigrationPolicy.THROTTLE
    cause: Cause = Cause.REQUEST
    warm: bool = False


async def create(connection: Connection, ref: str, request: MoveRequest, index: FleetIndex | None = None) -> Migration:
    """Ask for a VM to be moved.

    Raises NotFound, NoCapacity, Conflict, IllegalState, InvalidInput, PreconditionFailed; then nothing has changed.
    """
    vm, target = await choose(connection, ref, request.target, request.if_match, warm=request.warm, index=index)
    assert vm.node is not None
    source = await nodes.get(connection, vm.node)
    if not source.status.ready:
        raise Conflict(f"node {vm.node}, which has VM {vm.name}, is not ready", hint="bring the node back first")
    withheld = (await unreconciled.withheld(connection, {vm.id: vm.node})).get(vm.id)
    if withheld is not None:
        raise Conflict(f"cannot migrate VM {vm.name}: {withheld}", hint=unreconciled.HEAR)
    before = await projects.lock_usage(connection, vm.project)
    with traces.span(
        "migration is asked for", always=True, vm=vm.id, source=vm.node, target=target, cause=request.cause
    ):
        trace = traces.carry()  # a migration is always traced
    migration = await _insert(connection, vm, target, _possible(vm, request), trace)
    if request.cause is Cause.REQUEST:
        await projects.check_quota(connection, vm.project, before)
    await connection.execute(
        "UPDATE vms SET migration = $2, trace = $3 WHERE id = $1", vm.id, migration.id, migration.trace
    )
    message = f"{migration.kind} migration from {vm.node} to {target}"
    await _event(connection, migration, "Requested", message, request.actor)
    return migration


def _possible(vm: Vm, request: MoveRequest) -> MoveRequest:
    """Return what is asked for as far as the VM's memory allows it. Raises IllegalState if a user asked for more."""
    if request.policy is not MigrationPolicy.POST_COPY or vm.spec.hugepages is HugePages.NONE:
        return request
    if request.cause is Cause.REQUEST:
        raise IllegalState(
            f"VM {vm.name} has huge pages, whose guest can't run before its memory is there", field="policy",
            hint=f"choose another policy: novacron vm migrate {vm.name} --policy throttle",
        )  # fmt: skip
    return msgspec.structs.replace(request, policy=MigrationPolicy.THROTTLE)


async def _insert(connection: Connection, vm: Vm, target: str, request: MoveRequest, trace: str) -> Migration:
    """Store a new migration. Raises Conflict when the VM has one."""
    try:
        row = await connection.fetchrow(
            f"INSERT INTO migrations (id, vm, vm_name, kind, source, target, epoch, phase, progress, weight,"
            f" rate_limit_bytes_per_s, policy, cause, trace)"
            f" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)"
            f" RETURNING {COLUMNS}",
            migration_id(secrets.token_bytes(10)), vm.id, vm.name, kind_of(vm, warm=request.warm), vm.node, target,
            vm.epoch, MigrationPhase.PENDING, msgspec.to_builtins(Progress()), request.weight,
            request.rate_limit_bytes_per_s, request.policy, request.cause, trace,
        )  # fmt: skip
    except asyncpg.UniqueViolationError:
        raise Conflict(f"VM {vm.name} is already being migrated") from None
    return _migration(row)


def is_live(vm: Vm) -> bool:
    """Say whether a move of the VM, as it is, is a live one."""
    return vm.status.state in (VmState.RUNNING, VmState.PAUSED) and vm.spec.power is not Power.STOPPED


def kind_of(vm: Vm, *, warm: bool) -> MigrationKind:
    """Return of which kind a move of the VM is."""
    return (MigrationKind.WARM if warm else MigrationKind.LIVE) if is_live(vm) else MigrationKind.COLD


async def choose(
    connection: Connection, ref: str, target: str | None, if_match: int | None, *, warm: bool = False,
    index: FleetIndex | None = None,
) -> tuple[Vm, str]:  # fmt: skip
    """Return the VM and where it would be moved. Raises what ``create`` does."""
    vm = await vms.get(connection, ref, lock=True)
    vms.check_action(vm, VmAction.MIGRATE, if_match)
    if vm.node is None:
        raise IllegalState(f"VM {vm.name} has no node yet", hint="wait until it is placed")
    await vms.check_not_cloning(connection, vm, VmAction.MIGRATE)
    if vm.spec.devices and is_live(vm):
        raise IllegalState(
            f"VM {vm.name} has devices of node {vm.node}, so it can't migrate while it runs",
            hint=f"stop it first: novacron vm stop {vm.name} --wait",
        )
    await snapshots.check_movable(connection, vm, live=kind_of(vm, warm=warm) is MigrationKind.LIVE)
    attached = await volumes.check_movable(connection, vm)
    await nodes.take_turn(connection)
    wish = await _wish(connection, vm, attached)
    if target is not None:
        await _check_target(connection, vm, wish, target)
        return vm, target
    choice = await fleet.choose(connection, wish, index)
    if choice.node is None:
        is_alone = not choice.fleet.nodes.keys() - {vm.node}
        reasons = "there is none" if is_alone else fleet.why_not(choice.fleet, wish)
        raise NoCapacity(f"no other node can take it: {reasons}", field="target", hint="see: novacron node list")
    return vm, choice.node


async def _check_target(connection: Connection, vm: Vm, wish: Wish, target: str) -> None:
    """Raise InvalidInput, NotFound or NoCapacity unless a VM may be moved to a node."""
    if target == vm.node:
        raise InvalidInput(f"VM {vm.name} is already on {target}", field="target", hint="name another node")
    await nodes.get(connection, target, field="target")
    refusal = (await fleet.load_some(connection, [target], [wish])).judge(wish, target).refusal
    if refusal is not None:
        raise NoCapacity(refusal, field="target", hint="see: novacron node list")


async def _wish(connection: Connection, vm: Vm, attached: Sequence[Volume]) -> Wish:
    """Return a VM that is to be moved as placement sees it."""
    sources = {node.name: node for node in await nodes.some(connection, volumes.local_nodes(attached))}
    runs = is_live(vm)

    def refuses(node: Node) -> str | None:
        return cannot_run(node, bound_to(vm.spec, vm.status), runs=runs) or volumes.cannot_carry(
            node, sources, attached
        )

    return Wish(
        vm.id, fleet.of_project(vm.spec, vm.project), vm.node, await volumes.not_yet(connection, vm.id),
        await been(connection, vm.id), images_come=False, refuses=refuses,
    )  # fmt: skip


async def explain(connection: Connection, ref: str) -> list[Verdict]:
    """Say of each node whether the VM could be moved there now. Raises NotFound."""
    vm = await vms.get(connection, ref)
    wish = await _wish(connection, vm, await volumes.of_vm(connection, vm.id))
    return (await fleet.load(connection)).explain(wish)


async def been(connection: Connection, vm: str) -> frozenset[str]:
    """Return the nodes that a VM has left lately: they may hold pages of its memory."""
    rows = await connection.fetch(
        "SELECT DISTINCT source FROM migrations WHERE vm = $1 AND phase = 'completed'"
        " AND finished_at > now() - make_interval(secs => $2)",
        vm,
        limits.PAGES_LIKELY_KEPT_S,
    )
    return frozenset(row["source"] for row in rows)


async def _event(connection: Connection, m: Migration, reason: str, message: str, actor: str = events.SYSTEM) -> None:
    """Record what happened in the VM's own history, and, if a user has asked for it, for the migration.

    What a drain or the rebalancing tries again and again is another migration each time: only the VM is the same, so
    that few events tell of it.
    """
    if m.cause is Cause.REQUEST:
        await events.record(connection, events.NewEvent("migration", m.id, m.vm_name, reason, message, actor))
    await events.record(connection, events.NewEvent("vm", m.vm, m.vm_name, f"Migration{reason}", message, actor))


async def get(connection: Connection, id: str, *, lock: bool = False) -> Migration:
    """Return a migration. Raises NotFound."""
    row = await connection.fetchrow(
        f"SELECT {COLUMNS} FROM migrations WHERE id = $1" + (" FOR UPDATE" if lock else ""),
        id,
    )
    if row is None:
        raise NotFound(f"there is no migration {id!r}", hint="see: novacron migration list")
    return _migration(row)


async def _lock(connection: Connection, id: str) -> Migration | None:
    """Lock the VM and then the migration, the order that every writer keeps."""
    vm = await connection.fetchval("SELECT vm FROM migrations WHERE id = $1", id)
    if vm is None:
        return None
    await connection.execute("SELECT 1 FROM vms WHERE id = $1 FOR UPDATE", vm)
    return await get(connection, id, lock=True)


def _advance(migration: Migration, phase: MigrationPhase) -> None:
    if phase not in TRANSITIONS[migration.phase]:
        raise IllegalState(f"migration {migration.id} is {migration.phase}, and can't change to {phase}")


async def active(connection: Connection) -> list[Migration]:
    """Return the migrations that have not ended, oldest first."""
    rows = await connection.fetch(f"SELECT {COLUMNS} FROM migrations WHERE finished_at IS NULL ORDER BY created_at")
    return decode_each("migrations", rows, _migration)


async def last_began(connection: Connection) -> dict[str, datetime]:
    """Return when a migration of each project began last, as far as one was asked for lately."""
    rows = await connection.fetch(
        "SELECT project, max(started_at) AS at FROM migrations"
        " WHERE created_at > now() - make_interval(secs => $1) AND started_at IS NOT NULL GROUP BY project",
        ROTATION_S,
    )
    return {row["project"]: row["at"] for row in rows}


async def touching(connection: Connection, node: str) -> Decoded[Migration]:
    """Return the active migrations that ``node`` has a part in, and the VMs of those that can't be decoded."""
    rows = await connection.fetch(
        f"SELECT {COLUMNS} FROM migrations WHERE finished_at IS NULL AND (source = $1 OR target = $1)",
        node,
    )
    return decode("migrations", rows, _migration, of="vm")


async def share(connection: Connection, rates: dict[str, int | None], waits_for: dict[str, str | None]) -> None:
    """Store what each running migration may use, and why each of the others does not begin yet."""
    for id, rate in rates.items():
        await connection.execute(
            "UPDATE migrations SET rate_bytes_per_s = $2, waits_for = NULL"
            " WHERE id = $1 AND finished_at IS NULL"
            " AND (rate_bytes_per_s IS DISTINCT FROM $2 OR waits_for IS NOT NULL)",
            id,
            rate,
        )
    for id, why in waits_for.items():
        row = await connection.fetchrow(
            "UPDATE migrations m SET waits_for = $2 FROM"
            " (SELECT id, waits_for IS NULL AS begins FROM migrations WHERE id = $1 FOR UPDATE) before"
            " WHERE m.id = before.id AND m.phase = 'pending' AND m.waits_for IS DISTINCT FROM $2"
            " RETURNING before.begins, m.vm, m.vm_name, m.project",
            id,
            why,
        )
        if row is not None and row["begins"]:
            _, vm, name, project = row.values()
            said = f"its move waits: {why}"
            new = events.NewEvent("vm", vm, name, WaitCode.MIGRATION_QUEUED, said, project=project)
            await events.record(connection, new)


async def begin(connection: Connection, id: str) -> None:
    """Let a pending migration go: the target prepares."""
    migration = await _lock(connection, id)
    if migration is None or migration.phase is not MigrationPhase.PENDING:
        return
    await connection.execute(
        "UPDATE migrations SET phase = $2, started_at = clock_timestamp(), moved_at = clock_timestamp() WHERE id = $1",
        id,
        MigrationPhase.PREPARING,
    )


async def target_ready(connection: Connection, id: str, node: str, endpoint: str) -> None:
    """The target waits for the stream at ``endpoint``: the source may send."""
    migration = await _lock(connection, id)
    if migration is None or migration.phase is not MigrationPhase.PREPARING or migration.target != node:
        return
    _advance(migration, MigrationPhase.TRANSFERRING)
    await connection.execute(
        "UPDATE migrations SET phase = $2, endpoint = $3, moved_at = clock_timestamp() WHERE id = $1",
        id,
        MigrationPhase.TRANSFERRING,
        endpoint,
    )


async def progressed(connection: Connection, id: str, node: str, progress: Progress) -> None:
    """Store what the source measures."""
    row = await connection.fetchrow(
        "SELECT source, target, phase, progress FROM migrations WHERE id = $1 FOR UPDATE", id
    )
    if row is None or node != row["source"]:
        return
    old = msgspec.convert(row["progress"], Progress)
    progress = msgspec.structs.replace(progress, downtime_ms=old.downtime_ms, forecast_error=old.forecast_error)
    moved = progress.raw_bytes > old.raw_bytes
    await connection.execute(
        "UPDATE migrations SET progress = $2, moved_at = CASE WHEN $3 THEN clock_timestamp() ELSE moved_at END"
        " WHERE id = $1",
        id,
        msgspec.to_builtins(progress),
        moved,
    )


async def record_downtime(connection: Connection, id: str, downtime_ms: float) -> None:
    """Store how long the guest stood still, as the server saw it, and how far off that was foreseen."""
    row = await connection.fetchrow("SELECT progress FROM migrations WHERE id = $1 FOR UPDATE", id)
    if row is None:
        return
    progress = msgspec.convert(row["progress"], Progress)
    foreseen, off = progress.first_forecast, None
    if foreseen is not None and foreseen.converges:
        off = forecast.error(foreseen, progress.elapsed_s - progress.first_forecast_at_s, downtime_ms)
    progress = msgspec.structs.replace(progress, downtime_ms=round(downtime_ms, 1), forecast_error=off)
    await connection.execute("UPDATE migrations SET progress = $2 WHERE id = $1", id, msgspec.to_builtins(progress))


async def vote(connection: Connection, id: str, node: str, side: Side, epoch: int) -> bool:
    """Store one side's promise; with the second, owner and epoch change in this same transaction.

    Returns whether the VM changed hands now. A late, repeated or foreign vote changes nothing.
    """
    migration = await _lock(connection, id)
    if migration is None or migration.phase is not MigrationPhase.TRANSFERRING or migration.epoch != epoch:
        return False
    if node != (migration.source if side is Side.SOURCE else migration.target):
        return False
    source_vote = migration.source_vote or side is Side.SOURCE
    target_vote = migration.target_vote or side is Side.TARGET
    await connection.execute(  # a vote that is repeated is no progress
        "UPDATE migrations SET source_vote = $2, target_vote = $3, moved_at = clock_timestamp()"
        " WHERE id = $1 AND (source_vote, target_vote) IS DISTINCT FROM ($2, $3)",
        id,
        source_vote,
        target_vote,
    )
    if not switches(migration.phase, source_vote, target_vote):
        return False
    await _end(connection, migration, MigrationPhase.COMPLETED, owner=migration.target)
    message = f"VM {migration.vm_name} runs on {migration.target} now"
    await _event(connection, migration, "Completed", message + summary_of(migration.progress))
    return True


def summary_of(progress: Progress) -> str:
    """Say in a sentence what went over the link, and what spared it the rest."""
    if not progress.raw_bytes:
        return ""
    saved = {kind: size for kind, size in msgspec.to_builtins(progress.savings).items() if size >= MEGABYTE}
    parts = ", ".join(f"{kind} {size / MEGABYTE:,.0f} MB" for kind, size in saved.items())
    sent = f": {progress.wire_bytes / MEGABYTE:,.1f} MB for {progress.raw_bytes / MEGABYTE:,.1f} MB"
    return f"{sent} in {progress.elapsed_s:.1f} s" + (f", spared by {parts}" if parts else "")


async def _end(
    connection: Connection, migration: Migration, phase: MigrationPhase, owner: str, error: str | None = None
) -> None:
    _advance(migration, phase)
    updated = await connection.execute(
        "UPDATE vms SET node = $2, epoch = epoch + 1, migration = NULL WHERE id = $1 AND epoch = $3 AND migration = $4",
        migration.vm,
        owner,
        migration.epoch,
        migration.id,
    )
    if updated != "UPDATE 1":
        raise AssertionError(f"migration {migration.id} and its VM have different epochs")
    if migration.phase is not MigrationPhase.PENDING:
        await volumes.moved(
            connection, migration.vm, migration.source, migration.target, arrived=phase is MigrationPhase.COMPLETED
        )
    await connection.execute(
        "UPDATE migrations SET phase = $2, error = $3, finished_at = clock_timestamp() WHERE id = $1",
        migration.id,
        phase,
        error,
    )


async def fail(connection: Connection, id: str, why: str, node: str | None = None) -> None:
    """End a migration that can't succeed: the source stays the owner. After the switch this changes nothing."""
    migration = await _lock(connection, id)
    if migration is None or migration.phase not in ACTIVE:
        return
    if node is not None and node not in (migration.source, migration.target):
        return
    await _end(connection, migration, MigrationPhase.FAILED, owner=migration.source, error=why[:1000])
    message = f"failed: {why[:800]}. VM {migration.vm_name} stays on {migration.source}"
    await _event(connection, migration, "Failed", message)


async def abort(connection: Connection, id: str, actor: str) -> Migration:
    """End a migration on request. Raises NotFound, and IllegalState once it has ended."""
    migration = await _lock(connection, id)
    if migration is None:
        raise NotFound(f"there is no migration {id!r}", hint="see: novacron migration list")
    if migration.phase not in ACTIVE:
        raise IllegalState(f"migration {id} is {migration.phase}: it can no longer be aborted")
    await _end(connection, migration, MigrationPhase.ABORTED, owner=migration.source, error="aborted on request")
    await _event(connection, migration, "Aborted", f"VM {migration.vm_name} stays on {migration.source}", actor)
    return await get(connection, id)


async def stalled(connection: Connection) -> list[tuple[str, str]]:
    """Return ``(id, why)`` of migrations that have not moved within their limits."""
    rows = await connection.fetch(
        """
        SELECT m.id, m.phase, m.source, m.target,
               extract(epoch FROM clock_timestamp() - coalesce(m.moved_at, m.created_at))::float AS still_s,
               extract(epoch FROM clock_timestamp() - s.renewed_at)::float AS source_s,
               extract(epoch FROM clock_timestamp() - t.renewed_at)::float AS target_s
        FROM migrations m LEFT JOIN node_leases s ON s.node = m.source LEFT JOIN node_leases t ON t.node = m.target
        WHERE m.finished_at IS NULL AND m.phase <> 'pending'
        """
    )
    reasons = []
    for row in rows:
        limit_s = (
            limits.MIGRATION_PREPARE_S_MAX if row["phase"] == MigrationPhase.PREPARING else limits.MIGRATION_STALL_S_MAX
        )
        if row["still_s"] > limit_s:
            reasons.append((row["id"], f"no progress for {row['still_s']:.0f} s while {row['phase']}"))
        for side in ("source", "target"):
            age_s = row[f"{side}_s"]
            if age_s is None or age_s > limits.MIGRATION_NODE_LOST_S_MAX:
                reasons.append((row["id"], f"the {side}, node {row[side]}, is lost"))
    return reasons
