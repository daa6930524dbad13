"""Repositories of backups: which there are, and with which key each is opened."""

from __future__ import annotations

import secrets

import asyncpg

from novacron.model import limits
from novacron.model.backup import BackupRepository
from novacron.model.encryption import WrappedKey
from novacron.model.errors import Conflict, NotFound
from novacron.store import events, project_keys, projects
from novacron.store.database import Connection
from novacron.store.rows import object_of


def _repository(row: asyncpg.Record | None) -> BackupRepository:
    return object_of(BackupRepository, row)


async def create(connection: Connection, project: str, name: str, key: WrappedKey, actor: str) -> BackupRepository:
    """Store a new repository of a project. Its directory is made by the first backup. Raises NotFound, Conflict."""
    await projects.lock_usage(connection, project)
    count = await connection.fetchval("SELECT count(*) FROM backup_repositories WHERE project = $1", project)
    if count >= limits.BACKUP_REPOSITORIES_PER_PROJECT_MAX:
        raise Conflict(
            f"project {project} has {count} backup repositories", hint="delete one: novacron backup repository delete"
        )
    await project_keys.add(connection, (await projects.get(connection, project)).id, key)
    try:
        row = await connection.fetchrow(
            "INSERT INTO backup_repositories (id, name, key, project) VALUES ($1, $2, $3, $4) RETURNING *",
            f"repo-{secrets.token_hex(8)}", name, key.id, project,
        )  # fmt: skip
    except asyncpg.UniqueViolationError:
        raise Conflict(f"a backup repository named {name!r} exists", field="name", hint="choose another name") from None
    repository = _repository(row)
    await _record(connection, repository, "Created", "its directory is made by the first backup", actor)
    return repository


async def get(connection: Connection, id: str, *, lock: bool = False) -> BackupRepository:
    """Return the repository with this id. Raises NotFound."""
    query = "SELECT * FROM backup_repositories WHERE id = $1" + (" FOR UPDATE" if lock else "")
    row = await connection.fetchrow(query, id)
    if row is None:
        raise NotFound(f"there is no backup repository {id!r}", hint="see: novacron backup repository list")
    return _repository(row)


async def delete(connection: Connection, id: str, actor: str) -> BackupRepository:
    """Forget a repository without backups, and its key. Its directory stays on nodes. Raises NotFound, Conflict."""
    repository = await get(connection, id, lock=True)
    kept = await connection.fetchval("SELECT count(*) FROM backups WHERE repository = $1", id)
    if kept:
        raise Conflict(
            f"backup repository {repository.name} has {kept} backups",
            hint=f"delete them first, see: novacron backup list --repository {repository.name}",
        )
    policy = await connection.fetchval("SELECT name FROM backup_policies WHERE repository = $1 LIMIT 1", id)
    if policy is not None:
        raise Conflict(
            f"backup policy {policy} backs VMs up into backup repository {repository.name}",
            hint=f"novacron backup policy delete {policy}",
        )
    await connection.execute("DELETE FROM backup_repositories WHERE id = $1", id)
    await connection.execute("DELETE FROM project_keys WHERE id = $1", repository.key)
    await _record(connection, repository, "Deleted", "its directory stays where it is", actor)
    return repository


async def _record(connection: Connection, repository: BackupRepository, reason: str, message: str, actor: str) -> None:
    new = events.NewEvent(
        "backup-repository", repository.id, repository.name, reason, message, actor, project=repository.project
    )
    await events.record(connection, new)
