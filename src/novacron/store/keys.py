"""The platform's keys in the database: sealed, by generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from novacron.model.key import KeyName
from novacron.store.database import Connection

SPREAD_S = 10.0
"""How long a new generation is accepted before it is used: every server looks for new ones more often."""


class StoredKey(msgspec.Struct, frozen=True):
    """One generation of a key."""

    name: KeyName
    generation: int
    sealed: bytes
    certificate: str
    """Of a CA (PEM)."""
    mark: str
    """What tells this CA from others."""
    created_at: datetime
    used_from: datetime | None
    retired_at: datetime | None
    """When it was said that nothing hangs on this CA any more."""
    in_use: bool
    """It may have made what others check. The newest of these makes it now."""


class NewKey(NamedTuple):
    """A generation to be stored."""

    sealed: bytes
    certificate: str = ""
    mark: str = ""
    next_seal: tuple[str, bytes] | None = None
    """The mark of the key with which keys are sealed from the end of this rotation on, and it, sealed."""


async def read(connection: Connection, *, lock: bool = False) -> list[StoredKey]:
    """Return all generations of all keys, the oldest first. ``lock``: until the transaction ends."""
    rows = await connection.fetch(
        "SELECT *, coalesce(used_from <= clock_timestamp(), false) AS in_use FROM platform_keys"
        f" ORDER BY name, generation{' FOR UPDATE' if lock else ''}"
    )
    return [msgspec.convert(dict(row), StoredKey) for row in rows]


async def register(connection: Connection, name: KeyName, key: NewKey, created_at: datetime) -> None:
    """Store the first generation of a key, unless there is one."""
    await connection.execute(
        "INSERT INTO platform_keys (name, generation, sealed, certificate, mark, created_at, used_from)"
        " SELECT $1, 1, $2, $3, $4, $5, $5 WHERE NOT EXISTS (SELECT FROM platform_keys WHERE name = $1)"
        " ON CONFLICT DO NOTHING",
        name, key.sealed, key.certificate, key.mark, created_at,
    )  # fmt: skip


async def add(connection: Connection, name: KeyName, generation: int, key: NewKey) -> None:
    """Store another generation. A CA's is used once it is trusted everywhere, any other after a while."""
    await connection.execute(
        "INSERT INTO platform_keys (name, generation, sealed, certificate, mark, used_from) VALUES ($1, $2, $3, $4, $5,"
        " clock_timestamp() + make_interval(secs => $6))",
        name, generation, key.sealed, key.certificate, key.mark, None if name is KeyName.CA else SPREAD_S,
    )  # fmt: skip
    if key.next_seal is not None:
        await connection.execute("INSERT INTO key_seals (mark, sealed) VALUES ($1, $2)", *key.next_seal)


async def drop(connection: Connection, key: StoredKey) -> None:
    await connection.execute("DELETE FROM platform_keys WHERE name = $1 AND generation = $2", key.name, key.generation)


async def next_seal(connection: Connection) -> tuple[str, bytes] | None:
    """Return the key with which keys are to be sealed next: its mark, and it, sealed."""
    row = await connection.fetchrow("SELECT mark, sealed FROM key_seals")
    return None if row is None else (row["mark"], row["sealed"])


async def seal_anew(connection: Connection, stored: Sequence[StoredKey], seal: Callable[[StoredKey], bytes]) -> None:
    """Seal all of these with the next key, which is the present one from now on."""
    for key in stored:
        await connection.execute(
            "UPDATE platform_keys SET sealed = $3 WHERE name = $1 AND generation = $2",
            key.name, key.generation, seal(key),
        )  # fmt: skip
    await connection.execute("DELETE FROM key_seals")
