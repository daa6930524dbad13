"""Moves that wait for their time, on a real database."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from lab.platform import Platform
from novacron.client import ApiError
from novacron.control.objects import Objects
from novacron.control.scheduled_moves import ScheduledMoves
from novacron.model.errors import Conflict, InvalidInput, NotFound, PreconditionFailed
from novacron.model.scheduled_move import ScheduledMove
from novacron.model.vm import Vm
from novacron.store import scheduled_moves, vms
from novacron.store.database import Database
from tests.support.stored_fleet import add_node, add_vm

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
MOVE = ScheduledMove(
    not_before=NOW, deadline=NOW + 6 * HOUR, begins_at=NOW + 3 * HOUR, why="it is quiet then", actor="ann",
    target="b", weight=7, warm=True,
)  # fmt: skip


class Installation:
    """Nodes a and b, VM web on a, and the controller at a time of the test's own."""

    def __init__(self, database: Database) -> None:
        self.database, self.now = database, NOW
        self._moves = ScheduledMoves(clock=lambda: self.now.timestamp())

    async def schedule(self, move: ScheduledMove = MOVE, if_match: int | None = None) -> Vm:
        async with self.database.transaction() as connection:
            return await scheduled_moves.schedule(connection, "web", move, if_match)

    async def cancel(self) -> Vm:
        async with self.database.transaction() as connection:
            return await scheduled_moves.cancel(connection, "web", None, "ann")

    async def at(self, now: datetime) -> Vm:
        """Return the VM after what is done at that time."""
        self.now = now
        await self._moves.step(self.database, Objects("scheduled-moves"))
        async with self.database.connection() as connection:
            return await vms.get(connection, "web")

    async def change(self, statement: str) -> None:
        async with self.database.transaction() as connection:
            await connection.execute(statement)

    async def events(self) -> list[str]:
        async with self.database.connection() as connection:
            return [row["reason"] for row in await connection.fetch("SELECT reason FROM events ORDER BY id")]


@pytest.fixture
async def installation(database: Database) -> Installation:
    async with database.transaction() as connection:
        for name in "ab":
            await add_node(connection, name)
        await add_vm(connection, "web", "a")
    return Installation(database)


async def test_a_move_begins_at_its_time_as_it_was_asked_for(installation: Installation) -> None:
    assert (await installation.schedule()).scheduled_move == MOVE
    waiting = await installation.at(NOW + 2 * HOUR)
    assert waiting.migration is None and waiting.scheduled_move == MOVE
    moving = await installation.at(NOW + 3 * HOUR)
    assert moving.migration is not None and moving.scheduled_move is None
    async with installation.database.connection() as connection:
        rows = await connection.fetch("SELECT target, weight, kind, phase, cause FROM migrations")
    assert [tuple(row) for row in rows] == [("b", 7, "warm", "pending", "request")]
    assert await installation.events() == ["MoveScheduled", "Requested", "MigrationRequested"]


async def test_what_is_refused_is_said_and_tried_until_the_deadline(installation: Installation) -> None:
    await installation.schedule()
    await installation.change("UPDATE nodes SET spec = spec || '{\"cordoned\": true}' WHERE name = 'b'")
    for _ in range(3):
        refused = await installation.at(NOW + 3 * HOUR)
    assert refused.migration is None and refused.scheduled_move is not None
    assert refused.scheduled_move.refusal is not None and "cordoned" in refused.scheduled_move.refusal
    missed = await installation.at(NOW + 7 * HOUR)
    assert missed.scheduled_move is None and missed.migration is None
    assert await installation.events() == ["MoveScheduled", "MoveDelayed", "MoveMissed"]


async def test_it_begins_once_what_kept_it_is_gone(installation: Installation) -> None:
    await installation.schedule()
    await installation.change("UPDATE nodes SET spec = spec || '{\"cordoned\": true}' WHERE name = 'b'")
    await installation.at(NOW + 3 * HOUR)
    await installation.change("UPDATE nodes SET spec = spec || '{\"cordoned\": false}' WHERE name = 'b'")
    assert (await installation.at(NOW + 4 * HOUR)).migration is not None


async def test_a_vm_that_is_there_already_is_not_moved(installation: Installation) -> None:
    await installation.schedule()
    await installation.change("UPDATE vms SET node = 'b'")
    there = await installation.at(NOW + 3 * HOUR)
    assert there.migration is None and there.scheduled_move is None


async def test_another_migration_goes_first(installation: Installation) -> None:
    await installation.schedule(msgspec.structs.replace(MOVE, target=None))
    await installation.change("UPDATE vms SET migration = 'm-other'")
    waiting = await installation.at(NOW + 3 * HOUR)
    assert waiting.migration == "m-other" and waiting.scheduled_move is not None


async def test_the_later_request_counts_and_it_can_be_taken_back(installation: Installation) -> None:
    await installation.schedule()
    later = msgspec.structs.replace(MOVE, begins_at=NOW + 5 * HOUR)
    assert (await installation.schedule(later)).scheduled_move == later
    assert (await installation.cancel()).scheduled_move is None
    assert (await installation.at(NOW + 5 * HOUR)).migration is None
    with pytest.raises(Conflict, match="no move of VM web is scheduled"):
        await installation.cancel()


async def test_what_can_not_be_is_refused_at_once(installation: Installation) -> None:
    with pytest.raises(InvalidInput, match="already on a"):
        await installation.schedule(msgspec.structs.replace(MOVE, target="a"))
    with pytest.raises(NotFound, match="no node 'c'"):
        await installation.schedule(msgspec.structs.replace(MOVE, target="c"))
    with pytest.raises(PreconditionFailed):
        await installation.schedule(if_match=1)
    assert await installation.events() == []


async def test_the_hours_of_a_vm_are_known_from_its_profile(database: Database, installation: Installation) -> None:
    async with database.transaction() as connection:
        assert await scheduled_moves.usual(connection, "web", NOW.date()) is None
        await connection.execute(
            "INSERT INTO vm_profiles (vm, day, means, variances) VALUES ('web', $1, $2, $2)",
            NOW.date(), [hour / 10 for hour in range(24)],
        )  # fmt: skip
        usual = await scheduled_moves.usual(connection, "web", NOW.date())
    assert usual is not None and usual[3] == pytest.approx(0.3)


def test_people_schedule_moves_and_take_them_back(site: Platform, new_vm: Callable[..., dict[str, Any]]) -> None:
    vm = new_vm(node="host-a")
    site.wait_state(vm["id"], "running")
    name = vm["name"]
    assert (
        "moves at"
        in site.cli("vm", "migrate", name, "--to", "host-b", "--not-before", "9h", "--deadline", "20h").stdout
    )
    shown = json.loads(site.cli("vm", "show", name, "-o", "json").stdout)
    assert shown["scheduled_move"]["target"] == "host-b" and shown["scheduled_move"]["actor"]
    assert "to host-b" in site.cli("vm", "show", name).stdout
    assert "stays" in site.cli("vm", "migrate", name, "--unschedule").stdout
    assert site.client.get("vms", name)["scheduled_move"] is None
    site.cli("vm", "migrate", name, "--to", "host-b", "--not-before", "1s")
    site.wait_vm(name, lambda now: now["node"] == "host-b" and now["migration"] is None, "it moves by itself", 120)
    with pytest.raises(ApiError, match="not after the present"):
        site.client.act("vms", name, "schedule-migration", {"deadline": "2020-01-01T00:00:00Z"})
    with pytest.raises(ApiError, match="neither not_before nor deadline"):
        site.client.act("vms", name, "schedule-migration", {})
