"""In which order a node's VMs start when many are to start at once, after a power cut for example.

Orders and delays count among the VMs of a project; projects start theirs in rotation.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from novacron.agent.fair_turns import Rotation

GATHER_S = 0.01


class StartDelayed(Exception):
    """A VM of a lower order is to have more time before this one starts. Ask again after ``wait_s``."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"starts in {wait_s:.0f} s: a VM of a lower start order has a start delay")
        self.wait_s = wait_s


class StartQueue:
    """Lets at most ``slots`` VMs start at once: of each project the lowest order first, among equals the first to ask.

    ``gather_s``: how long it waits for others that go first; a simulation does not."""

    def __init__(self, slots: int, gather_s: float = GATHER_S) -> None:
        self._free, self._gather_s = slots, gather_s
        self._rotation = Rotation()
        self._waiting: dict[str, list[tuple[int, int, float, asyncio.Future[None]]]] = {}
        """By project, each a heap."""
        self._numbers = itertools.count()
        self._grant: asyncio.TimerHandle | None = None
        self._delays: dict[int, tuple[str, int, float]] = {}
        """By the numbers of VMs that have begun to start: their projects and orders, and until when higher ones of the
        project are delayed."""

    def full(self, project: str, order: int) -> bool:
        """Say whether a VM that asks for a slot now has to wait for others."""
        return self._free <= sum(map(len, self._waiting.values())) or self._delayed_s(project, order) > 0

    @asynccontextmanager
    async def slot(self, project: str, order: int, delay_s: float = 0.0) -> AsyncIterator[None]:
        """Wait for a start slot, and hold it for as long as the block runs. VMs of the project with higher orders are
        delayed until ``delay_s`` after the block, unless that fails. Raises StartDelayed."""
        loop, number = asyncio.get_running_loop(), next(self._numbers)
        granted: asyncio.Future[None] = loop.create_future()
        heapq.heappush(self._waiting.setdefault(project, []), (order, number, delay_s, granted))
        if self._grant is None:
            self._grant = loop.call_later(self._gather_s, self._grant_next)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self._give_back(project, number)
            raise
        try:
            yield
        except BaseException:
            self._give_back(project, number)
            raise
        if delay_s:
            self._delays[number] = project, order, loop.time() + delay_s
        self._give_back(project)

    def _give_back(self, project: str, failed: int | None = None) -> None:
        """Let the next VMs start; one that ``failed`` delays none of them."""
        if failed is not None:
            self._delays.pop(failed, None)
        self._free += 1
        self._rotation.end(project)
        self._grant_next()

    def _grant_next(self) -> None:
        self._grant = None
        while self._free and self._waiting:
            project = self._rotation.next(self._waiting)
            order, number, delay_s, granted = heapq.heappop(self._waiting[project])
            if not self._waiting[project]:
                del self._waiting[project]
            if granted.done():
                continue
            if (wait_s := self._delayed_s(project, order)) > 0:
                granted.set_exception(StartDelayed(wait_s))
                continue
            if delay_s:
                self._delays[number] = project, order, asyncio.get_running_loop().time() + delay_s
            self._free -= 1
            self._rotation.begin(project)
            granted.set_result(None)

    def _delayed_s(self, project: str, order: int) -> float:
        """Return for how long VMs of an order are delayed by others of their project."""
        now = asyncio.get_running_loop().time()
        self._delays = {number: delay for number, delay in self._delays.items() if delay[2] > now}
        ends_s = (ends for of, lower, ends in self._delays.values() if of == project and lower < order)
        return max((ends - now for ends in ends_s), default=0.0)
