"""In which order a node's VMs start when many are to start at once, after a power cut for example."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

GATHER_S = 0.01


class StartDelayed(Exception):
    """A VM of a lower order is to have more time before this one starts. Ask again after ``wait_s``."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"starts in {wait_s:.0f} s: a VM of a lower start order has a start delay")
        self.wait_s = wait_s


class StartQueue:
    """Lets at most ``slots`` VMs start at once: the lowest order first, among equals the first to ask.

    ``gather_s``: how long it waits for others that go first; a simulation does not."""

    def __init__(self, slots: int, gather_s: float = GATHER_S) -> None:
        self._free, self._gather_s = slots, gather_s
        self._waiting: list[tuple[int, int, float, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._grant: asyncio.TimerHandle | None = None
        self._delays: dict[int, tuple[int, float]] = {}
        """By the numbers of VMs that have begun to start: their orders, and until when higher ones are delayed."""

    def full(self, order: int) -> bool:
        """Say whether a VM that asks for a slot now has to wait for others."""
        return self._free <= len(self._waiting) or self._delayed_s(order) > 0

    @asynccontextmanager
    async def slot(self, order: int, delay_s: float = 0.0) -> AsyncIterator[None]:
        """Wait for a start slot, and hold it for as long as the block runs. VMs of higher orders are delayed until
        ``delay_s`` after the block, unless that fails. Raises StartDelayed."""
        loop, number = asyncio.get_running_loop(), next(self._numbers)
        granted: asyncio.Future[None] = loop.create_future()
        heapq.heappush(self._waiting, (order, number, delay_s, granted))
        if self._grant is None:
            self._grant = loop.call_later(self._gather_s, self._grant_next)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self._give_back(number)
            raise
        try:
            yield
        except BaseException:
            self._give_back(number)
            raise
        if delay_s:
            self._delays[number] = order, loop.time() + delay_s
        self._give_back()

    def _give_back(self, failed: int | None = None) -> None:
        """Let the next VMs start; one that ``failed`` delays none of them."""
        if failed is not None:
            self._delays.pop(failed, None)
        self._free += 1
        self._grant_next()

    def _grant_next(self) -> None:
        self._grant = None
        while self._free and self._waiting:
            order, number, delay_s, granted = heapq.heappop(self._waiting)
            if granted.done():
                continue
            if (wait_s := self._delayed_s(order)) > 0:
                granted.set_exception(StartDelayed(wait_s))
                continue
            if delay_s:
                self._delays[number] = order, asyncio.get_running_loop().time() + delay_s
            self._free -= 1
            granted.set_result(None)

    def _delayed_s(self, order: int) -> float:
        """Return for how long VMs of an order are delayed by others."""
        now = asyncio.get_running_loop().time()
        self._delays = {number: delay for number, delay in self._delays.items() if delay[1] > now}
        return max((ends - now for lower, ends in self._delays.values() if lower < order), default=0.0)
