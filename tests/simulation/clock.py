"""Time that jumps: an event loop without threads that says when everything waits, and a clock that a test moves."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from concurrent.futures import Executor
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")

TURNS_MAX = 20_000
"""Turns of the loop in which everything must come to wait: more are a busy loop."""
WAKES_MAX = 5_000
"""Sleepers that may wake within one stretch of time: more are a busy loop."""


class NumberedTask(asyncio.Task[T]):
    """A task whose place in sets of tasks depends on the history, not on where it lies in memory."""

    numbers = itertools.count()

    def __init__(self, *args: Any, **named: Any) -> None:
        self._number = next(NumberedTask.numbers)
        super().__init__(*args, **named)

    def __hash__(self) -> int:
        return self._number


class NumberedTimer(asyncio.TimerHandle):
    """One of several timers of the same moment: the first that was set is the first that goes off."""

    def __init__(self, number: int, *args: Any) -> None:
        super().__init__(*args)
        self._number = number

    def __lt__(self, other: object) -> bool:
        assert isinstance(other, NumberedTimer)
        return (self.when(), self._number) < (other.when(), other._number)


class SimulationLoop(asyncio.SelectorEventLoop):
    """Does at once what others do in threads, and has time limits end in simulated time: the order of everything
    depends on the history alone."""

    passed_s = 0.0
    """Time that has passed in all histories."""

    def __init__(self) -> None:
        self._timers = itertools.count()
        super().__init__()
        self.set_task_factory(lambda loop, work, **named: NumberedTask(work, loop=loop, **named))

    def begin(self) -> None:
        """A history begins: what was in earlier ones makes no difference."""
        NumberedTask.numbers = itertools.count()
        self._timers = itertools.count()
        self.passed_s = 0.0

    def call_at(  # type: ignore[override]  # asyncio's own signature has types that only type checkers know
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> NumberedTimer:
        timer = NumberedTimer(next(self._timers), when, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]  # as asyncio does it
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def time(self) -> float:
        return self.passed_s

    def run_in_executor(  # type: ignore[override]  # asyncio's own signature says nothing of what it returns
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        done: asyncio.Future[T] = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:
            done.set_exception(error)
        return done

    def waits(self) -> bool:
        """Say whether nothing but the caller can go on now."""
        return not self._ready  # type: ignore[attr-defined]  # there is no public way to ask


async def settle() -> None:
    """Return when everything waits: for a message, for time, or for the test."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimulationLoop)
    idle = 0
    for _ in range(TURNS_MAX):
        await asyncio.sleep(0)
        idle = idle + 1 if loop.waits() else 0
        if idle == 2:
            return
    raise AssertionError(f"a busy loop: something still goes on after {TURNS_MAX} turns")


class SimulatedClock:
    """What ``novacron.agent.host.clock.Clock`` asks for. It stands still but for ``advance``."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self._numbers = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return 1.7e9 + self.now_s

    async def sleep(self, seconds: float) -> None:
        await self.sleep_until(self.now_s + seconds)

    async def sleep_until(self, at_s: float) -> None:
        waker: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (at_s, next(self._numbers), waker))
        await waker

    async def advance(self, seconds: float) -> None:
        """Let time pass: it jumps from one sleeper to the next, and everybody does what there is to do at once."""
        await settle()
        until_s = self.now_s + seconds
        for _ in range(WAKES_MAX):
            while self._sleepers and self._sleepers[0][2].done():  # cancelled
                heapq.heappop(self._sleepers)
            if not self._sleepers or self._sleepers[0][0] > until_s:
                self._jump_to(until_s)
                return
            at_s, _, waker = heapq.heappop(self._sleepers)
            self._jump_to(max(self.now_s, at_s))
            waker.set_result(None)
            await settle()
        raise AssertionError(f"a busy loop: {WAKES_MAX} sleepers woke within {seconds} s")

    def _jump_to(self, at_s: float) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulationLoop)
        loop.passed_s += at_s - self.now_s
        self.now_s = at_s
