"""Second factors, recovery codes, and logins that wait for one. Secrets are sealed or hashed before they come here."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import NamedTuple

import asyncpg
import msgspec

from novacron.model import second_factor as model
from novacron.model.access import Role
from novacron.model.errors import Conflict, NoCapacity, NotFound
from novacron.model.second_factor import FactorKind, SecondFactor
from novacron.model.token import hash_secret
from novacron.model.user import User
from novacron.store import events
from novacron.store.database import Connection

SHOWN = "id, kind, name, created_at, used_at"


class StoredFactor(msgspec.Struct, frozen=True):
    """A second factor as stored."""

    id: str
    user: str
    kind: FactorKind
    name: str
    secret: bytes
    """Of an app: its secret, sealed. Of a security key: its public key; the challenge while it is not confirmed."""
    credential: bytes | None
    """The id that a security key has given itself."""
    counter: int
    """The last step of an app whose code was used; how often a security key says that it was used."""
    confirmed: bool


class PendingLogin(NamedTuple):
    """A login whose password was right."""

    user: str
    challenge: bytes
    """For security keys."""


def _factor(row: asyncpg.Record) -> StoredFactor:
    return msgspec.convert({field: row[field] for field in StoredFactor.__struct_fields__}, StoredFactor)


async def confirmed(connection: Connection, user: str) -> list[StoredFactor]:
    """Return the second factors that a user can log in with."""
    rows = await connection.fetch('SELECT * FROM second_factors WHERE "user" = $1 AND confirmed ORDER BY id', user)
    return [_factor(row) for row in rows]


async def get(connection: Connection, user: str, ref: str) -> StoredFactor:
    """Return a factor of a user by id or name, confirmed or not. Raises NotFound."""
    row = await connection.fetchrow(
        'SELECT * FROM second_factors WHERE "user" = $1 AND (id = $2 OR name = $2) FOR UPDATE', user, ref
    )
    if row is None:
        raise NotFound(f"there is no second factor {ref!r}", hint="see: novacron second-factor list")
    return _factor(row)


async def shown(connection: Connection, user: str, required: bool) -> model.SecondFactors:
    """Return what a user has."""
    rows = await connection.fetch(
        f'SELECT {SHOWN} FROM second_factors WHERE "user" = $1 AND confirmed ORDER BY created_at, id', user
    )
    codes = await connection.fetchval('SELECT count(*) FROM recovery_codes WHERE "user" = $1', user)
    locked = await wrong(connection, user) >= model.WRONG_IN_A_ROW_MAX
    return model.SecondFactors([msgspec.convert(dict(row), SecondFactor) for row in rows], codes, required, locked)


async def is_required(connection: Connection, user: str, roles: frozenset[Role]) -> bool:
    """Say whether a user must have a second factor: because an administrator says so, or for one of these roles."""
    return bool(await connection.fetchval(
        "SELECT u.second_factor_required OR EXISTS"
        ' (SELECT FROM grants g WHERE g."user" = u.id AND g.role = ANY($2)) FROM users u WHERE u.id = $1',
        user, list(roles),
    ))  # fmt: skip


class NewFactor(NamedTuple):
    """A second factor that is not confirmed yet."""

    id: str
    kind: FactorKind
    name: str
    secret: bytes


def new_id() -> str:
    return f"factor-{secrets.token_hex(8)}"


async def begin(connection: Connection, user: User, new: NewFactor) -> None:
    """Store a factor that counts once it is confirmed; one that was begun before and never confirmed goes.

    Raises Conflict for a name that is in use, NoCapacity.
    """
    await connection.execute("SELECT FROM users WHERE id = $1 FOR UPDATE", user.id)
    await connection.execute('DELETE FROM second_factors WHERE "user" = $1 AND NOT confirmed', user.id)
    count = await connection.fetchval('SELECT count(*) FROM second_factors WHERE "user" = $1', user.id)
    if count >= model.FACTORS_PER_USER_MAX:
        raise NoCapacity(f"user {user.name} has {count} second factors", hint="remove one that is no longer needed")
    try:
        await connection.execute(
            'INSERT INTO second_factors (id, "user", kind, name, secret) VALUES ($1, $2, $3, $4, $5)',
            new.id, user.id, new.kind, new.name, new.secret,
        )  # fmt: skip
    except asyncpg.UniqueViolationError:
        raise Conflict(f"a second factor named {new.name!r} exists", field="name", hint="choose another name") from None


async def confirm_app(connection: Connection, factor: StoredFactor, step: int) -> None:
    """Let an app count, whose code of this step was right."""
    await connection.execute("UPDATE second_factors SET confirmed = true, counter = $2 WHERE id = $1", factor.id, step)


async def confirm_key(
    connection: Connection, factor: StoredFactor, credential: bytes, public_key: bytes, counter: int
) -> None:
    """Let a security key count. Raises Conflict for one that is somebody's already."""
    try:
        await connection.execute(
            "UPDATE second_factors SET confirmed = true, credential = $2, secret = $3, counter = $4 WHERE id = $1",
            factor.id, credential, public_key, counter,
        )  # fmt: skip
    except asyncpg.UniqueViolationError:
        raise Conflict("this security key is already registered", hint="use another security key") from None


