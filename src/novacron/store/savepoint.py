"""Parts of a transaction, of which one that fails takes back what it has written, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from novacron.store import deferred_writes
from novacron.store.database import LOST, OVERTAKEN, Connection

NOBODYS_FAULT = (*LOST, *OVERTAKEN)
"""What no part has caused: the transaction as a whole fails, and is tried again."""


@asynccontextmanager
async def savepoint(connection: Connection) -> AsyncIterator[None]:
    """Take back what is written in the block if that fails, what was put off to the transaction's end, too.

    The transaction can go on afterwards, unless what was raised is one of ``NOBODYS_FAULT``.
    """
    with deferred_writes.undone_with_block():
        async with connection.transaction():
            yield
