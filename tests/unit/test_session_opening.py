"""A migration's session is opened early, at a bounded rate and for a bounded time, and once more when it is needed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast
from unittest.mock import AsyncMock, Mock

import pytest

from novacron.agent.migration.post_copy import session_of
from novacron.agent.migration.session_opening import EARLY_S_MAX, REOPEN_S, REOPEN_S_MAX, SessionOpener
from novacron.agent.vm.journal import PostCopy, Record
from novacron.agent.worker import Worker
from novacron.dwcp.frames import ErrorCode
from novacron.dwcp.sender import Sender, SendFailed
from novacron.model.migration import MigrationKind, Side
from novacron.model.ownership import Claim, OwnershipRecord
from novacron.wire import messages as wire
from tests.support.agent import services_in
from tests.waiting import eventually

ENDPOINT = "127.0.0.1:7445"
TASK = wire.Task("mig-a", Side.SOURCE, MigrationKind.LIVE, "host-b", 4, endpoint=ENDPOINT)


class JumpingClock:
    """Sleeping costs no time."""

    def __init__(self) -> None:
        self.now_s, self.sleeps = 0.0, list[float]()

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now_s += seconds


class StoppedClock(JumpingClock):
    """Sleeping never ends."""

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        await asyncio.Event().wait()


class Targets:
    """Counts the attempts to open a session, of which the first ``refusals`` fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refusals: float) -> None:
        self.attempts, self.refusals = 0, refusals
        self.refused = asyncio.Event()
        monkeypatch.setattr(Sender, "__init__", lambda *_: None)
        monkeypatch.setattr(Sender, "__aenter__", self._enter)

    async def _enter(self) -> Targets:
        self.attempts += 1
        if self.attempts <= self.refusals:
            self.refused.set()
            raise SendFailed("the target expects no such session", ErrorCode.NOT_EXPECTED)
        return self


def opener(clock: JumpingClock) -> SessionOpener:
    return SessionOpener(cast(Any, None), AsyncMock(), clock)


async def ended(opening: SessionOpener) -> None:
    await eventually(lambda: opening._opening is not None and opening._opening.has_failed, "the attempts have ended")


async def test_a_target_that_is_never_ready_is_tried_rarely_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, targets = JumpingClock(), Targets(monkeypatch, float("inf"))
    opening = opener(clock)
    opening.begin_early(TASK, ENDPOINT)
    await ended(opening)
    assert clock.sleeps[0] <= REOPEN_S and max(clock.sleeps) <= REOPEN_S_MAX
    assert EARLY_S_MAX <= clock.now_s <= EARLY_S_MAX + REOPEN_S_MAX
    assert targets.attempts < 2 * EARLY_S_MAX / REOPEN_S_MAX
    attempts = targets.attempts
    opening.begin_early(TASK, ENDPOINT)  # the worker's next step
    await ended(opening)
    assert targets.attempts == attempts, "attempts that have ended are not begun again"


async def test_once_the_target_is_ready_one_attempt_follows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, targets = StoppedClock(), Targets(monkeypatch, 1)
    opening = opener(clock)
    opening.begin_early(TASK, ENDPOINT)
    async with asyncio.timeout(5):
        await targets.refused.wait()
        assert await opening.open(TASK) is cast(Any, targets)
    assert targets.attempts == 2


async def test_a_target_that_is_ready_and_refuses_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = Targets(monkeypatch, float("inf"))
    with pytest.raises(SendFailed):
        await opener(StoppedClock()).open(TASK)
    assert targets.attempts == 1


async def test_a_target_that_is_ready_too_late_is_tried_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, targets = JumpingClock(), Targets(monkeypatch, float("inf"))
    opening = opener(clock)
    opening.begin_early(TASK, ENDPOINT)
    await ended(opening)
    targets.refusals = 0
    assert await opening.open(TASK) is cast(Any, targets)


async def test_a_session_whose_sender_restarts_ends_with_that_code(tmp_path: Path) -> None:
    moving = PostCopy("mig-a", Side.TARGET, "host-b")
    worker = Worker("vm-a", Record(OwnershipRecord(4, Claim.OWNER), post_copy=moving), services_in(tmp_path))
    session = Mock()
    worker._target._session = session
    worker.on_unexpected_session(session_of(moving), "host-c")
    session.fail.assert_not_called()
    worker.on_unexpected_session(session_of(moving), "host-b")
    session.fail.assert_called_once()
    assert session.fail.call_args.args[1] is ErrorCode.REPLACED