async def apps(connection: Connection, after: str, limit: int) -> list[StoredFactor]:
    """Return the apps whose ids come after this one, in their order."""
    rows = await connection.fetch(
        "SELECT * FROM second_factors WHERE kind = 'totp' AND id > $1 ORDER BY id LIMIT $2", after, limit
    )
    return [_factor(row) for row in rows]


async def replace_secret(connection: Connection, factor: StoredFactor, sealed: bytes) -> None:
    """Store an app's secret as it is sealed now, unless it has become another."""
    await connection.execute(
        "UPDATE second_factors SET secret = $3, sealed_at = clock_timestamp() WHERE id = $1 AND secret = $2",
        factor.id,
        factor.secret,
        sealed,
    )


async def use(connection: Connection, factor: StoredFactor, counter: int) -> bool:
    """Note that a factor was used; say whether this step of an app, or state of a key, had not been used before."""
    grows = "counter < $2" if factor.kind is FactorKind.TOTP else "(counter < $2 OR (counter = 0 AND $2 = 0))"
    used = await connection.fetchval(
        f"UPDATE second_factors SET counter = $2, used_at = now() WHERE id = $1 AND {grows} RETURNING true",
        factor.id, counter,
    )  # fmt: skip
    return bool(used)


async def use_recovery_code(connection: Connection, user: str, code: str) -> bool:
    """Use up a recovery code; say whether it was one."""
    used = await connection.fetchval(
        'DELETE FROM recovery_codes WHERE "user" = $1 AND hash = $2 RETURNING true', user, model.recovery_hash(code)
    )
    return bool(used)


async def new_recovery_codes(connection: Connection, user: User, actor: str) -> list[str]:
    """Give a user other recovery codes; return them, for the last time. Those before are no longer good."""
    codes = [model.new_recovery_code() for _ in range(model.RECOVERY_CODES)]
    await connection.execute('DELETE FROM recovery_codes WHERE "user" = $1', user.id)
    await connection.execute(
        'INSERT INTO recovery_codes ("user", hash) SELECT $1, unnest($2::bytea[])',
        user.id, [model.recovery_hash(code) for code in codes],
    )  # fmt: skip
    await _record(connection, user, "RecoveryCodesMade", f"{len(codes)} codes", actor)
    return codes


async def remove(connection: Connection, user: User, factor: StoredFactor, actor: str) -> None:
    """Remove a factor; with the last one the recovery codes go, too."""
    await connection.execute("DELETE FROM second_factors WHERE id = $1", factor.id)
    left = await connection.fetchval('SELECT EXISTS (SELECT FROM second_factors WHERE "user" = $1)', user.id)
    if not left:
        await connection.execute('DELETE FROM recovery_codes WHERE "user" = $1', user.id)
    await _record(connection, user, "SecondFactorRemoved", f"{factor.kind} {factor.name}", actor)


