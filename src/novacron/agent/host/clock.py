"""Time as a worker sees it: the system's, or a simulation's."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    """What a worker needs of time, so that a test can let it jump."""

    def monotonic(self) -> float:
        """Return seconds that only grow; only differences mean anything."""

    def time(self) -> float:
        """Return seconds since the epoch."""

    async def sleep(self, seconds: float) -> None:
        """Return after so many seconds."""


class SystemClock:
    """The real one."""

    def monotonic(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def wait_at_most(clock: Clock, event: asyncio.Event, seconds: float) -> bool:
    """Wait until an event is set, for ``seconds`` at most; say whether it is."""
    if event.is_set():
        return True
    tasks = {asyncio.ensure_future(event.wait()), asyncio.ensure_future(clock.sleep(seconds))}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return event.is_set()


async def finished_in_thread(work: asyncio.Future[T]) -> T:
    """Wait for work that must not be abandoned half way: when cancelled, raise CancelledError once it has ended."""
    cancelled = False
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        with contextlib.suppress(Exception):  # the cancellation is what counts
            work.result()
        raise asyncio.CancelledError
    return work.result()
