"""Begins moves of VMs whose time has come."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from novacron.control.objects import Objects
from novacron.model.errors import NovaError, Unavailable
from novacron.store import scheduled_moves
from novacron.store.database import Database
from novacron.store.fleet_index import FleetIndex


class ScheduledMoves(msgspec.Struct):
    """``index`` has the fleet in memory; ``clock`` says seconds since 1970."""

    index: FleetIndex | None = None
    clock: Callable[[], float] = time.time

    async def step(self, database: Database, objects: Objects) -> None:
        now = datetime.fromtimestamp(self.clock(), UTC)
        async with database.connection() as connection:
            due = await scheduled_moves.due(connection, now)

        async def begin(id: str) -> None:
            try:
                async with database.transaction() as connection:
                    await scheduled_moves.begin(connection, id, now, self.index)
            except Unavailable:
                raise
            except NovaError as error:  # the back-off of objects says when it is tried again
                async with database.transaction() as connection:
                    await scheduled_moves.refused(connection, id, error.detail)
                raise

        await objects.each(due, begin)
