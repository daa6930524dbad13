"""Erasure of a person's data: a pseudonym takes the place of their name and addresses in all that was recorded."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import Any

import msgspec

from novacron.audit_chain import entries
from novacron.audit_chain.entries import ChainedRecord
from novacron.store import audit_chain
from novacron.store.database import Connection

BATCH_MAX = 1000
ERASE_S_MAX = 300
"""How long one statement may take."""
ABOUT_USERS = ("/api/v1/users", "/api/v1/login", "/api/v1/grants", "/api/v1/invitations", "/api/v1/tokens",
               "/api/v1/oidc", "novacron server")  # fmt: skip
"""Paths of requests whose object may be a user: elsewhere the same name is another thing's."""


class Erasure(msgspec.Struct, frozen=True):
    """An erased person's pseudonym, and in how many records of the audit log it stands."""

    pseudonym: str
    records: int


def new_pseudonym() -> str:
    return f"erased-{secrets.token_hex(6)}"


def personal_fields(record: ChainedRecord, id: str, name: str) -> frozenset[str]:
    """Return the fields of a record that name a person or say where they were."""
    theirs = record.actor == name or record.user_id == id
    fields = {"actor", "address"} if theirs else set()
    if record.path.startswith(ABOUT_USERS) or theirs:
        word = re.compile(rf"(?<![\w.@+-]){re.escape(name)}(?![\w.@+-])")
        texts = {"path": record.path, "detail": record.detail}
        fields |= {field for field, text in texts.items() if word.search(text)}
    if record.path.startswith(ABOUT_USERS):
        fields |= {field for field in ("object", "name") if getattr(record, field) in (name, id)}
        if record.path.startswith("/api/v1/login") and record.name == name:
            fields.add("address")
    return frozenset(fields)


async def find(connection: Connection, ref: str) -> tuple[str, str, bool]:
    """Return id and name of the user to erase, and whether they still exist; who was deleted is known by either."""
    row = await connection.fetchrow("SELECT id, name FROM users WHERE id = $1 OR name = $1", ref)
    return (ref, ref, False) if row is None else (row["id"], row["name"], True)


async def erase(connection: Connection, id: str, name: str) -> Erasure:
    """Erase what was recorded of a user who was deleted."""
    pseudonym = new_pseudonym()
    await connection.execute(f"SET LOCAL statement_timeout = '{ERASE_S_MAX}s'")
    await connection.execute("SET LOCAL novacron.audit = 'erase'")
    await audit_chain.lock(connection)
    records = await _audit(connection, id, name, pseudonym)
    await connection.execute("UPDATE events SET actor = $2 WHERE actor = $1", name, pseudonym)
    await connection.execute(
        "UPDATE events SET name = $3, message = '' WHERE kind = 'user' AND (object = $1 OR name = $2)",
        id, name, pseudonym,
    )  # fmt: skip
    await connection.execute("UPDATE api_log SET user_name = $2, address = '-' WHERE user_name = $1", name, pseudonym)
    await connection.execute("UPDATE drains SET actor = $2 WHERE actor = $1", name, pseudonym)
    await connection.execute("DELETE FROM invitations WHERE user_name = $1 OR actor = $1", name)
    return Erasure(pseudonym, records)


async def _audit(connection: Connection, id: str, name: str, pseudonym: str) -> int:
    """Erase a person in the audit log; return in how many records."""
    ids = [row["id"] for row in await connection.fetch(
        "SELECT id FROM audit WHERE actor = $1 UNION SELECT id FROM audit WHERE object IN ($1, $2)"
        " UNION SELECT id FROM audit WHERE name = $1 ORDER BY id",
        name, id,
    )]  # fmt: skip
    count = 0
    for begin in range(0, len(ids), BATCH_MAX):
        count += await _batch(connection, ids[begin : begin + BATCH_MAX], id, name, pseudonym)
    return count


async def _batch(connection: Connection, ids: Sequence[int], id: str, name: str, pseudonym: str) -> int:
    changed, linked = list[tuple[Any, ...]](), list[tuple[Any, ...]]()
    for record, entry in await audit_chain.records(connection, ids):
        fields = personal_fields(record, id, name)
        if not fields:
            continue
        changed.append((record.id, *(pseudonym if field in fields else getattr(record, field)
                                     for field in entries.PERSONAL)))  # fmt: skip
        if entry is not None:
            linked.append((record.id, msgspec.to_builtins(entries.erase(entry, record, fields, pseudonym))))
    await connection.executemany(
        f"UPDATE audit SET {', '.join(f'{field} = ${n}' for n, field in enumerate(entries.PERSONAL, 2))} WHERE id = $1",
        changed,
    )
    await connection.executemany("UPDATE audit_links SET salt = NULL, erased = $2 WHERE record = $1", linked)
    return len(changed)
