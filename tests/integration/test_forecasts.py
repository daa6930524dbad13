"""Forecasts of load: the real history, round and PostgreSQL, on made-up days whose answers are known."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, date, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from novacron.control.forecasts import AFTER_S, Forecasts
from novacron.control.objects import Objects
from novacron.model import limits
from novacron.model.capacity_forecast import CapacityResource
from novacron.model.load_forecast import ForecastKind, ForecastModel, ModelVerdict, ScoreSums
from novacron.model.load_hours import HOUR_S, KEPT, SAMPLES_OF_HOUR_MIN, NodeHour, VmHour
from novacron.server import load_history
from novacron.server.load_history import LoadHistory
from novacron.server.reports import Reports
from novacron.store import capacity, forecasts, unusual_loads
from novacron.store.database import Database
from novacron.store.load_history import store_nodes, store_vms
from novacron.supervise import end_all
from novacron.telemetry.values import counter
from novacron.wire import messages as wire
from tests.support.clock import Clock
from tests.support.stored_fleet import add_node, add_vm
from tests.waiting import eventually

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
DAYS = 28
NODES = 4


@pytest.fixture
async def fleet(database: Database) -> Database:
    """Four nodes, each with a VM."""
    async with database.transaction() as connection:
        for name in "abcd":
            await add_node(connection, name)
            await add_vm(connection, f"vm-{name}", at=name, memory_mib=1024)
    return database


async def fill_nodes(database: Database, until: datetime = NOW, peak: str = "1 + 3 * (h = 9)::int") -> None:
    """Give every node four weeks until a time, with a busy hour each day, and noise. ``peak``: of hour ``h``."""
    noise = "(1 + 0.1 * sin(h * 7 + d * 13 + ascii(name)))"
    known = "(day + make_interval(hours => h::int)) < $1::timestamp"
    arrays = ", ".join(
        f"array_agg(CASE WHEN {known} THEN ({peak}) * {factor} * {noise} END::real ORDER BY h)"
        for factor in (1.0, 0.8, 0.9, 0.85, 0.97)
    )
    async with database.transaction() as connection:
        await connection.execute(
            "INSERT INTO node_load_days (node, day, peak, mean, last, quarter, second, memory_mib)"  # noqa: S608
            f" SELECT name, day::date, {arrays}, array_agg(1024 ORDER BY h)"
            " FROM nodes, generate_series(0, $2::int) AS d, generate_series(0, 23) AS h,"
            " LATERAL (SELECT $1::timestamp::date::timestamp - make_interval(days => d) AS day) days"
            " GROUP BY name, day",
            until.replace(tzinfo=None), DAYS,
        )  # fmt: skip


async def fill_vms(database: Database, today: date, weeks: int = 5) -> None:
    """Give every VM some weeks that end yesterday; 250 % at most in each."""
    async with database.transaction() as connection:
        await connection.execute(
            "INSERT INTO vm_load_days (vm, day, peak_percent, hours, peaks_percent, means_percent)"
            " SELECT id, $1::date - d, CASE WHEN d % 7 = 3 THEN 250 ELSE 100 END, 24, '{}', '{}'"
            " FROM vms, generate_series(1, $2::int) AS d",
            today, 7 * weeks,
        )  # fmt: skip


async def make_round(database: Database, at: datetime = NOW) -> None:
    """Let the controller make the round of an hour, in its process."""
    objects = Objects("forecasts")
    controller = Forecasts(lambda: at.timestamp() + AFTER_S)
    await controller.step(database, objects)
    await objects.finish()
    objects.end_pass()
    assert objects.failure("round") is None, objects.failure("round")


def report(vm: str, cpus: float) -> wire.Measured:
    return wire.Measured(((vm, cpus),))


async def test_an_hour_of_reports_becomes_a_row_of_a_node_and_of_its_vm(fleet: Database) -> None:
    clock = Clock()
    clock.now_s = NOW.timestamp() - HOUR_S
    history = LoadHistory(lambda: clock.now_s)
    reports = Reports(fleet, take_load=history.take)
    for number in range(2 * SAMPLES_OF_HOUR_MIN):
        await reports.store("a", report("vm-a", 2.0 if number == 7 else 0.5))
        await reports.store("b", report("vm-a", 50.0))  # another node's: not to be believed
        clock.now_s += 29
    clock.now_s = NOW.timestamp() + 20
    await history.store(fleet)
    async with fleet.connection() as connection:
        node = await connection.fetchrow("SELECT * FROM node_load_days WHERE node = 'a'")
        vm = await connection.fetchrow("SELECT * FROM vm_load_days WHERE vm = 'vm-a'")
        other = await connection.fetchrow("SELECT * FROM node_load_days WHERE node = 'b'")
    hour = 11
    assert node is not None and vm is not None
    assert node["day"] == NOW.date() and node["peak"][hour] == 2.0 and node["second"][hour] == 0.5
    assert 0.5 < node["mean"][hour] < 0.52 and node["memory_mib"][hour] == 1024
    assert [value is None for value in node["peak"]] == [place != hour for place in range(24)]
    assert (vm["peak_percent"], vm["hours"], vm["peaks_percent"][hour], vm["means_percent"][hour]) == (200, 1, 200, 51)
    assert other is None or other["peak"][hour] == 0.0


async def test_a_round_foresees_the_busy_hour_and_says_what_it_was_made_from(fleet: Database) -> None:
    busy = NOW.replace(hour=9)
    await fill_nodes(fleet, busy)
    await fill_vms(fleet, NOW.date())
    await make_round(fleet, busy)
    async with fleet.connection() as connection:
        nodes = await forecasts.of_nodes(connection, "abcd", busy)
        vms = await forecasts.of_vms(connection, ["vm-a", "vm-none"], busy)
    assert len(nodes) == NODES and nodes["a"].hour == busy
    for node in nodes.values():
        assert node.model is ForecastModel.LEARNED, node.why
        assert node.cpu_peak == pytest.approx(4.0, rel=0.2), "not as in the hour before, of about 1"
        assert node.cpu_peak_lower is not None and node.cpu_peak_upper is not None
        assert node.cpu_peak_lower <= node.cpu_peak <= node.cpu_peak_upper
        assert node.memory_mib == 1024
    assert set(vms) == {"vm-a"} and vms["vm-a"].cpu_max == 2.5 and vms["vm-a"].model is ForecastModel.LEARNED


async def test_thin_data_is_foreseen_as_in_the_last_hour_and_said_so(fleet: Database) -> None:
    await fill_nodes(fleet)
    async with fleet.transaction() as connection:
        await connection.execute("DELETE FROM node_load_days WHERE day < $1", NOW.date())
    await fill_vms(fleet, NOW.date(), weeks=1)
    await make_round(fleet)
    async with fleet.connection() as connection:
        node = (await forecasts.of_nodes(connection, ["a"], NOW))["a"]
        vm = (await forecasts.of_vms(connection, ["vm-a"], NOW))["vm-a"]
    assert node.model is ForecastModel.LAST and node.cpu_peak == pytest.approx(1.0, rel=0.11)
    assert "only 12 hours are known" in node.why and node.known_hours == 12
    assert vm.model is ForecastModel.LAST and vm.cpu_max == 2.5 and "only 7 days" in vm.why


async def test_forecasts_are_kept_with_what_came_and_scored(fleet: Database) -> None:
    await fill_nodes(fleet)
    await make_round(fleet)
    later = NOW + timedelta(hours=1)
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE node_load_days SET peak[13] = 2 WHERE day = $1", NOW.date())
    await make_round(fleet, later)
    async with fleet.connection() as connection:
        came = await connection.fetch("SELECT came FROM node_forecasts WHERE hour = $1", NOW)
        accuracy = {item.kind: item for item in await forecasts.accuracies(connection, later + timedelta(hours=1))}
    assert [row["came"] for row in came] == [2.0] * NODES
    scored = accuracy[ForecastKind.NODE_HOUR]
    assert scored.scored == NODES and scored.error == pytest.approx(0.5, abs=0.06) and scored.coverage == 0.0
    assert accuracy[ForecastKind.VM_WEEK].scored == 0 and "no forecast" in accuracy[ForecastKind.VM_WEEK].words


async def test_a_model_that_gets_worse_is_set_aside_and_comes_back(fleet: Database) -> None:
    await fill_nodes(fleet)
    bad = ScoreSums(200, 100.0, 30.0, 10.0, 200, 100.0, 30.0, 10.0)
    await store_scores(fleet, NOW - timedelta(hours=2), bad)
    await make_round(fleet)
    async with fleet.connection() as connection:
        node = (await forecasts.of_nodes(connection, ["a"], NOW))["a"]
        states = await forecasts.models(connection)
    assert node.model is ForecastModel.LAST and "set aside" in node.why
    assert states[ForecastKind.NODE_HOUR].aside_since and states[ForecastKind.VM_WEEK].aside_since is None
    good = ScoreSums(2000, 1000.0, 20.0, 100.0, 2000, 1000.0, 20.0, 100.0)
    await store_scores(fleet, NOW - timedelta(hours=3), good)
    await make_round(fleet, NOW + timedelta(hours=1))
    async with fleet.connection() as connection:
        assert (await forecasts.models(connection))[ForecastKind.NODE_HOUR].aside_since is None


async def store_scores(database: Database, at: datetime, sums: ScoreSums) -> None:
    async with database.transaction() as connection:
        fields = ", ".join(forecasts.FIELDS)
        values = [getattr(sums, field) for field in forecasts.FIELDS]
        places = ", ".join(f"${number + 3}" for number in range(len(values)))
        await connection.execute(
            f"INSERT INTO forecast_scores (kind, at, {fields}) VALUES ($1, $2, {places})",  # noqa: S608
            ForecastKind.NODE_HOUR, at, *values,
        )  # fmt: skip


async def test_the_day_on_which_a_site_is_full_is_told(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        await connection.execute(
            "INSERT INTO capacity_days (resource, name, day, used, size)"
            " SELECT 'site-memory', 'default', $1::date - d, 4096 - 100 * d, 0 FROM generate_series(1, 30) AS d",
            NOW.date(),
        )
    await make_round(fleet)
    async with fleet.connection() as connection:
        (site,) = await capacity.page(connection, CapacityResource.SITE_MEMORY, None, ("", ""), 10)
        everything = await capacity.page(connection, None, None, ("", ""), 100)
    assert site.known_days == 31 and site.growth is not None and site.growth.a_day == pytest.approx(100, rel=0.01)
    assert site.used == 4096 and site.size is not None and site.full_on is not None
    assert site.full_on == NOW.date() + timedelta(days=-(-(site.size - 4096) // 100))
    assert [gain.nodes for gain in site.with_more_nodes] == [1, 2]
    assert {item.resource for item in everything} >= {"site-memory", "site-vcpus", "database"}


async def test_a_round_that_fails_or_takes_too_long_ends_and_is_tried_again(fleet: Database) -> None:
    objects = Objects("forecasts")
    controller = Forecasts(lambda: NOW.timestamp() + AFTER_S, round_s_max=0.01)
    await controller.step(fleet, objects)
    await objects.finish()
    assert "was ended" in (objects.failure("round") or "") and objects.due_in_s() is not None
    await make_round(fleet)
    async with fleet.connection() as connection:
        assert await forecasts.round_is_made(connection, NOW)


async def test_nothing_is_foreseen_before_the_hours_load_can_be_there(fleet: Database) -> None:
    objects = Objects("forecasts")
    await Forecasts(lambda: NOW.timestamp() + AFTER_S - 1).step(fleet, objects)
    await objects.finish()
    async with fleet.connection() as connection:
        assert not await forecasts.round_is_made(connection, NOW)


async def test_a_verdict_keeps_since_when_a_model_is_set_aside(fleet: Database) -> None:
    seen = []
    for verdict in (ModelVerdict(True, "worse"), ModelVerdict(True, "worse yet"), ModelVerdict(False, "better")):
        async with fleet.transaction() as connection:
            await forecasts.judged(connection, ForecastKind.NODE_HOUR, verdict)
            seen.append((await forecasts.models(connection))[ForecastKind.NODE_HOUR].aside_since)
    assert seen[0] is not None and seen[0] == seen[1] and seen[2] is None


async def test_each_hour_is_stored_soon_after_it_has_ended(fleet: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_history, "STORED_AFTER_S", 0.0)
    began, ahead_s = time.monotonic(), NOW.timestamp() - HOUR_S
    passed: dict[str, float] = {"s": 0.0}
    history = LoadHistory(lambda: ahead_s + passed["s"] + time.monotonic() - began)
    for _ in range(2 * SAMPLES_OF_HOUR_MIN):
        history.take("a", [("vm-a", 0.5), ("vm-gone", 0.5)])
        passed["s"] += 29.9
    passed["s"] = HOUR_S - 0.5
    running = asyncio.create_task(history.run(fleet))

    async def is_stored() -> bool:
        async with fleet.connection() as connection:
            return bool(await connection.fetchval("SELECT peaks_percent[12] = 50 FROM vm_load_days WHERE vm = 'vm-a'"))

    await eventually(is_stored, "the hour is stored")
    await end_all([running])
    async with fleet.connection() as connection:
        assert await connection.fetchval("SELECT array_agg(vm) FROM vm_load_days") == ["vm-a"], "the other one is gone"


async def test_an_hour_that_cant_be_stored_takes_no_other_with_it(
    fleet: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_history, "RETRY_S", 0.0)
    monkeypatch.setattr(load_history, "PAUSE_S", 0.0)
    clock = Clock()
    clock.now_s = NOW.timestamp() - HOUR_S
    history = LoadHistory(lambda: clock.now_s)
    for _ in range(2 * SAMPLES_OF_HOUR_MIN):
        for node in ("a", "a\0", "b"):  # no text of PostgreSQL
            history.take(node, [("vm-a", 0.5), ("vm-a\0", 0.5), ("vm-b\0", 0.5)])
        clock.now_s += 29
    clock.now_s = NOW.timestamp() + 20
    before = counter("novacron_work_restarts_total").cell("load history")[0]
    with capture_logs() as logged:
        await history.store(fleet)
    async with fleet.connection() as connection:
        assert await connection.fetchval("SELECT array_agg(node ORDER BY node) FROM node_load_days") == ["a", "b"]
        assert await connection.fetchval("SELECT array_agg(vm) FROM vm_load_days") == ["vm-a"]
    lost = [line["first"] for line in logged if line["log_level"] == "error"]
    assert lost == ["a\0", "vm-a\0", "vm-b\0"], "what is lost is named"
    assert counter("novacron_work_restarts_total").cell("load history")[0] > before


async def test_what_is_too_old_is_deleted(fleet: Database) -> None:
    await fill_vms(fleet, NOW.date() - timedelta(days=KEPT.vm_days - 2), weeks=1)
    await make_round(fleet)
    async with fleet.connection() as connection:
        oldest = await connection.fetchval("SELECT min(day) FROM vm_load_days")
    assert oldest == NOW.date() - timedelta(days=KEPT.vm_days)


async def test_huge_pages_and_dedicated_cpus_count_apart_from_what_vms_share(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        before = {(row["resource"], row["name"]): row for row in await capacity.record(connection, NOW.date())}
        await connection.execute(
            "UPDATE nodes SET status = jsonb_set(status, '{inventory,huge_2m_mib}', '2048') WHERE name = 'a'"
        )
        await add_vm(connection, "huge", at="a", memory_mib=1024, hugepages="2M")
        await add_vm(connection, "own", at="b", memory_mib=64, vcpus=2, cpu_policy="dedicated")
        after = {(row["resource"], row["name"]): row for row in await capacity.record(connection, NOW.date())}
    assert {key for key in after if "huge" in key[0]} == {("site-huge-2m", "default")}, "where there are any"
    huge = after["site-huge-2m", "default"]
    assert (huge["used"], huge["size"]) == (1024.0, 2048.0)
    was, now = (of["site-memory", "default"] for of in (before, after))
    assert (now["used"] - was["used"], now["size"] - was["size"]) == (64.0, -2048.0)
    was, now = (of["site-vcpus", "default"] for of in (before, after))
    left_out = 2 * (limits.VCPU_OVERCOMMIT_DEFAULT - 1)
    assert (now["used"] - was["used"], was["size"] - now["size"]) == (3.0, left_out)
    assert now["usual_node"] == was["usual_node"], "another node brings all of its CPUs"


async def test_a_pool_that_nodes_share_counts_once(fleet: Database) -> None:
    pool = {"name": "nfs", "kind": "shared", "bytes_total": 1000, "bytes_free": 400}
    async with fleet.transaction() as connection:
        await connection.execute(
            "UPDATE nodes SET status = jsonb_set(status, '{inventory,pools}', $1::jsonb) WHERE name IN ('a', 'b')",
            [pool],
        )
        rows = await capacity.record(connection, NOW.date())
    pools = [(row["name"], row["used"], row["size"]) for row in rows if row["resource"] == "pool"]
    assert [item for item in pools if "nfs" in item[0]] == [("nfs", 600.0, 1000.0)]
    assert {name for name, _, _ in pools} == {"nfs", "c/local", "d/local"}


async def fill_hours(database: Database, used: dict[str, float], hour: datetime) -> None:
    """Give VMs 14 days with half a processor in every hour, and what they used in the two hours before ``hour``."""
    async with database.transaction() as connection:
        for vm, cpus in used.items():
            for ago in range(1, 15):
                at = hour - timedelta(days=ago)
                means = [50 + (ago + number) % 5 for number in range(24)]
                await connection.execute(
                    "INSERT INTO vm_load_days (vm, day, peak_percent, hours, peaks_percent, means_percent)"
                    " VALUES ($1, $2, 60, 24, $3, $3)",
                    vm, at.date(), means,
                )  # fmt: skip
            for ago in (1, 2):
                at = hour - timedelta(hours=ago)
                start_s = int(at.timestamp())
                await store_vms(connection, [VmHour(vm, start_s, int(100 * cpus), int(100 * cpus))])


async def test_vms_that_are_unlike_themselves_are_found_until_they_are_as_usual(fleet: Database) -> None:
    """A new VM has no usual load; that of ``vm-b`` makes others of its node wait."""
    await fill_hours(fleet, {"vm-a": 0.5, "vm-b": 3.0, "vm-c": 0.01}, NOW)
    async with fleet.transaction() as connection:
        await add_vm(connection, "vm-beside", at="b")
        await connection.execute("UPDATE nodes SET status = jsonb_set(status, '{inventory,cpus}', '3')")
        hour_s = int(NOW.timestamp()) - HOUR_S
        await store_nodes(connection, [NodeHour(name, hour_s, 3.0, 2.9, 2.9, 2.9, 2.9) for name in "bc"])
        assert await forecasts.vms_are_foreseen(connection, NOW.date()) is False
    await make_round(fleet, NOW - timedelta(hours=1))  # the week of VMs; profiles come with the round after it
    await make_round(fleet)
    await make_round(fleet, NOW + timedelta(hours=1))  # no reports came of this hour
    async with fleet.transaction() as connection:
        assert await unusual_loads.ids(connection, NOW + timedelta(hours=1)) == frozenset()
        await connection.execute("DELETE FROM forecast_rounds")
    await make_round(fleet)
    async with fleet.transaction() as connection:
        odd = await unusual_loads.of_vms(connection, ["vm-a", "vm-b", "vm-c", "vm-d"], NOW)
        assert {vm: (load.cpu, load.noisy) for vm, load in odd.items()} == {"vm-b": (3.0, True), "vm-c": (0.01, False)}
        assert odd["vm-b"].since == NOW - timedelta(hours=2) and odd["vm-b"].hour == NOW - timedelta(hours=1)
        assert await unusual_loads.ids(connection, NOW) == {"vm-b", "vm-c"}
        assert await unusual_loads.count(connection, NOW) == 2
        await store_vms(connection, [VmHour("vm-b", int(NOW.timestamp()), 310, 310)])
        await store_vms(connection, [VmHour("vm-c", int(NOW.timestamp()), 55, 52)])
    await make_round(fleet, NOW + timedelta(hours=1))
    async with fleet.connection() as connection:
        odd = await unusual_loads.of_vms(connection, ["vm-b", "vm-c"], NOW + timedelta(hours=1))
    assert set(odd) == {"vm-b"} and odd["vm-b"].since == NOW - timedelta(hours=2), "since when stays"
