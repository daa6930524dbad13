"""Backups of the simulation's database: all that the servers have in it, but for events and changes."""

from __future__ import annotations

from novacron.store.database import Connection

LEFT_OUT = ("alembic_version", "changes", "events")
COLUMNS = """
    SELECT table_name, string_agg(quote_ident(column_name), ', ' ORDER BY ordinal_position) AS columns
    FROM information_schema.columns
    WHERE table_schema = 'public' AND is_generated = 'NEVER' AND table_name <> ALL($1)
      AND table_name IN (SELECT tablename FROM pg_tables WHERE schemaname = 'public')
    GROUP BY table_name ORDER BY table_name
"""

Backup = dict[str, str]
"""The rows of each table, as JSON."""


async def make(connection: Connection) -> Backup:
    """Return what is in the database."""
    tables = [row["table_name"] for row in await connection.fetch(COLUMNS, list(LEFT_OUT))]
    each = ", ".join(f"(SELECT coalesce(jsonb_agg(t), '[]')::text FROM {table} t) AS {table}" for table in tables)
    row = await connection.fetchrow(f"SELECT {each}")
    assert row is not None
    return dict(row)


async def put_back(connection: Connection, backup: Backup) -> None:
    """Let the database be as it was. Must run in a transaction."""
    columns = {row["table_name"]: row["columns"] for row in await connection.fetch(COLUMNS, list(LEFT_OUT))}
    await connection.execute("SET LOCAL session_replication_role = replica")  # as a restore does: no triggers
    for table, rows in backup.items():
        await connection.execute(f"DELETE FROM {table}")
        if rows != "[]":
            await connection.execute(
                f"INSERT INTO {table} ({columns[table]}) OVERRIDING SYSTEM VALUE SELECT {columns[table]}"
                f" FROM jsonb_populate_recordset(NULL::{table}, $1::text::jsonb)",
                rows,
            )
