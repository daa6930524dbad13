"""What writes cost readers, and what a placement costs the server, with many nodes and VMs: a part of ``scale``."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import count

import msgspec

from bench.agents import IMAGE
from bench.api_load import Load, Stand
from bench.report import Figure, median
from novacron.model.vm import Power, VmSpec, VmStatus
from novacron.store import fleet, migrations
from novacron.store.database import Connection, Database
from novacron.store.feed import Feed, FeedSnapshot
from novacron.store.fleet_index import FleetIndex

READERS = 4
CREATE_EVERY_S = 0.3
LOSS_PERCENT_MAX, P99_MS_MAX, PLACEMENT_MS_MAX, FILTERED_MS_MAX = 20.0, 50.0, 5.0, 5.0
PLACEMENTS = 50
NAMES = """
function request()
  turn = turn + 1
  return wrk.format("GET", "/api/v1/vms?limit=20&name=vm-" .. string.format("%06d", turn) .. "*")
end
"""
"""Each list has a filter that nobody has asked for yet."""
_names = count(1)


class _RolledBack(Exception):
    pass


def reader_figures(stand: Stand, rounds: int, load_s: int) -> list[Figure]:
    """Readers without writes, with creates, and with creates while a node is drained and the fleet rebalanced."""
    filtered = [_load(stand, load_s, connections=1, script=NAMES).p50_ms for _ in range(rounds)]
    quiet = [_load(stand, load_s) for _ in range(rounds)]
    with _creates(stand):
        writing = [_load(stand, load_s) for _ in range(rounds)]
    node = next(iter(stand.client.list("nodes", limit=1)))["name"]
    stand.client.request("PUT", "/api/v1/rebalancing", {"mode": "advise"})
    stand.client.act("nodes", node, "drain")
    try:
        with _creates(stand):
            draining = [_load(stand, load_s) for _ in range(rounds)]
    finally:
        stand.client.act("nodes", node, "uncordon")
        stand.client.request("PUT", "/api/v1/rebalancing", {"mode": "off"})
    return [
        median("filtered list, uncached, 1 connection: p50", filtered, "ms", FILTERED_MS_MAX),
        median(f"list of 20 VMs, {READERS} connections, no writes", [load.rate for load in quiet], "/s"),
        *_compared(f"  ... a create every {CREATE_EVERY_S} s", quiet, writing),
        *_compared("  ... and while draining and rebalancing", quiet, draining),
    ]


def _compared(name: str, before: list[Load], now: list[Load]) -> list[Figure]:
    rate = statistics.median(load.rate for load in before)
    return [
        median(f"{name}: readers lose", [100 * (1 - load.rate / rate) for load in now], "%", LOSS_PERCENT_MAX),
        median(f"{name}: p99", [load.p99_ms for load in now], "ms", P99_MS_MAX),
    ]


def _load(stand: Stand, seconds: int, *, connections: int = READERS, script: str = "") -> Load:
    load = stand.load("/api/v1/vms?limit=20", connections, seconds, script=script)
    if load.bad or load.errors:
        raise RuntimeError(f"requests failed: {load}")
    return load


@contextmanager
def _creates(stand: Stand) -> Iterator[None]:
    """Create a VM again and again while the block runs."""
    ended, errors = threading.Event(), list[Exception]()

    def create() -> None:
        while not ended.wait(CREATE_EVERY_S):
            try:
                stand.client.create_vm(name=f"new-{next(_names)}", image=IMAGE, memory_mib=64)
            except Exception as error:  # said below, where it can end the benchmark
                errors.append(error)
                return

    thread = threading.Thread(target=create)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if errors:
        raise errors[0]


def placement_figures(stand: Stand) -> list[Figure]:
    """Processor time of one placement and of one move, as the server's controllers do them, each rolled back."""
    return asyncio.run(_placement_figures(stand.postgres.url))


async def _placement_figures(url: str) -> list[Figure]:
    database, index = await Database.open(url), FleetIndex()
    try:
        async for item in Feed(url, 0).batches():
            assert isinstance(item, FeedSnapshot)
            index.clear()
            for change in item.batch.changes:
                index.changed(change)
            break
        async with database.connection() as connection:
            rows = await connection.fetch(
                "SELECT id FROM vms WHERE migration IS NULL AND status ->> 'state' = 'running' LIMIT $1", PLACEMENTS
            )

        async def place(connection: Connection, number: int) -> float:
            id = f"bench-{number}"
            await connection.execute(
                "INSERT INTO vms (id, name, spec, status, epoch, project) VALUES ($1, $1, $2, $3, 0, 'default')",
                id, msgspec.to_builtins(VmSpec(image=IMAGE, memory_mib=64, power=Power.RUNNING)),
                msgspec.to_builtins(VmStatus()),
            )  # fmt: skip
            began = time.process_time()
            placed = await fleet.place_waiting(connection, [id], index)
            took_s = time.process_time() - began
            assert placed, "there is room for it"
            return took_s

        async def move(connection: Connection, number: int) -> float:
            began = time.process_time()
            await migrations.create(
                connection, rows[number % len(rows)]["id"], migrations.MoveRequest(actor="bench"), index
            )
            return time.process_time() - began

        return [
            median("one placement: processor", await _rolled_back(database, place), "ms", PLACEMENT_MS_MAX),
            median("one move of a drain: processor", await _rolled_back(database, move), "ms", PLACEMENT_MS_MAX),
        ]
    finally:
        await database.close()


async def _rolled_back(database: Database, work: Callable[[Connection, int], Awaitable[float]]) -> list[float]:
    """Do something again and again, each time undone; return how many milliseconds each took."""
    took_ms = []
    for number in range(PLACEMENTS):
        try:
            async with database.transaction() as connection:
                took_ms.append(1e3 * await work(connection, number))
                raise _RolledBack
        except _RolledBack:
            pass
    return took_ms[1:]  # the first one compares every node
