"""Empties nodes that are draining: one migration at a time for each VM that can be moved."""

from __future__ import annotations

from novacron.model.errors import Conflict, InvalidInput
from novacron.store import migrations, vms
from novacron.store.database import Database
from novacron.store.drains import blocked, draining_vms
from novacron.telemetry import logs

log = logs.get(__name__)


async def step(database: Database) -> None:
    async with database.connection() as connection:
        found = await draining_vms(connection)
    for node, vm in found:
        try:
            async with database.transaction() as connection:
                current = await vms.get(connection, vm)
                if current.node == node:
                    await migrations.create(connection, vm, None, None, f"drain of {node}")
        except (Conflict, InvalidInput) as error:
            # It stays where it is and running; the next step tries again.
            log.info("a VM can't leave a draining node yet", node=node, vm=vm, why=str(error))
            async with database.transaction() as connection:
                await blocked(connection, node, vm, str(error))
