"""Idempotency keys: the same request twice has one effect and one answer."""

from __future__ import annotations

import msgspec

from novacron.model.errors import IdempotencyMismatch
from novacron.store import deferred_writes
from novacron.store.database import Connection


class Answer(msgspec.Struct, frozen=True):
    """A stored response."""

    status: int
    body: bytes
    headers: dict[str, str]


async def claim(connection: Connection, token: str, key: str, request: bytes) -> Answer | None:
    """Take the key in this transaction, or return the answer that its first request got.

    Of two requests at once, the second waits here for the first one's transaction. Raises IdempotencyMismatch when
    the key was used for another request (``request`` is a digest of method, path and body).
    """
    row = await connection.fetchrow(
        "INSERT INTO idempotency (token, key, request) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING key",
        token,
        key,
        request,
    )
    if row is not None:
        return None
    row = await connection.fetchrow(
        "SELECT request, status, body, headers FROM idempotency WHERE token = $1 AND key = $2", token, key
    )
    if row is None or row["request"] != request:
        raise IdempotencyMismatch(
            f"the key {key!r} was used for another request", field="Idempotency-Key", hint="use a new key"
        )
    return Answer(row["status"], row["body"], row["headers"])


async def settle(connection: Connection, token: str, key: str, answer: Answer) -> None:
    """Store the answer, in the transaction that did the work."""
    await deferred_writes.execute(
        connection,
        "UPDATE idempotency SET status = $3, body = $4, headers = $5 WHERE token = $1 AND key = $2",
        token,
        key,
        answer.status,
        answer.body,
        answer.headers,
    )
