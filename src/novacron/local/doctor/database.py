"""Is the database well: its version, its tables, its sessions."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg

from novacron.local.doctor.finding import Finding, bad, ok, warning
from novacron.local.postgres import ARCHIVER_SLOT
from novacron.model.errors import InvalidInput
from novacron.store import hosts
from novacron.store.database import SCHEMA_VERSION, SERVER_VERSION_MIN, oldest_served

CONNECT_S = 5.0


async def database(url: str) -> list[Finding]:
    try:
        connection = await hosts.connect(url, timeout=CONNECT_S)
    except (OSError, TimeoutError, ValueError, InvalidInput, asyncpg.PostgresError) as error:
        why = str(error) or type(error).__name__
        return [
            bad(
                "database", f"can't be reached: {why}", "check that PostgreSQL runs, and the address, name and password"
            )
        ]
    try:
        return [finding async for finding in _database(connection)]
    finally:
        await connection.close()


async def _database(connection: asyncpg.Connection) -> AsyncIterator[Finding]:
    number = int(await connection.fetchval("SHOW server_version_num"))
    text = f"PostgreSQL {number // 10000}"
    if number < SERVER_VERSION_MIN:
        yield bad("database", text, "install version 15 or later")
    else:
        yield ok("database", text)
    if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
        yield ok("database", "has no tables yet: the server creates them when it starts")
    else:
        schema = await connection.fetchval("SELECT version_num FROM alembic_version")
        if schema > SCHEMA_VERSION:
            oldest = await oldest_served(connection)
            says = warning if oldest is not None and oldest <= SCHEMA_VERSION else bad
            yield says(
                "database", f"its tables have a later version ({schema}, not {SCHEMA_VERSION})", "update NovaCron"
            )
        elif schema < SCHEMA_VERSION:
            yield warning("database", f"its tables have an earlier version ({schema}, not {SCHEMA_VERSION})",
                          "start this version's server: it upgrades them")  # fmt: skip
    used = await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")
    most = int(await connection.fetchval("SHOW max_connections"))
    if used > most * 0.9:
        yield bad("database", f"{used} of {most} sessions are used", "raise max_connections, or lower --pool")
    archived = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND active)", ARCHIVER_SLOT
    )
    if not archived and await connection.fetchval("SHOW archive_mode") == "off":
        yield warning("database", "its WAL is not archived: data can't be restored after a loss of its disk",
                      "start the server with --backup-repository; see docs/how-to/database-backup.md")  # fmt: skip
    open_s = await connection.fetchval(
        "SELECT coalesce(extract(epoch FROM max(clock_timestamp() - xact_start)), 0)::float8 FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    if open_s > 60:
        yield warning("database", f"a transaction has been open for {open_s:.0f} s: reads become stale",
                      "see docs/runbooks/alerts.md#readsareold")  # fmt: skip
