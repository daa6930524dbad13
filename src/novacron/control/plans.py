"""Runs recovery plans: one VM after the other goes on from its replica, or is tried."""

from __future__ import annotations

from novacron.control.objects import Objects
from novacron.model import limits
from novacron.store import plans
from novacron.store.database import Database


async def step(database: Database, objects: Objects) -> None:
    async with database.connection() as connection:
        under_way = await plans.under_way(connection)

    async def follow(id: str) -> None:
        for _ in range(2 * limits.VMS_PER_PLAN_MAX):
            async with database.transaction() as connection:
                if not await plans.follow(connection, id):
                    return

    await objects.each(under_way, follow)
