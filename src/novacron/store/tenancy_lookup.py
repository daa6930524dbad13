"""Whose an object is, straight from the tables: for what a replica has not heard of yet."""

from __future__ import annotations

from novacron.store.database import Connection
from novacron.store.feed import TABLES

BY_NAME = ("network", "security-group", "flavor", "template")


async def find(connection: Connection, kind: str, ref: str, *, by_name: bool) -> list[tuple[str, str | None]]:
    """Return ``(key, project)`` of the object of a project with this key, or of those with this name."""
    table, key = TABLES[kind]
    rows = await connection.fetch(f"SELECT {key} AS key, project FROM {table} WHERE {key} = $1", ref)
    if not rows and by_name:
        rows = await connection.fetch(f"SELECT {key} AS key, project FROM {table} WHERE name = $1", ref)
    return [(row["key"], row["project"]) for row in rows]
