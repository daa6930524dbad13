"""What may be forgotten, and after how long."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from novacron.model import limits
from novacron.model.waiting import WaitCode
from novacron.store import audit, feed, tokens
from novacron.store.database import Connection

RETENTION_S = {
    "idempotency": ("created_at", limits.IDEMPOTENCY_RETENTION_S),
    "events": ("at", limits.EVENTS_RETENTION_S),
    "vm_tombstones": ("deleted_at", limits.TOMBSTONE_RETENTION_S),
    "join_tokens": ("expires_at", limits.IDEMPOTENCY_RETENTION_S),
    "invitations": ("expires_at", 0),
    "ended_logins": ("expires_at", 0),
    "login_steps": ("expires_at", 0),
    "login_links": ("expires_at", 0),
    "revoked_keys": ("revoked_at", limits.REVOKED_KEY_RETENTION_S),
    "tickets": ("expires_at", limits.TICKET_S),
    "migrations": ("finished_at", limits.EVENTS_RETENTION_S),
    "imports": ("finished_at", limits.EVENTS_RETENTION_S),
    "exports": ("created_at", limits.EXPORT_RETENTION_S),
}
"""Of each table: the column that says how old a row is, and the age at which it goes."""


async def _changes(connection: Connection) -> None:
    await feed.prune(connection, limits.CHANGES_RETENTION_S)


async def _calls(connection: Connection) -> None:
    await audit.prune_calls(connection, limits.API_LOG_RETENTION_S)


async def _stalled_imports(connection: Connection) -> None:
    """End imports that hold a place and do not go on, and uploads that never end."""
    await connection.execute(
        "UPDATE imports SET aborting = true, phase = 'failed', error = 'it did not go on', finished_at = now(),"
        " reason_code = $3"
        " WHERE finished_at IS NULL AND (progressed_at < now() - make_interval(secs => $1) OR phase = 'receiving'"
        " AND spec ->> 'source' = 'upload' AND created_at < now() - make_interval(secs => $2))",
        float(limits.IMPORT_STALL_S_MAX), float(limits.UPLOAD_S_MAX), WaitCode.TIME_LIMIT,
    )  # fmt: skip


async def _old_rows(connection: Connection, table: str) -> None:
    column, age_s = RETENTION_S[table]
    await connection.execute(
        f"DELETE FROM {table} WHERE {column} < now() - make_interval(secs => $1)",
        float(age_s),
    )


COLLECTORS: dict[str, Callable[[Connection], Awaitable[object]]] = {
    "changes": _changes,
    "tokens": tokens.prune,
    "api-log": _calls,
    "imports that stall": _stalled_imports,
    **{table: partial(_old_rows, table=table) for table in RETENTION_S},
}
"""How records of each kind past their retention are deleted."""
