"""Starts migrations within the limit of each node, and ends those that can't go on."""

from __future__ import annotations

from collections import Counter

from novacron.model import limits
from novacron.model.migration import Migration, Phase
from novacron.store import migrations
from novacron.store.database import Database


def startable(active: list[Migration], per_node_max: int = limits.MIGRATIONS_PER_NODE_MAX) -> list[str]:
    """Return the ids of pending migrations that may begin now, oldest first."""
    busy: Counter[str] = Counter()
    for m in active:
        if m.phase is not Phase.PENDING:
            busy.update((m.source, m.target))
    found = []
    for m in active:
        if m.phase is Phase.PENDING and busy[m.source] < per_node_max and busy[m.target] < per_node_max:
            busy.update((m.source, m.target))
            found.append(m.id)
    return found


async def step(database: Database) -> None:
    async with database.connection() as connection:
        active = await migrations.active(connection)
        stalled = await migrations.stalled(connection) if active else []
    for id, why in stalled:
        async with database.transaction() as connection:
            await migrations.fail(connection, id, why)
    for id in startable(active):
        async with database.transaction() as connection:
            await migrations.begin(connection, id)
