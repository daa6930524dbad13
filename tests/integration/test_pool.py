"""Servers that share a database share its connections: one that can't have another one waits for those that it has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from typing import TypeAlias

import asyncpg

from novacron.model.errors import Unavailable
from novacron.store.database import Connection, Database, connect

Lend: TypeAlias = Callable[[], AbstractAsyncContextManager[Connection]]


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


async def test_work_that_is_cancelled_while_the_database_ends_its_connection_is_cancelled(database: Database) -> None:
    """A rollback that fails must not make a failure of it, which whoever retries would go on after."""
    for lend in (database.transaction, database.connection):
        began: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def work(lend: Lend = lend, began: asyncio.Future[int] = began) -> None:
            while True:  # as what retries does
                with suppress(Unavailable):
                    async with lend() as connection:
                        began.set_result(await connection.fetchval("SELECT pg_backend_pid()"))
                        try:
                            await asyncio.Event().wait()
                        finally:
                            await connection.execute("SELECT 1")

        task = asyncio.create_task(work())
        process = await began
        other = await connect(database.url)
        assert await other.fetchval("SELECT pg_terminate_backend($1, 5000)", process)
        await other.close()
        task.cancel()
        async with asyncio.timeout(5):
            await asyncio.wait([task])
        assert task.cancelled()


async def _work(connection: Connection) -> int:
    value: int = await connection.fetchval("SELECT 1")
    return value
