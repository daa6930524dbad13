"""What comes from many nodes within a few milliseconds and is stored together, while each waits for its own part."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeAlias, TypeVar

from novacron.model.errors import Unavailable
from novacron.telemetry import logs

log = logs.get(__name__)

T = TypeVar("T")
Batch: TypeAlias = list[tuple[T, asyncio.Future[None]]]
"""Items in order of arrival, each with its waiter's future."""


def settle(batch: Batch[T], error: Exception | None) -> None:
    """Let those who wait for the items of a batch go on, with the error if there is one."""
    for _, done in batch:
        if not done.done():
            done.set_result(None) if error is None else done.set_exception(error)


class Batcher(Generic[T]):
    """Gathers for ``gather_s`` seconds, at most ``at_once_max`` at a time; at most ``waiting_max`` wait."""

    def __init__(self, what: str, gather_s: float, at_once_max: int, waiting_max: int) -> None:
        self._what, self._gather_s = what, gather_s
        self._at_once_max, self._waiting_max = at_once_max, waiting_max
        self._waiting: Batch[T] = []
        self._over = False
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, item: T) -> asyncio.Future[None]:
        """Take something; the future is done once it is stored. Raises Unavailable, and so may the future."""
        if self._over:
            raise Unavailable("this server is shutting down")
        if len(self._waiting) >= self._waiting_max:
            raise Unavailable(f"too many {self._what} are waiting to be stored")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.add_done_callback(lambda future: future.cancelled() or future.exception())  # its waiter may be gone
        self._waiting.append((item, done))
        self._wake.set()
        return done

    async def run(self, store: Callable[[Batch[T]], Awaitable[None]]) -> None:
        """Give batches to ``store``, which settles their futures, until cancelled."""
        batch: Batch[T] = []
        try:
            while True:
                batch = await self._take()
                try:
                    await store(batch)
                except Exception as error:  # a defect met with one batch must not keep the next ones waiting for ever
                    log.exception("a batch can't be stored", what=self._what, count=len(batch))
                    _fail(batch, f"{self._what} can't be stored: {error}")
        finally:
            self._over = True
            _fail([*batch, *self._waiting], "this server is shutting down")

    async def _take(self) -> Batch[T]:
        await self._wake.wait()
        await asyncio.sleep(self._gather_s)
        batch, self._waiting = self._waiting[: self._at_once_max], self._waiting[self._at_once_max :]
        if not self._waiting:
            self._wake.clear()
        return batch


def _fail(batch: Batch[T], why: str) -> None:
    for _, done in batch:
        if not done.done():
            done.set_exception(Unavailable(why))
