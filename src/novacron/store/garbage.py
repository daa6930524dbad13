"""What may be forgotten, and after how long."""

from __future__ import annotations

from novacron.model import limits
from novacron.store import audit, feed, tokens
from novacron.store.database import Connection


async def collect(connection: Connection) -> None:
    """Delete records past their retention."""
    await feed.prune(connection, limits.CHANGES_RETENTION_S)
    await tokens.prune(connection)
    await audit.prune(connection, limits.AUDIT_RETENTION_S, limits.API_LOG_RETENTION_S)
    await connection.execute(
        "UPDATE imports SET aborting = true, phase = 'failed', error = 'its upload was not finished',"
        " finished_at = now() WHERE finished_at IS NULL AND phase = 'receiving' AND spec ->> 'source' = 'upload'"
        " AND created_at < now() - make_interval(secs => $1)",
        float(limits.UPLOAD_S_MAX),
    )
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
