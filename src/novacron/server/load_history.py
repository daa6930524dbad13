"""Keeps what nodes report of load: summed up in memory, stored once an hour, off everybody's way."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple

from novacron.model.errors import NovaError, Unavailable
from novacron.model.load_hours import HOUR_S, LoadHours, NodeHour, VmHour
from novacron.store import load_history
from novacron.store.database import YIELDS, Database
from novacron.supervise import RESTARTS
from novacron.telemetry import logs
from novacron.telemetry.values import counter, histogram

log = logs.get(__name__)

STORED_AFTER_S = 20.0
"""How long after an hour's end it is stored: reports that are under way have come."""
PAUSE_S = 0.05
"""Between two statements, so that others are served meanwhile."""
TRIES_MAX = 6
RETRY_S, RETRY_S_MAX = 2.0, 60.0
SPLITS_MAX = 200
"""How often, in the last try, a batch that can't be stored is halved: enough to find several nodes or VMs in it."""


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
        waiting = [_Batch(load_history.store_nodes, hours) for hours in load_history.batches(finished.nodes)]
        waiting += [_Batch(load_history.store_vms, hours) for hours in load_history.batches(finished.vms)]
        began, pause_s = time.perf_counter(), RETRY_S
        for attempt in range(1, TRIES_MAX):
            waiting = await self._write(database, waiting, attempt)
            if not waiting:
                break
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_S_MAX)
        else:
            await self._write(database, waiting, TRIES_MAX, splits=SPLITS_MAX)
        histogram("novacron_load_history_store_duration_seconds").observe(time.perf_counter() - began)

    async def _write(
        self, database: Database, batches: Sequence[_Batch], attempt: int, splits: int = 0
    ) -> list[_Batch]:  # fmt: skip
        """Write batches; written again they change nothing. Return those that could not be written.

        ``splits``: how many of these are halved, to find what in them is the cause; the rest of them is written then.
        """
        queue, failed = deque(batches), list[_Batch]()
        while queue:
            batch = queue.popleft()
            try:
                await database.transact(partial(batch.store, hours=batch.hours))
            except Unavailable as error:  # so it will be for the others
                failed += [batch, *queue]
                self._say_failed(failed, attempt, error)
                break
            except Exception as error:  # with what is in this batch: the others are stored
                if splits > 0 and len(batch.hours) > 1:
                    splits -= 1
                    queue.extendleft(reversed(batch.halves()))
                    continue
                failed.append(batch)
                RESTARTS.add("load history")
                self._say_failed([batch], attempt, error)
            await asyncio.sleep(PAUSE_S)
        return failed

    def _say_failed(self, batches: Sequence[_Batch], attempt: int, error: Exception) -> None:
        say = log.error if attempt == TRIES_MAX else log.warning
        say(
            "an hour's load can't be stored", attempt=attempt, tries=TRIES_MAX, error=str(error),
            hours=sum(len(batch.hours) for batch in batches), first=batches[0].hours[0][0],
            exc_info=None if isinstance(error, NovaError) else error,
        )  # fmt: skip


class _Batch(NamedTuple):
    """Hours that one statement stores."""

    store: Callable[..., Awaitable[None]]
    hours: Sequence[NodeHour] | Sequence[VmHour]

    def halves(self) -> tuple[_Batch, _Batch]:
        middle = len(self.hours) // 2
        return self._replace(hours=self.hours[:middle]), self._replace(hours=self.hours[middle:])
