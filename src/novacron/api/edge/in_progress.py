"""Which connections have requests in progress: the others do nothing, and may be ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

Peer = tuple[str, int]
"""Address and port of a connection's other end."""


def plain_address(address: str) -> str:
    """Return an address without the interface on which it is."""
    return address.partition("%")[0]


class RequestsInProgress:
    """Counts the requests of each connection, and remembers when it had the last."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.busy: dict[Peer, int] = {}
        self.ended_at: dict[Peer, float] = {}

    def begin(self, client: tuple[str, int | str]) -> Peer:
        """A request begins; ``client`` is the other end of its connection, as the HTTP server says it: Granian's ports
        are texts. Return what to end it with."""
        peer = (plain_address(client[0]), int(client[1]))
        self.busy[peer] = self.busy.get(peer, 0) + 1
        return peer

    def end(self, peer: Peer) -> None:
        """A request has ended."""
        left = self.busy[peer] - 1
        if left:
            self.busy[peer] = left
        else:
            del self.busy[peer]
        self.ended_at[peer] = self._clock()

    def forget_all_but(self, peers: Iterable[Peer], looked_at: float) -> None:
        """Forget connections that are no more: only ``peers`` were open at ``looked_at``, or opened since."""
        still_open = set(peers)
        self.ended_at = {
            peer: at for peer, at in self.ended_at.items() if peer in still_open or at >= looked_at
        }  # fmt: skip
