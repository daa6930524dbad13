"""A VM never runs in two places: the real workers and controllers over the real store, in simulated hosts.

What is real and what is simulated is said in ``tests/simulation/world.py``. Agents are killed, also at any write to
their journals, hosts crash, clocks step, messages are lost, repeated and reordered, operators migrate and abort as
they like. ``NOVACRON_SEED`` repeats a run whose seed was printed.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from novacron.store.database import Database
from tests.simulation import defects
from tests.simulation.failover import FailoverHistory
from tests.simulation.ownership import run_histories, simulation_database
from tests.simulation.world import Broken

Place = tuple[asyncio.Runner, Database, Path]
HISTORIES = int(os.environ.get("NOVACRON_EXAMPLES", "40"))
HISTORIES_WITH_DEFECT_MAX = 60
DEFECT_SEED = 20


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with simulation_database() as opened:
        yield opened


def seed() -> int:
    return int(os.environ.get("NOVACRON_SEED") or random.getrandbits(32))


@pytest.mark.timeout(300)
def test_two_owners_never_run(place: Place) -> None:
    moved = run_histories(place, HISTORIES, seed())
    assert moved >= HISTORIES / 10, "histories in which nothing moves prove nothing"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_owners_never_run_in_many_more_histories(place: Place) -> None:
    run_histories(place, 1000, seed())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("defect", defects.OWNERSHIP, ids=lambda defect: defect.__name__)
def test_the_simulation_finds_a_defect_in(
    defect: Callable[[pytest.MonkeyPatch], None], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    defect(monkeypatch)
    with pytest.raises(Broken):
        run_histories(place, HISTORIES_WITH_DEFECT_MAX, DEFECT_SEED)


def run_failovers(place: Place, name: str, count: int) -> int:
    """Run so many histories, each of a seed of its own; return how often the VM was given to another node."""
    runner, database, directory = place

    async def run(number: int) -> int:
        return await FailoverHistory(database, directory / f"{name}-{number}", number).run()

    return sum(runner.run(run(number)) - 1 for number in range(count))


def test_a_node_that_is_cut_off_stops_its_vm_before_another_starts_it(place: Place) -> None:
    assert run_failovers(place, "failover", 8) > 0


@pytest.mark.parametrize("defect", defects.LEASES, ids=lambda defect: defect.__name__)
def test_the_simulation_of_leases_finds_a_defect_in(
    defect: Callable[[pytest.MonkeyPatch], None], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    defect(monkeypatch)
    with pytest.raises(Broken):
        run_failovers(place, defect.__name__, 15)
