"""Gives every VM without a node the one with most room."""

from __future__ import annotations

from novacron.store import vms
from novacron.store.database import Database

BATCH_MAX = 100


async def step(database: Database) -> None:
    async with database.connection() as connection:
        waiting = await vms.unplaced(connection, BATCH_MAX)
    for vm in waiting:
        async with database.transaction() as connection:
            await vms.place(connection, vm.id)
