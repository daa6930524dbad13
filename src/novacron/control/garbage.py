"""Forgets records past their retention."""

from __future__ import annotations

from novacron.control.objects import Objects
from novacron.store import garbage
from novacron.store.database import Database


async def step(database: Database, objects: Objects) -> None:
    async def collect(records: str) -> None:
        async with database.transaction() as connection:
            await garbage.COLLECTORS[records](connection)

    await objects.each(garbage.COLLECTORS, collect)
