"""Replies that somebody waits for: the one place where an id and a future are brought together."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

from novacron.model.errors import Unavailable

T = TypeVar("T")


class Pending(Generic[T]):
    """Futures of replies, by the peer that owes the reply and by the request's key.

    At most ``in_all_max`` are open, of which one peer owes at most ``per_peer_max``.
    """

    def __init__(self, what: str, in_all_max: int, per_peer_max: int) -> None:
        self._what, self._in_all_max, self._per_peer_max = what, in_all_max, per_peer_max
        self._futures: dict[tuple[Hashable, Hashable], asyncio.Future[T]] = {}
        self._per_peer: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        return len(self._futures)

    @contextlib.contextmanager
    def expect(self, peer: Hashable, key: Hashable) -> Iterator[asyncio.Future[T]]:
        """Give a future that is done once ``peer`` replies; it is forgotten when the block ends. Raises Unavailable."""
        if len(self._futures) >= self._in_all_max or self._per_peer[peer] >= self._per_peer_max:
            count = self._per_peer[peer] if len(self._futures) < self._in_all_max else len(self._futures)
            raise Unavailable(f"{count} {self._what} are waiting for an answer", hint="try again in a moment")
        assert (peer, key) not in self._futures
        future = self._futures[peer, key] = asyncio.get_running_loop().create_future()
        self._per_peer[peer] += 1
        try:
            yield future
        finally:
            del self._futures[peer, key]
            self._per_peer[peer] -= 1
            if not self._per_peer[peer]:
                del self._per_peer[peer]
            if future.done() and not future.cancelled():
                future.exception()  # nobody may have come to await it
            future.cancel()

    def settle(self, peer: Hashable, key: Hashable, reply: T) -> None:
        """Hand a reply to its waiter, if one still waits for this peer."""
        future = self._futures.get((peer, key))
        if future is not None and not future.done():
            future.set_result(reply)

    def fail(self, peer: Hashable, why: str, hint: str) -> None:
        """A peer is gone: nothing of what it owes will come."""
        for (owes, _), future in self._futures.items():
            if owes == peer and not future.done():
                future.set_exception(Unavailable(why, hint=hint))
