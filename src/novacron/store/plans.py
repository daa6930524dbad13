"""Recovery plans: what users ask for, and runs, one step at a time."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime

import asyncpg
import msgspec

from novacron.model import limits
from novacron.model.errors import Conflict, InvalidInput, NotFound, NovaError
from novacron.model.plan import (
    Plan,
    PlanAction,
    PlanRun,
    PlanStep,
    PlanVm,
    PlanVms,
    PlanWait,
    StepPhase,
    is_done,
    kept_runs,
    next_step,
)
from novacron.model.vm import Power, Vm, VmAction, VmState
from novacron.model.waiting import WaitCode, refusal_code
from novacron.store import events, plan_moves, projects, replica_failover, replicas, vms
from novacron.store.database import Connection
from novacron.store.hindered import ERROR_LENGTH_MAX
from novacron.store.plan_moves import StepMove
from novacron.store.replica_failover import FailoverRequest
from novacron.store.rows import UnreadableRow, object_of
from novacron.store.savepoint import NOBODYS_FAULT, savepoint
from novacron.supervise import Rarely
from novacron.telemetry import logs
from novacron.telemetry.values import counter

log = logs.get(__name__)

_log_now = Rarely()

DELETE_S_MAX = 600
"""For how long it is tried to delete what a test has made, after its last step."""


def _plan(row: asyncpg.Record | None) -> Plan:
    return object_of(Plan, row)


async def create(connection: Connection, project: str, name: str, of: PlanVms, actor: str) -> Plan:
    """Store a new plan. Raises NotFound, Conflict, InvalidInput."""
    await projects.lock_usage(connection, project)
    count = await connection.fetchval("SELECT count(*) FROM plans WHERE project = $1", project)
    if count >= limits.PLANS_PER_PROJECT_MAX:
        raise Conflict(f"project {project} has {count} plans", hint="delete one: novacron plan list")
    await _check(connection, project, of)
    try:
        row = await connection.fetchrow(
            "INSERT INTO plans (id, name, vms, project) VALUES ($1, $2, $3, $4) RETURNING *",
            f"plan-{secrets.token_hex(8)}", name, msgspec.to_builtins(of), project,
        )  # fmt: skip
    except asyncpg.UniqueViolationError:
        raise Conflict(f"a plan named {name!r} exists", field="name", hint="choose another name") from None
    plan = _plan(row)
    await _record(connection, plan, "Created", f"{len(of)} VMs", actor)
    return plan


async def _check(connection: Connection, project: str, of: PlanVms) -> None:
    """Raise InvalidInput unless the VMs are the project's, each once."""
    ids = [item.vm for item in of]
    if len(set(ids)) != len(ids):
        raise InvalidInput("a VM is listed twice", field="vms")
    there = await connection.fetchval("SELECT count(*) FROM vms WHERE project = $1 AND id = ANY($2)", project, ids)
    if there != len(ids):
        raise InvalidInput(f"some of the VMs are not in project {project}", field="vms", hint="see: novacron vm list")


async def get(connection: Connection, id: str, *, lock: bool = False) -> Plan:
    """Return the plan with this id. Raises NotFound."""
    query = "SELECT * FROM plans WHERE id = $1" + (" FOR UPDATE" if lock else "")
    row = await connection.fetchrow(query, id)
    if row is None:
        raise NotFound(f"there is no plan {id!r}", hint="see: novacron plan list")
    return _plan(row)


async def delete(connection: Connection, id: str, actor: str) -> Plan:
    """Delete a plan with its reports; its VMs and their replicas are kept. Raises NotFound, Conflict."""
    plan = await get(connection, id, lock=True)
    _check_idle(plan)
    await connection.execute("DELETE FROM plans WHERE id = $1", id)
    await _record(connection, plan, "Deleted", "its VMs and their replicas are kept", actor)
    return plan


def _check_idle(plan: Plan) -> None:
    run = plan.under_way
    if run is not None:
        raise Conflict(
            f"a {run.action} of plan {plan.name} is in progress, started by {run.actor}",
            hint=f"wait until it has ended, or: novacron plan stop {plan.name}",
        )


