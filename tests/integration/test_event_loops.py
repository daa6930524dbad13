"""One broken thing makes few events, counted over all objects, however often whoever tries again does so."""

from __future__ import annotations

from novacron.control import plans as plan_controller
from novacron.control.objects import Objects
from novacron.model.drain import DrainPolicy
from novacron.model.plan import PlanAction, PlanVm
from novacron.store import drains, events, migrations, nodes, plans
from novacron.store.database import Connection, Database
from tests.integration.test_hindrances import fleet as fleet
from tests.integration.test_hindrances import step

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
