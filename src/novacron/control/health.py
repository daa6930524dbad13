"""Tells nodes that have fallen silent from those that are alive."""

from __future__ import annotations

from novacron.model import limits
from novacron.store import nodes
from novacron.store.database import Database


async def step(database: Database) -> None:
    async with database.transaction() as connection:
        await nodes.mark_lost(connection, limits.NODE_LOST_AFTER_S)
