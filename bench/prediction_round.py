"""A round of forecasts at full size: a real PostgreSQL with made-up weeks, and the process that a server begins."""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec

from bench.report import Figure
from lab.copied_postgres import CopiedPostgres
from lab.platform import open_directory
from novacron.control.forecasts import AFTER_S, Forecasts
from novacron.control.objects import Objects
from novacron.model.load_hours import HOUR_S, SAMPLES_OF_HOUR_MIN
from novacron.model.overload import UNKNOWN_SPREAD
from novacron.model.vm import VmSpec
from novacron.server.load_history import LoadHistory
from novacron.store import forecasts, load_profiles
from novacron.store.database import Database, connect

FILL_S_MAX = 900.0
ROUND_S_MAX = 600.0
TICK_S = 0.005
PAGE = 100
NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)


class FleetSize(NamedTuple):
    nodes: int
    vms: int


FULL, SMOKE = FleetSize(2000, 100_000), FleetSize(20, 400)

NODES = """
    INSERT INTO nodes (name, spec, status, revision)
    SELECT 'node-' || n, '{}', '{"inventory": {"cpus": 64, "memory_mib": 262144}}', 1 FROM generate_series(1, $1) AS n
"""
VMS = """
    INSERT INTO vms (id, name, spec, status, node, epoch, project, revision)
    SELECT 'vm-' || n, 'vm-' || n, $3, '{}', 'node-' || 1 + n % $2, 1, 'default', 1 FROM generate_series(1, $1) AS n
"""
NODE_DAYS = """
    INSERT INTO node_load_days (node, day, peak, mean, last, quarter, second, memory_mib)
    SELECT 'node-' || n, $2::date - d, p, p, p, p, p, array_fill(1024, ARRAY[24])
    FROM generate_series(1, $1) AS n, generate_series(0, 28) AS d, LATERAL (
        SELECT array_agg((2 + n % 7 + 6 * (h = 9)::int + 3 * random())::real ORDER BY h) AS p
        FROM generate_series(0, 23) AS h WHERE n + d >= 0) day
"""
VM_DAYS = """
    INSERT INTO vm_load_days (vm, day, peak_percent, hours, peaks_percent, means_percent)
    SELECT 'vm-' || n, $2::date - d, 50 + n % 300 + random() * 100, 24, array_fill(50::smallint, ARRAY[24]),
        array_fill(40::smallint, ARRAY[24])
    FROM generate_series(1, $1) AS n, generate_series(0, 35) AS d
"""


async def _fill(url: str, size: FleetSize) -> None:
    connection = await connect(url, FILL_S_MAX)
    try:
        await connection.execute("SET session_replication_role = replica")  # no triggers: the rows agree as they are
        await connection.execute(NODES, size.nodes)
        await connection.execute("INSERT INTO node_loads (node, memory_mib) SELECT name, 1024 FROM nodes")
        spec = msgspec.to_builtins(VmSpec(image="tiny", memory_mib=1024))
        await connection.execute(VMS, size.vms, size.nodes, spec)
        await connection.execute("INSERT INTO vm_loads (vm, cpus, measured_at) SELECT id, 0.5, now() FROM vms")
        await connection.execute('UPDATE vms SET status = \'{"state": "running"}\'')
        await connection.execute(NODE_DAYS, size.nodes, NOW.date())
        await connection.execute(VM_DAYS, size.vms, NOW.date())
        await connection.execute("ANALYZE")
    finally:
        await connection.close()


async def _store_hour(database: Database, size: FleetSize) -> tuple[float, float]:
    """Return how long it takes to sum up a node's report, and to store an hour of everything, in seconds."""
    clock_s = NOW.timestamp() - HOUR_S
    history = LoadHistory(lambda: clock_s)
    used = {f"node-{n}": [(f"vm-{vm}", 0.5) for vm in range(n, size.vms + 1, size.nodes)]
            for n in range(1, size.nodes + 1)}  # fmt: skip
    began, reports = time.perf_counter(), SAMPLES_OF_HOUR_MIN
    for _ in range(reports):
        for node, loads in used.items():
            history.take(node, loads)
        clock_s += HOUR_S / reports
    taken_s = (time.perf_counter() - began) / reports / size.nodes
    clock_s = NOW.timestamp()
    began = time.perf_counter()
    await history.store(database)
    return taken_s, time.perf_counter() - began


