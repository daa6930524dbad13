"""API tokens and join tokens. Only hashes are kept."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from novacron.model import limits
from novacron.model.access import Right, Role
from novacron.model.errors import Conflict, NoCapacity, NotFound, Unauthenticated
from novacron.model.token import Lifetimes, Token, TokenKind, api_secret, hash_secret
from novacron.model.user import User, UserKind
from novacron.store import events, users
from novacron.store.database import Connection


class NewToken(NamedTuple):
    """A token that is asked for, or a session. ``scopes`` None: all that its user may do."""

    name: str
    scopes: Sequence[Right] | None = None
    project: str | None = None
    expires_in_s: int | None = None
    session: bool = False


async def create(connection: Connection, user: User, new: NewToken, actor: str) -> tuple[Token, str]:
    """Store a new token or session of a user; return it with its secret, which is shown once and never again.

    Raises NoCapacity.
    """
    name, scopes, project, expires_in_s, session = new
    count = await connection.fetchval(
        'SELECT count(*) FROM tokens WHERE "user" = $1 AND NOT revoked AND (expires_at IS NULL OR expires_at > now())',
        user.id,
    )
    if count >= limits.TOKENS_PER_USER_MAX:
        raise NoCapacity(f"user {user.name} has {count} tokens and sessions", hint="revoke some: novacron token list")
    secret = api_secret(secrets.token_bytes(32))
    row: Any = await connection.fetchrow(
        'INSERT INTO tokens (id, name, hash, kind, "user", user_name, scopes, project, expires_at)'
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, now() + make_interval(secs => $9)) RETURNING *",
        "tok-" + secrets.token_hex(6),
        name,
        hash_secret(secret).hex(),
        TokenKind.SESSION if session else TokenKind.API,
        user.id,
        user.name,
        None if scopes is None else list(scopes),
        project,
        None if expires_in_s is None else float(expires_in_s),
    )
    token = msgspec.convert({key: row[key] for key in Token.__struct_fields__}, Token)
    what = "logged in" if session else f"API token {name} created"
    await events.record(connection, events.NewEvent("token", token.id, name, "Created", what, actor))
    return token, secret


async def revoke(connection: Connection, id: str, actor: str) -> None:
    """Revoke a token, or end a session, for good.

    Raises NotFound, and Conflict for the last with which an administrator without a password can call.
    """
    await connection.execute("LOCK TABLE tokens IN EXCLUSIVE MODE")
    row = await connection.fetchrow("UPDATE tokens SET revoked = true WHERE id = $1 RETURNING name, kind", id)
    if row is None:
        raise NotFound(f"there is no token {id!r}")
    can_administer = await connection.fetchval(
        'SELECT EXISTS (SELECT FROM grants g JOIN users u ON u.id = g."user" WHERE g.project IS NULL'
        " AND g.role = 'administrator' AND NOT u.disabled AND (u.issuer IS NOT NULL"
        " OR EXISTS (SELECT FROM passwords p WHERE p.user_id = u.id)"
        ' OR EXISTS (SELECT FROM tokens t WHERE t."user" = u.id AND NOT t.revoked'
        " AND t.scopes IS NULL AND t.project IS NULL AND t.expires_at IS NULL)))"
    )
    if not can_administer:
        raise Conflict(
            "this would leave no way to administer the platform", hint="create another token first, or set a password"
        )
    what = "session ended" if row["kind"] == TokenKind.SESSION else f"API token {row['name']} revoked"
    await events.record(connection, events.NewEvent("token", id, row["name"], "Revoked", what, actor))


async def uses(connection: Connection, ids: Sequence[str]) -> dict[str, tuple[datetime, str]]:
    """Return when and from where tokens were used last."""
    rows = await connection.fetch("SELECT * FROM token_uses WHERE token = ANY($1)", ids)
    return {row["token"]: (row["used_at"], row["address"]) for row in rows}


async def used(connection: Connection, calls: Mapping[str, tuple[datetime, str]]) -> None:
    """Store when and from where tokens were used."""
    await connection.execute(
        "INSERT INTO token_uses (token, used_at, address)"
        " SELECT u.token, u.used_at, u.address FROM unnest($1::text[], $2::timestamptz[], $3::text[])"
        " AS u (token, used_at, address) WHERE EXISTS (SELECT FROM tokens t WHERE t.id = u.token)"
        " ON CONFLICT (token) DO UPDATE SET used_at = greatest(token_uses.used_at, excluded.used_at),"
        " address = excluded.address",
        list(calls), [at for at, _ in calls.values()], [address for _, address in calls.values()],
    )  # fmt: skip


async def still_used(connection: Connection, ids: Collection[str]) -> None:
    """Note that calls of tokens are going on, such as streams, from wherever they began."""
    await connection.execute("UPDATE token_uses SET used_at = now() WHERE token = ANY($1)", list(ids))


async def overdue(connection: Connection, lifetimes: Lifetimes) -> dict[str, str]:
    """Return the tokens and sessions that have lived, or were not used, for longer than they may: why, by their ids."""
    rows = await connection.fetch(
        "SELECT t.id, t.created_at < now() - make_interval(secs => l.life_s) AS old FROM tokens t"
        " JOIN (VALUES ($1, $2::float8, $3::float8), ($4, $5, $6)) AS l (kind, life_s, idle_s) ON l.kind = t.kind"
        " LEFT JOIN token_uses u ON u.token = t.id WHERE NOT t.revoked"
        " AND (t.created_at < now() - make_interval(secs => l.life_s)"
        " OR greatest(t.created_at, u.used_at) < now() - make_interval(secs => l.idle_s))",
        TokenKind.SESSION, lifetimes.session_s, lifetimes.session_idle_s,
        TokenKind.API, lifetimes.token_s, lifetimes.token_idle_s,
    )  # fmt: skip
    return {
        row["id"]: "it reached its maximum lifetime" if row["old"] else "it was unused for too long" for row in rows
    }


async def end(connection: Connection, id: str, why: str, actor: str) -> None:
    """Revoke a token, or end a session, that is overdue, even if it is the last with which an administrator can call:
    ``novacron server recover-admin`` makes another."""
    row = await connection.fetchrow(
        "UPDATE tokens SET revoked = true WHERE id = $1 AND NOT revoked RETURNING name, kind", id
    )
    if row is not None:
        what = "session" if row["kind"] == TokenKind.SESSION else f"API token {row['name']}"
        await events.record(connection, events.NewEvent("token", id, row["name"], "Revoked", f"{what}: {why}", actor))


async def prune(connection: Connection) -> None:
    """Forget sessions and tokens that ended a while ago."""
    await connection.execute(
        "DELETE FROM tokens WHERE expires_at < now() - interval '7 days' OR (revoked AND kind = 'session')"
    )


async def first(connection: Connection) -> str | None:
    """Create the administrator's token if there is no token at all; return its secret, else None."""
    await connection.execute("LOCK TABLE tokens IN EXCLUSIVE MODE")
    if await connection.fetchval("SELECT EXISTS (SELECT FROM tokens)"):
        return None
    user = await users.create(connection, users.ADMINISTRATOR, UserKind.PERSON, None, events.SYSTEM)
    await users.grant(connection, user.id, None, Role.ADMINISTRATOR, events.SYSTEM)
    _, secret = await create(connection, user, NewToken("first"), events.SYSTEM)
    return secret


