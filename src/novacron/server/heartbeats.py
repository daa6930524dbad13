"""Heartbeats of all nodes, stored together: one statement for those of a few milliseconds, however many there are."""

from __future__ import annotations

import time
from collections.abc import Callable

import asyncpg

from novacron.model.errors import Conflict, NovaError, Unavailable
from novacron.server.batcher import Batch, Batcher, settle
from novacron.store import leases
from novacron.store.database import LOST, Database
from novacron.store.leases import Beat
from novacron.supervise import Rarely
from novacron.telemetry import logs
from novacron.telemetry.values import counter, histogram

log = logs.get(__name__)

GATHER_S = 0.02
AT_ONCE_MAX = 5000


class Heartbeats:
    """Stores heartbeats; ``run`` must run."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        self._log_now = Rarely()
        self._batcher = Batcher[Beat]("heartbeats", GATHER_S, AT_ONCE_MAX, AT_ONCE_MAX)

    async def store(self, beat: Beat) -> None:
        """Return once a heartbeat is stored. Raises Conflict when the node has to begin anew, and Unavailable."""
        await self._batcher.add(beat)

    async def run(self) -> None:
        """Store incoming reports until cancelled."""
        await self._batcher.run(self._store_batch)

    async def _store_batch(self, batch: Batch[Beat]) -> None:
        if not await self._store(batch):
            for item in batch:  # one of them is what the database does not take: the others are stored
                await self._store([item], last=True)

    async def _store(self, batch: Batch[Beat], *, last: bool = False) -> bool:
        """Store heartbeats; say whether they need not be tried again one by one."""
        counted = counter("novacron_link_heartbeats_total")
        began = time.perf_counter()
        try:
            async with self._database.transaction() as connection:
                renewed = await leases.renew(connection, [beat for beat, _ in batch], self._clock())
        except Exception as error:  # also a defect: the next ones may be stored
            if not last and not isinstance(error, (NovaError, *LOST)):
                return False
            counted.add("failed", count=len(batch))
            if self._log_now.due(type(error).__name__):
                expected = isinstance(error, (NovaError, asyncpg.PostgresError, *LOST))
                say = log.warning if expected else log.exception
                say("heartbeats can't be stored", count=len(batch), error=str(error))
            settle(batch, Unavailable(f"a heartbeat can't be stored: {error}"))
            return True
        histogram("novacron_link_heartbeats_store_duration_seconds").observe(time.perf_counter() - began)
        counted.add("stored", count=len(batch))
        for item in batch:
            node = item[0].node
            settle([item], None if node in renewed else Conflict(f"the VMs of node {node} were given to others"))
        return True
