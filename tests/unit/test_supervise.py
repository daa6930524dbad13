"""Long-running work: what fails is begun again, later and later, and never ends anything else."""

from __future__ import annotations

import asyncio

import pytest

from novacron import supervise as supervise_module
from novacron.supervise import RESTARTS, BackoffPolicy, FewTasks, Rarely, supervise, until_one_ends

AT_ONCE = BackoffPolicy(first_s=0.001, most_s=0.002, steady_s=60.0)


async def test_failed_work_is_restarted_and_counted_while_other_work_continues() -> None:
    before, tries, other_done = RESTARTS.cell("bad")[0], 0, asyncio.Event()

    async def bad() -> None:
        nonlocal tries
        tries += 1
        if tries <= 3:
            raise KeyError("a defect")

    async def other() -> None:
        await asyncio.sleep(0)
        other_done.set()

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(supervise("bad", bad, AT_ONCE))
        group.create_task(supervise("other", other, AT_ONCE))
    assert tries == 4
    assert RESTARTS.cell("bad")[0] - before == 3
    assert other_done.is_set()


async def test_an_error_that_is_meant_to_end_the_work_ends_it() -> None:
    async def ends() -> None:
        raise LookupError("the node has another name")

    with pytest.raises(LookupError):
        await supervise("ends", ends, AT_ONCE, passes=(LookupError,))


async def test_work_that_takes_its_cancellation_for_a_failure_is_cancelled_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervise_module, "CANCEL_AGAIN_S", 0.01)
    cancelled = 0

    async def stubborn() -> None:
        nonlocal cancelled
        while cancelled < 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled += 1

    async def fails() -> None:
        await asyncio.sleep(0)
        raise LookupError("the first to end")

    async with asyncio.timeout(10):
        with pytest.raises(LookupError):
            await until_one_ends(stubborn(), fails())
    assert cancelled == 3


def test_pauses_double_up_to_a_limit_and_reset_after_steady_work() -> None:
    backoff, pauses, pause_s = BackoffPolicy(1.0, 5.0, 60.0), [], 0.0
    for lasted_s in (0, 0, 0, 0, 0, 61):
        pause_s = backoff.after(pause_s, lasted_s)
        pauses.append(pause_s)
    assert pauses == [1, 2, 4, 5, 5, 1]


async def test_concurrent_tasks_are_limited_and_a_failed_task_frees_its_place() -> None:
    few, over = FewTasks("few", 2), asyncio.Event()

    async def wait() -> None:
        await over.wait()

    async def fail() -> None:
        raise KeyError("a defect")

    assert few.start(fail()) and few.start(wait())
    assert not few.start(wait()), "there are two"
    async with asyncio.timeout(10):
        while few.full:  # noqa: ASYNC110 (the task that fails has no one to tell)
            await asyncio.sleep(0)
    assert few.start(wait())
    await few.end()
    assert len(few) == 0


async def test_the_first_task_to_end_stops_the_others_and_its_error_is_raised() -> None:
    cancelled = asyncio.Event()

    async def other() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def fail() -> None:
        await asyncio.sleep(0)
        raise OSError("the link is down")

    with pytest.raises(OSError, match="the link is down"):
        await until_one_ends(other(), fail())
    assert cancelled.is_set()


def test_each_kind_of_error_is_logged_at_once_and_then_ever_more_rarely() -> None:
    now = 0.0
    rarely = Rarely(first_s=60, most_s=120, clock=lambda: now)
    logged = []
    for second in range(0, 500, 10):
        now = float(second)
        if rarely.due("garbage"):
            logged.append(second)
    assert logged == [0, 60, 180, 300, 420]
    assert rarely.due("another kind")
