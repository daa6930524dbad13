"""Links that log a user in to the web UI: each works once, and no longer than the token that asked for it."""

from __future__ import annotations

import secrets
from datetime import datetime

from novacron.model import limits
from novacron.model.token import hash_secret
from novacron.store.database import Connection

PREFIX = "nvl_"
"""Prefix of a link's secret."""


async def create(connection: Connection, token: str) -> tuple[str, datetime]:
    """Make a link for the user of a token or session; return its secret, and until when it works. One that the token
    asked for before works no more."""
    secret = PREFIX + secrets.token_urlsafe(32)
    expires_at: datetime = await connection.fetchval(
        "INSERT INTO login_links (hash, token, expires_at) VALUES ($1, $2, now() + make_interval(secs => $3))"
        " ON CONFLICT (token) DO UPDATE SET hash = excluded.hash, expires_at = excluded.expires_at"
        " RETURNING expires_at",
        hash_secret(secret), token, float(limits.LOGIN_LINK_S),
    )  # fmt: skip
    return secret, expires_at


async def use(connection: Connection, secret: str) -> tuple[str, datetime | None] | None:
    """Use a link up; return the id of its user and when the token that asked for it ends, or None: it works no
    more."""
    row = await connection.fetchrow(
        'DELETE FROM login_links l USING tokens t, users u WHERE l.hash = $1 AND t.id = l.token AND u.id = t."user"'
        " AND l.expires_at > now() AND NOT t.revoked AND (t.expires_at IS NULL OR t.expires_at > now())"
        " AND NOT u.disabled RETURNING u.id, t.expires_at",
        hash_secret(secret),
    )
    return None if row is None else (row["id"], row["expires_at"])
