"""Keeps what nodes report of load: summed up in memory, stored once an hour, off everybody's way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial

from novacron.model.errors import NovaError
from novacron.model.load_hours import HOUR_S, FinishedHours, LoadHours
from novacron.store import load_history
from novacron.store.database import YIELDS, Database
from novacron.telemetry import logs
from novacron.telemetry.values import counter, histogram

log = logs.get(__name__)

STORED_AFTER_S = 20.0
"""How long after an hour's end it is stored: reports that are under way have come."""
PAUSE_S = 0.05
"""Between two statements, so that others are served meanwhile."""
TRIES_MAX = 6
RETRY_S, RETRY_S_MAX = 2.0, 60.0


class LoadHistory:
    """Takes reports in, and stores each hour once it is over; ``run`` must run. What this process knows of the hour
    that has not ended is lost when it ends."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._hours = LoadHours()

    def take(self, node: str, used: Sequence[tuple[str, float]]) -> None:
        """Count how many processors each VM of a node has used lately."""
        dropped = self._hours.dropped
        self._hours.take(node, used, self._clock())
        if self._hours.dropped > dropped:
            counter("novacron_load_reports_dropped_total").add(count=self._hours.dropped - dropped)

    async def run(self, database: Database) -> None:
        """Store each hour, until cancelled."""
        YIELDS.set(True)
        while True:
            now_s = self._clock()
            await asyncio.sleep(HOUR_S - now_s % HOUR_S + STORED_AFTER_S)
            await self.store(database)

    async def store(self, database: Database) -> None:
        """Store all hours that are over. What can't be stored after some tries is lost, which is logged."""
        finished = self._hours.finished(self._clock())
        began, pause_s = time.perf_counter(), RETRY_S
        for attempt in range(1, TRIES_MAX + 1):
            try:
                await self._write(database, finished)
                break
            except NovaError as error:
                say = log.error if attempt == TRIES_MAX else log.warning
                say("an hour's load can't be stored", attempt=attempt, tries=TRIES_MAX, error=error.detail)
                if attempt < TRIES_MAX:
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, RETRY_S_MAX)
        histogram("novacron_load_history_store_duration_seconds").observe(time.perf_counter() - began)

    async def _write(self, database: Database, finished: FinishedHours) -> None:
        """Write it; written again it changes nothing. Raises Unavailable."""
        for nodes in load_history.batches(finished.nodes):
            await database.transact(partial(load_history.store_nodes, hours=nodes))
            await asyncio.sleep(PAUSE_S)
        for vms in load_history.batches(finished.vms):
            await database.transact(partial(load_history.store_vms, hours=vms))
            await asyncio.sleep(PAUSE_S)
