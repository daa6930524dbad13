"""Connections of nodes that have not said yet what they hold: one key has few, and is looked up once at a time."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncIterator
from typing import cast

from websockets.asyncio.server import ServerConnection

from novacron import pki
from novacron.telemetry.values import counter

PER_KEY_MAX = 4
"""An agent has one; another may be left of a link that broke."""
GREETED_MAX = 6
"""Nodes that connect and are looked up at once: all of them come when the server has started."""
CONNECTIONS = counter("novacron_link_connections_total")


class Handshakes:
    """Which connections have shown a key, and have not been welcomed or refused yet."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[object]] = {}
        self._greeting = asyncio.Semaphore(GREETED_MAX)
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    def begin(self, key: str, connection: object) -> bool:
        """A connection has shown a key; say whether it may go on."""
        waiting = self._waiting.setdefault(key, set())
        if len(waiting) >= PER_KEY_MAX:
            return False
        waiting.add(connection)
        return True

    def end(self, key: str, connection: object) -> None:
        """A connection was welcomed or refused, or has ended."""
        waiting = self._waiting.get(key, set())
        waiting.discard(connection)
        if not waiting:
            self._waiting.pop(key, None)

    def of(self, key: str) -> int:
        """Return how many connections wait that have shown a key."""
        return len(self._waiting.get(key, ()))

    @contextlib.asynccontextmanager
    async def greeting(self, key: str) -> AsyncIterator[None]:
        """Have one of the few turns to look a node up, of which no key has two."""
        turn = self._turns.setdefault(key, asyncio.Lock())
        async with turn, self._greeting:
            yield


class LinkConnection(ServerConnection):
    """A connection of an agent. It counts from the end of its TLS handshake, before it has asked for a WebSocket."""

    handshakes: Handshakes
    key_hash = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.key_hash = pki.peer_key_hash(transport.get_extra_info("ssl_object"))
        if not self.handshakes.begin(self.key_hash, self):
            CONNECTIONS.add("refused")
            cast(asyncio.Transport, transport).abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.handshakes.end(self.key_hash, self)
        super().connection_lost(exc)

    def settled(self) -> None:
        """The node was welcomed."""
        self.handshakes.end(self.key_hash, self)
