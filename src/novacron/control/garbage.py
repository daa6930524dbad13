"""Forgets records past their retention."""

from __future__ import annotations

from novacron.store import garbage
from novacron.store.database import Database


async def step(database: Database) -> None:
    async with database.transaction() as connection:
        await garbage.collect(connection)
