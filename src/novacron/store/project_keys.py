"""Keys of projects, as the platform key has wrapped them: added, wrapped anew, and destroyed."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from novacron.model.encryption import ErasedKey, WrappedKey
from novacron.model.errors import Conflict, IllegalState, NotFound
from novacron.model.vm import VmState
from novacron.store import events, image_use
from novacron.store.database import Connection
from novacron.telemetry import traces

OFF = (VmState.STOPPED, VmState.FAILED, VmState.PENDING)
"""States in which no QEMU has a VM's key."""
NAMES_MAX = 10


async def add(connection: Connection, project_id: str, key: WrappedKey | None) -> str | None:
    """Store a new key of a project; return its id, or None if there is none."""
    if key is None:
        return None
    await connection.execute(
        "INSERT INTO project_keys (id, project_id, wrapped, wrapped_by) VALUES ($1, $2, $3, $4)",
        key.id, project_id, key.wrapped, key.wrapped_by,
    )  # fmt: skip
    return key.id


async def remove(connection: Connection, project_id: str) -> None:
    """Destroy the keys of a project that has been deleted."""
    await connection.execute("DELETE FROM project_keys WHERE project_id = $1", project_id)


async def wrapped(connection: Connection, ids: Collection[str]) -> list[WrappedKey]:
    """Return those of these keys that have not been erased."""
    rows = await connection.fetch(
        "SELECT id, wrapped, wrapped_by FROM project_keys WHERE id = ANY($1) AND wrapped IS NOT NULL", list(ids)
    )
    return [msgspec.convert(dict(row), WrappedKey) for row in rows]


async def not_wrapped_by(connection: Connection, platform_key: str, limit: int) -> list[WrappedKey]:
    """Return keys that another platform key has wrapped."""
    rows = await connection.fetch(
        "SELECT id, wrapped, wrapped_by FROM project_keys WHERE wrapped_by <> $1 AND wrapped IS NOT NULL"
        " ORDER BY id LIMIT $2",
        platform_key, limit,
    )  # fmt: skip
    return [msgspec.convert(dict(row), WrappedKey) for row in rows]


async def replace(connection: Connection, was: WrappedKey, now: WrappedKey) -> None:
    """Store a key as it has been wrapped anew, unless it has changed meanwhile."""
    await connection.execute(
        "UPDATE project_keys SET wrapped = $3, wrapped_by = $4 WHERE id = $1 AND wrapped = $2",
        was.id, was.wrapped, now.wrapped, now.wrapped_by,
    )  # fmt: skip


async def counts(connection: Connection) -> dict[str, int]:
    """Return how many keys each platform key has wrapped."""
    rows = await connection.fetch(
        "SELECT wrapped_by, count(*) AS count FROM project_keys WHERE wrapped IS NOT NULL GROUP BY wrapped_by"
    )
    return {row["wrapped_by"]: row["count"] for row in rows}


async def erase(connection: Connection, project: str, successor: WrappedKey | None, actor: str) -> ErasedKey:
    """Destroy a project's key: nothing that was encrypted with it can be read any more. ``successor`` encrypts what is
    created from now on, if the project encrypts.

    Raises NotFound, Conflict, IllegalState.
    """
    row = await connection.fetchrow("SELECT * FROM projects WHERE name = $1 FOR UPDATE", project)
    if row is None:
        raise NotFound(f"there is no project {project!r}", hint="see: novacron project list")
    key, encrypts = row["encryption_key"], row["encryption"]
    if key is None:
        raise Conflict(f"project {project} has no key: it has never encrypted anything")
    using = await connection.fetch(
        "SELECT id, name, spec ->> 'power' AS power, status ->> 'state' AS state FROM vms"
        " WHERE spec ->> 'encryption_key' = $1"
        " OR id IN (SELECT vm FROM volumes WHERE encryption_key = $1)"
        f" OR EXISTS (SELECT FROM image_owners o WHERE o.encryption_key = $1 AND {image_use.uses('o.name')})"
        " ORDER BY vms.name FOR UPDATE OF vms",
        key,
    )
    _check_off(project, [vm["name"] for vm in using if vm["power"] != "stopped" or vm["state"] not in OFF])
    volumes = await connection.fetch("SELECT name FROM volumes WHERE encryption_key = $1 ORDER BY name", key)
    images = await connection.fetch("SELECT name FROM image_owners WHERE encryption_key = $1 ORDER BY name", key)
    backups = await connection.fetch("SELECT id FROM backups WHERE encryption_key = $1 ORDER BY id", key)
    new = await add(connection, row["id"], successor) if encrypts else None
    await connection.execute("UPDATE projects SET encryption_key = $2 WHERE name = $1", project, new)
    erased_at = await connection.fetchval(
        "UPDATE project_keys SET wrapped = NULL, wrapped_by = NULL, erased_at = now() WHERE id = $1"
        " RETURNING erased_at",
        key,
    )
    await connection.execute(  # their nodes are told without it
        "UPDATE vms SET trace = $2 WHERE id = ANY($1)", [vm["id"] for vm in using], traces.carry()
    )
    erased = ErasedKey(
        key, project, erased_at, tuple(vm["name"] for vm in using), tuple(volume["name"] for volume in volumes),
        tuple(image["name"] for image in images), new,
        int(await connection.fetchval("SELECT pg_current_xact_id()::text")), tuple(backup["id"] for backup in backups),
    )  # fmt: skip
    said = (
        f"{key}: the disks of {len(erased.vms)} VMs, {len(erased.volumes)} volumes, {len(erased.images)} images"
        f" and {len(erased.backups)} backups can no longer be read"
    )
    await events.record(
        connection, events.NewEvent("project", project, project, "KeyErased", said, actor, project=project)
    )
    return erased


def _check_off(project: str, running: Sequence[str]) -> None:
    """Raise IllegalState while VMs have the key."""
    if running:
        more = f" and {len(running) - NAMES_MAX} more" if len(running) > NAMES_MAX else ""
        raise IllegalState(
            f"VMs of project {project} are running or starting with this key: {', '.join(running[:NAMES_MAX])}{more}",
            hint="stop them first: novacron vm stop",
        )
