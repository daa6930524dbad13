"""Warns of agents' certificates that end soon because nobody renews them."""

from __future__ import annotations

from novacron import pki
from novacron.control.objects import Objects
from novacron.store import certificates
from novacron.store.database import Database


async def step(database: Database, objects: Objects) -> None:
    async def warn(name: str) -> None:
        async with database.transaction() as connection:
            await certificates.warn(connection, name)

    async with database.connection() as connection:
        ending = await certificates.ending(connection, pki.ENDS_SOON_S)
    await objects.each(ending, warn)
