"""Repositories of backups: which there are, and with which key each is opened."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import NamedTuple

import asyncpg
import msgspec

from novacron.model import limits
from novacron.model.backup import PRUNE_WORDS_MAX, PRUNES_MAX, BackupRepository, RepositoryPrune
from novacron.model.encryption import KeyId, WrappedKey
from novacron.model.errors import Conflict, NotFound, PreconditionFailed
from novacron.store import events, project_keys, projects
from novacron.store.database import Connection
from novacron.store.rows import object_of


def _repository(row: asyncpg.Record | None) -> BackupRepository:
    return object_of(BackupRepository, row)


class NewRepository(NamedTuple):
    """A repository that is to be created, with its key."""

    project: str
    name: str
    key: WrappedKey
    prune_days: int | None


async def create(connection: Connection, new: NewRepository, actor: str) -> BackupRepository:
    """Store a new repository of a project. Its directory is made by the first backup. Raises NotFound, Conflict."""
    project, name, key, prune_days = new
    await projects.lock_usage(connection, project)
    count = await connection.fetchval("SELECT count(*) FROM backup_repositories WHERE project = $1", project)
    if count >= limits.BACKUP_REPOSITORIES_PER_PROJECT_MAX:
        raise Conflict(
            f"project {project} has {count} backup repositories", hint="delete one: novacron backup repository delete"
        )
    await project_keys.add(connection, (await projects.get(connection, project)).id, key)
    try:
        row = await connection.fetchrow(
            "INSERT INTO backup_repositories (id, name, key, project, prune_days) VALUES ($1, $2, $3, $4, $5)"
            " RETURNING *",
            f"repo-{secrets.token_hex(8)}", name, key.id, project, prune_days,
        )  # fmt: skip
    except asyncpg.UniqueViolationError:
        raise Conflict(f"a backup repository named {name!r} exists", field="name", hint="choose another name") from None
    repository = _repository(row)
    await _record(connection, repository, "Created", "the first backup creates its directory", actor)
    return repository


async def get(connection: Connection, id: str, *, lock: bool = False) -> BackupRepository:
    """Return the repository with this id. Raises NotFound."""
    query = "SELECT * FROM backup_repositories WHERE id = $1" + (" FOR UPDATE" if lock else "")
    row = await connection.fetchrow(query, id)
    if row is None:
        raise NotFound(f"there is no backup repository {id!r}", hint="see: novacron backup repository list")
    return _repository(row)


async def configure(
    connection: Connection, id: str, prune_days: int | None, if_match: int | None, actor: str
) -> BackupRepository:
    """Change how often a repository is pruned. Raises NotFound, PreconditionFailed."""
    before = await get(connection, id, lock=True)
    if if_match is not None and if_match != before.revision:
        raise PreconditionFailed(
            f"backup repository {before.name} is at revision {before.revision}, not {if_match}", field="If-Match",
            hint="read it again, look at what changed, and repeat",
        )  # fmt: skip
    row = await connection.fetchrow(
        "UPDATE backup_repositories SET prune_days = $2 WHERE id = $1 RETURNING *", id, prune_days
    )
    often = "never" if prune_days is None else f"every {prune_days} days"
    await _record(connection, before, "Configured", f"deleted backups are pruned {often}", actor)
    return _repository(row)


async def ask_to_prune(connection: Connection, id: str, actor: str) -> BackupRepository:
    """Have the room of what was deleted from a repository freed now, on each of its nodes. Raises NotFound."""
    repository = await get(connection, id, lock=True)
    row = await connection.fetchrow(
        "UPDATE backup_repositories SET prune_asked_at = now() WHERE id = $1 RETURNING *", id
    )
    await _record(connection, repository, "PruneAsked", "on each node that has backups in it", actor)
    return _repository(row)


class DuePrune(NamedTuple):
    """A repository that is to be pruned on a node."""

    repository: str
    key: KeyId
    node: str
    project: str


async def due(connection: Connection, nodes: Sequence[str]) -> Sequence[DuePrune]:
    """Return what is to be pruned on these nodes: no backup is being worked on there in that repository. What failed
    is tried again the next day."""
    rows = await connection.fetch(
        "SELECT r.id, r.key, n.node, r.project FROM backup_repositories r"
        " CROSS JOIN LATERAL (SELECT b.node FROM backups b WHERE b.repository = r.id AND b.node = ANY($1)"
        "   UNION SELECT p ->> 'node' FROM jsonb_array_elements(r.prunes) p WHERE p ->> 'node' = ANY($1)) n"
        " LEFT JOIN LATERAL (SELECT (p ->> 'at')::timestamptz AS at, p ->> 'error' AS error"
        "   FROM jsonb_array_elements(r.prunes) p WHERE p ->> 'node' = n.node) last ON true"
        " WHERE (coalesce(r.prune_asked_at > coalesce(last.at, '-infinity'), false)"
        "   OR r.prune_days IS NOT NULL AND coalesce(last.at, r.created_at) < now() - make_interval("
        "     days => CASE WHEN coalesce(last.error, '') = '' THEN r.prune_days ELSE 1 END))"
        " AND NOT EXISTS (SELECT FROM backups w WHERE w.repository = r.id AND w.node = n.node"
        "   AND w.phase IN ('making', 'verifying', 'deleting')) ORDER BY r.id, n.node",
        list(nodes),
    )  # fmt: skip
    return [DuePrune(*row.values()) for row in rows]


async def pruned(connection: Connection, done: DuePrune, freed: str, error: str) -> None:
    """Store how it went to prune a repository on a node, if the repository is still there."""
    row = await connection.fetchrow("SELECT * FROM backup_repositories WHERE id = $1 FOR UPDATE", done.repository)
    if row is None:
        return
    repository, now = _repository(row), await connection.fetchval("SELECT now()")
    outcome = RepositoryPrune(done.node, now, freed, error[:PRUNE_WORDS_MAX])
    others = [prune for prune in repository.prunes if prune.node != done.node]
    await connection.execute(
        "UPDATE backup_repositories SET prunes = $2 WHERE id = $1",
        repository.id, msgspec.to_builtins([*others[-PRUNES_MAX + 1 :], outcome]),
    )  # fmt: skip
    words = f"on node {done.node}: {error or (f'{freed} freed' if freed else 'nothing to free')}"
    await _record(connection, repository, "PruneFailed" if error else "Pruned", words, events.SYSTEM)


async def written_by(connection: Connection, id: str, node: str) -> None:
    """Remember that a node has written to a repository."""
    await connection.execute(
        "UPDATE backup_repositories SET prunes = prunes || $2 WHERE id = $1"
        " AND NOT EXISTS (SELECT FROM jsonb_array_elements(prunes) p WHERE p ->> 'node' = $3)",
        id, msgspec.to_builtins([RepositoryPrune(node)]), node,
    )  # fmt: skip


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
            f"backup policy {policy} uses backup repository {repository.name}",
            hint=f"novacron backup policy delete {policy}",
        )
    await connection.execute("DELETE FROM backup_repositories WHERE id = $1", id)
    await connection.execute("DELETE FROM project_keys WHERE id = $1", repository.key)
    await _record(connection, repository, "Deleted", "its directory is kept", actor)
    return repository


async def _record(connection: Connection, repository: BackupRepository, reason: str, message: str, actor: str) -> None:
    new = events.NewEvent(
        "backup-repository", repository.id, repository.name, reason, message, actor, project=repository.project
    )
    await events.record(connection, new)
