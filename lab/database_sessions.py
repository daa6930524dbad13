"""Sessions of somebody else in a platform's database, which hold what the platform needs."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import asyncpg

T = TypeVar("T")
STATEMENT_S_MAX = 60.0


class DatabaseSessions:
    """Sessions that stay open until they are closed."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._open: list[asyncpg.Connection[Any]] = []

    def open(self, count: int = 1) -> None:
        """Open further sessions. Raises what PostgreSQL refuses them with."""
        for _ in range(count):
            self._open.append(self._do(asyncpg.connect(self._url)))

    def execute(self, *statements: str) -> None:
        """Let the first session execute statements; a transaction that they begin stays open."""
        for statement in statements:
            self._do(self._open[0].execute(statement))

    def fetch_number(self, query: str) -> int:
        """Return the number that a query answers."""
        return int(self._do(self._open[0].fetchval(query)))

    def close(self) -> None:
        """End all sessions, also those that the server has ended."""
        while self._open:
            connection = self._open.pop()
            self._loop.call_soon_threadsafe(connection.terminate)

    def end(self) -> None:
        self.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(STATEMENT_S_MAX)


@contextlib.contextmanager
def sessions(url: str, count: int = 1) -> Iterator[DatabaseSessions]:
    """Open sessions for as long as the block runs."""
    made = DatabaseSessions(url)
    try:
        made.open(count)
        yield made
    finally:
        made.end()


def execute(url: str, *statements: str) -> None:
    """Execute statements, each in a transaction of its own."""
    with sessions(url) as made:
        made.execute(*statements)
