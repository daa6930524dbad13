"""Logins at a provider that have ended: each ends once, on whichever server."""

from __future__ import annotations

from novacron.model.token import hash_secret
from novacron.store.database import Connection


async def end(connection: Connection, state: str, expires_at_s: float) -> bool:
    """Note that a login ends; say whether it had not ended before."""
    noted = await connection.fetchval(
        "INSERT INTO ended_logins (hash, expires_at) VALUES ($1, to_timestamp($2))"
        " ON CONFLICT DO NOTHING RETURNING true",
        hash_secret(state), expires_at_s,
    )  # fmt: skip
    return bool(noted)
