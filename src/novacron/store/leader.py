"""Who leads: one process at a time holds a controller's advisory lock, for as long as its connection lives."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import asyncpg

from novacron.store.database import LOST, connect

TRY_AGAIN_S = 2.0


@contextlib.asynccontextmanager
async def leadership(url: str, name: str) -> AsyncIterator[asyncpg.Connection]:
    """Wait until this process leads ``name``; leading ends with the block or with the connection.

    A leader that lost its connection may act once more on what it had read: every write that matters therefore
    checks its premise in its own transaction.
    """
    connection = await connect(url)
    try:
        # Tried again and again instead of waited for: a waiting statement would hold the feed's horizon back.
        while not await connection.fetchval("SELECT pg_try_advisory_lock(hashtext($1))", f"novacron.{name}"):  # noqa: ASYNC110
            await asyncio.sleep(TRY_AGAIN_S)
        yield connection
    finally:
        with contextlib.suppress(*LOST, asyncpg.PostgresError):
            await connection.close(timeout=2)
