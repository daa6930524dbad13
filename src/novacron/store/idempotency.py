"""Idempotency keys: the same request sent twice has one effect and one answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import asyncpg
import msgspec

from novacron.model.errors import IdempotencyMismatch
from novacron.model.vm import Vm
from novacron.store import deferred_writes, vms
from novacron.store.database import Connection, Database

TURN = "SELECT true AS taken FROM pg_advisory_xact_lock(hashtextextended($1::text || chr(1) || $2::text, 0))"
"""Waits until no other request with the key is at work, before anything is written or locked: a request that had locked
what it changes, and then waited for the key, could wait for one that has the key and waits for what it changes. Whoever
waits here has no transaction id, and holds up no reader of the feed."""
_CLAIM = f"""
    WITH turn AS MATERIALIZED ({TURN})
    INSERT INTO idempotency (token, key, request) SELECT $1, $2, $3::bytea WHERE EXISTS (SELECT FROM turn)
    ON CONFLICT DO NOTHING RETURNING key
"""
_COLUMNS = ", ".join(
    "to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') AS created_at"
    if field == "created_at"
    else field
    for field in Vm.__struct_fields__
)
STORE_VM = f"""
    INSERT INTO idempotency (token, key, request, status, body, headers)
    SELECT $1::text, $2::text, $3::bytea, $4::int, convert_to(row_to_json(vm)::text, 'UTF8'),
           jsonb_build_object('ETag', '"' || vm.revision || '"') || $5::jsonb
    FROM (SELECT {_COLUMNS} FROM done) vm RETURNING body AS answer_body
"""
"""Stores the answer to a request that created or changed one VM, made of that VM's row."""


TRY_TURN = "pg_try_advisory_xact_lock(hashtextextended(claim.token || chr(1) || claim.key, 0))"
"""Whether no other request with a ``claim``'s key is at work; none may begin then."""


def store_vms(status: str) -> str:
    """Return the statement that stores the answers to requests of which each created one VM of ``done``, made of its
    row, for their claims in ``turn``. ``status``: the argument with the answers' status."""
    return f"""
        INSERT INTO idempotency (token, key, request, status, body, headers)
        SELECT turn.token, turn.key, turn.request, {status}::int, convert_to(row_to_json(made)::text, 'UTF8'),
               jsonb_build_object('ETag', '"' || made.revision || '"') || turn.headers
        FROM (SELECT {_COLUMNS} FROM done) made JOIN turn ON turn.vm = made.id WHERE turn.key IS NOT NULL
        RETURNING token, key, body
    """


class KeyClaim(msgspec.Struct, frozen=True):
    """A key that a caller sent with a request."""

    token: str
    """Keys of different tokens do not meet."""
    key: str
    request: bytes
    """Digest of method, path and body."""
    digests_before: tuple[bytes, ...] = ()
    """The same, made with other generations of the key that makes them."""


class StoredAnswer(msgspec.Struct, frozen=True):
    """A stored response."""

    status: int
    body: bytes
    headers: dict[str, str]


async def claim(connection: Connection, claimed: KeyClaim) -> StoredAnswer | None:
    """Take the key in this transaction, or return the answer that its first request got.

    Of two requests at once, the second waits here for the first one's transaction. Raises IdempotencyMismatch when
    the key was already used for another request.
    """
    row = await connection.fetchrow(_CLAIM, claimed.token, claimed.key, claimed.request)
    if row is not None:
        return None
    row = await connection.fetchrow(
        "SELECT request, status, body, headers FROM idempotency WHERE token = $1 AND key = $2",
        claimed.token,
        claimed.key,
    )
    if row is None or row["request"] not in (claimed.request, *claimed.digests_before):
        raise IdempotencyMismatch(
            f"the key {claimed.key!r} was already used for another request",
            field="Idempotency-Key",
            hint="use a new key",
        )
    if row["request"] != claimed.request:  # once more, and it is known after the end of the former generation, too
        await connection.execute(
            "UPDATE idempotency SET request = $3 WHERE token = $1 AND key = $2",
            claimed.token, claimed.key, claimed.request,
        )  # fmt: skip
    return StoredAnswer(row["status"], row["body"], row["headers"])


async def settle(connection: Connection, claimed: KeyClaim, answer: StoredAnswer) -> None:
    """Store the answer, in the transaction that did the work."""
    await deferred_writes.execute(
        connection,
        "UPDATE idempotency SET status = $3, body = $4, headers = $5 WHERE token = $1 AND key = $2",
        claimed.token, claimed.key, answer.status, answer.body, answer.headers,
    )  # fmt: skip


async def change_vm_at_once(
    database: Database, change: vms.OneStatement,
    rows: Mapping[deferred_writes.Table, Sequence[Sequence[object]]],
    claimed: KeyClaim, status: int, headers: dict[str, str],
) -> tuple[Vm, bytes] | None:  # fmt: skip
    """Change a VM in one round trip, with its key and the answer; return the VM and the answer's body.

    None, and nothing has changed, if the statement returns no row or the key was used before: of two such requests at
    once, the second waits for the first. ``headers``: of the answer, besides its ETag. Raises Unavailable.
    """
    store = (STORE_VM, [claimed.token, claimed.key, claimed.request, status, headers])
    try:
        turn = (TURN, [claimed.token, claimed.key])
        row = await database.at_once(change.statement, change.arguments, rows, store, turn)
    except asyncpg.UniqueViolationError:
        return None
    return None if row is None else (msgspec.convert(dict(row), Vm), row["answer_body"])
