"""Recovery plans: VMs go on in order, each when the one before is well, and a test leaves nothing behind."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from novacron.control import plans as controller
from novacron.control.objects import Objects
from novacron.model.errors import Conflict, InvalidInput
from novacron.model.plan import (
    RUNS_KEPT,
    Plan,
    PlanAction,
    PlanRun,
    PlanStep,
    PlanVm,
    PlanWait,
    StepPhase,
    home_of,
    is_done,
    kept_runs,
    next_step,
)
from novacron.model.replica import Replica
from novacron.store import plans, replicas, vms
from novacron.store.database import Connection, Database
from novacron.store.replicas import NewReplica, PointReport
from tests.integration.test_replicas import fleet, silence  # noqa: F401 - a fixture
from tests.support.stored_fleet import add_vm

NOW = datetime(2026, 11, 30, tzinfo=UTC)
STEPS = (PlanStep("web", "web"), PlanStep("db", "db"))


async def planned(database: Database, *named: PlanVm) -> Plan:
    """Store VM db, and others that are named, beside web, replicas of all on b, and a plan of these VMs, or of both."""
    async with database.transaction() as connection:
        beside = dict.fromkeys(("db", *(item.vm for item in named if item.vm != "web")))
        for vm in beside:
            await add_vm(connection, vm, "a", image="disk")
        for vm in ("web", *beside):
            replica = await replicas.create(connection, vm, NewReplica(None, "b"), "me")
            await replicas.stands(connection, "b", replica.id, [PointReport(1, 4.0, 10, False)], 10)
        return await plans.create(connection, "default", "shop", named or (PlanVm("db"), PlanVm("web")), "me")


async def begin(database: Database, plan: Plan, action: PlanAction = PlanAction.TEST, *confirm: str) -> None:
    async with database.transaction() as connection:
        await plans.begin(connection, plan.id, action, "me", confirm)


async def followed(database: Database, plan: Plan) -> PlanRun:
    """Let the controller do what it can now; return the newest run."""
    await controller.step(database, Objects("plans"))
    async with database.connection() as connection:
        return (await plans.get(connection, plan.id)).runs[0]


async def becomes(database: Database, vm: str, state: str, *, guest: bool = False) -> None:
    """A node reports what became of a VM."""
    status: dict[str, Any] = {"state": state}
    if guest:
        status["guest"] = {"hostname": "g"}
    async with database.transaction() as connection:
        await connection.execute("UPDATE vms SET clone_of = NULL, status = status || $2 WHERE id = $1", vm, status)


async def vms_of(database: Database, name: str = "test-%") -> list[str]:
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT id FROM vms WHERE name LIKE $1 AND NOT deleting ORDER BY created_at", name
        )
    return [row["id"] for row in rows]


async def test_a_test_starts_vms_in_order_and_deletes_them(fleet: Database) -> None:  # noqa: F811
    plan = await planned(fleet)
    await begin(fleet, plan)
    run = await followed(fleet, plan)
    assert [step.phase for step in run.steps] == ["starting", "waiting"], "the second waits for the first"
    assert run.steps[0].lost_s is not None and run.steps[0].lost_s >= 4
    [made] = await vms_of(fleet)
    await becomes(fleet, made, "running")
    run = await followed(fleet, plan)
    assert [step.phase for step in run.steps] == ["ready", "starting"]
    await becomes(fleet, (await vms_of(fleet))[1], "running")
    run = await followed(fleet, plan)
    assert run.is_well and await vms_of(fleet) == [], "what was made for it goes"
    async with fleet.connection() as connection:
        stored = await connection.fetch("SELECT id, node, epoch FROM vms WHERE id IN ('web', 'db')")
        said = await connection.fetchval("SELECT message FROM events WHERE reason = 'PlanEnded'")
    assert {(row["node"], row["epoch"]) for row in stored} == {("a", 1)}, "the VMs themselves stay as they are"
    assert "2 of 2 VMs were ready" in said


async def test_a_failover_moves_all_vms_and_what_can_t_go_on_holds_up_no_other(fleet: Database) -> None:  # noqa: F811
    plan = await planned(fleet, PlanVm("db"), PlanVm("web"))
    async with fleet.transaction() as connection:
        await connection.execute("DELETE FROM replicas WHERE vm = 'db'")
    await begin(fleet, plan, PlanAction.FAILOVER, "a")
    run = await followed(fleet, plan)
    assert [step.phase for step in run.steps] == ["failed", "failed"], "a is alive"
    assert "no replica" in run.steps[0].error and "was heard" in run.steps[1].error
    await silence(fleet)
    await begin(fleet, plan, PlanAction.FAILOVER)
    run = await followed(fleet, plan)
    assert "it has not been fenced" in run.steps[1].error, "its name was not confirmed"
    await begin(fleet, plan, PlanAction.FAILOVER, "a")
    run = await followed(fleet, plan)
    assert [step.phase for step in run.steps] == ["failed", "starting"]
    await becomes(fleet, "web", "running")
    run = await followed(fleet, plan)
    assert run.ended_at is not None and not run.is_well and run.steps[1].took_s is not None
    async with fleet.connection() as connection:
        moved = await vms.get(connection, "web")
    assert (moved.node, moved.epoch) == ("b", 2)


async def runs(connection: Connection, vm: str = "web", state: str = "running") -> None:
    """Say that a VM runs, or not."""
    power = "running" if state == "running" else "stopped"
    await connection.execute(
        "UPDATE vms SET status = status || jsonb_build_object('state', $2::text, 'accelerator', 'tcg'),"
        " spec = spec || jsonb_build_object('power', $3::text) WHERE id = $1",
        vm, state, power,
    )  # fmt: skip


async def arrives(database: Database, vm: str, node: str, phase: str = "completed") -> None:
    """A VM's move ends."""
    async with database.transaction() as connection:
        moving = (await vms.get(connection, vm)).migration
        await connection.execute(
            "UPDATE migrations SET phase = $2, error = 'the link broke', finished_at = now() WHERE id = $1",
            moving,
            phase,
        )
        await connection.execute("UPDATE vms SET migration = NULL WHERE id = $1", vm)
        if phase == "completed":
            await connection.execute("UPDATE vms SET node = $2, epoch = epoch + 1 WHERE id = $1", vm, node)


