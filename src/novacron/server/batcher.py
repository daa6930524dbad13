"""What comes from many nodes within a few milliseconds and is stored together, while each waits for its own part."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

from novacron.model.errors import Unavailable

T = TypeVar("T")


class Gathering(Generic[T]):
    """Gathers for ``gather_s`` seconds, at most ``at_once_max`` at a time; at most ``waiting_max`` wait."""

    def __init__(self, what: str, gather_s: float, at_once_max: int, waiting_max: int) -> None:
        self._what, self._gather_s = what, gather_s
        self._at_once_max, self._waiting_max = at_once_max, waiting_max
        self._waiting: list[tuple[T, asyncio.Future[None]]] = []
        self._taken: list[tuple[T, asyncio.Future[None]]] = []
        self._over = False
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, item: T) -> asyncio.Future[None]:
        """Take something; the future is done once it is stored. Raises Unavailable, and so may the future."""
        if self._over:
            raise Unavailable("this server is about to end")
        if len(self._waiting) >= self._waiting_max:
            raise Unavailable(f"too many {self._what} wait to be stored")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.add_done_callback(lambda future: future.cancelled() or future.exception())  # who waits for it may be gone
        self._waiting.append((item, done))
        self._wake.set()
        return done

    async def take(self) -> list[tuple[T, asyncio.Future[None]]]:
        """Wait for something, and for what else comes with it; return it, in its order."""
        await self._wake.wait()
        await asyncio.sleep(self._gather_s)
        self._taken, self._waiting = self._waiting[: self._at_once_max], self._waiting[self._at_once_max :]
        if not self._waiting:
            self._wake.clear()
        return self._taken

    def end(self) -> None:
        """Nothing is stored any more: who waits is told so, or would wait for ever."""
        self._over = True
        for _, done in (*self._taken, *self._waiting):
            if not done.done():
                done.set_exception(Unavailable("this server is about to end"))
