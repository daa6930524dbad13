"""Servers that share a database share its connections: one that can't have another one waits for those that it has."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import asyncpg

from novacron.store.database import Connection, Database, connect


async def test_requests_share_the_connections_that_a_server_has_while_the_database_takes_no_more(
    database: Database,
) -> None:
    async with AsyncExitStack() as others:
        async with database.connection() as connection:  # the only one of its pool
            try:
                while True:
                    other = await connect(database.url)
                    others.push_async_callback(other.close)
            except asyncpg.TooManyConnectionsError:
                pass
            waiting = [asyncio.create_task(database.transact(_work)) for _ in range(40)]
            assert await connection.fetchval("SELECT 1") == 1
        async with asyncio.timeout(5):
            assert await asyncio.gather(*waiting) == [1] * 40
        assert database.connections()[("used",)] + database.connections()[("idle",)] == 1
    async with asyncio.timeout(5):
        await asyncio.gather(*(database.transact(_work) for _ in range(40)))


async def _work(connection: Connection) -> int:
    value: int = await connection.fetchval("SELECT 1")
    return value