async def begin(
    connection: Connection, id: str, action: PlanAction, actor: str, confirm: tuple[str, ...] = ()
) -> Plan:  # fmt: skip
    """Begin a run. Raises NotFound, Conflict."""
    plan = await get(connection, id, lock=True)
    _check_idle(plan)
    names = {
        row["id"]: row["name"]
        for row in await connection.fetch("SELECT id, name FROM vms WHERE id = ANY($1)", [item.vm for item in plan.vms])
    }
    steps = tuple(PlanStep(item.vm, names.get(item.vm, item.vm)) for item in plan.vms)
    run = PlanRun(f"run-{secrets.token_hex(8)}", action, actor, await _now(connection), steps, confirm)
    row = await connection.fetchrow(
        "UPDATE plans SET runs = $2 WHERE id = $1 RETURNING *",
        id, msgspec.to_builtins(kept_runs((run, *plan.runs))),
    )  # fmt: skip
    await _record(connection, plan, "PlanBegun", f"{action}, {run.id}", actor)
    return _plan(row)


async def stop(connection: Connection, id: str, actor: str) -> Plan:
    """Begin no further step of the run that is under way. Raises NotFound, Conflict."""
    plan = await get(connection, id, lock=True)
    run = plan.under_way
    if run is None:
        raise Conflict(f"no run of plan {plan.name} is in progress", hint=f"novacron plan show {plan.name}")
    now = await _now(connection)
    steps = tuple(
        _failed(step, f"stopped by {actor}", WaitCode.ABORTED, now) if step.phase is StepPhase.WAITING else step
        for step in run.steps
    )
    stopped = await _store(connection, plan, msgspec.structs.replace(run, steps=steps, stopped=True))
    await _record(connection, plan, "PlanStopped", run.id, actor)
    return stopped


async def under_way(connection: Connection) -> Sequence[str]:
    """Return the plans of which a run is under way."""
    rows = await connection.fetch("SELECT id FROM plans WHERE runs -> 0 -> 'ended_at' = 'null' ORDER BY id")
    return [row["id"] for row in rows]


async def follow(connection: Connection, id: str) -> bool:
    """Do the next thing of a run that is under way; return whether there may be more to do at once."""
    plan = await get(connection, id, lock=True)
    run = plan.under_way
    if run is None or not run.action.is_known:  # a server of a later version, which has begun it, goes on with it
        return False
    now = await _now(connection)
    if is_done(run):
        return await _end(connection, plan, run, now)
    of = {item.vm: item for item in plan.vms}
    number = next_step(run, {vm: item.delay_s for vm, item in of.items()}, now)
    if number is None:
        return False
    step = run.steps[number]
    item = of.get(step.vm, PlanVm(step.vm))
    changed = await _do(connection, plan, step, item, now)
    if changed == step:
        return False
    steps = (*run.steps[:number], changed, *run.steps[number + 1 :])
    await _store(connection, plan, msgspec.structs.replace(run, steps=steps))
    if changed.reason_code not in ("", step.reason_code):
        await _record(connection, plan, changed.reason_code, f"{step.vm_name}: {changed.error}")
    return True


async def _do(connection: Connection, plan: Plan, step: PlanStep, item: PlanVm, now: datetime) -> PlanStep:
    """Begin a step, or see how it is; whatever fails ends it, because those after it wait for that."""
    run = plan.runs[0]
    try:
        async with savepoint(connection):
            if step.phase is StepPhase.WAITING:
                return await _start(connection, plan.project, run, plan.runs[1:], step, now)
            return await _look(connection, run, step, item, now)
    except NOBODYS_FAULT:
        raise
    except Exception as error:  # of this VM; the others go on
        _say_failed(plan, step, error)
        return _failed(
            msgspec.structs.replace(step, began_at=step.began_at or now), _why(error), refusal_code(error), now
        )


def _why(error: Exception) -> str:
    """Say in a report why a step failed."""
    match error:
        case NovaError():
            return error.detail
        case UnreadableRow() | msgspec.ValidationError() | asyncpg.DataError():
            return f"its record in the database can't be read: {error}"
        case _:
            return f"an internal error, see the server's log: {type(error).__name__}"


