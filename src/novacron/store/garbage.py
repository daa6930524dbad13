"""What may be forgotten, and after how long."""

from __future__ import annotations

from novacron.model import limits
from novacron.store import feed
from novacron.store.database import Connection


async def collect(connection: Connection) -> None:
    """Delete records past their retention."""
    await feed.prune(connection, limits.CHANGES_RETENTION_S)
    for table, column, seconds in (
        ("idempotency", "created_at", limits.IDEMPOTENCY_RETENTION_S),
        ("events", "at", limits.EVENTS_RETENTION_S),
        ("vm_tombstones", "deleted_at", limits.TOMBSTONE_RETENTION_S),
        ("join_tokens", "expires_at", limits.IDEMPOTENCY_RETENTION_S),
        ("tickets", "expires_at", limits.TICKET_S),
        ("migrations", "finished_at", limits.EVENTS_RETENTION_S),
        ("imports", "finished_at", limits.EVENTS_RETENTION_S),
        ("exports", "created_at", limits.EXPORT_RETENTION_S),
    ):
        await connection.execute(
            f"DELETE FROM {table} WHERE {column} < now() - make_interval(secs => $1)",
            float(seconds),
        )
