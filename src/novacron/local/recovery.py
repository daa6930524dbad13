"""A new administrator's token for an installation whose only one is lost. Who can open the database proves enough."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import asyncpg

from novacron import context_file
from novacron.local.postgres import Postgres, PostgresFailed
from novacron.model.access import Role
from novacron.model.audit import AuditedRequest, AuditOutcome
from novacron.model.errors import NotFound
from novacron.model.user import User, UserKind
from novacron.store import audit, events, tokens, users
from novacron.store.database import Connection, Database

CONNECTIONS = 5
CONNECT_S = 5.0
COMMAND = "novacron server recover-admin"


class Recovered(NamedTuple):
    """``revoked``: how many other tokens and sessions of the user have ended."""

    user: str
    secret: str
    revoked: int


class RecoveryFailed(Exception):
    """No token was made: says why."""


async def recover(state_dir: Path, url: str | None, name: str, revoke_others: bool) -> Recovered:
    """Let a user be an administrator who has a new token; make the user if there is none.

    ``url`` None: the database is the embedded one in ``state_dir``, which may run or not. Raises NovaError,
    RecoveryFailed.
    """
    try:
        async with _reachable(state_dir, url) as reachable:
            database = await Database.open(reachable, CONNECTIONS)
            try:
                async with database.transaction() as connection:
                    return await _recover(connection, name, revoke_others=revoke_others)
            finally:
                await database.close()
    except (OSError, TimeoutError, ValueError, asyncpg.PostgresError, PostgresFailed) as error:
        raise RecoveryFailed(f"can't use the database: {str(error) or type(error).__name__}") from error


@contextlib.asynccontextmanager
async def _reachable(state_dir: Path, url: str | None) -> AsyncIterator[str]:
    """Yield the URL of the database; an embedded one that does not run is started meanwhile."""
    if url is not None:
        yield url
        return
    postgres = Postgres(state_dir / "postgres")
    if not postgres.data.exists():
        raise RecoveryFailed(
            f"there is no database in {state_dir}: give its directory with --state-dir, or its URL with --database"
        )
    try:
        await (await asyncpg.connect(postgres.url, timeout=CONNECT_S)).close()
    except (OSError, TimeoutError, asyncpg.PostgresError):
        try:
            yield await asyncio.to_thread(postgres.start)
        finally:
            await asyncio.to_thread(postgres.stop)
    else:
        yield postgres.url


def keep(path: Path, url: str, secret: str, state_dir: Path) -> str:
    """Add a context with the new token to the CLI's settings, and say so; what can't be added is said, too."""
    ca = state_dir / "server" / "ca.crt"
    try:
        context = context_file.Context(url, secret, ca.read_text() if ca.exists() else "")
        with context_file.changing(path) as contexts:
            name = contexts.add_beside("recovered", context)
            use = "" if contexts.current == name else f"; to use it: novacron context use {name}"
        return f"CLI settings are in {path}, context {name}{use}"
    except (context_file.SettingsError, OSError) as error:
        return f"the token could not be added to the CLI's settings: {error}"


async def _recover(connection: Connection, name: str, *, revoke_others: bool) -> Recovered:
    actor = f"{getpass.getuser()} on the server's machine"
    user = await _administrator(connection, name)
    revoked = 0
    if revoke_others:
        revoked = len(
            await connection.fetch(
                'UPDATE tokens SET revoked = true WHERE "user" = $1 AND NOT revoked RETURNING id', user.id
            )
        )
    new = tokens.NewToken(f"recovered-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    token, secret = await tokens.create(connection, user, new, actor)
    message = f"a new administrator's token was created by {actor}; {revoked} others were revoked"
    await events.record(
        connection, events.NewEvent("user", user.id, user.name, "AdministratorRecovered", message, actor)
    )
    request = AuditedRequest(
        actor=actor, user_id=user.id, token=token.id, address="", method="", path=COMMAND, action="recover_admin",
        object=user.id, name=user.name, outcome=AuditOutcome.DONE, status=200, detail=message,
        request_id=secrets.token_hex(8),
    )  # fmt: skip
    await audit.add(connection, [request])
    return Recovered(user.name, secret, revoked)


async def _administrator(connection: Connection, name: str) -> User:
    """Return a user who is an administrator and may call the API."""
    try:
        user = await users.get(connection, name)
    except NotFound:
        user = await users.create(connection, name, UserKind.PERSON, None, events.SYSTEM)
    await users.grant(connection, user.id, None, Role.ADMINISTRATOR, events.SYSTEM)
    if user.disabled:
        user = await users.disable(connection, user.id, disabled=False, actor=events.SYSTEM)
    return user
