"""Tells nodes that have fallen silent from those that are alive."""

from __future__ import annotations

from collections.abc import Sequence

from novacron.control.objects import Objects
from novacron.model import limits
from novacron.store import nodes
from novacron.store.database import Database


async def step(database: Database, objects: Objects) -> None:
    async def mark(names: Sequence[str]) -> None:
        async with database.transaction() as connection:
            await nodes.mark_lost(connection, names, limits.NODE_LOST_AFTER_S)

    async with database.connection() as connection:
        changed = await nodes.lost_or_back(connection, limits.NODE_LOST_AFTER_S)
    await objects.together(changed, mark, lambda name: mark([name]))