def _say_failed(plan: Plan, step: PlanStep, error: Exception) -> None:
    is_defect = not isinstance(error, NovaError)
    if is_defect:
        counter("novacron_controller_objects_total").add("plans", "defect")
    if _log_now.due(f"{plan.runs[0].id} {step.vm}"):
        log.warning(
            "a step of a plan failed", plan=plan.name, run=plan.runs[0].id, vm=step.vm, error=str(error),
            exc_info=error if is_defect else None,
        )  # fmt: skip


async def _start(
    connection: Connection, project: str, run: PlanRun, earlier: Sequence[PlanRun], step: PlanStep, now: datetime
) -> PlanStep:
    """Let a VM go on from its newest point, or make one of it, or move it. Raises NovaError."""
    vm = await vms.get(connection, step.vm, lock=True)
    if vm.project != project:
        raise Conflict(f"VM {step.vm_name} is no longer in project {project}")
    if run.action in (PlanAction.SWITCH, PlanAction.FAILBACK):
        return await plan_moves.start(connection, vm, run, earlier, step, now)
    of_vm = [replica for replica in await replicas.of_vm(connection, step.vm) if replica.points]
    if not of_vm:
        raise Conflict(f"VM {step.vm_name} has no replica with a point")
    replica = of_vm[0]
    point = replica.points[-1]
    made = ""
    if run.action is PlanAction.TEST:
        name = f"test-{secrets.token_hex(6)}"
        made = (await replica_failover.try_out(connection, replica.id, name, point.number, run.actor)).id
    else:
        confirm = vm.node if vm.node in run.confirm else None
        request = FailoverRequest(replica.id, point.number, confirm)
        await replica_failover.fail_over(connection, step.vm, request, run.actor)
    return msgspec.structs.replace(
        step, phase=StepPhase.STARTING, node=replica.node, point=point.number, made=made, began_at=now,
        came_from="" if made else vm.node or vm.lost_on or "",
        lost_s=round(max(0.0, (now - point.at).total_seconds()), 1),
    )  # fmt: skip


async def _look(connection: Connection, run: PlanRun, step: PlanStep, item: PlanVm, now: datetime) -> PlanStep:
    """Return a step that has begun as it is now."""
    try:
        vm = await vms.get(connection, step.made or step.vm)
    except NotFound:
        return _failed(step, "the VM was deleted", WaitCode.VM_GONE, now)
    began_at = step.began_at or run.began_at
    if step.migration:
        move = await plan_moves.look(connection, step, vm)
        if move.is_under_way or move.error:
            return await _with_move(connection, run, step, vm, move)
        began_at = move.ended_at or began_at
    if _is_well(vm, item):
        took_s = round((now - run.began_at).total_seconds(), 1)
        well = msgspec.structs.replace(step, phase=StepPhase.READY, ended_at=now, took_s=took_s)
        return msgspec.structs.replace(well, error="", reason_code="")
    if (now - began_at).total_seconds() > item.timeout_s:
        why = vm.status.reason or f"it is {vm.status.state}"
        return _failed(step, f"not {item.wait_for} within {item.timeout_s} s: {why}", WaitCode.TIME_LIMIT, now)
    return _waits(step, vm.status.reason, vm.status.reason_code)


async def _with_move(connection: Connection, run: PlanRun, step: PlanStep, vm: Vm, move: StepMove) -> PlanStep:
    """Return a step whose move is under way, or did not come about."""
    if move.is_under_way:
        return _waits(step, move.waits_for, WaitCode.MIGRATION_QUEUED if move.waits_for else "")
    if step.turned:
        await replicas.turn_back(connection, vm, step.turned, run.actor)
    return _failed(step, move.error, WaitCode.MOVE_FAILED, await _now(connection))


def _waits(step: PlanStep, why: str, code: str) -> PlanStep:
    """Return a step that goes on, with what it waits for. Of other words for the same reason nothing is stored."""
    if code and code == step.reason_code:
        return step
    return msgspec.structs.replace(step, error=why[:ERROR_LENGTH_MAX], reason_code=code)


