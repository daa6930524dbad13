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
    Plan,
    PlanAction,
    PlanRun,
    PlanStep,
    PlanVm,
    PlanWait,
    StepPhase,
    is_done,
    next_step,
)
from novacron.store import plans, replicas, vms
from novacron.store.database import Database
from novacron.store.replicas import NewReplica, PointReport
from tests.integration.test_replicas import fleet, silence  # noqa: F401 - a fixture
from tests.support.stored_fleet import add_vm

NOW = datetime(2026, 11, 30, tzinfo=UTC)
STEPS = (PlanStep("web", "web"), PlanStep("db", "db"))


async def planned(database: Database, *named: PlanVm) -> Plan:
    """Store VM db beside web, replicas of both on b, and a plan of these VMs, or of both."""
    async with database.transaction() as connection:
        await add_vm(connection, "db", "a", image="disk")
        for vm in ("web", "db"):
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
    assert "2 of 2 VMs were well" in said


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
    assert "nothing has cut it off" in run.steps[1].error, "its name was not confirmed"
    await begin(fleet, plan, PlanAction.FAILOVER, "a")
    run = await followed(fleet, plan)
    assert [step.phase for step in run.steps] == ["failed", "starting"]
    await becomes(fleet, "web", "running")
    run = await followed(fleet, plan)
    assert run.ended_at is not None and not run.is_well and run.steps[1].took_s is not None
    async with fleet.connection() as connection:
        moved = await vms.get(connection, "web")
    assert (moved.node, moved.epoch) == ("b", 2)


async def test_a_vm_that_is_not_well_in_time_fails_and_its_guest_agent_can_be_asked_for(
    fleet: Database,  # noqa: F811
) -> None:
    plan = await planned(fleet, PlanVm("web", wait_for=PlanWait.GUEST_AGENT, timeout_s=30))
    await begin(fleet, plan)
    await followed(fleet, plan)
    [made] = await vms_of(fleet)
    await becomes(fleet, made, "running")
    assert (await followed(fleet, plan)).steps[0].phase is StepPhase.STARTING
    async with fleet.transaction() as connection:
        run = (await plans.get(connection, plan.id)).runs[0]
        [step] = run.steps
        assert step.began_at is not None
        early = msgspec.structs.replace(step, began_at=step.began_at - timedelta(seconds=31))
        await plans._store(
            connection, await plans.get(connection, plan.id), msgspec.structs.replace(run, steps=(early,))
        )
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
        with pytest.raises(Conflict, match="a test of plan shop is under way, begun by me"):
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
    for named, why in (((PlanVm("web"), PlanVm("web")), "named twice"), ((PlanVm("nobody"),), "in project default")):
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
