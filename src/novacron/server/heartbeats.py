"""Heartbeats of all nodes, stored together: one statement for those of a few milliseconds, however many there are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import asyncpg

from novacron.model.errors import Conflict, NovaError, Unavailable
from novacron.store import leases
from novacron.store.database import LOST, Database
from novacron.store.leases import Beat
from novacron.telemetry import logs
from novacron.telemetry.values import counter, histogram

log = logs.get(__name__)

GATHER_S = 0.02
AT_ONCE_MAX = 5000
OVER = "this server is about to end"


class Heartbeats:
    """Stores heartbeats; ``run`` must run."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        self._waiting: list[tuple[Beat, asyncio.Future[None]]] = []
        self._taken: list[tuple[Beat, asyncio.Future[None]]] = []
        self._over = False
        self._wake = asyncio.Event()

    async def store(self, beat: Beat) -> None:
        """Return once a heartbeat is stored. Raises Conflict when the node has to begin anew, and Unavailable."""
        if self._over:
            raise Unavailable(OVER)
        if len(self._waiting) >= AT_ONCE_MAX:
            raise Unavailable("too many heartbeats wait to be stored")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((beat, done))
        self._wake.set()
        await done

    async def run(self) -> None:
        """Store what comes, until cancelled; who waits then is told so, or would wait for ever."""
        try:
            await self._run()
        finally:
            self._over = True
            for _, done in (*self._taken, *self._waiting):
                if not done.done():
                    done.set_exception(Unavailable(OVER))

    async def _run(self) -> None:
        counted = counter("novacron_link_heartbeats_total")
        storing = histogram("novacron_link_heartbeats_store_duration_seconds")
        while True:
            await self._wake.wait()
            await asyncio.sleep(GATHER_S)
            self._wake.clear()
            taken, self._waiting = self._waiting, []
            self._taken = taken
            began = time.perf_counter()
            try:
                async with self._database.transaction() as connection:
                    renewed = await leases.renew(connection, [beat for beat, _ in taken], self._clock())
            except (NovaError, asyncpg.PostgresError, *LOST) as error:
                counted.add("failed", count=len(taken))
                log.warning("heartbeats can't be stored", count=len(taken), error=str(error))
                for _, done in taken:
                    if not done.done():
                        done.set_exception(Unavailable(f"a heartbeat can't be stored: {error}"))
                continue
            storing.observe(time.perf_counter() - began)
            counted.add("stored", count=len(taken))
            for beat, done in taken:
                if done.done():
                    continue
                if beat.node in renewed:
                    done.set_result(None)
                else:
                    done.set_exception(Conflict(f"the VMs of node {beat.node} were given to others"))
