"""In which order a node's VMs start when many are to start at once, after a power cut for example."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

GATHER_S = 0.01


class StartQueue:
    """Lets at most ``slots`` VMs start at once: the lowest order first, among equals the first to ask.

    ``gather_s``: how long it waits for others that go first; a simulation does not."""

    def __init__(self, slots: int, gather_s: float = GATHER_S) -> None:
        self._free, self._gather_s = slots, gather_s
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._grant: asyncio.TimerHandle | None = None

    @property
    def full(self) -> bool:
        """Whether a VM that asks for a slot now has to wait for others."""
        return self._free <= len(self._waiting)

    @asynccontextmanager
    async def slot(self, order: int) -> AsyncIterator[None]:
        """Wait for a start slot, and hold it for as long as the block runs."""
        loop = asyncio.get_running_loop()
        granted: asyncio.Future[None] = loop.create_future()
        heapq.heappush(self._waiting, (order, next(self._numbers), granted))
        if self._grant is None:
            self._grant = loop.call_later(self._gather_s, self._grant_next)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self._give_back()
            raise
        try:
            yield
        finally:
            self._give_back()

    def _give_back(self) -> None:
        self._free += 1
        self._grant_next()

    def _grant_next(self) -> None:
        self._grant = None
        while self._free and self._waiting:
            _, _, granted = heapq.heappop(self._waiting)
            if not granted.done():
                self._free -= 1
                granted.set_result(None)
