"""Keeps the conditions of nodes up to date: those that change because time passes, or another node does."""

from __future__ import annotations

from novacron.control.objects import Objects
from novacron.store import conditions
from novacron.store.database import Database


async def step(database: Database, objects: Objects) -> None:
    async def refresh(name: str) -> None:
        async with database.transaction() as connection:
            await conditions.refresh(connection, name)

    async with database.connection() as connection:
        outdated = await conditions.outdated(connection)
    await objects.each(outdated, refresh)
