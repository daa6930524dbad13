"""The calendar of drills: from when on one that was never run is overdue."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from novacron.api.read_model.watch_cache import Cache
from novacron.api.routes.drills import states
from novacron.model.drill import OVERDUE_DAYS
from novacron.store.feed import Batch, Change, FeedSnapshot

NOW = datetime(2026, 11, 30, tzinfo=UTC)


def change(kind: str, key: str, age: timedelta) -> Change:
    made = (NOW - age).isoformat()
    body = {"id": key, "name": key, "created_at": made, "ended_at": made, "drill": "", "enabled": True}
    return Change(1, kind, key, body)


@pytest.mark.parametrize("kind", ["project", "user", "node", "drill"])
async def test_a_drill_that_was_never_run_is_overdue_in_an_old_installation_whatever_was_deleted(kind: str) -> None:
    for days, overdue in ((OVERDUE_DAYS + 1, True), (1, False)):
        cache = Cache()
        changes = [
            change("project", "young", timedelta(hours=1)),
            change(kind, "old", timedelta(days=days)),
        ]
        await cache.reset(FeedSnapshot(Batch(1, changes), [], 0))
        assert {state.overdue for state in states(cache, NOW)} == {overdue}, days


async def test_nothing_is_overdue_in_an_installation_without_anything() -> None:
    cache = Cache()
    await cache.reset(FeedSnapshot(Batch(1, []), [], 0))
    assert not any(state.overdue for state in states(cache, NOW))
