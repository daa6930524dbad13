"""Rebalancing by forecasts: real PostgreSQL, the real round, the controller."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from novacron.control.forecasts import AFTER_S, Forecasts
from novacron.control.objects import Objects
from novacron.control.rebalance import Rebalance
from novacron.model.errors import NoCapacity
from novacron.model.forecast import Forecast
from novacron.model.overload import UNKNOWN_SPREAD
from novacron.model.probe import MoveForeseen, PathMeasured
from novacron.model.rebalance import RebalanceMode, Settings
from novacron.store import events, load_profiles, migrations, rebalancing
from novacron.store.database import Database
from tests.support.stored_fleet import add_node, add_vm

NIGHT = datetime(2026, 3, 2, 2, tzinfo=UTC)
PATH = PathMeasured("a", "b", 1.0, 1 << 20, 1e8, 1e8, 1.0, 0.1, 0.1, 0, 1)
VMS = 4
NOON = 12
"""The hour in which each VM uses 1.5 processors; the node has 4."""


@pytest.fixture
async def fleet(database: Database) -> Database:
    """Four VMs on node a, of which each is busy at noon, every day; nodes b and c are empty."""
    async with database.transaction() as connection:
        for name in "abc":
            await add_node(connection, name)
        for number in range(VMS):
            await add_vm(connection, f"vm-{number}", at="a", memory_mib=512, vcpus=2)
        await connection.execute(
            "INSERT INTO vm_loads (vm, cpus, measured_at) SELECT id, 0.1, clock_timestamp() FROM vms"
        )
    return database


async def learn(database: Database, days: int = 14) -> None:
    """Store days of all VMs, and make two rounds: the second one has the profiles."""
    async with database.transaction() as connection:
        await connection.execute(
            "INSERT INTO vm_load_days (vm, day, peak_percent, hours, peaks_percent, means_percent)"
            " SELECT id, $1::date - d, 170, 24, array_agg((CASE h WHEN $3 THEN 170 ELSE 12 END)::smallint ORDER BY h),"
            " array_agg((CASE h WHEN $3 THEN 150 ELSE 10 END)::smallint ORDER BY h)"
            " FROM vms, generate_series(1, $2::int) AS d, generate_series(0, 23) AS h GROUP BY id, d",
            NIGHT.date(), days, NOON,
        )  # fmt: skip
    for at in (NIGHT - timedelta(hours=1), NIGHT):
        await make_round(database, at)


async def make_round(database: Database, at: datetime) -> None:
    objects, now_s = Objects("forecasts"), at.timestamp() + AFTER_S
    await Forecasts(lambda: now_s).step(database, objects)
    await objects.finish()
    assert objects.failure("round") is None, objects.failure("round")


async def estimate_move(vm: str, source: str, target: str) -> MoveForeseen:
    return MoveForeseen(1 << 29, 0, 1.0, PATH, Forecast(True, 30.0, 100.0))


async def rebalance(database: Database, settings: Settings) -> rebalancing.Rebalancing:
    async with database.transaction() as connection:
        await rebalancing.configure(connection, settings, "test")
    await Rebalance(estimate_move, clock=NIGHT.timestamp).step(database, Objects("rebalance"))
    async with database.connection() as connection:
        return await rebalancing.get(connection)


async def test_a_round_learns_what_is_usual_and_nodes_add_it_up(fleet: Database) -> None:
    await learn(fleet)
    async with fleet.connection() as connection:
        uses = await load_profiles.uses(connection, UNKNOWN_SPREAD, NIGHT.date())
        (means, variances) = (await load_profiles.of_vms(connection, ["vm-0", "vm-none"], NIGHT.date()))["vm-0"]
    assert means[NOON] == pytest.approx(1.5) and means[NOON + 1] == pytest.approx(0.1)
    assert variances[NOON] == pytest.approx((0.2 / 2.5) ** 2)
    assert uses.of["a"].means[NOON] == pytest.approx(6.0) and uses.of["a"].now == pytest.approx(0.4)
    assert (uses.vms, uses.unusual) == (VMS, 0) and set(uses.of) == {"a"}


async def test_a_vm_that_was_made_smaller_is_foreseen_with_the_processors_that_it_has(fleet: Database) -> None:
    await learn(fleet)
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE vms SET spec = spec || '{\"vcpus\": 1}'")
        uses = await load_profiles.uses(connection, UNKNOWN_SPREAD, NIGHT.date())
        vms = await rebalancing.vms_ahead(connection, ["a"], NIGHT.date())
    assert uses.of["a"].means[NOON] == pytest.approx(4.0) and uses.of["a"].means[NIGHT.hour] == pytest.approx(0.4)
    node = uses.of["a"]
    together = [sum(vm.use.means[hour] for vm in vms) for hour in range(24)]
    spread = [sum(vm.use.variances[hour] for vm in vms) for hour in range(24)]
    assert together == pytest.approx(node.means, abs=1e-6), "VMs and nodes are foreseen alike"
    assert spread == pytest.approx(node.variances, abs=1e-6)


async def test_a_round_that_was_ended_halfway_is_gone_on_with(fleet: Database) -> None:
    await learn(fleet)
    async with fleet.transaction() as connection:
        await connection.execute("DELETE FROM vm_profiles WHERE vm = 'vm-1'")
        await connection.execute("UPDATE vm_profiles SET day = day - 1 WHERE vm = 'vm-2'")
        assert await load_profiles.batches(connection, NIGHT.date()) == [["vm-1", "vm-2"]], "only what is left"
    await make_round(fleet, NIGHT + timedelta(hours=1))
    async with fleet.connection() as connection:
        days = await connection.fetch("SELECT vm, day FROM vm_profiles ORDER BY vm")
    assert [tuple(row) for row in days] == [(f"vm-{number}", NIGHT.date()) for number in range(VMS)]


async def test_an_old_profile_does_not_count_and_is_removed(fleet: Database) -> None:
    await learn(fleet)
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE vm_profiles SET day = day - 14 WHERE vm = 'vm-0'")
        await connection.execute("UPDATE vm_profiles SET day = day - 15 WHERE vm = 'vm-1'")
        await connection.execute("DELETE FROM vm_load_days")
        uses = await load_profiles.uses(connection, UNKNOWN_SPREAD, NIGHT.date())
        known = await load_profiles.of_vms(connection, [f"vm-{number}" for number in range(VMS)], NIGHT.date())
    assert uses.unusual == 1 and set(known) == {"vm-0", "vm-2", "vm-3"}
    await make_round(fleet, NIGHT + timedelta(hours=1))
    async with fleet.connection() as connection:
        assert {row["vm"] for row in await connection.fetch("SELECT vm FROM vm_profiles")} == set(known)


async def test_an_overload_that_comes_at_noon_is_prevented_at_night_and_recorded(fleet: Database) -> None:
    await learn(fleet)
    now = await rebalance(fleet, Settings(mode=RebalanceMode.AUTO))
    assert now.decision is not None and now.decision.overload_minutes is not None
    assert now.decision.overload_minutes > 55 and len(now.decision.moves) == 2, now.decision
    assert {move.target for move in now.decision.moves} <= {"b", "c"}
    assert "most at 12:00 UTC" in now.decision.moves[0].why and "foreseen: 30 s" in now.decision.moves[0].why
    async with fleet.connection() as connection:
        told = await connection.fetch("SELECT object FROM events WHERE reason = 'Rebalanced'")
        uses = await load_profiles.uses(connection, UNKNOWN_SPREAD, NIGHT.date())
    assert len(told) == 2
    assert uses.of["a"].means[NOON] == pytest.approx(3.0), "what is on its way counts where it goes"
    again = await rebalance(fleet, Settings(mode=RebalanceMode.AUTO))
    assert again.decision is not None and not again.decision.moves, "no more than that"


async def test_moves_are_only_advised_until_half_of_the_vms_are_known(fleet: Database) -> None:
    await learn(fleet)
    async with fleet.transaction() as connection:
        await connection.execute("DELETE FROM vm_profiles WHERE vm IN ('vm-0', 'vm-1', 'vm-2')")
        await connection.execute("UPDATE vm_loads SET cpus = 1.5")
    early = await rebalance(fleet, Settings(mode=RebalanceMode.AUTO))
    assert early.decision is not None and early.decision.moves
    assert "3 of 4 VMs" in early.decision.why and "moves are only advised" in early.decision.why
    async with fleet.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM migrations") == 0
        assert await connection.fetchval("SELECT count(*) FROM events WHERE reason = 'Rebalanced'") == 0
        assert await connection.fetchval("SELECT count(*) FROM events WHERE reason = 'RebalanceAdvised'") > 0
    await make_round(fleet, NIGHT + timedelta(hours=1))
    now = await rebalance(fleet, Settings(mode=RebalanceMode.AUTO))
    assert now.decision is not None and "only advised" not in now.decision.why
    async with fleet.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM migrations") == len(now.decision.moves) > 0
        assert await connection.fetchval("SELECT count(*) FROM events WHERE reason = 'Rebalanced'") > 0


async def test_servers_one_version_apart_read_each_others_settings(database: Database) -> None:
    async with database.transaction() as connection:
        await rebalancing.configure(connection, Settings(mode=RebalanceMode.AUTO, concurrency=2), "test")
        stored = await connection.fetchval("SELECT settings FROM rebalancing")
        assert stored == {"mode": "auto", "concurrency": 2}, "an older server refuses fields that it does not know"
        await connection.execute(
            'UPDATE rebalancing SET settings = settings || \'{"weekdays": true, "basis": "oracle"}\''
        )
        settings = (await rebalancing.get(connection)).settings
    assert settings == Settings(mode=RebalanceMode.AUTO, concurrency=2), "what a newer one has added is left out"
    with pytest.raises(msgspec.ValidationError, match="weekdays"):
        msgspec.convert({"weekdays": True}, Settings)  # as the body of a request


async def test_it_can_only_advise(fleet: Database) -> None:
    await learn(fleet)
    now = await rebalance(fleet, Settings(mode=RebalanceMode.ADVISE))
    assert now.decision is not None and len(now.decision.moves) == 2
    async with fleet.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM migrations") == 0
        assert await connection.fetchval("SELECT count(*) FROM events WHERE reason = 'RebalanceAdvised'") == 2


async def test_where_little_is_known_the_last_hour_decides_and_that_is_said(fleet: Database) -> None:
    await learn(fleet, days=1)
    quiet = await rebalance(fleet, Settings(mode=RebalanceMode.ADVISE))
    assert quiet.decision is not None and not quiet.decision.moves
    assert "4 of 4 VMs are assumed to continue as in the last hour" in quiet.decision.why
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE vm_loads SET cpus = 1.5")
    busy = await rebalance(fleet, Settings(mode=RebalanceMode.ADVISE))
    assert busy.decision is not None and busy.decision.moves


class Picky:
    """Foresees that moves of some VMs do not end, and keeps what it was asked."""

    def __init__(self, *, refuse: int) -> None:
        self.asked: list[tuple[str, str]] = []
        self.refused: set[str] = set()
        self._refuse = refuse

    async def __call__(self, vm: str, source: str, target: str) -> MoveForeseen:
        self.asked.append((vm, target))
        if len(self.refused) < self._refuse:
            self.refused.add(vm)
        return MoveForeseen(1 << 29, 0, 1.0, PATH, Forecast(vm not in self.refused, 30.0, 100.0, "it writes too fast"))


async def test_where_a_move_is_refused_another_vm_moves_and_it_is_not_asked_again_for_a_while(fleet: Database) -> None:
    await learn(fleet)
    picky, now_s = Picky(refuse=2), [NIGHT.timestamp()]
    controller, objects = Rebalance(picky, clock=lambda: now_s[0]), Objects("rebalance")
    async with fleet.transaction() as connection:
        await rebalancing.configure(connection, Settings(mode=RebalanceMode.AUTO), "test")
    await controller.step(fleet, objects)
    async with fleet.connection() as connection:
        decision = (await rebalancing.get(connection)).decision
        moving = {row["vm"] for row in await connection.fetch("SELECT vm FROM migrations")}
    assert decision is not None and {move.vm for move in decision.moves} == moving
    assert len(moving) == 2 and not moving & picky.refused, "the other two help as well"
    assert "refused: vm-" in decision.why and "it would not converge: it writes too fast" in decision.why
    refused = {pair for pair in picky.asked if pair[0] in picky.refused}
    async with fleet.transaction() as connection:  # as if they had come back, long ago
        await connection.execute("UPDATE vms SET migration = NULL")
        await connection.execute("DELETE FROM migrations")
    picky.asked.clear()
    now_s[0] += 540
    await controller.step(fleet, objects)
    assert not refused & set(picky.asked), "they rest for ten minutes"


async def test_a_vm_whose_move_failed_rests_like_one_that_moved(fleet: Database) -> None:
    await learn(fleet)
    now = await rebalance(fleet, Settings(mode=RebalanceMode.AUTO))
    assert now.decision is not None and len(now.decision.moves) == 2
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE migrations SET phase = 'failed', finished_at = clock_timestamp()")
        await connection.execute("UPDATE vms SET migration = NULL")
        rest = {load.wish.id for load in await rebalancing.loads(connection, ["a"]) if load.moved_s < 60}
    assert rest == {move.vm for move in now.decision.moves}
    again = await rebalance(fleet, Settings(mode=RebalanceMode.AUTO))
    assert again.decision is not None and not rest & {move.vm for move in again.decision.moves}
    assert len(again.decision.moves) == 2


async def test_a_move_that_would_overfill_memory_is_refused_in_its_transaction(fleet: Database) -> None:
    """Placement may overcommit the target; a decision that was made before others came there is not carried out."""
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE nodes SET spec = spec || '{\"memory_overcommit\": 4.0}'")
        await add_vm(connection, "there", at="b", memory_mib=3800)
    request = migrations.MoveRequest(actor=events.REBALANCING, target="b")
    with pytest.raises(NoCapacity, match="never overcommits"):
        async with fleet.transaction() as connection:
            await migrations.create(connection, "vm-0", request)
            await rebalancing.check_memory(connection, "b", "vm-0")
    async with fleet.transaction() as connection:
        assert await connection.fetchval("SELECT count(*) FROM migrations") == 0
        await migrations.create(connection, "vm-0", migrations.MoveRequest(actor=events.REBALANCING, target="c"))
        await rebalancing.check_memory(connection, "c", "vm-0")


async def test_memory_in_huge_pages_is_none_that_rebalancing_could_overfill(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        was = (await rebalancing.uses(connection))["b"].memory_mib
        await connection.execute(
            "UPDATE nodes SET status = jsonb_set(status, '{inventory,huge_2m_mib}', '3072') WHERE name IN ('b', 'c')"
        )
        await add_vm(connection, "huge", at="b", memory_mib=3072, hugepages="2M")
        assert (await rebalancing.uses(connection))["b"].memory_mib == was
    request = migrations.MoveRequest(actor=events.REBALANCING, target="c")
    async with fleet.transaction() as connection:
        await migrations.create(connection, "huge", request)
        await rebalancing.check_memory(connection, "c", "huge")
        await connection.execute("UPDATE vms SET spec = spec || '{\"memory_mib\": 1400}' WHERE id = 'vm-0'")
        await connection.execute("UPDATE nodes SET spec = spec || '{\"memory_overcommit\": 4.0}'")
        await migrations.create(connection, "vm-0", request)
        with pytest.raises(NoCapacity, match="1400 MiB more do not fit"):
            await rebalancing.check_memory(connection, "c", "vm-0")


async def test_a_day_that_is_damaged_spoils_no_other_vms_profile(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        await connection.execute(
            "INSERT INTO vm_load_days (vm, day, peak_percent, hours, peaks_percent, means_percent)"
            " VALUES ('vm-0', $1, 10, 1, '{1}', '{}')",
            NIGHT.date() - timedelta(days=15),
        )
        await connection.execute(
            "INSERT INTO vm_load_days (vm, day, peak_percent, hours, peaks_percent, means_percent)"
            " VALUES ('vm-0', $1, 10, 1, '{1}', '{}')",
            NIGHT.date() - timedelta(days=14),
        )
    async with fleet.transaction() as connection:
        rows = await load_profiles.days(connection, ["vm-0"], NIGHT.date() - timedelta(days=14), NIGHT.date())
    assert not rows
