"""One object that fails, hangs or can't be reached holds up no other one."""

from __future__ import annotations

import asyncio

import pytest

from novacron.control.objects import BACKOFF_S_MAX, BACKOFF_S_MIN, UNAVAILABLE_IN_A_ROW_MAX, Objects
from novacron.model.errors import Conflict, Unavailable
from novacron.store.database import Overtaken
from tests.support.clock import Clock


class Reconciler:
    """Fails with what ``errors`` has for a key, and remembers which keys it was asked for."""

    def __init__(self, **errors: Exception) -> None:
        self.errors, self.asked = errors, list[str]()

    async def __call__(self, key: str) -> None:
        self.asked.append(key)
        if key in self.errors:
            raise self.errors[key]


@pytest.mark.parametrize("error", [RuntimeError("a defect"), Conflict("no"), Overtaken("x"), Unavailable("too slow")])
async def test_a_failing_object_stops_none_after_it(error: Exception) -> None:
    objects, reconcile = Objects("test"), Reconciler(a=error)
    await objects.each("abc", reconcile)
    assert reconcile.asked == ["a", "b", "c"]
    assert objects.failure("a") is not None and objects.failure("b") is None


async def test_a_failing_object_is_tried_again_after_a_back_off_that_doubles_up_to_a_maximum() -> None:
    clock = Clock()
    objects, reconcile = Objects("test", clock=clock), Reconciler(a=RuntimeError())
    delays = []
    for _ in range(12):
        await objects.each("ab", reconcile)
        objects.end_pass()
        delay_s = objects.due_in_s()
        assert delay_s is not None
        delays.append(delay_s)
        before = reconcile.asked.count("a")
        clock.now_s += delay_s * 0.99
        await objects.each("ab", reconcile)
        assert reconcile.asked.count("a") == before, "it rests"
        objects.end_pass()
        clock.now_s += delay_s * 0.02
    assert delays[:3] == pytest.approx([BACKOFF_S_MIN, 2 * BACKOFF_S_MIN, 4 * BACKOFF_S_MIN])
    assert delays[-1] == pytest.approx(BACKOFF_S_MAX)
    reconcile.errors.clear()
    clock.now_s += BACKOFF_S_MAX
    await objects.each("ab", reconcile)
    assert objects.failure("a") is None and objects.due_in_s() is None


async def test_an_object_that_hangs_is_given_up_after_its_time_limit() -> None:
    objects, done = Objects("test", limit_s=0.01), list[str]()

    async def reconcile(key: str) -> None:
        if key == "a":
            await asyncio.Event().wait()
        done.append(key)

    await objects.each("abc", reconcile)
    assert done == ["b", "c"] and objects.failure("a") == "it took too long"


async def test_a_failed_batch_is_tried_one_by_one_and_then_without_the_bad_object() -> None:
    objects, reconcile, batches = Objects("test", clock=Clock()), Reconciler(b=RuntimeError()), list[list[str]]()

    async def reconcile_all(keys: object) -> None:
        assert isinstance(keys, list)
        batches.append(keys)
        if "b" in keys:
            raise RuntimeError("one of them")

    await objects.together("abc", reconcile_all, reconcile)
    assert reconcile.asked == ["a", "b", "c"]
    objects.end_pass()
    await objects.together("abc", reconcile_all, reconcile)
    assert batches == [["a", "b", "c"], ["a", "c"]]


async def test_an_unreachable_database_ends_the_pass_and_holds_no_object_back() -> None:
    objects = Objects("test")
    reconcile = Reconciler(**{key: Unavailable("away") for key in "abcdef"})
    with pytest.raises(Unavailable):
        await objects.each("abcdef", reconcile)
    assert len(reconcile.asked) == UNAVAILABLE_IN_A_ROW_MAX and objects.due_in_s() is None


async def test_a_hanging_object_does_not_delay_the_others() -> None:
    objects, done, free = Objects("test"), list[str](), asyncio.Event()

    async def reconcile(key: str) -> None:
        if key == "a":
            await free.wait()
        done.append(key)
        if key == "d":
            free.set()

    await objects.each("abcd", reconcile, at_once=2)
    assert done == ["b", "c", "d", "a"]


async def test_failures_of_deleted_objects_are_forgotten() -> None:
    objects, reconcile = Objects("test", clock=Clock()), Reconciler(a=RuntimeError())
    await objects.each("ab", reconcile)
    objects.end_pass()
    await objects.each("b", reconcile)
    objects.end_pass()
    assert objects.failure("a") is None


async def test_an_object_that_is_started_holds_up_no_pass_and_runs_once_at_a_time() -> None:
    objects, began, ends = Objects("test"), list[str](), asyncio.Event()

    async def reconcile(key: str) -> None:
        began.append(key)
        if key == "a":
            await ends.wait()

    for _ in range(3):
        objects.start("ab", reconcile, count_max=10)
        objects.end_pass()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert began.count("a") == 1 and began.count("b") > 1
    ends.set()
    await objects.finish()
    objects.start("a", reconcile, count_max=10)
    await objects.finish()
    assert began.count("a") == 2


async def test_no_more_objects_are_started_than_allowed() -> None:
    objects, began, ends = Objects("test"), list[str](), asyncio.Event()

    async def reconcile(key: str) -> None:
        began.append(key)
        await ends.wait()

    objects.start("abc", reconcile, count_max=2)
    await asyncio.sleep(0)
    assert began == ["a", "b"]
    ends.set()
    await objects.finish()
    objects.start("c", reconcile, count_max=2)
    await objects.finish()
    assert began == ["a", "b", "c"]


async def test_a_started_object_that_fails_rests_and_makes_no_pass_follow_at_once_while_others_run() -> None:
    clock = Clock()
    objects, asked = Objects("test", clock=clock), list[str]()

    async def reconcile(key: str) -> None:
        asked.append(key)
        if key == "a":
            raise RuntimeError("a defect")
        await asyncio.Event().wait()

    objects.start("ab", reconcile, count_max=10)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    objects.end_pass()
    assert objects.failure("a") is not None and objects.due_in_s() == pytest.approx(BACKOFF_S_MIN)
    clock.now_s += 2 * BACKOFF_S_MIN
    assert objects.due_in_s() is None, "the next pass comes in its own time"
    objects.start("ab", reconcile, count_max=10)
    await asyncio.sleep(0)
    assert asked == ["a", "b", "a"]
    await objects.end()
    assert objects.failure("b") is None
