"""Which of a node's VMs goes first: when many are to start at once, and when many are sent at once."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

GATHER_S = 0.01
"""So long others may come that go first."""
FIRST_S = 1.5
"""For no longer does what is sent of other VMs wait for one that stands still."""


class Turns:
    """Lets at most ``count`` go at once, those with the lowest order first, and among them who came first."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._grant: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def turn(self, order: int) -> AsyncIterator[None]:
        """Wait for a turn, and have it for as long as the block runs."""
        loop = asyncio.get_running_loop()
        granted: asyncio.Future[None] = loop.create_future()
        heapq.heappush(self._waiting, (order, next(self._numbers), granted))
        if self._grant is None:
            self._grant = loop.call_later(GATHER_S, self._grant_turns)
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
        self._grant_turns()

    def _grant_turns(self) -> None:
        self._grant = None
        while self._free and self._waiting:
            _, _, granted = heapq.heappop(self._waiting)
            if not granted.done():
                self._free -= 1
                granted.set_result(None)


class Precedence:
    """While a guest stands still for its switch, what others send waits: it has the path and the processors."""

    def __init__(self) -> None:
        self._hold: dict[str, Callable[[bool], None]] = {}
        self._first: dict[str, asyncio.TimerHandle] = {}

    def join(self, vm: str, hold: Callable[[bool], None]) -> None:
        """A VM is being sent; ``hold`` lets that wait, or go on."""
        self._hold[vm] = hold
        self._settle()

    def begin(self, vm: str) -> None:
        """A guest stands still, for ``FIRST_S`` at most as far as others are concerned."""
        if vm in self._hold and vm not in self._first:
            self._first[vm] = asyncio.get_running_loop().call_later(FIRST_S, self._end, vm)
            self._settle()

    def leave(self, vm: str) -> None:
        """A VM is sent, or is not any more."""
        self._hold.pop(vm, None)
        self._end(vm)

    def _end(self, vm: str) -> None:
        timer = self._first.pop(vm, None)
        if timer is not None:
            timer.cancel()
        self._settle()

    def _settle(self) -> None:
        for vm, hold in self._hold.items():
            hold(bool(self._first) and vm not in self._first)
