"""Reports that are stored together: one that can't be is its own node's matter."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from novacron.model.errors import Unavailable
from novacron.model.vm import VmState, VmStatus
from novacron.server.observations import Observations
from novacron.server.session import Session
from novacron.store import vms
from novacron.store.database import Database


class Stored:
    async def transact(self, work: Callable[[Any], Awaitable[None]]) -> None:
        await work(None)


async def test_one_that_can_not_be_stored_fails_alone_and_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[str] = []

    async def observe(_: Any, reports: list[vms.Report]) -> None:
        if any(report.vm == "bad" for report in reports):
            raise TypeError("a defect")
        stored.extend(report.vm for report in reports)

    monkeypatch.setattr(vms, "observe", observe)
    observations = Observations(cast(Database, Stored()))
    running = asyncio.create_task(observations.run())
    status = VmStatus(state=VmState.RUNNING)
    hurt, well = (Session(name, cast(Any, None)) for name in ("a", "b"))
    hurt.watch(observations.add(vms.Report("a", "bad", 1, status)))
    hurt.watch(observations.add(vms.Report("a", "later", 1, status)))
    well.watch(observations.add(vms.Report("b", "good", 1, status)))
    assert well.observed is not None and hurt.observed is not None
    await asyncio.wait_for(asyncio.gather(well.observed, hurt.observed), 5)
    assert stored == ["later", "good"]
    assert isinstance(hurt.unstored, Unavailable) and well.unstored is None
    running.cancel()