async def of_vm(database: Database, vm: str = "web") -> dict[str, Replica]:
    async with database.connection() as connection:
        return {replica.node: replica for replica in await replicas.of_vm(connection, vm)}


async def test_a_switch_moves_vms_to_their_replicas_and_a_failback_moves_them_back(fleet: Database) -> None:  # noqa: F811
    plan = await planned(fleet, PlanVm("web"))
    async with fleet.transaction() as connection:
        await runs(connection)
        await connection.execute("UPDATE replicas SET rpo_s = 7, points_kept = 5 WHERE vm = 'web'")
    await begin(fleet, plan, PlanAction.FAILBACK)
    run = await followed(fleet, plan)
    assert "has not moved" in run.steps[0].error
    await begin(fleet, plan, PlanAction.SWITCH)
    run = await followed(fleet, plan)
    [step] = run.steps
    assert (step.phase, step.node, step.came_from, step.lost_s) == (StepPhase.STARTING, "b", "a", 0.0)
    turned = (await of_vm(fleet))["a"]
    assert (turned.rpo_s, turned.points_kept, turned.points) == (7, 5, ()), "its settings are those of the other one"
    await arrives(fleet, "web", "b")
    run = await followed(fleet, plan)
    assert run.is_well and run.ended_at is not None
    await begin(fleet, plan, PlanAction.FAILBACK)
    run = await followed(fleet, plan)
    assert "has no point: its first round has not finished" in run.steps[0].error
    async with fleet.transaction() as connection:
        await replicas.stands(connection, "a", turned.id, [PointReport(1, 1.0, 10, False)], 10)
    await begin(fleet, plan, PlanAction.FAILBACK)
    run = await followed(fleet, plan)
    assert (run.steps[0].node, run.steps[0].came_from) == ("a", "b"), run.steps[0].error
    await arrives(fleet, "web", "a")
    assert (await followed(fleet, plan)).is_well
    assert set(await of_vm(fleet)) == {"a", "b"}, "no third one is made"
    await begin(fleet, plan, PlanAction.FAILBACK)
    assert "has not moved" in (await followed(fleet, plan)).steps[0].error, "it is not moved twice"


