"""Invitations: roles that users are offered, and have once they accept."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from typing import NamedTuple

from novacron.model import limits
from novacron.model.access import Role
from novacron.model.errors import NoCapacity, NotFound
from novacron.model.user import Invitation
from novacron.store import events
from novacron.store.database import Connection
from novacron.store.rows import object_of

SHOWN = "id, user_name, project, role, actor, created_at, expires_at"


class Inviter(NamedTuple):
    """Who invites: the user's id and name."""

    user: str
    name: str


class OpenInvitation(NamedTuple):
    """An invitation, with the ids of the invited user (None: there is no such user) and of who invited them."""

    invitation: Invitation
    user: str | None
    inviter: str


async def create(connection: Connection, user_ref: str, project: str, role: Role, inviter: Inviter) -> Invitation:
    """Offer a role to a user, by id or name, in place of an earlier offer in this project.

    Does and says the same where there is no such user. Raises NoCapacity.
    """
    await connection.execute("SELECT FROM projects WHERE name = $1 FOR UPDATE", project)
    await connection.execute("DELETE FROM invitations WHERE project = $1 AND expires_at < now()", project)
    count = await connection.fetchval("SELECT count(*) FROM invitations WHERE project = $1", project)
    if count >= limits.INVITATIONS_PER_PROJECT_MAX:
        raise NoCapacity(f"project {project} has {count} open invitations", hint="withdraw some: novacron invitation")
    row = await connection.fetchrow(
        'INSERT INTO invitations (id, "user", user_name, project, role, inviter, actor, expires_at)'
        " VALUES ($1, (SELECT id FROM users WHERE (id = $2 OR name = $2) AND project IS NULL AND NOT disabled),"
        " $2, $3, $4, $5, $6, now() + make_interval(secs => $7))"
        ' ON CONFLICT (user_name, project) DO UPDATE SET "user" = excluded."user", role = excluded.role,'
        " inviter = excluded.inviter, actor = excluded.actor, expires_at = excluded.expires_at"
        f" RETURNING {SHOWN}",
        f"invitation-{secrets.token_hex(8)}", user_ref, project, role, inviter.user, inviter.name,
        float(limits.INVITATION_S),
    )  # fmt: skip
    await events.record(
        connection,
        events.NewEvent("project", project, project, "Invited", f"{user_ref} as {role}", inviter.name, project=project),
    )
    return object_of(Invitation, row)


async def listed(connection: Connection, user: str, projects: Collection[str] | None) -> list[Invitation]:
    """Return the open invitations of a user, and those to these projects (None: to all)."""
    rows = await connection.fetch(
        f'SELECT {SHOWN} FROM invitations WHERE expires_at > now() AND ("user" = $1 OR $2 OR project = ANY($3))'
        " ORDER BY created_at",
        user, projects is None, list(projects or ()),
    )  # fmt: skip
    return [object_of(Invitation, row) for row in rows]


async def get(connection: Connection, id: str) -> OpenInvitation:
    """Return an open invitation, locked. Raises NotFound."""
    row = await connection.fetchrow("SELECT * FROM invitations WHERE id = $1 AND expires_at > now() FOR UPDATE", id)
    if row is None:
        raise NotFound(f"there is no invitation {id!r}", hint="see: novacron invitation list")
    shown = {key: row[key] for key in Invitation.__struct_fields__}
    return OpenInvitation(Invitation(**{**shown, "role": Role(row["role"])}), row["user"], row["inviter"])


async def delete(connection: Connection, id: str) -> None:
    """Delete an invitation: it was accepted, declined or withdrawn."""
    await connection.execute("DELETE FROM invitations WHERE id = $1", id)
