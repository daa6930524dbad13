"""Gives every VM without a node the best one."""

from __future__ import annotations

from collections.abc import Sequence

from novacron.control.objects import Objects
from novacron.store import fleet
from novacron.store.database import Database

BATCH_MAX = 100


async def step(database: Database, objects: Objects) -> None:
    async def place(ids: Sequence[str]) -> None:
        async with database.transaction() as connection:
            await fleet.place_waiting(connection, ids)

    async with database.connection() as connection:
        waiting = await fleet.waiting(connection, BATCH_MAX, leave_out=objects.resting())
    await objects.together(waiting, place, lambda id: place([id]))
