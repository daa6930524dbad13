"""Moves of VMs, volumes and images between projects: what counts in quotas, and what ties them to where they are."""

from __future__ import annotations

from typing import NamedTuple

import asyncpg

from novacron.model.errors import Conflict, IllegalState, InvalidInput, PreconditionFailed
from novacron.model.project import Project, Usage
from novacron.model.vm import BLANK_IMAGE, Vm, VmAction, is_off
from novacron.model.volume import Volume, VolumePhase
from novacron.store import events, imports, projects, snapshots, unreconciled, vms, volumes
from novacron.store.database import Connection
from novacron.store.rows import object_of

NAMED_MAX = 5


class ProjectMove(NamedTuple):
    """What is moved, by its key, and to which project; the caller may write in both."""

    key: str
    project: str
    actor: str
    if_match: int | None = None


async def move_vm(connection: Connection, move: ProjectMove) -> Vm:
    """Move a VM that is off, with its volumes and snapshots.

    Raises NotFound, IllegalState, Conflict, InvalidInput, QuotaExceeded; then nothing has changed.
    """
    vm = await vms.get(connection, move.key, lock=True)
    vms.check_action(vm, VmAction.CONFIGURE, move.if_match)
    if vm.project == move.project:
        return vm
    if not is_off(vm):
        raise IllegalState(
            f"VM {vm.name} can only move to another project while it is stopped; it is {vm.status.state}"
            " (stop it explicitly)",
            hint=f"novacron vm stop {vm.name} --wait",
        )
    clones = "SELECT name FROM vms WHERE clone_of IS NOT NULL AND (id = $1 OR clone_of ->> 'source' = $1) LIMIT 1"
    if (clone := await connection.fetchval(clones, vm.id)) is not None:
        raise Conflict(f"VM {clone} is being cloned", hint="wait until that is done")
    await snapshots.check_idle(connection, vm)
    target = await projects.get(connection, move.project, field="project")
    if vm.spec.nics:
        names = ", ".join(sorted({nic.network for nic in vm.spec.nics}))
        raise Conflict(
            f"VM {vm.name} is in networks of project {vm.project}: {names}",
            hint=f"remove its interfaces first: novacron vm nic remove {vm.name} MAC",
        )
    if not target.host_network:
        raise InvalidInput(
            f"VMs of project {target.name} need one of its networks", field="project",
            hint=f"allow it the hosts' network: novacron project set {target.name} --host-network",
        )  # fmt: skip
    await _check_images(connection, vm, target.name)
    attached = await volumes.of_vm(connection, vm.id)
    _check_keys(f"VM {vm.name}", target, vm.spec.encryption_key, *(volume.encryption_key for volume in attached))
    await unreconciled.check_name(connection, target.name, vm.name)
    before = await _lock_usage(connection, vm.project, target.name)
    try:
        row = await connection.fetchrow("UPDATE vms SET project = $2 WHERE id = $1 RETURNING *", vm.id, target.name)
        for table in ("volumes", "snapshots", "replicas"):
            await connection.execute(f"UPDATE {table} SET project = $2 WHERE vm = $1", vm.id, target.name)
    except asyncpg.UniqueViolationError:
        raise Conflict(
            f"project {target.name} has a VM named {vm.name}, or a volume named as one of its volumes",
            field="project", hint="rename it first",
        ) from None  # fmt: skip
    await projects.check_quota(connection, target.name, before)
    await _record(connection, ("vm", vm.id, vm.name), vm.project, move)
    return vms.of_row(row)


async def _check_images(connection: Connection, vm: Vm, project: str) -> None:
    """Raise Conflict when a VM uses an image that is neither everybody's nor this project's."""
    owners = await imports.owners(connection, {vm.spec.image, *vm.spec.media})
    name = next((name for name, owner in owners.items() if owner != project), None)
    if name is None:
        return
    if name in vm.spec.media:
        raise Conflict(
            f"{vm.spec.media[name]} {name} of VM {vm.name} belongs to another project",
            hint=f"eject it, or share it with all projects: novacron image move-to-project {name}",
        )
    raise Conflict(
        f"image {name} of VM {vm.name} belongs to another project",
        hint=f"share it with all projects: novacron image move-to-project {name}",
    )


