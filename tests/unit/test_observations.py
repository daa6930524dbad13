"""Reports that are stored together: one that can't be is its own node's matter."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from novacron.model.errors import Unavailable
from novacron.model.vm import VmState, VmStatus
from novacron.server.heartbeats import Heartbeats
from novacron.server.observations import Observations
from novacron.server.session import NodeSession
from novacron.store import owned
from novacron.store.database import Database
from novacron.store.leases import Beat
from tests.waiting import eventually


class Stored:
    async def transact(self, work: Callable[[Any], Awaitable[None]]) -> None:
        await work(None)


async def test_an_observation_that_cannot_be_stored_fails_alone_and_is_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored: list[str] = []

    async def observe(_: Any, reports: list[owned.Report], causes: object) -> None:
        if any(report.vm == "bad" for report in reports):
            raise TypeError("a defect")
        stored.extend(report.vm for report in reports)

    monkeypatch.setattr(owned, "observe", observe)
    observations = Observations(cast(Database, Stored()))
    running = asyncio.create_task(observations.run())
    status = VmStatus(state=VmState.RUNNING)
    hurt, well = (NodeSession(name, cast(Any, None)) for name in ("a", "b"))
    hurt.watch(observations.add(owned.Report("a", "bad", 1, status)))
    hurt.watch(observations.add(owned.Report("a", "later", 1, status)))
    well.watch(observations.add(owned.Report("b", "good", 1, status)))
    assert well.observed is not None and hurt.observed is not None
    await asyncio.wait_for(asyncio.gather(well.observed, hurt.observed), 20)
    assert stored == ["later", "good"]
    assert isinstance(hurt.unstored, Unavailable) and well.unstored is None
    running.cancel()


async def test_waiting_reporters_get_an_error_when_the_server_stops() -> None:
    writing: list[str] = []

    class Away:
        async def transact(self, work: Callable[[Any], Awaitable[None]]) -> None:
            writing.append("observations")
            await asyncio.Event().wait()

        @asynccontextmanager
        async def transaction(self) -> AsyncIterator[None]:
            writing.append("heartbeats")
            await asyncio.Event().wait()
            yield

    database = cast(Database, Away())
    observations, heartbeats = Observations(database), Heartbeats(database, time.monotonic)
    status, beat = VmStatus(state=VmState.RUNNING), Beat("a", 1, None, 0.0, (), ())
    running = [asyncio.create_task(observations.run()), asyncio.create_task(heartbeats.run())]
    taken = [observations.add(owned.Report("a", "one", 1, status)), asyncio.create_task(heartbeats.store(beat))]
    await eventually(lambda: len(writing) == 2, "both are being written")
    waiting = [observations.add(owned.Report("a", "two", 1, status)), asyncio.create_task(heartbeats.store(beat))]
    await asyncio.sleep(0)
    for task in running:
        task.cancel()
    async with asyncio.timeout(20):
        results = await asyncio.gather(*taken, *waiting, return_exceptions=True)
    assert all(isinstance(result, Unavailable) for result in results)
    with pytest.raises(Unavailable, match="shutting down"):
        observations.add(owned.Report("a", "three", 1, status))
    with pytest.raises(Unavailable, match="shutting down"):
        await heartbeats.store(beat)
