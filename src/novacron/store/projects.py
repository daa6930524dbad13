"""Projects: made, changed and removed; what each has, and whether it may have more."""

from __future__ import annotations

import secrets
from typing import Any, NamedTuple

import asyncpg
import msgspec

from novacron.model import limits
from novacron.model.encryption import WrappedKey
from novacron.model.errors import Conflict, NoCapacity, NotFound
from novacron.model.migration import Cause
from novacron.model.project import DEFAULT, Project, Quota, Usage, check
from novacron.store import events, project_keys
from novacron.store.database import Connection
from novacron.store.rows import object_of

USAGE = """
    SELECT u.vms, u.vcpus, u.memory_mib, u.snapshots, u.networks,
           (u.disk_mib + (SELECT coalesce(sum(v.disk_mib), 0) FROM replicas r JOIN vms v ON v.id = r.vm
                          WHERE r.project = u.project))::bigint AS disk_mib,
           (SELECT count(*) FROM migrations m WHERE m.project = u.project AND m.finished_at IS NULL AND m.cause = $2)
           AS migrations,
           (SELECT count(*) FROM forwards f WHERE f.project = u.project) AS forwards,
           (SELECT coalesce(sum((
                SELECT v.disk_mib + CASE WHEN s.memory THEN (v.spec ->> 'memory_mib')::bigint ELSE 0 END
                FROM vms v WHERE v.id = s.vm)), 0)
            FROM snapshots s WHERE s.project = $1)::bigint AS snapshot_mib,
           (SELECT count(*) FROM image_owners o WHERE o.project = u.project
            AND (EXISTS (SELECT FROM image_digests d WHERE d.name = o.name) OR EXISTS
                 (SELECT FROM imports i WHERE i.spec ->> 'name' = o.name AND i.finished_at IS NULL))) AS images,
           ((SELECT coalesce(sum(o.size_mib), 0) FROM image_owners o WHERE o.project = u.project)
            + (SELECT coalesce(sum(greatest(i.disk_mib, ceil((i.spec ->> 'size_bytes')::bigint / 1048576.0))), 0)
               FROM imports i WHERE i.project = u.project AND i.finished_at IS NULL)
            + (SELECT coalesce(sum(e.disk_mib), 0) FROM exports e WHERE e.project = u.project))::bigint AS image_mib,
           (SELECT count(*) FROM backups b WHERE b.project = u.project AND b.phase <> 'failed') AS backups,
           (SELECT coalesce(sum(CASE
                WHEN b.phase <> 'making' THEN ceil((b.result ->> 'written_bytes')::bigint / 1048576.0)
                WHEN EXISTS (SELECT FROM backups o WHERE o.vm = b.vm AND o.repository = b.repository
                             AND o.phase NOT IN ('making', 'failed')) THEN 1
                ELSE greatest(1, (SELECT v.disk_mib FROM vms v WHERE v.id = b.vm)) END), 0)
            FROM backups b WHERE b.project = u.project AND b.phase <> 'failed')::bigint AS backup_mib
    FROM project_usage u WHERE u.project = $1
"""


COUNT_ANEW = """
    UPDATE project_usage SET
        (vms, vcpus, memory_mib, disk_mib) = (
            SELECT count(*), coalesce(sum((spec ->> 'vcpus')::bigint), 0),
                   coalesce(sum((spec ->> 'memory_mib')::bigint), 0),
                   coalesce(sum(disk_mib), 0) + (SELECT coalesce(sum(size_mib), 0) FROM volumes WHERE project = $1)
            FROM vms WHERE project = $1),
        snapshots = (SELECT count(*) FROM snapshots WHERE project = $1),
        networks = (SELECT count(*) FROM networks WHERE project = $1)
    WHERE project = $1
"""


def _project(row: asyncpg.Record | None) -> Project:
    return object_of(Project, row)


async def get(connection: Connection, name: str, *, lock: bool = False, field: str | None = None) -> Project:
    """Return a project. Raises NotFound."""
    row = await connection.fetchrow("SELECT * FROM projects WHERE name = $1" + (" FOR UPDATE" if lock else ""), name)
    if row is None:
        raise NotFound(f"there is no project {name!r}", field=field, hint="see: novacron project list")
    return _project(row)


class NewProject(NamedTuple):
    """A project that is asked for. ``key`` encrypts what it creates; None: nothing does."""

    name: str
    description: str
    quota: Quota
    host_network: bool
    key: WrappedKey | None = None


async def create(connection: Connection, new: NewProject, actor: str) -> Project:
    """Make a project. Raises Conflict, NoCapacity."""
    name, id = new.name, f"project-{secrets.token_hex(8)}"
    if await connection.fetchval("SELECT count(*) FROM projects") >= limits.PROJECTS_MAX:
        raise NoCapacity(f"there are {limits.PROJECTS_MAX} projects", hint="delete one that is no longer needed")
    key = await project_keys.add(connection, id, new.key)
    try:
        row = await connection.fetchrow(
            "INSERT INTO projects (id, name, description, quota, host_network, encryption, encryption_key)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING *",
            id, name, new.description, msgspec.to_builtins(new.quota), new.host_network, key is not None, key,
        )  # fmt: skip
    except asyncpg.UniqueViolationError:
        raise Conflict(f"a project named {name!r} exists", field="name", hint="choose another name") from None
    await events.record(
        connection, events.NewEvent("project", name, name, "Created", new.description, actor, project=name)
    )
    return _project(row)