async def move_volume(connection: Connection, move: ProjectMove) -> Volume:
    """Move a volume that is attached to no VM. Raises NotFound, IllegalState, Conflict, QuotaExceeded."""
    volume = await volumes.get(connection, move.key)
    if move.if_match not in (None, volume.revision):
        raise PreconditionFailed(
            f"volume {volume.name} is at revision {volume.revision}, not {move.if_match}", field="If-Match",
            hint="read it again, look at what changed, and repeat",
        )  # fmt: skip
    if volume.project == move.project:
        return volume
    if volume.phase is not VolumePhase.READY:
        raise IllegalState(f"volume {volume.name} is {volume.phase}", hint="wait until that is done")
    await unreconciled.check_volumes(connection, [volume.id])
    if volume.vm is not None:
        raise Conflict(
            f"volume {volume.name} is attached to VM {volume.vm_name}", hint="it moves with the VM; or detach it first"
        )
    target = await projects.get(connection, move.project, field="project")
    _check_keys(f"volume {volume.name}", target, volume.encryption_key)
    before = await _lock_usage(connection, volume.project, target.name)
    try:
        row = await connection.fetchrow(
            "UPDATE volumes SET project = $2 WHERE id = $1 RETURNING *", volume.id, target.name
        )
    except asyncpg.UniqueViolationError:
        why = f"project {target.name} has a volume named {volume.name}"
        raise Conflict(why, field="project", hint="rename it first") from None
    await projects.check_quota(connection, target.name, before)
    await _record(connection, ("volume", volume.id, volume.name), volume.project, move)
    return object_of(Volume, row)


async def move_image(connection: Connection, name: str, project: str | None, size_mib: int, actor: str) -> None:
    """Give an image to a project; None: to all. VMs of other projects that are made of it hinder that.

    Raises NotFound, Conflict, QuotaExceeded.
    """
    if name == BLANK_IMAGE:
        raise Conflict(f"image {name} is built in on every node, and shared by all projects")
    if await connection.fetchval("SELECT true FROM imports WHERE spec ->> 'name' = $1 AND finished_at IS NULL", name):
        raise Conflict(f"image {name} is being imported", hint="wait until that is done")
    if (await imports.keys(connection, {name})).get(name):
        raise Conflict(
            f"image {name} is encrypted with its project's key",
            hint="import it again for the other project, or for all",
        )
    if project is None:
        await connection.execute("DELETE FROM image_owners WHERE name = $1", name)
    else:
        await projects.get(connection, project, field="project")
        rows = await connection.fetch(
            f"SELECT name FROM vms WHERE {vms.USES_IMAGE} AND project <> $2 ORDER BY name LIMIT $3",
            name, project, NAMED_MAX,
        )  # fmt: skip
        if rows:
            raise Conflict(f"VMs of other projects use image {name}", hint="delete them first, or move them")
        before = await projects.lock_usage(connection, project)
        await connection.execute(
            "INSERT INTO image_owners (name, project, size_mib) VALUES ($1, $2, $3)"
            " ON CONFLICT (name) DO UPDATE SET project = excluded.project",
            name, project, size_mib,
        )  # fmt: skip
        await projects.check_quota(connection, project, before)
    said = f"image {name} now belongs to project {project}" if project else f"image {name} now belongs to all projects"
    await events.record(connection, events.NewEvent("image", name, name, "Moved", said, actor, project))


async def _lock_usage(connection: Connection, source: str, target: str) -> Usage:
    """Lock what both projects have, always in the same order; return what the target has."""
    has = {name: await projects.lock_usage(connection, name) for name in sorted({source, target})}
    return has[target]


def _check_keys(what: str, target: Project, *keys: str) -> None:
    """Raise Conflict when something is encrypted, or would have to be."""
    if any(keys):
        raise Conflict(
            f"{what} is encrypted with its project's key, which other projects don't have",
            hint="export it, and import it into the other project",
        )
    if target.encryption:
        raise Conflict(
            f"project {target.name} requires encryption, and {what} is not encrypted", field="project",
            hint="export it, and import it into that project",
        )  # fmt: skip


async def _record(connection: Connection, object_: tuple[str, str, str], source: str, move: ProjectMove) -> None:
    """Tell both projects."""
    for project, said in ((source, f"to project {move.project}"), (move.project, f"from project {source}")):
        await events.record(connection, events.NewEvent(*object_, "Moved", said, move.actor, project))
