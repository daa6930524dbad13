"""Histories that a seed makes: each runs the same way again."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import secrets
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from unittest.mock import patch

from novacron.agent.vm import replica_disk
from novacron.store.database import Database
from tests.simulation import disks
from tests.simulation.bad_days import BadDay
from tests.simulation.clock import SimulationLoop
from tests.simulation.failover import FailoverHistory
from tests.simulation.host import NO_PAGES, NO_PART
from tests.simulation.world import Broken

Place = tuple[asyncio.Runner, Database, Path]
KINDS: dict[str, type[FailoverHistory]] = {"failover": FailoverHistory, "bad-days": BadDay}


class Ran(NamedTuple):
    """What came of a history."""

    epochs: int
    """At how many the VM was before its last."""
    notes: list[str]
    """What happened, in its order: the same each time."""

    @property
    def digest(self) -> str:
        return hashlib.sha256("\n".join(self.notes).encode()).hexdigest()[:16]


def _is_durable(descriptor: int) -> None: ...


def run_history(place: Place, kind: str, seed: int) -> Ran:
    """Run one history. Raises Broken, which says how to run it again."""
    runner, database, directory = place
    ids = random.Random(seed)

    async def run(hosts: Path) -> Ran:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulationLoop)
        loop.begin()
        history = KINDS[kind](database, hosts, seed)
        return Ran(await history.run(), history.world.notes)

    random.seed(seed)  # the product spreads its retries
    for mock in (NO_PART, NO_PAGES):
        mock.reset_mock()  # they remember every call
    with (
        TemporaryDirectory(dir=directory) as hosts,
        patch.object(secrets, "token_bytes", ids.randbytes),
        patch.object(secrets, "token_hex", lambda count: ids.randbytes(count).hex()),
        patch.object(os, "fsync", _is_durable),  # simulated hosts lose their power, not this one
        patch.object(os, "fdatasync", _is_durable),
        patch.object(replica_disk, "make", disks.make_of_replica),
    ):
        try:
            return runner.run(run(Path(hosts) / "hosts"))
        except Broken as error:
            raise Broken(
                f"{error}\nagain: .venv/bin/python -m tests.simulation {kind} --first {seed} --count 1"
            ) from error


def run_histories_from(place: Place, kind: str, first: int, count: int) -> int:
    """Run histories of so many seeds; return at how many epochs their VMs were. Raises Broken."""
    print(f"{kind}: seeds {first} to {first + count - 1}")
    return sum(run_history(place, kind, seed).epochs for seed in range(first, first + count))
