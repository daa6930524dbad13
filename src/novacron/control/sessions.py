"""Ends sessions and API tokens that have lived, or were not used, for longer than the operator allows."""

from __future__ import annotations

from novacron.control.objects import Objects
from novacron.model.token import Lifetimes
from novacron.store import events, tokens
from novacron.store.database import Database


class Sessions:
    """Knows how long sessions and tokens may live."""

    def __init__(self, lifetimes: Lifetimes) -> None:
        self._lifetimes = lifetimes

    async def step(self, database: Database, objects: Objects) -> None:
        """End those that are overdue."""
        async with database.connection() as connection:
            overdue = await tokens.overdue(connection, self._lifetimes)

        async def end(id: str) -> None:
            async with database.transaction() as connection:
                await tokens.end(connection, id, overdue[id], events.SYSTEM)

        await objects.each(overdue, end)