async def reset(connection: Connection, user: User, actor: str) -> int:
    """Remove all second factors and recovery codes of a user; their sessions end. Return how many factors that were."""
    count = await connection.fetchval(
        'WITH gone AS (DELETE FROM second_factors WHERE "user" = $1 RETURNING confirmed)'
        " SELECT count(*) FROM gone WHERE confirmed",
        user.id,
    )
    await connection.execute('DELETE FROM recovery_codes WHERE "user" = $1', user.id)
    await connection.execute('DELETE FROM login_steps WHERE "user" = $1', user.id)
    await connection.execute('DELETE FROM second_factor_failures WHERE "user" = $1', user.id)
    await connection.execute("DELETE FROM tokens WHERE \"user\" = $1 AND kind = 'session'", user.id)
    await _record(connection, user, "SecondFactorsReset", f"{count} removed; sessions have ended", actor)
    return int(count)


async def added(connection: Connection, user: User, factor: StoredFactor, actor: str) -> None:
    await _record(connection, user, "SecondFactorAdded", f"{factor.kind} {factor.name}", actor)


async def unlock_session(connection: Connection, session: str) -> None:
    """Give a session its user's rights, which it lacked for want of a second factor."""
    await connection.execute("UPDATE tokens SET scopes = NULL WHERE id = $1 AND kind = 'session'", session)


async def begin_login(connection: Connection, user: str, challenge: bytes) -> tuple[str, datetime]:
    """Note that a password was right; return the secret with which the login goes on, and until when."""
    secret = secrets.token_urlsafe(32)
    until: datetime = await connection.fetchval(
        'INSERT INTO login_steps (hash, "user", challenge, expires_at)'
        " VALUES ($1, $2, $3, now() + make_interval(secs => $4)) RETURNING expires_at",
        hash_secret(secret), user, challenge, float(model.LOGIN_STEP_S),
    )  # fmt: skip
    return secret, until


async def try_login(connection: Connection, secret: str) -> PendingLogin | None:
    """Count a try of a second factor; return whose login it is, or None: it has ended, or had too many."""
    row = await connection.fetchrow(
        "UPDATE login_steps SET tries = tries + 1 WHERE hash = $1 AND expires_at > now() AND tries < $2"
        ' RETURNING "user", challenge',
        hash_secret(secret), model.LOGIN_STEP_TRIES_MAX,
    )  # fmt: skip
    return None if row is None else PendingLogin(row["user"], row["challenge"])


async def end_login(connection: Connection, secret: str) -> bool:
    """End a login's step; say whether it had not ended before."""
    ended = await connection.fetchval("DELETE FROM login_steps WHERE hash = $1 RETURNING true", hash_secret(secret))
    return bool(ended)


async def wrong(connection: Connection, user: str) -> int:
    """Return how many wrong codes there were since the last good login."""
    count = await connection.fetchval('SELECT count FROM second_factor_failures WHERE "user" = $1', user)
    return int(count or 0)


async def count_wrong(connection: Connection, user: str) -> int:
    """Count a wrong code, and return how many there were in a row."""
    count: int = await connection.fetchval(
        'INSERT INTO second_factor_failures ("user", count) VALUES ($1, 1)'
        ' ON CONFLICT ("user") DO UPDATE SET count = second_factor_failures.count + 1 RETURNING count',
        user,
    )
    return count


async def forget_wrong(connection: Connection, user: str) -> None:
    await connection.execute('DELETE FROM second_factor_failures WHERE "user" = $1', user)


async def user_of(connection: Connection, id: str) -> User | None:
    """Return a user who may log in."""
    row = await connection.fetchrow("SELECT * FROM users WHERE id = $1 AND NOT disabled", id)
    return None if row is None else msgspec.convert({f: row[f] for f in User.__struct_fields__}, User)


async def _record(connection: Connection, user: User, reason: str, message: str, actor: str) -> None:
    await events.record(connection, events.NewEvent("user", user.id, user.name, reason, message, actor))
