"""Users, their passwords and their roles."""

from __future__ import annotations

import secrets

import asyncpg
import msgspec

from novacron.model import limits
from novacron.model.access import Role
from novacron.model.errors import Conflict, IllegalState, InvalidInput, NoCapacity, NotFound
from novacron.model.user import Grant, User, UserKind
from novacron.store import events
from novacron.store.database import Connection
from novacron.store.rows import object_of

ADMINISTRATOR = "administrator"


def _user(row: asyncpg.Record | None) -> User:
    return object_of(User, row)


def _grant(row: asyncpg.Record | None) -> Grant:
    return object_of(Grant, row)


async def get(connection: Connection, ref: str, *, field: str | None = None) -> User:
    """Return a user by id or name, locked. Raises NotFound."""
    row = await connection.fetchrow("SELECT * FROM users WHERE id = $1 OR name = $1 FOR UPDATE", ref)
    if row is None:
        raise NotFound(f"there is no user {ref!r}", field=field, hint="see: novacron user list")
    return _user(row)


async def create(
    connection: Connection, name: str, kind: UserKind, project: str | None, actor: str, *,
    identity: tuple[str, str] | None = None,
) -> User:  # fmt: skip
    """Make a user; ``identity`` is who vouches for them, and by which name. Raises Conflict, NoCapacity."""
    if await connection.fetchval("SELECT count(*) FROM users") >= limits.USERS_MAX:
        raise NoCapacity(f"there are {limits.USERS_MAX} users", hint="delete one that is no longer needed")
    issuer, subject = identity or (None, None)
    try:
        row = await connection.fetchrow(
            "INSERT INTO users (id, name, kind, project, issuer, subject) VALUES ($1, $2, $3, $4, $5, $6) RETURNING *",
            f"user-{secrets.token_hex(8)}", name, kind, project, issuer, subject,
        )  # fmt: skip
    except asyncpg.UniqueViolationError:
        raise Conflict(f"a user named {name!r} exists", field="name", hint="choose another name") from None
    user = _user(row)
    await events.record(
        connection, events.NewEvent("user", user.id, name, "Created", f"{kind}", actor, project=project)
    )
    return user


async def by_identity(connection: Connection, issuer: str, subject: str) -> User | None:
    """Return the user for whom an issuer vouches under this name."""
    row = await connection.fetchrow("SELECT * FROM users WHERE issuer = $1 AND subject = $2", issuer, subject)
    return None if row is None else _user(row)


async def set_password(connection: Connection, user: User, hash: str, actor: str) -> User:
    """Give a person another password; their sessions end. Raises IllegalState."""
    if user.kind is UserKind.SERVICE or user.issuer is not None:
        raise IllegalState(f"user {user.name} has no password here", hint="service accounts have tokens")
    await connection.execute(
        "INSERT INTO passwords (user_id, hash) VALUES ($1, $2)"
        " ON CONFLICT (user_id) DO UPDATE SET hash = $2, set_at = now()",
        user.id, hash,
    )  # fmt: skip
    await connection.execute("DELETE FROM tokens WHERE \"user\" = $1 AND kind = 'session'", user.id)
    await connection.execute('DELETE FROM login_steps WHERE "user" = $1', user.id)
    row = await connection.fetchrow("UPDATE users SET disabled = disabled WHERE id = $1 RETURNING *", user.id)
    await events.record(
        connection, events.NewEvent("user", user.id, user.name, "PasswordSet", "sessions have ended", actor)
    )
    return _user(row)


async def password_of(connection: Connection, name: str) -> tuple[User, str] | None:
    """Return a user who may log in with a password, and its hash."""
    row = await connection.fetchrow(
        "SELECT users.*, passwords.hash FROM users JOIN passwords ON user_id = id WHERE name = $1 AND NOT disabled",
        name,
    )
    if row is None:
        return None
    fields = dict(row)
    return msgspec.convert({key: fields[key] for key in User.__struct_fields__}, User), fields["hash"]


async def set_default_project(connection: Connection, id: str, project: str | None) -> User:
    """Set the project in which a user's new objects are, unless a request names another; None: the usual one."""
    row = await connection.fetchrow("UPDATE users SET default_project = $2 WHERE id = $1 RETURNING *", id, project)
    return _user(row)


async def disable(connection: Connection, ref: str, disabled: bool, actor: str) -> User:
    """Let a user do nothing any more, or again. Raises NotFound, Conflict for the last administrator."""
    user = await get(connection, ref)
    row = await connection.fetchrow("UPDATE users SET disabled = $2 WHERE id = $1 RETURNING *", user.id, disabled)
    await _check_administrator(connection)
    reason = "Disabled" if disabled else "Enabled"
    await events.record(
        connection, events.NewEvent("user", user.id, user.name, reason, "", actor, project=user.project)
    )
    return _user(row)


