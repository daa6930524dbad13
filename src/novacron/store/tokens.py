"""Tokens: who may call, who may join. Only hashes are kept."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec

from novacron.model.errors import Conflict, NotFound, Unauthenticated
from novacron.model.token import Token, api_secret, hash_secret
from novacron.store import events
from novacron.store.database import Connection

COLUMNS = "id, name, revoked, revision, created_at"


async def create(connection: Connection, name: str, actor: str) -> tuple[Token, str]:
    """Store a new API token; return it with its secret, which is shown once and never again."""
    secret = api_secret(secrets.token_bytes(32))
    row: Any = await connection.fetchrow(
        f"INSERT INTO tokens (id, name, hash) VALUES ($1, $2, $3) RETURNING {COLUMNS}",
        "tok-" + secrets.token_hex(6),
        name,
        hash_secret(secret).hex(),
    )
    token = msgspec.convert(dict(row), Token)
    await events.record(connection, "token", token.id, name, "Created", f"API token {name} created", actor)
    return token, secret


async def revoke(connection: Connection, id: str, actor: str) -> None:
    """Revoke a token for good. Raises NotFound, and Conflict for the last one that is valid."""
    await connection.execute("LOCK TABLE tokens IN EXCLUSIVE MODE")
    valid = [row["id"] for row in await connection.fetch("SELECT id FROM tokens WHERE NOT revoked")]
    if valid == [id]:
        raise Conflict("it is the last valid token: nobody could call any more", hint="create another one first")
    name = await connection.fetchval("UPDATE tokens SET revoked = true WHERE id = $1 RETURNING name", id)
    if name is None:
        raise NotFound(f"there is no token {id!r}")
    await events.record(connection, "token", id, name, "Revoked", f"API token {name} revoked", actor)


async def first(connection: Connection) -> str | None:
    """Create the administrator's token if there is no token at all; return its secret, else None."""
    await connection.execute("LOCK TABLE tokens IN EXCLUSIVE MODE")
    if await connection.fetchval("SELECT EXISTS (SELECT FROM tokens)"):
        return None
    _, secret = await create(connection, "administrator", events.SYSTEM)
    return secret


async def create_join(connection: Connection, node: str | None, ttl_s: int, actor: str) -> str:
    """Store a one-time join secret, for the named node or any; return it."""
    secret = secrets.token_urlsafe(24)
    await connection.execute(
        "INSERT INTO join_tokens (hash, node, expires_at) VALUES ($1, $2, now() + make_interval(secs => $3))",
        hash_secret(secret),
        node,
        float(ttl_s),
    )
    message = f"join token for {node or 'any node'}, valid {ttl_s} s"
    await events.record(connection, "node", node or "-", node or "-", "JoinToken", message, actor)
    return secret


async def use_join(connection: Connection, secret: str, node: str) -> None:
    """Use up a join secret. Raises Unauthenticated when it is wrong, used, expired or for another node."""
    used = await connection.fetchval(
        "UPDATE join_tokens SET used_at = now() WHERE hash = $1 AND used_at IS NULL AND expires_at > now()"
        " AND (node IS NULL OR node = $2) RETURNING true",
        hash_secret(secret),
        node,
    )
    if not used:
        raise Unauthenticated(
            "the join token is wrong, used, expired or for another node",
            field="secret",
            hint="make one with: novacron node join-token",
        )