async def test_a_switch_that_breaks_leaves_the_vm_where_it_is_and_says_why(fleet: Database) -> None:  # noqa: F811
    plan = await planned(fleet, PlanVm("web"), PlanVm("db"))
    async with fleet.transaction() as connection:
        await runs(connection)
        await runs(connection, "db", "stopped")
    await begin(fleet, plan, PlanAction.SWITCH)
    await followed(fleet, plan)
    assert set(await of_vm(fleet)) == {"a", "b"}
    await arrives(fleet, "web", "a", "failed")
    run = await followed(fleet, plan)
    assert set(await of_vm(fleet)) == {"b"}, "no replica of a VM stays beside it"
    assert run.steps[0].error == "it did not move, and continues where it is: the link broke"
    assert run.steps[1].phase is StepPhase.STARTING, "it holds up no other"
    await arrives(fleet, "db", "b")
    run = await followed(fleet, plan)
    assert set(await of_vm(fleet, "db")) == {"a", "b"}
    assert run.steps[1].phase is StepPhase.READY, "a VM that is off is well where it is to be"
    await begin(fleet, plan, PlanAction.FAILBACK)
    assert (await followed(fleet, plan)).steps[0].phase is StepPhase.READY, "it is there already"


async def test_a_failover_is_undone_by_a_failback(fleet: Database) -> None:  # noqa: F811
    plan = await planned(fleet, PlanVm("web"))
    await silence(fleet)
    await begin(fleet, plan, PlanAction.FAILOVER, "a")
    assert (await followed(fleet, plan)).steps[0].came_from == "a"
    turned = (await of_vm(fleet))["a"]
    await becomes(fleet, "web", "running")
    assert (await followed(fleet, plan)).is_well
    async with fleet.transaction() as connection:
        await runs(connection)
        await connection.execute("UPDATE nodes SET status = status || '{\"ready\": true}' WHERE name = 'a'")
        await replicas.stands(connection, "a", turned.id, [PointReport(1, 1.0, 10, False)], 10)
    await begin(fleet, plan, PlanAction.FAILBACK)
    run = await followed(fleet, plan)
    assert (run.steps[0].phase, run.steps[0].node, run.steps[0].error) == (StepPhase.STARTING, "a", "")


BAD_SPEC = """UPDATE vms SET spec = spec || '{"power": "teleport"}' WHERE id = $1"""
BAD_REPLICA = "UPDATE replicas SET points = '[7]' WHERE vm = $1"
BROKEN = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'this one is broken'; END $$;
    CREATE TRIGGER refuse BEFORE UPDATE ON vms FOR EACH ROW WHEN (OLD.id = 'bad') EXECUTE FUNCTION refuse();
