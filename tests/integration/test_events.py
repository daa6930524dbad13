"""Events: one broken thing makes few of them, however often it fails, and each says how often it has happened."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Sequence

import asyncpg
import pytest

from novacron.control.failover import DECISION_S_MIN, Failover
from novacron.model.lease import Sign
from novacron.model.vm import VmState, VmStatus
from novacron.store import events, owned
from novacron.store.database import Database
from novacron.store.leases import Silent
from tests.support.clock import Clock
from tests.support.stored_fleet import add_node, add_vm

PER_MINUTE_MAX = 5


async def stored(database: Database) -> Sequence[asyncpg.Record]:
    async with database.connection() as connection:
        return await connection.fetch("SELECT * FROM events ORDER BY id")


async def happen(database: Database, *reasons: str, actor: str = events.SYSTEM, object: str = "vm-1") -> None:
    for number, reason in enumerate(reasons, 1):
        async with database.transaction() as connection:
            await events.record(connection, events.NewEvent("vm", object, "web", reason, f"time {number}", actor, "p"))


@pytest.mark.parametrize("reasons", [1, 2, 3, 5, 6, 8])
async def test_one_broken_thing_makes_five_events_a_minute_and_the_rest_are_counted(
    database: Database, reasons: int
) -> None:
    await happen(database, *itertools.islice(itertools.cycle("ABCDEFGH"[:reasons]), 40))
    rows = await stored(database)
    assert len(rows) == PER_MINUTE_MAX
    assert sum(row["count"] for row in rows) == 40
    last = max(rows, key=lambda row: row["last_at"])
    assert last["message"] == "time 40" and last["last_at"] > last["at"]
    assert last["reason"] == "ABCDEFGH"[39 % reasons]
    assert {row["reason"] for row in rows} >= set("ABCDEFGH"[: min(reasons, PER_MINUTE_MAX - 1)])


@pytest.mark.parametrize("actor", [events.SYSTEM, events.REBALANCING, f"{events.DRAIN_OF}host-a"])
async def test_whatever_acts_by_itself_makes_five_events_a_minute(database: Database, actor: str) -> None:
    await happen(database, *["Requested", "Failed"] * 20, actor=actor)
    rows = await stored(database)
    assert len(rows) == PER_MINUTE_MAX and sum(row["count"] for row in rows) == 40


async def test_the_next_minute_has_events_of_its_own(database: Database) -> None:
    await happen(database, *["Failed"] * 20)
    async with database.transaction() as connection:
        await connection.execute("UPDATE events SET at = at - interval '61 seconds'")
    await happen(database, *["Failed"] * 20)
    assert len(await stored(database)) == 2 * PER_MINUTE_MAX


async def test_a_new_reason_takes_the_place_of_one_that_is_there_more_than_once(database: Database) -> None:
    await happen(database, "Starting", "Failed", "Failed", "Starting", "Failed", "Placed", "Running", "Failed")
    rows = await stored(database)
    assert sorted(row["reason"] for row in rows) == ["Failed", "Failed", "Placed", "Running", "Starting"]
    assert sum(row["count"] for row in rows) == 8


async def test_other_objects_and_what_people_do_are_never_counted_as_repeats(database: Database) -> None:
    await happen(database, *["Failed"] * 10)
    await happen(database, "Failed", object="vm-2")
    await happen(database, *["Start"] * 10, actor="anna")
    rows = [(row["object"], row["reason"]) for row in await stored(database)][PER_MINUTE_MAX:]
    assert rows == [("vm-2", "Failed"), *[("vm-1", "Start")] * 10]


async def test_repeats_in_one_statement_are_counted_too(database: Database) -> None:
    async with database.transaction() as connection:
        await events.record_all(
            connection, [events.NewEvent("vm", "vm-1", "web", "Failed", str(n), project="p") for n in range(30)]
        )
    rows = await stored(database)
    assert len(rows) == PER_MINUTE_MAX and sum(row["count"] for row in rows) == 30


async def test_transactions_at_once_make_no_more_than_one_after_the_other(database: Database) -> None:
    """Each writes of several objects, in an order of its own."""

    async def write(number: int) -> None:
        objects = ["vm-1", "vm-2", "vm-3"][:: 1 if number % 2 else -1]
        async with database.transaction() as connection:
            happened = [events.NewEvent("vm", object, "web", f"R{number % 8}", "", project="p") for object in objects]
            await events.record_all(connection, happened)

    await asyncio.gather(*map(write, range(40)))
    rows = await stored(database)
    assert Counter(row["object"] for row in rows) == dict.fromkeys(("vm-1", "vm-2", "vm-3"), PER_MINUTE_MAX)
    assert sum(row["count"] for row in rows) == 120


async def test_a_transaction_that_began_before_those_of_all_five_is_counted(database: Database) -> None:
    """It is neither refused nor a sixth event."""
    async with database.transaction() as early:
        await early.fetchval("SELECT pg_current_xact_id()")
        await happen(database, "R1", "R2", "R3", "R4", "R5", "R6")
        await events.record(early, events.NewEvent("vm", "vm-1", "web", "Late", "", project="p"))
    rows = await stored(database)
    assert len(rows) == PER_MINUTE_MAX and sum(row["count"] for row in rows) == 7
    assert "Late" in {row["reason"] for row in rows}


async def test_that_a_vm_is_elsewhere_is_not_put_out_of_sight(database: Database) -> None:
    await happen(
        database, "Lost", "Placed", "Starting", "Failed", "FailedOver", "Running", "Started", "Failed", "Ready"
    )
    reasons = {row["reason"] for row in await stored(database)}
    assert "FailedOver" in reasons and "Ready" in reasons and len(reasons) == PER_MINUTE_MAX


async def test_a_vm_that_fails_again_and_again_makes_five_events_a_minute(database: Database) -> None:
    async with database.transaction() as connection:
        await add_node(connection, "a")
        await add_vm(connection, "web", "a")
    for number in range(30):
        for state in (VmState.STARTING, VmState.FAILED):
            async with database.transaction() as connection:
                report = owned.Report("a", "web", 1, VmStatus(state=state, reason=f"no space, tried {number} times"))
                await owned.observe(connection, [report])
    rows = await stored(database)
    assert len(rows) <= PER_MINUTE_MAX and sum(row["count"] for row in rows) == 60


async def test_a_node_on_which_votes_come_and_go_is_said_to_have_failed_once(database: Database) -> None:
    async with database.transaction() as connection:
        await add_node(connection, "a")
    clock = Clock()
    failover = Failover(clock=clock)
    node = Silent("a", 0, Sign.DEAD, (), 20.0, ("b", "c"), fenced=True)
    for _ in range(10):
        await failover._may_take_over(database, node, {"b", "c"})
        await failover._may_take_over(database, node, set())
        clock.now_s += 3.0
    assert [row["reason"] for row in await stored(database)] == ["Failed"]
    clock.now_s += DECISION_S_MIN
    await failover._may_take_over(database, node, set())
    await failover._may_take_over(database, node, set())
    assert [row["reason"] for row in await stored(database)] == ["Failed", "FailoverHeld"]
