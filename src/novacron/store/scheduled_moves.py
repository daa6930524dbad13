"""Moves of VMs that wait for their time: a VM has one at most, and it is gone once the migration has been asked for."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime

import msgspec

from novacron.model.errors import Conflict, InvalidInput
from novacron.model.scheduled_move import ScheduledMove
from novacron.model.vm import Vm, VmAction
from novacron.store import events, load_profiles, migrations, nodes, vms
from novacron.store.database import Connection
from novacron.store.fleet_index import FleetIndex


async def usual(connection: Connection, vm: str, today: date) -> Sequence[float] | None:
    """Return how many processors a VM uses at each hour of the day (UTC); None: it is not known."""
    profiles = await load_profiles.of_vms(connection, [vm], today)
    return profiles[vm][0] if vm in profiles else None


async def schedule(connection: Connection, id: str, move: ScheduledMove, if_match: int | None) -> Vm:
    """Have a VM moved at a later time, in the place of what was scheduled before.

    Raises NotFound, Conflict, IllegalState, InvalidInput, PreconditionFailed.
    """
    vm = await vms.get(connection, id, lock=True)
    vms.check_action(vm, VmAction.MIGRATE, if_match)
    if move.target is not None:
        await nodes.get(connection, move.target, field="target")
        if move.target == vm.node:
            raise InvalidInput(f"VM {vm.name} is already on {move.target}", field="target", hint="choose another node")
    message = f"to {move.target or 'the best node'} at {move.begins_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC: {move.why}"
    await _event(connection, vm, "MoveScheduled", message, move.actor)
    return await _store(connection, vm, move)


async def cancel(connection: Connection, id: str, if_match: int | None, actor: str) -> Vm:
    """Have a VM not moved after all. Raises NotFound, Conflict, PreconditionFailed."""
    vm = await vms.get(connection, id, lock=True)
    if vm.scheduled_move is None:
        raise Conflict(f"no move of VM {vm.name} is scheduled", hint=f"see: novacron vm show {vm.name}")
    vms.check_revision(vm, if_match)
    await _event(connection, vm, "MoveUnscheduled", "it stays where it is", actor)
    return await _store(connection, vm, None)


async def due(connection: Connection, now: datetime) -> list[str]:
    """Return the VMs whose time has come, the earliest first."""
    rows = await connection.fetch(
        "SELECT id FROM vms WHERE scheduled_move IS NOT NULL AND (scheduled_move ->> 'begins_at')::timestamptz <= $1"
        " ORDER BY (scheduled_move ->> 'begins_at')::timestamptz, id",
        now,
    )
    return [row["id"] for row in rows]


async def begin(connection: Connection, id: str, now: datetime, index: FleetIndex | None) -> None:
    """Ask for a migration whose time has come, or give it up after its deadline.

    Raises what ``migrations.create`` does when that is refused now; then nothing has changed.
    """
    vm = await vms.get(connection, id, lock=True)
    move = vm.scheduled_move
    if move is None or move.begins_at > now or vm.migration is not None:
        return
    await _store(connection, vm, None)
    if vm.deleting or vm.node == move.target:
        return
    if now > move.deadline:
        why = move.refusal or "no server was available to start it"
        message = f"the VM was not moved by its deadline, {move.deadline.astimezone(UTC):%Y-%m-%d %H:%M} UTC: {why}"
        await _event(connection, vm, "MoveMissed", message)
        return
    request = migrations.MoveRequest(
        actor=move.actor, target=move.target, weight=move.weight, rate_limit_bytes_per_s=move.rate_limit_bytes_per_s,
        policy=move.policy, warm=move.warm,
    )  # fmt: skip
    await migrations.create(connection, id, request, index)


async def refused(connection: Connection, id: str, why: str) -> None:
    """Remember why a move could not begin at its time; it is tried again until its deadline."""
    vm = await vms.get(connection, id, lock=True)
    move = vm.scheduled_move
    if move is None or move.refusal == why:
        return
    await _event(connection, vm, "MoveDelayed", f"it can't be moved now: {why}")
    await _store(connection, vm, msgspec.structs.replace(move, refusal=why))


async def _store(connection: Connection, vm: Vm, move: ScheduledMove | None) -> Vm:
    row = await connection.fetchrow(
        "UPDATE vms SET scheduled_move = $2 WHERE id = $1 RETURNING *",
        vm.id, None if move is None else msgspec.to_builtins(move),
    )  # fmt: skip
    return vms.of_row(row)


async def _event(connection: Connection, vm: Vm, reason: str, message: str, actor: str = events.SYSTEM) -> None:
    await events.record(connection, events.NewEvent("vm", vm.id, vm.name, reason, message, actor, vm.project))