"""


@pytest.mark.parametrize(
    ("action", "damage", "why"),
    [
        pytest.param(PlanAction.FAILOVER, BAD_SPEC, "can't be read", id="failover, bad spec"),
        pytest.param(PlanAction.FAILOVER, BAD_REPLICA, "can't be read", id="failover, bad replica"),
        pytest.param(PlanAction.FAILOVER, BROKEN, "an internal error", id="failover, refused by the database"),
        pytest.param(PlanAction.SWITCH, BAD_REPLICA, "can't be read", id="switch, bad replica"),
        pytest.param(PlanAction.SWITCH, BAD_SPEC, "can't be read", id="switch, bad spec", marks=pytest.mark.slow),
        pytest.param(PlanAction.TEST, BAD_SPEC, "can't be read", id="test, bad spec"),
        pytest.param(PlanAction.TEST, BAD_REPLICA, "can't be read", id="test, bad replica", marks=pytest.mark.slow),
    ],
)
async def test_a_vm_that_cant_be_read_stops_no_vm_after_it(
    fleet: Database,  # noqa: F811
    action: PlanAction,
    damage: str,
    why: str,
) -> None:
    plan = await planned(fleet, PlanVm("db"), PlanVm("bad"), PlanVm("web"))
    async with fleet.transaction() as connection:
        await runs(connection)
        await runs(connection, "db")
        await connection.execute(damage, *(("bad",) if "$1" in damage else ()))
    if action is PlanAction.FAILOVER:
        await silence(fleet)
    await begin(fleet, plan, action, "a")
    for vm in ("db", "web"):
        await followed(fleet, plan)
        if action is PlanAction.SWITCH:
            await arrives(fleet, vm, "b")
        else:
            await becomes(fleet, vm if action is PlanAction.FAILOVER else (await vms_of(fleet))[-1], "running")
    run = await followed(fleet, plan)
    assert [step.phase for step in run.steps] == ["ready", "failed", "ready"], run.steps
    assert why in run.steps[1].error and run.ended_at is not None and await vms_of(fleet) == []
    async with fleet.connection() as connection:
        went_on = await connection.fetchval(
            "SELECT count(*) FROM events WHERE object = 'bad' AND reason = 'FailedOver'"
        )
    assert went_on == 0


async def test_a_vm_that_cant_be_read_any_more_while_it_starts_stops_no_vm_after_it(fleet: Database) -> None:  # noqa: F811
    plan = await planned(fleet, PlanVm("db"), PlanVm("web"))
    await silence(fleet)
    await begin(fleet, plan, PlanAction.FAILOVER, "a")
    assert (await followed(fleet, plan)).steps[0].phase is StepPhase.STARTING
    async with fleet.transaction() as connection:
        await connection.execute(BAD_SPEC, "db")
    run = await followed(fleet, plan)
    assert [step.phase for step in run.steps] == ["failed", "starting"]
    assert run.steps[0].came_from == "a", "a failback finds where it was"


async def test_a_vm_that_cant_be_deleted_after_a_test_keeps_neither_the_others_nor_the_plan(
    fleet: Database,  # noqa: F811
) -> None:
    plan = await planned(fleet)
    await begin(fleet, plan)
    for number in range(2):
        await followed(fleet, plan)
        await becomes(fleet, (await vms_of(fleet))[number], "running")
    bad, good = await vms_of(fleet)
    async with fleet.transaction() as connection:
        await connection.execute(BAD_SPEC, bad)
        stored = await plans.get(connection, plan.id)
        ready = msgspec.structs.replace(stored.runs[0].steps[1], phase=StepPhase.READY, ended_at=NOW)
        first = stored.runs[0].steps[0]
        assert first.phase is StepPhase.READY
        await plans._store(connection, stored, msgspec.structs.replace(stored.runs[0], steps=(first, ready)))
    run = await followed(fleet, plan)
    assert run.ended_at is None and [step.made for step in run.steps] == [bad, ""], "it is tried again"
    assert await vms_of(fleet) == [bad], f"{good} is deleted"
    async with fleet.transaction() as connection:
        await connection.execute(
            "UPDATE plans SET runs = jsonb_set(runs, '{0,steps,0,ended_at}', to_jsonb(now() - interval '1 day'))"
        )
    run = await followed(fleet, plan)
    assert run.ended_at is not None and [step.phase for step in run.steps] == ["failed", "ready"]
    assert f"VM {bad}, created for the test, can't be deleted" in run.steps[0].error
    await begin(fleet, plan)


def test_home_is_where_a_vm_was_before_all_that_no_failback_has_undone() -> None:
    def run(action: PlanAction, came_from: str, phase: StepPhase = StepPhase.READY) -> PlanRun:
        return PlanRun("run-1", action, "me", NOW, (PlanStep("web", "web", phase, came_from=came_from),))

    away, further = run(PlanAction.FAILOVER, "a"), run(PlanAction.SWITCH, "b")
    assert home_of([further, run(PlanAction.TEST, ""), away], "web") == "a"
    assert home_of([further, run(PlanAction.FAILBACK, "b"), away], "web") == "b"
    assert home_of([run(PlanAction.FAILBACK, "b"), away], "web") == ""
    assert home_of([run(PlanAction.FAILBACK, "b", StepPhase.FAILED), away], "web") == "a"
    assert home_of([away], "db") == ""


def test_the_runs_that_say_where_a_vm_was_outlive_those_that_do_not() -> None:
    def run(id: int, action: PlanAction, phase: StepPhase = StepPhase.READY, **came_from: str) -> PlanRun:
        steps = tuple(PlanStep(vm, vm, phase, came_from=node) for vm, node in came_from.items())
        return PlanRun(f"run-{id}", action, "me", NOW, steps)

    history = [
        run(1, PlanAction.SWITCH, web="x"), run(2, PlanAction.FAILBACK, web="b"),
        run(3, PlanAction.SWITCH, web="a", db="a"), run(4, PlanAction.FAILBACK, web="b"),
        run(5, PlanAction.FAILOVER, db="b"), *(run(number, PlanAction.TEST, db="") for number in range(6, 90)),
    ]  # fmt: skip
    kept: tuple[PlanRun, ...] = ()
    for new in history:
        kept = kept_runs((new, *kept))
        assert len(kept) <= RUNS_KEPT + 1
    assert [old.id for old in kept[RUNS_KEPT:]] == ["run-3"] and len(kept) == RUNS_KEPT + 1
    assert (home_of(kept, "db"), home_of(kept, "web")) == ("a", ""), "what was undone is not undone again"
    undone = kept_runs((run(90, PlanAction.FAILBACK, db="c"), *kept))
    assert len(undone) == RUNS_KEPT and home_of(undone, "db") == ""


async def test_a_failback_finds_the_way_after_many_tests(fleet: Database) -> None:  # noqa: F811
    plan = await planned(fleet, PlanVm("web"))
    async with fleet.transaction() as connection:
        await runs(connection)
    await begin(fleet, plan, PlanAction.SWITCH)
    await followed(fleet, plan)
    await arrives(fleet, "web", "b")
    await followed(fleet, plan)
    async with fleet.transaction() as connection:
        stored = await plans.get(connection, plan.id)
        tests = [PlanRun(f"run-{n}", PlanAction.TEST, "me", NOW, (), ended_at=NOW) for n in range(RUNS_KEPT - 1)]
        await connection.execute("UPDATE plans SET runs = $1", msgspec.to_builtins([*tests, *stored.runs]))
    for _ in range(3):
        await begin(fleet, plan, PlanAction.FAILBACK)
        assert "no point" in (await followed(fleet, plan)).steps[0].error, "and not that it is where it was"


async def test_a_run_of_a_later_version_is_read_and_left_to_it(fleet: Database) -> None:  # noqa: F811
    """While the server is rolled out, both versions work on one database, and the old one may come back."""
    plan = await planned(fleet, PlanVm("web"))
    await begin(fleet, plan)
    async with fleet.transaction() as connection:
        await connection.execute("""UPDATE plans SET runs = jsonb_set(runs, '{0,action}', '"rehearse"')""")
    run = await followed(fleet, plan)
    assert (run.action, run.action.is_known, run.steps[0].phase) == ("rehearse", False, StepPhase.WAITING)
    with pytest.raises(Conflict, match="a rehearse of plan shop is in progress"):
        await begin(fleet, plan)
    async with fleet.transaction() as connection:
        await plans.stop(connection, plan.id, "me")
        stored = await connection.fetchval("SELECT runs -> 0 ->> 'action' FROM plans")
    assert stored == "rehearse" and all(action.is_known for action in PlanAction)


async def set_back(database: Database, plan: Plan, by_s: float) -> None:
    """Let the step that has begun last have begun earlier."""
    async with database.transaction() as connection:
        stored = await plans.get(connection, plan.id)
        run = stored.runs[0]
        [step] = run.steps
        assert step.began_at is not None
        early = msgspec.structs.replace(step, began_at=step.began_at - timedelta(seconds=by_s))
        await plans._store(connection, stored, msgspec.structs.replace(run, steps=(early,)))


async def test_the_time_that_a_vm_has_to_be_well_begins_when_its_move_has_ended(fleet: Database) -> None:  # noqa: F811
    plan = await planned(fleet, PlanVm("web", timeout_s=30))
    async with fleet.transaction() as connection:
        await runs(connection)
    await begin(fleet, plan, PlanAction.SWITCH)
    await followed(fleet, plan)
    await set_back(fleet, plan, 3600)
    assert (await followed(fleet, plan)).steps[0].phase is StepPhase.STARTING, "its migration continues"
    await becomes(fleet, "web", "unknown")
    await arrives(fleet, "web", "b")
    assert (await followed(fleet, plan)).steps[0].phase is StepPhase.STARTING, "it has just arrived"
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE migrations SET finished_at = finished_at - interval '31 s'")
    run = await followed(fleet, plan)
    assert "not running within 30 s" in run.steps[0].error and run.ended_at is not None


async def test_a_vm_that_is_not_well_in_time_fails_and_its_guest_agent_can_be_asked_for(
    fleet: Database,  # noqa: F811
) -> None:
    plan = await planned(fleet, PlanVm("web", wait_for=PlanWait.GUEST_AGENT, timeout_s=30))
    await begin(fleet, plan)
    await followed(fleet, plan)
    [made] = await vms_of(fleet)
    await becomes(fleet, made, "running")
    assert (await followed(fleet, plan)).steps[0].phase is StepPhase.STARTING
    await set_back(fleet, plan, 31)
    run = await followed(fleet, plan)
    assert "not guest-agent within 30 s" in run.steps[0].error and run.ended_at is not None
    assert await vms_of(fleet) == []
    await begin(fleet, plan)
    await followed(fleet, plan)
    [made] = await vms_of(fleet)
    await becomes(fleet, made, "running", guest=True)
    assert (await followed(fleet, plan)).is_well


async def test_one_run_at_a_time_and_a_stopped_one_begins_nothing_more(fleet: Database) -> None:  # noqa: F811
    plan = await planned(fleet)
    await begin(fleet, plan)
    await followed(fleet, plan)
    for again in (begin(fleet, plan), delete(fleet, plan)):
        with pytest.raises(Conflict, match="a test of plan shop is in progress, started by me"):
            await again
    async with fleet.transaction() as connection:
        await plans.stop(connection, plan.id, "you")
    [made] = await vms_of(fleet)
    await becomes(fleet, made, "running")
    run = await followed(fleet, plan)
    assert run.ended_at is not None and run.stopped and "stopped by you" in run.steps[1].error
    assert await vms_of(fleet) == []
    await delete(fleet, plan)


async def delete(database: Database, plan: Plan) -> None:
    async with database.transaction() as connection:
        await plans.delete(connection, plan.id, "me")


async def test_a_vm_that_is_deleted_meanwhile_fails_its_step(fleet: Database) -> None:  # noqa: F811
    plan = await planned(fleet, PlanVm("web"))
    await begin(fleet, plan)
    await followed(fleet, plan)
    async with fleet.transaction() as connection:
        await connection.execute("DELETE FROM vms WHERE name LIKE 'test-%'")
    run = await followed(fleet, plan)
    assert run.steps[0].error == "the VM was deleted" and run.ended_at is not None


async def test_plans_of_other_projects_vms_and_of_a_vm_twice_are_refused(fleet: Database) -> None:  # noqa: F811
    for named, why in (((PlanVm("web"), PlanVm("web")), "listed twice"), ((PlanVm("nobody"),), "in project default")):
        async with fleet.transaction() as connection:
            with pytest.raises(InvalidInput, match=why):
                await plans.create(connection, "default", "shop", named, "me")


def test_a_delay_counts_from_when_the_one_before_was_well() -> None:
    run = PlanRun("run-1", PlanAction.TEST, "me", NOW, STEPS)
    assert next_step(run, {"web": 5}, NOW) is None and next_step(run, {"web": 5}, NOW + timedelta(seconds=5)) == 0
    ready = msgspec.structs.replace(STEPS[0], phase=StepPhase.READY, ended_at=NOW + timedelta(seconds=60))
    run = msgspec.structs.replace(run, steps=(ready, STEPS[1]))
    assert next_step(run, {"db": 30}, NOW + timedelta(seconds=89)) is None
    assert next_step(run, {"db": 30}, NOW + timedelta(seconds=90)) == 1
    failed = msgspec.structs.replace(STEPS[1], phase=StepPhase.FAILED)
    assert is_done(msgspec.structs.replace(run, steps=(ready, failed))) and not is_done(run)