async def create_join(connection: Connection, node: str, ttl_s: int, actor: str, *, accept: bool) -> str:
    """Store a one-time join secret for the named node, which is accepted with it or not; return it."""
    secret = secrets.token_urlsafe(24)
    await connection.execute(
        "INSERT INTO join_tokens (hash, node, expires_at, accept)"
        " VALUES ($1, $2, now() + make_interval(secs => $3), $4)",
        hash_secret(secret), node, float(ttl_s), accept,
    )  # fmt: skip
    message = f"join token for {node}, valid {ttl_s} s" + (", which accepts it" if accept else "")
    await events.record(connection, events.NewEvent("node", node, node, "JoinToken", message, actor))
    return secret


async def use_join(connection: Connection, secret: str, node: str) -> bool:
    """Use up a join secret and say whether it accepts the host as a node.

    Raises Unauthenticated when it is wrong, used, expired or for another node.
    """
    accepts: bool | None = await connection.fetchval(
        "UPDATE join_tokens SET used_at = now() WHERE hash = $1 AND used_at IS NULL AND expires_at > now()"
        " AND node = $2 RETURNING accept",
        hash_secret(secret), node,
    )  # fmt: skip
    if accepts is None:
        raise Unauthenticated(
            "the join token is wrong, used, expired or for another node",
            field="secret",
            hint=f"make one with: novacron node join-token --node {node}",
        )
    return accepts
