"""A client that writes as the platform does, and knows what was acknowledged to it: whether it is all there afterwards,
and for how long at most nothing was."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Iterator

import asyncpg

from novacron.model.errors import Unavailable
from novacron.store import hosts
from novacron.store.database import Database

TABLE = "CREATE TABLE IF NOT EXISTS lab_writes (id bigint PRIMARY KEY)"
CONNECT_S, RETRY_S = 10.0, 0.05


class Writer:
    """Inserts one row after another, through the platform's own pool, from a thread with an event loop of its own."""

    def __init__(self, url: str, clients: int = 4, pause_s: float = 0.0) -> None:
        self.url, self._clients, self._pause_s = url, clients, pause_s
        self.acknowledged: list[tuple[float, int]] = []
        """When (monotonic), and which."""
        self.refused = 0
        self._ids = itertools.count(1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="writer")
        self._failure: BaseException | None = None

    @contextlib.contextmanager
    def writing(self) -> Iterator[Writer]:
        """Write for as long as the block runs."""
        asyncio.run(_prepare(self.url))
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join()
        if self._failure is not None:
            raise self._failure

    async def _run(self) -> None:
        try:
            database = await Database.open(self.url)
            try:
                await asyncio.gather(*(self._write(database) for _ in range(self._clients)))
            finally:
                await database.close()
        except BaseException as error:
            self._failure = error

    async def _write(self, database: Database) -> None:
        while not self._stop.is_set():
            number = next(self._ids)
            try:
                async with database.transaction() as connection:
                    await connection.execute("INSERT INTO lab_writes VALUES ($1)", number)
            except (Unavailable, asyncpg.PostgresError):
                self.refused += 1
                await asyncio.sleep(RETRY_S)
                continue
            self.acknowledged.append((time.monotonic(), number))
            if self._pause_s:
                await asyncio.sleep(self._pause_s)

    def count_after(self, at: float) -> int:
        """Return how many were acknowledged since a moment."""
        return sum(1 for when, _ in reversed(self.acknowledged) if when > at)

    def longest_gap_s(self, since: float, until: float | None = None) -> float:
        """Return the longest time without an acknowledgement."""
        end = time.monotonic() if until is None else until
        times = [since, *(at for at, _ in list(self.acknowledged) if since <= at <= end), end]
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    def lost(self) -> set[int]:
        """Return what was acknowledged and is not there."""
        return {number for _, number in self.acknowledged} - asyncio.run(_stored(self.url))


async def _prepare(url: str) -> None:
    connection = await hosts.connect(url, timeout=CONNECT_S)
    try:
        await connection.execute(TABLE)
        await connection.execute("TRUNCATE lab_writes")
    finally:
        await connection.close()


async def _stored(url: str) -> set[int]:
    connection = await hosts.connect(url, timeout=CONNECT_S)
    try:
        return {row["id"] for row in await connection.fetch("SELECT id FROM lab_writes", timeout=60)}
    finally:
        await connection.close()