def _failed(step: PlanStep, why: str, code: str, now: datetime) -> PlanStep:
    return msgspec.structs.replace(
        step, phase=StepPhase.FAILED, ended_at=now, error=why[:ERROR_LENGTH_MAX], reason_code=code
    )


def _is_well(vm: Vm, item: PlanVm) -> bool:
    """Say whether a VM that has begun to go on is as its plan wants it; one that is to be off need not run."""
    if vm.clone_of is not None or vm.migration is not None:
        return False
    if vm.spec.power is Power.STOPPED and vm.status.state is VmState.STOPPED:
        return True
    runs = vm.status.state is VmState.RUNNING
    return runs and (item.wait_for is PlanWait.RUNNING or vm.status.guest is not None)


async def _end(connection: Connection, plan: Plan, run: PlanRun, now: datetime) -> bool:
    """Delete what a test has made, one after the other, then end the run; what can't be deleted for too long is left,
    because nothing else can be done with the plan before its run has ended."""
    left: dict[int, str] = {}
    for number, step in enumerate(run.steps):
        if not step.made:
            continue
        why = await _delete_made(connection, plan, step)
        if not why:
            changed = msgspec.structs.replace(step, made="")
            steps = (*run.steps[:number], changed, *run.steps[number + 1 :])
            await _store(connection, plan, msgspec.structs.replace(run, steps=steps))
            return True
        left[number] = why
    if left and (now - _stood_still_at(run)).total_seconds() < DELETE_S_MAX:
        return False
    steps = tuple(_not_deleted(step, left[number]) if number in left else step for number, step in enumerate(run.steps))
    ended = msgspec.structs.replace(run, steps=steps, ended_at=now)
    await _store(connection, plan, ended)
    ready = sum(step.phase is StepPhase.READY for step in ended.steps)
    took_s = (now - run.began_at).total_seconds()
    message = f"{run.action}, {run.id}: {ready} of {len(run.steps)} VMs were ready after {took_s:.0f} s"
    if left:
        message += f"; {len(left)} VMs created for it remain"
    await _record(connection, plan, "PlanEnded" if ended.is_well else "PlanFailed", message)
    return False


def _stood_still_at(run: PlanRun) -> datetime:
    """Return when the last step of a run had ended."""
    return max((step.ended_at for step in run.steps if step.ended_at is not None), default=run.began_at)


def _not_deleted(step: PlanStep, why: str) -> PlanStep:
    """Return the step of a test whose VM stays: it failed, or nobody would look."""
    said = f"{step.error}; " if step.error else ""
    error = f"{said}VM {step.made}, created for the test, can't be deleted: {why}"
    return msgspec.structs.replace(step, phase=StepPhase.FAILED, error=error[:ERROR_LENGTH_MAX])


async def _delete_made(connection: Connection, plan: Plan, step: PlanStep) -> str:
    """Delete the VM that was made to test one; return why that can't be, empty if it can."""
    try:
        async with savepoint(connection):
            await _delete(connection, step.made)
    except NOBODYS_FAULT:
        raise
    except Exception as error:  # the other ones go
        _say_failed(plan, step, error)
        return _why(error)
    return ""


async def _delete(connection: Connection, id: str) -> None:
    try:
        vm = await vms.get(connection, id, lock=True)
    except NotFound:
        return
    if not vm.deleting:
        await connection.execute("UPDATE vms SET spec = jsonb_set(spec, '{protected}', 'false') WHERE id = $1", id)
        await vms.act(connection, id, VmAction.DELETE, None, events.SYSTEM, 0)


async def _store(connection: Connection, plan: Plan, run: PlanRun) -> Plan:
    """Store the run that is under way."""
    row = await connection.fetchrow(
        "UPDATE plans SET runs = $2 WHERE id = $1 RETURNING *", plan.id, msgspec.to_builtins((run, *plan.runs[1:]))
    )
    return _plan(row)


async def _now(connection: Connection) -> datetime:
    now: datetime = await connection.fetchval("SELECT clock_timestamp()")
    return now


async def _record(connection: Connection, plan: Plan, reason: str, message: str, actor: str = events.SYSTEM) -> None:
    new = events.NewEvent("plan", plan.id, plan.name, reason, message, actor, project=plan.project)
    await events.record(connection, new)
