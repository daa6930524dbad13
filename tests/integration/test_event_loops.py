"""One broken thing makes few events, counted over all objects, however often whoever tries again does so."""

from __future__ import annotations

from functools import partial

from novacron.control import plans as plan_controller
from novacron.control.objects import Objects
from novacron.model.drain import DrainPolicy
from novacron.model.plan import PlanAction, PlanVm
from novacron.model.vm import VmState, VmStatus
from novacron.model.waiting import WaitCode
from novacron.store import drains, events, migrations, nodes, owned, plans
from novacron.store.database import Connection, Database
from tests.integration.test_hindrances import fleet as fleet
from tests.integration.test_hindrances import step
from tests.support.stored_fleet import add_vm

W = WaitCode.NETWORK_NOT_READY
EVENTS_MAX = 5
TRIES = 12


async def lines(database: Database) -> list[str]:
    """Return what nobody has asked for: one line for each event, with its count."""
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT kind, name, reason, count FROM events WHERE actor IN ($1, $2) OR actor LIKE $3 ORDER BY id",
            events.SYSTEM, events.REBALANCING, f"{events.DRAIN_OF}%",
        )  # fmt: skip
    return [f"{row['kind']} {row['name']}: {row['reason']} x {row['count']}" for row in rows]


async def fail_moves(connection: Connection) -> int:
    """Let all moves fail that are under way, and let nobody rest because of it; return how many there were."""
    under_way = await migrations.active(connection)
    for migration in under_way:
        await migrations.fail(connection, migration.id, "the link was cut")
    await connection.execute("UPDATE migrations SET finished_at = finished_at - interval '1 h'")
    await connection.execute("UPDATE drains SET stays = '[]'")
    return len(under_way)


async def test_a_drain_whose_move_fails_again_and_again(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        await drains.begin(connection, "a", DrainPolicy.THROTTLE, "anna", 3600)
    failed = 0
    for _ in range(TRIES):
        await step(fleet)
        async with fleet.transaction() as connection:
            failed += await fail_moves(connection)
    assert failed == TRIES, "it was tried each time"
    said = await lines(fleet)
    assert len(said) <= EVENTS_MAX, said
    assert any("MigrationFailed" in line for line in said)


async def test_a_plan_that_fails_again_and_again(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        plan = await plans.create(connection, "default", "shop", (PlanVm("web"),), "anna")
    for _ in range(TRIES):
        async with fleet.transaction() as connection:
            await plans.begin(connection, plan.id, PlanAction.SWITCH, "anna")
        await plan_controller.step(fleet, Objects("plans"))
    said = await lines(fleet)
    assert 0 < len(said) <= EVENTS_MAX, said


async def test_a_node_that_is_lost_again_and_again_with_all_that_waits_for_it(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        await connection.execute(
            "INSERT INTO volumes (id, name, pool, kind, node, size_mib, phase, project)"
            " SELECT 'vol-' || n, 'v' || n, 'local', 'local', 'a', 8, 'creating', 'default'"
            " FROM generate_series(1, 50) n"
        )
    for _ in range(TRIES):
        for silent in (True, False):
            silent_s = 60.0 if silent else 0.0
            async with fleet.transaction() as connection:
                await connection.execute(
                    "UPDATE node_leases SET renewed_at = now() - make_interval(secs => $1) WHERE node = 'a'", silent_s
                )
                await nodes.mark_lost(connection, ["a"], 16.0)
    said = await lines(fleet)
    assert len(said) <= EVENTS_MAX, said
    async with fleet.connection() as connection:
        counts = await connection.fetchval("SELECT sum(count) FROM events WHERE object = 'a'")
        message = await connection.fetchval("SELECT message FROM events WHERE reason = 'Lost' LIMIT 1")
    assert counts == 2 * TRIES and "waiting for it: 50 volumes" in message


async def test_many_vms_that_one_broken_network_keeps_waiting(fleet: Database) -> None:
    """Each has the reason in its status; of their events, all but a few are one of their node, which counts them."""
    ids, causes = [f"vm-{n}" for n in range(50)], events.CommonCauses()
    async with fleet.transaction() as connection:
        for id in ids:
            await add_vm(connection, id, "a")
    for state in (VmState.STARTING, VmState.FAILED):
        for begin in range(0, len(ids), 10):
            waits = VmStatus(state, "network lan: Read-only file system", reason_code=WaitCode.NETWORK_NOT_READY)
            reports = [owned.Report("a", id, 1, waits) for id in ids[begin : begin + 10]]
            await fleet.transact(partial(owned.observe, reports=reports, causes=causes))
    async with fleet.connection() as connection:
        rows = await connection.fetch("SELECT kind, reason, count, message FROM events WHERE reason <> 'Starting'")
        codes = await connection.fetchval("SELECT count(*) FROM vms WHERE status ->> 'reason_code' = $1", W)
    of_vms = [row for row in rows if row["kind"] == "vm"]
    of_node = [row for row in rows if row["kind"] == "node"]
    assert len(of_vms) == EVENTS_MAX and 0 < len(of_node) <= EVENTS_MAX and codes == 50
    assert len(of_vms) + sum(row["count"] for row in of_node) == 50, "each is counted"
    assert {row["reason"] for row in of_node} == {W} and "further VMs are failed on a: network" in of_node[0]["message"]


def test_of_one_cause_a_few_events_a_minute_are_the_objects_own() -> None:
    now = [0.0]
    causes = events.CommonCauses(lambda: now[0])
    assert [causes.is_own("a", W) for _ in range(7)] == [True] * 5 + [False] * 2
    assert causes.is_own("b", W) and causes.is_own("a", WaitCode.NO_SPACE), "other causes"
    now[0] = events.OWN_WINDOW_S
    assert [causes.is_own("a", W) for _ in range(7)] == [True] * 5 + [False] * 2
    for number in range(events.CAUSES_MAX + 10):
        causes.is_own(str(number))
    assert len(causes._told) == events.CAUSES_MAX
