"""Long-running work that a defect must not end: logged, counted, and started again with exponential back-off."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any

import msgspec

from novacron.telemetry import logs
from novacron.telemetry.values import counter

log = logs.get(__name__)

RESTARTS = counter("novacron_work_restarts_total")
CANCEL_AGAIN_S, CANCELS_MAX = 10.0, 6


class BackoffPolicy(msgspec.Struct, frozen=True):
    """How long to pause after a failure: ``first_s``, then twice as long each time, up to ``most_s``.

    After ``steady_s`` without a failure it begins again with ``first_s``.
    """

    first_s: float = 0.5
    most_s: float = 30.0
    steady_s: float = 60.0

    def after(self, pause_s: float, lasted_s: float) -> float:
        """Return the next pause, given the last one (0: none) and for how long the work went well since."""
        if pause_s <= 0 or lasted_s >= self.steady_s:
            return self.first_s
        return min(pause_s * 2, self.most_s)


DEFAULT = BackoffPolicy()


async def supervise(
    name: str,
    work: Callable[[], Awaitable[None]],
    backoff: BackoffPolicy = DEFAULT,
    passes: tuple[type[Exception], ...] = (),
) -> None:
    """Do ``work`` until it returns or is cancelled; begin it again, after a pause, whenever it fails.

    ``name`` says in logs and metrics what it is. Only errors of the classes in ``passes`` are raised.
    """
    pause_s = 0.0
    RESTARTS.cell(name)  # an increase from nothing is not seen
    while True:
        began = time.monotonic()
        try:
            return await work()
        except passes:
            raise
        except Exception:  # a defect in one part must not end the others
            pause_s = backoff.after(pause_s, time.monotonic() - began)
            RESTARTS.add(name)
            log.exception("work failed and begins again", work=name, retry_s=pause_s)
        await asyncio.sleep(pause_s)


async def guard(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Do something once; a defect in it is logged and counted, and ends nothing else."""
    try:
        await work()
    except Exception:
        RESTARTS.add(name)
        log.exception("a task failed", work=name)


async def until_one_ends(*works: Coroutine[None, None, None]) -> None:
    """Do several things at once until the first ends, cancel the others, and raise what that one raised."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
    finally:
        await end_all(tasks)


def is_cancelled() -> bool:
    """Say whether the present task has been asked to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def end_all(tasks: Collection[asyncio.Task[object]]) -> None:
    """Cancel tasks and wait for their ends. One that goes on, because something on its way out has taken the
    cancellation for a failure, is cancelled again, a few times."""
    left = {task for task in tasks if not task.done()}
    for _ in range(CANCELS_MAX):
        if not left:
            break
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=CANCEL_AGAIN_S)
        if left:
            log.warning("work that was cancelled goes on", work=sorted(map(_name_of, left)))
    await asyncio.gather(*(task for task in tasks if task.done()), return_exceptions=True)


def _name_of(task: asyncio.Task[Any]) -> str:
    return str(getattr(task.get_coro(), "__qualname__", task.get_name()))


class FewTasks:
    """Tasks of one kind, at most ``count_max`` at once; owned by ``run``. A defect in one ends only that one."""

    def __init__(self, name: str, count_max: int) -> None:
        self._name, self._count_max = name, count_max
        self._running: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._running)

    @property
    def full(self) -> bool:
        return len(self._running) >= self._count_max

    def start(self, work: Coroutine[None, None, None]) -> bool:
        """Start a task and return True; if there are too many, do nothing and return False."""
        if self.full:
            work.close()
            return False
        task = asyncio.create_task(guard(self._name, lambda: work), name=self._name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(lambda _: work.close())  # it was not begun, if the task was cancelled before
        return True

    async def end(self) -> None:
        """Cancel all tasks and wait for their ends."""
        await end_all(list(self._running))


class Rarely:
    """Says of each kind of event whether it is to be logged now: at once, then after pauses that double."""

    KINDS_MAX = 4096

    def __init__(self, first_s: float = 60.0, most_s: float = 3600.0, clock: Callable[[], float] = time.monotonic):
        self._first_s, self._most_s, self._clock = first_s, most_s, clock
        self._next: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def due(self, kind: str) -> bool:
        """Say whether an event of this kind is to be logged now, and count it as logged if so."""
        now = self._clock()
        due_at, pause_s = self._next.pop(kind, (now, self._first_s))
        due = now >= due_at
        self._next[kind] = (now + pause_s, min(pause_s * 2, self._most_s)) if due else (due_at, pause_s)
        while len(self._next) > self.KINDS_MAX:
            self._next.popitem(last=False)
        return due
