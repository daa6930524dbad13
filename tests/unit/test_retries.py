"""Work for a VM that fails is retried at a bounded rate, and each error is logged once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from novacron.agent.migration import post_copy
from novacron.agent.vm.journal import PostCopy, Record
from novacron.agent.vm.retries import DEFECT_S_MAX, EXPECTED_S_MAX, Retries
from novacron.agent.worker import Worker
from novacron.model.migration import Side
from novacron.model.ownership import Claim, OwnershipRecord
from tests.support.agent import services_in


class JumpingClock:
    """Sleeping costs no time, and is counted."""

    def __init__(self, sleeps_max: int) -> None:
        self.now_s, self.sleeps, self._sleeps_max = 0.0, list[float](), sleeps_max

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now_s += seconds
        if len(self.sleeps) >= self._sleeps_max:
            raise TimeoutError("enough")


async def test_pauses_grow_to_a_limit_and_the_same_error_is_logged_once() -> None:
    clock = JumpingClock(1000)
    retries = Retries("vm-a", "test", clock)
    with capture_logs() as events:
        for _ in range(20):
            await retries.pause_after_defect(ValueError("bad"))
        for _ in range(20):
            await retries.pause_after(OSError("down"))
    assert [event["work"] for event in events] == ["test", "test"]
    assert DEFECT_S_MAX * 0.75 <= clock.sleeps[19] <= DEFECT_S_MAX
    assert EXPECTED_S_MAX * 0.75 <= clock.sleeps[-1] <= EXPECTED_S_MAX


@pytest.mark.parametrize(("side", "work"), [(Side.SOURCE, "give_rest"), (Side.TARGET, "take_rest")])
async def test_an_unforeseen_error_while_memory_follows_its_guest_makes_no_busy_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: Side, work: str
) -> None:
    """Seen: 1,538 attempts in a second."""
    attempts = 0

    async def fail(*_: Any) -> None:
        nonlocal attempts
        attempts += 1
        raise RuntimeError("a defect")

    monkeypatch.setattr(post_copy, work, fail)
    clock = JumpingClock(8)
    moving = PostCopy("mig-a", side, "host-b", "127.0.0.1:7445")
    held = OwnershipRecord(2, Claim.RELEASED if side is Side.SOURCE else Claim.OWNER)
    worker = Worker("vm-a", Record(held, post_copy=moving), services_in(tmp_path, clock=clock))
    part = worker._source if side is Side.SOURCE else worker._target
    while attempts < 8:
        part.resume()
        transfer = part._transfer
        assert transfer is not None
        try:
            await transfer
        except TimeoutError:
            break
    assert attempts == len(clock.sleeps)
    assert clock.now_s > 60