async def require_second_factor(connection: Connection, ref: str, required: bool, actor: str) -> User:
    """Let a user's logins demand a second factor, or not; their sessions end when it is required. Raises NotFound."""
    user = await get(connection, ref)
    row = await connection.fetchrow(
        "UPDATE users SET second_factor_required = $2 WHERE id = $1 RETURNING *", user.id, required
    )
    if required:
        await connection.execute("DELETE FROM tokens WHERE \"user\" = $1 AND kind = 'session'", user.id)
    message = "required; sessions have ended" if required else "not required"
    await events.record(connection, events.NewEvent("user", user.id, user.name, "SecondFactorPolicy", message, actor))
    return _user(row)


async def delete(connection: Connection, ref: str, actor: str) -> User:
    """Delete a user with all tokens and roles. Raises NotFound, Conflict for the last administrator."""
    user = await get(connection, ref)
    await connection.execute("DELETE FROM users WHERE id = $1", user.id)
    await _check_administrator(connection)
    await events.record(
        connection, events.NewEvent("user", user.id, user.name, "Deleted", "", actor, project=user.project)
    )
    return user


async def grant(connection: Connection, user_ref: str, project: str | None, role: Role, actor: str) -> Grant:
    """Give a user a role, in place of the one they had there. Raises NotFound, InvalidInput, Conflict."""
    user = await get(connection, user_ref, field="user")
    if user.project is not None and user.project != project:
        raise InvalidInput(f"{user.name} is a service account of project {user.project}", field="project")
    try:
        row = await connection.fetchrow(
            'INSERT INTO grants (id, "user", user_name, project, role) VALUES ($1, $2, $3, $4, $5)'
            ' ON CONFLICT ("user", project) DO UPDATE SET role = $5 RETURNING *',
            f"grant-{secrets.token_hex(8)}", user.id, user.name, project, role,
        )  # fmt: skip
    except asyncpg.ForeignKeyViolationError:
        raise NotFound(f"there is no project {project!r}", field="project") from None
    await _check_administrator(connection)
    said = f"{role} in {project or 'all projects, and the fleet'}"
    await events.record(
        connection, events.NewEvent("user", user.id, user.name, "Granted", said, actor, project=project)
    )
    return _grant(row)


async def get_grant(connection: Connection, id: str) -> Grant:
    """Return a role of a user. Raises NotFound."""
    row = await connection.fetchrow("SELECT * FROM grants WHERE id = $1", id)
    if row is None:
        raise NotFound(f"there is no grant {id!r}", hint="see: novacron grant list")
    return _grant(row)


async def revoke(connection: Connection, id: str, actor: str) -> Grant:
    """Take a role from a user. Raises NotFound, Conflict for the last administrator."""
    revoked = await get_grant(connection, id)
    await connection.execute("DELETE FROM grants WHERE id = $1", id)
    await _check_administrator(connection)
    scope = f"{revoked.role} in {revoked.project or 'all projects, and the fleet'}"
    await events.record(
        connection,
        events.NewEvent("user", revoked.user, revoked.user_name, "Revoked", scope, actor, project=revoked.project),
    )
    return revoked


async def free_name(connection: Connection, preferred: str) -> str:
    """Return a name that no user has: the one that is preferred, or one like it."""
    taken = {
        row["name"] for row in await connection.fetch("SELECT name FROM users WHERE name LIKE $1 || '%'", preferred)
    }
    candidates = [preferred, *(f"{preferred[:58]}-{number}" for number in range(2, 1000))]
    return next((name for name in candidates if name not in taken), f"user-{secrets.token_hex(8)}")


async def set_roles(connection: Connection, user: User, roles: dict[str | None, Role]) -> None:
    """Let a user have just these roles, by project."""
    rows = await connection.fetch('SELECT * FROM grants WHERE "user" = $1', user.id)
    for role_grant in map(_grant, rows):
        if roles.get(role_grant.project) is not role_grant.role:
            await revoke(connection, role_grant.id, events.SYSTEM)
    has = {role_grant.project: role_grant.role for role_grant in map(_grant, rows)}
    there = {row["name"] for row in await connection.fetch("SELECT name FROM projects")}
    for project, role in roles.items():
        if has.get(project) is not role and (project is None or project in there):
            await grant(connection, user.id, project, role, events.SYSTEM)


async def _check_administrator(connection: Connection) -> None:
    """Raise Conflict when this would leave no administrator; of two concurrent removals, one waits."""
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext('administrators'))")
    remain = await connection.fetchval(
        'SELECT EXISTS (SELECT FROM grants g JOIN users u ON u.id = g."user"'
        " WHERE g.project IS NULL AND g.role = 'administrator' AND NOT u.disabled)"
    )
    if not remain:
        raise Conflict("this would leave no administrator", hint="make another user an administrator first")
