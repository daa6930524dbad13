"""Sessions and API tokens end when they have lived, or were not used, for as long as they may."""

from __future__ import annotations

import pytest

from novacron.api.access.recorder import Recorder
from novacron.control.objects import Objects
from novacron.control.sessions import Sessions
from novacron.model.errors import InvalidInput
from novacron.model.token import Lifetimes
from novacron.model.user import UserKind
from novacron.store import tokens, users
from novacron.store.database import Connection, Database

HOUR_S, DAY_S = 3600.0, 86_400.0
LIMITS = Lifetimes(session_s=12 * HOUR_S, session_idle_s=HOUR_S, token_s=90 * DAY_S, token_idle_s=30 * DAY_S)


async def made(
    connection: Connection, name: str, *, age_s: float, unused_s: float | None, session: bool = False
) -> str:
    """Store a token of a user ann's that is so old and was used so long ago."""
    user = await users.get(connection, "ann")
    token, _ = await tokens.create(connection, user, tokens.NewToken(name, session=session), "ann")
    await connection.execute(
        "UPDATE tokens SET created_at = now() - make_interval(secs => $2) WHERE id = $1", token.id, age_s
    )
    if unused_s is not None:
        await connection.execute(
            "INSERT INTO token_uses VALUES ($1, now() - make_interval(secs => $2), '192.0.2.1')", token.id, unused_s
        )
    return token.id


async def valid(database: Database) -> set[str]:
    async with database.connection() as connection:
        return {row["name"] for row in await connection.fetch("SELECT name FROM tokens WHERE NOT revoked")}


async def test_what_is_too_old_or_was_not_used_for_too_long_ends(database: Database) -> None:
    async with database.transaction() as connection:
        await users.create(connection, "ann", UserKind.PERSON, None, "test")
        await made(connection, "fresh session", age_s=HOUR_S / 2, unused_s=None, session=True)
        await made(connection, "busy session", age_s=11 * HOUR_S, unused_s=60, session=True)
        streaming = await made(connection, "streaming session", age_s=11 * HOUR_S, unused_s=2 * HOUR_S, session=True)
        await made(connection, "idle session", age_s=2 * HOUR_S, unused_s=1.1 * HOUR_S, session=True)
        await made(connection, "never used session", age_s=1.1 * HOUR_S, unused_s=None, session=True)
        await made(connection, "old session", age_s=12.1 * HOUR_S, unused_s=1, session=True)
        await made(connection, "good token", age_s=89 * DAY_S, unused_s=29 * DAY_S)
        await made(connection, "idle token", age_s=40 * DAY_S, unused_s=31 * DAY_S)
        await made(connection, "old token", age_s=91 * DAY_S, unused_s=1)
    await Recorder(database, lambda: {streaming})._flush_uses()
    every = await valid(database)
    await Sessions(Lifetimes(session_s=365 * DAY_S, session_idle_s=None)).step(database, Objects("sessions"))
    assert await valid(database) == every, "without limits none ends"
    await Sessions(LIMITS).step(database, Objects("sessions"))
    assert await valid(database) == {"fresh session", "busy session", "streaming session", "good token"}
    async with database.connection() as connection:
        said = await connection.fetch("SELECT name, message FROM events WHERE reason = 'Revoked' AND actor = 'system'")
    assert {(row["name"], row["message"]) for row in said} >= {
        ("old token", "API token old token: it reached its maximum lifetime"),
        ("idle token", "API token idle token: it was unused for too long"),
    }


def test_an_api_token_is_made_for_no_longer_than_it_may_live() -> None:
    assert LIMITS.of_token(None) == 90 * DAY_S
    assert LIMITS.of_token(600) == 600
    assert Lifetimes().of_token(None) is None
    with pytest.raises(InvalidInput, match="7776000 s at most") as refused:
        LIMITS.of_token(int(91 * DAY_S))
    assert refused.value.field == "expires_in_s"
