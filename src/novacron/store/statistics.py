"""What PostgreSQL says of itself, read from time to time for metrics (its documentation: The Cumulative Statistics
System)."""

from __future__ import annotations

import asyncio

from novacron.model.errors import Unavailable
from novacron.store.database import Database
from novacron.telemetry import logs
from novacron.telemetry.values import gauge

log = logs.get(__name__)

READ_S = 15.0
PREFIX = "novacron_database_"
QUERY = """
    SELECT pg_database_size(current_database())::float8 AS size_bytes,
           (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')::float8 AS sessions,
           current_setting('max_connections')::float8 AS sessions_max,
           COALESCE((SELECT extract(epoch FROM max(clock_timestamp() - xact_start)) FROM pg_stat_activity
                     WHERE datname = current_database() AND pid <> pg_backend_pid()), 0)::float8
               AS longest_transaction_seconds,
           (SELECT COALESCE(sum(n_dead_tup), 0) FROM pg_stat_user_tables)::float8 AS dead_rows,
           (current_setting('archive_mode') <> 'off')::int::float8 AS archiving,
           COALESCE(extract(epoch FROM last_archived_time), 0)::float8 AS archived_timestamp_seconds,
           failed_count::float8 AS archive_failures,
           (SELECT count(*) FROM pg_stat_replication)::float8 AS replicas
    FROM pg_stat_archiver
"""


async def watch(database: Database) -> None:
    """Read it, until cancelled. While the database is away, what was read last stays."""
    while True:
        try:
            async with database.connection() as connection:
                row = await connection.fetchrow(QUERY)
            assert row is not None
            for name, value in row.items():
                gauge(PREFIX + name).set(value)
        except Unavailable as error:
            log.debug("the database's statistics can't be read", error=error.detail)
        await asyncio.sleep(READ_S)
