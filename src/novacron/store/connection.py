"""What statements are sent over: a connection of the pool, or one of its own."""

from __future__ import annotations

import asyncpg

Connection = asyncpg.pool.PoolConnectionProxy | asyncpg.Connection
