"""Lets replicas go whose VM or whose node is gone, and notes when those whose VM comes or leaves are late."""

from __future__ import annotations

from novacron.control.objects import Objects
from novacron.store import replicas
from novacron.store.database import Database


async def step(database: Database, objects: Objects) -> None:
    async with database.connection() as connection:
        left_over = await replicas.left_over(connection)

    async def clear(id: str) -> None:
        async with database.transaction() as connection:
            await replicas.clear(connection, id)

    await objects.each(left_over, clear)
