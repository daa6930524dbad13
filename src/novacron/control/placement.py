"""Gives every VM without a node the best one."""

from __future__ import annotations

from novacron.store import fleet
from novacron.store.database import Database

BATCH_MAX = 100


async def step(database: Database) -> None:
    async with database.transaction() as connection:
        await fleet.place_waiting(connection, BATCH_MAX)