async def configure(
    connection: Connection, name: str, changes: dict[str, Any], actor: str, key: WrappedKey | None = None
) -> Project:
    """Change a project's name, description, quota, encryption, or whether its VMs may be on the hosts' network. What it
    has beyond a smaller quota it keeps. ``key`` is for a project that is to encrypt and has no key yet.

    Raises NotFound, Conflict.
    """
    project = await get(connection, name, lock=True)
    if changes.get("encryption") and project.encryption_key is None:
        changes = {**changes, "encryption_key": await project_keys.add(connection, project.id, key)}
    if name == DEFAULT and changes.get("name", name) != name:
        raise Conflict(f"project {DEFAULT} can't be renamed", field="name")
    now = msgspec.structs.replace(project, **changes)
    try:
        row = await connection.fetchrow(
            "UPDATE projects SET name = $2, description = $3, quota = $4, host_network = $5, encryption = $6,"
            " encryption_key = $7 WHERE name = $1 RETURNING *",
            name, now.name, now.description, msgspec.to_builtins(now.quota), now.host_network, now.encryption,
            now.encryption_key,
        )  # fmt: skip
    except asyncpg.UniqueViolationError:
        raise Conflict(f"a project named {now.name!r} exists", field="name", hint="choose another name") from None
    if now.name != name:
        await connection.execute("UPDATE events SET project = $2 WHERE project = $1", name, now.name)
        await connection.execute(COUNT_ANEW, now.name)  # what it has took its new name before or after its own row
    said = ", ".join(f"{field} {_in_words(value)}" for field, value in changes.items())
    await events.record(
        connection, events.NewEvent("project", now.name, now.name, "Configured", said, actor, project=now.name)
    )
    return _project(row)


def _in_words(value: object) -> str:
    if isinstance(value, Quota):
        return " ".join(f"{field}={limit}" for field, limit in msgspec.to_builtins(value).items() if limit is not None)
    return str(value)


async def delete(connection: Connection, name: str, actor: str) -> Project:
    """Delete a project that has nothing; its service accounts and roles in it go, too. Raises NotFound, Conflict."""
    project = await get(connection, name, lock=True)
    if name == DEFAULT:
        raise Conflict(f"project {DEFAULT} can't be deleted")
    for table, what in (
        ("vms", "VM"), ("volumes", "volume"), ("networks", "network"), ("security_groups", "security group"),
        ("floating_addresses", "floating address"), ("image_owners", "image"), ("exports", "export"),
        ("backups", "backup"), ("replicas", "replica"), ("plans", "plan"),
        ("backup_policies", "backup policy"), ("backup_repositories", "backup repository"),
        ("flavors", "flavor"), ("templates", "template"),
    ):  # fmt: skip
        column = {"floating_addresses": "address", "exports": "id", "backups": "id", "replicas": "id"}.get(
            table, "name"
        )
        remaining = await connection.fetchval(f"SELECT {column} FROM {table} WHERE project = $1 LIMIT 1", name)
        if remaining is not None:
            raise Conflict(f"project {name} has {what} {remaining}", hint="delete its objects first")
    await connection.execute("DELETE FROM migrations WHERE project = $1", name)
    await connection.execute("UPDATE imports SET project = NULL WHERE project = $1", name)
    await connection.execute("DELETE FROM projects WHERE name = $1", name)
    await project_keys.remove(connection, project.id)
    await events.record(connection, events.NewEvent("project", name, name, "Deleted", "it was empty", actor))
    return project


async def usage(connection: Connection, name: str) -> Usage:
    """Return what a project has. Raises NotFound."""
    row = await connection.fetchrow(USAGE, name, Cause.REQUEST)
    if row is None:
        raise NotFound(f"there is no project {name!r}", hint="see: novacron project list")
    return msgspec.convert(dict(row), Usage)


async def lock_usage(connection: Connection, name: str) -> Usage:
    """Return what a project has; nobody else changes that until the transaction ends. Raises NotFound."""
    await connection.execute("SELECT FROM project_usage WHERE project = $1 FOR UPDATE", name)
    return await usage(connection, name)


class Making:
    """A project in which VMs are made, in a transaction that has locked what it has."""

    def __init__(self, project: Project, has: Usage) -> None:
        self.project, self.has = project, has
        """``has``: without migrations, which are no matter here; nothing, where no quota asks for it."""
        self.limited = project.quota != Quota()
        self.usable: set[str] = set()
        """Images of which it was seen that the project may use them."""

    def with_(self, **more: int) -> Usage:
        """Return what the project has with so much more. Raises QuotaExceeded."""
        after = msgspec.structs.replace(self.has, **{field: getattr(self.has, field) + n for field, n in more.items()})
        check(self.project.name, self.project.quota, self.has, after)
        return after


async def making(connection: Connection, name: str) -> Making:
    """Lock a project's usage if a quota limits it; without a quota, creations do not wait for each other.

    Raises NotFound.
    """
    project = await get(connection, name)
    if project.quota == Quota():
        return Making(project, Usage())
    row = await connection.fetchrow(
        "SELECT p.*, to_jsonb(u) AS has FROM project_usage u JOIN projects p ON p.name = u.project"
        " WHERE u.project = $1 FOR UPDATE OF u",
        name,
    )
    if row is None:
        raise NotFound(f"there is no project {name!r}", hint="see: novacron project list")
    return Making(_project(row), msgspec.convert(row["has"], Usage))


async def check_quota(connection: Connection, name: str, before: Usage) -> None:
    """Raise QuotaExceeded when the project has more now than ``before`` (from ``lock_usage``), and more than it may."""
    quota = msgspec.convert(await connection.fetchval("SELECT quota FROM projects WHERE name = $1", name), Quota)
    if quota != Quota():
        check(name, quota, before, await usage(connection, name))