async def _round(database: Database, at: datetime = NOW) -> tuple[float, list[float], list[float]]:
    """Return how long a round took, and meanwhile the pauses of this process's loop and of a page of forecasts."""
    objects = Objects("forecasts")
    await Forecasts(lambda: at.timestamp() + AFTER_S, ROUND_S_MAX).step(database, objects)
    ended = asyncio.create_task(objects.finish())
    began, late, pages = time.perf_counter(), list[float](), list[float]()
    while not ended.done():
        before = time.perf_counter()
        await asyncio.sleep(TICK_S)
        late.append(time.perf_counter() - before - TICK_S)
        before = time.perf_counter()
        async with database.connection() as connection:
            await forecasts.of_vms(connection, [f"vm-{n}" for n in range(1, PAGE + 1)], NOW)
        pages.append(time.perf_counter() - before)
    if objects.failure("round") is not None:
        raise RuntimeError(objects.failure("round"))
    return time.perf_counter() - began, late, pages


async def _measure(url: str, size: FleetSize) -> list[Figure]:
    await _fill(url, size)
    database = await Database.open(url)
    try:
        taken_s, stored_s = await _store_hour(database, size)
        round_s, late, pages = await _round(database)
        profiles_s, _, _ = await _round(database, NOW + timedelta(hours=1))
        async with database.connection() as connection:
            began = time.perf_counter()
            uses = await load_profiles.uses(connection, UNKNOWN_SPREAD, NOW.date())
            added_s = time.perf_counter() - began
            bytes_of = {
                table: await connection.fetchval("SELECT pg_total_relation_size($1::regclass)", table)
                for table in ("vm_load_days", "node_load_days", "vm_profiles")
            }
            vm_rows = await connection.fetchval("SELECT count(*) FROM vm_load_days")
            made = await connection.fetchrow("SELECT nodes, vms, took_s FROM forecast_rounds WHERE hour = $1", NOW)
    finally:
        await database.close()
    if made is None or (made["nodes"], made["vms"]) != tuple(size):
        raise RuntimeError(f"not all were foreseen: {made}")
    if (len(uses.of), uses.vms, uses.unusual) != (*size, 0):
        raise RuntimeError(f"not all VMs have a profile: {uses.unusual} of {uses.vms} have none")
    return [
        Figure(f"a round for {size.nodes} nodes and {size.vms} VMs", round_s, "s", 60),
        Figure("  ... p99 pause of the server's event loop meanwhile", 1e3 * _p99(late), "ms", 50),
        Figure(f"  ... p99 of reading {PAGE} VMs' forecasts meanwhile", 1e3 * _p99(pages), "ms", 50),
        Figure("  ... the round after it, with VMs' profiles", profiles_s, "s", 60),
        Figure("summing up a node's report, in the server's loop", 1e6 * taken_s, "us"),
        Figure("storing that hour", stored_s, "s"),
        Figure("adding up what all VMs of each node usually use, for rebalancing", added_s, "s"),
        Figure("database for a VM's profile", bytes_of["vm_profiles"] / size.vms / 1024, "KiB"),
        Figure("database for a VM and 60 days of history", 60 * bytes_of["vm_load_days"] / vm_rows / 1024, "KiB"),
        Figure(f"database for {size.nodes} nodes and 29 days", bytes_of["node_load_days"] / 2**20, "MiB"),
    ]


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98] if len(values) > 1 else math.nan


def round_figures(*, smoke: bool) -> list[Figure]:
    """Measure a round at full size, or a tiny one."""
    with open_directory("nvf-") as directory:
        server = CopiedPostgres(directory / "pg")
        server.start()
        try:
            return asyncio.run(_measure(server.url, SMOKE if smoke else FULL))
        finally:
            server.stop()
