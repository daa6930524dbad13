"""Backups of VMs: what users ask for, and how far the nodes are."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

import asyncpg
import msgspec

from novacron.model import limits
from novacron.model.backup import (
    WORKING,
    Backup,
    BackupPhase,
    BackupRepository,
    BackupResult,
    check_transition,
)
from novacron.model.backup_policy import BackupPolicy
from novacron.model.errors import Conflict, IllegalState, InvalidInput, NotFound, Unavailable
from novacron.model.metadata import FIELDS as METADATA
from novacron.model.metadata import Metadata
from novacron.model.node import holds
from novacron.model.snapshot import ExcludedVolume
from novacron.model.vm import CloneOf, Power, Vm, VmAction, VmSpec, is_off, mac_addresses, with_mac_addresses
from novacron.model.waiting import WaitCode
from novacron.store import (
    backup_keys,
    backup_repositories,
    clones,
    events,
    macs,
    new_vms,
    nodes,
    projects,
    snapshots,
    vm_backups,
    vms,
    volumes,
)
from novacron.store.database import Connection
from novacron.store.hindered import ERROR_LENGTH_MAX, hindrance
from novacron.store.rows import UNDECODABLE, Decoded, decode, object_of, report_bad_row
from novacron.telemetry import traces

RUNS_FROM_IT = "SELECT name FROM vms WHERE clone_of ->> 'source' = $1 AND clone_of -> 'live' = 'true' LIMIT 1"
LIVE_ON_NODE = "SELECT count(*) FROM vms WHERE node = $1 AND clone_of IS NOT NULL AND clone_of -> 'live' = 'true'"


class NodeBusy(Unavailable):
    """As many backups wait for a node as may, or as many VMs run from backups."""


class NodeAway(Unavailable):
    """The node on which the VM's disk is is not connected."""

    hinders = WaitCode.NODE_LOST


def of_row(row: asyncpg.Record | None) -> Backup:
    """Return a row of ``backups``. Raises msgspec.ValidationError."""
    return object_of(Backup, row)


def _described_of(of: Metadata) -> dict[str, Any]:
    """Return what people wrote about an object, as far as they did."""
    return {field: value for field in METADATA if (value := getattr(of, field))}


async def create(
    connection: Connection, ref: str, repository: str, actor: str, *, policy: BackupPolicy | None = None
) -> Backup:
    """Ask for a backup of a VM as it is now, for a policy if one wants it. Raises NotFound, IllegalState, Conflict,
    InvalidInput, Unavailable, QuotaExceeded."""
    vm = await vms.get(connection, ref, lock=True)
    vms.check_action(vm, VmAction.BACKUP, None)
    into = await backup_repositories.get(connection, repository, lock=True)
    if into.project != vm.project:
        raise InvalidInput(
            f"backup repository {into.name} belongs to project {into.project}, and VM {vm.name} to {vm.project}",
            field="repository", hint=f"novacron --project {vm.project} backup repository create NAME",
        )  # fmt: skip
    node = await _node_of(connection, vm)
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext('backups'))")  # or many at once would not count
    of_node = await _of_node(connection, node)
    working = [backup for backup in of_node.rows if backup.phase is BackupPhase.MAKING]
    if any(backup.vm == vm.id for backup in working):
        raise Conflict(
            f"a backup of VM {vm.name} is already in progress", hint="wait until that is done: novacron backup list"
        )
    if len(working) >= limits.BACKUPS_PER_NODE_MAX:
        raise NodeBusy(f"{len(working)} backups are already waiting for node {node}", hint="try again later")
    own = sum(backup.project == vm.project for backup in working)
    if own >= limits.BACKUPS_PER_PROJECT_MAX:
        raise NodeBusy(
            f"{own} backups of project {vm.project} are already waiting for node {node}", hint="try again later"
        )
    attached = [
        ExcludedVolume(volume.id, volume.name, volume.lun)
        for volume in await volumes.of_vm(connection, vm.id)
        if volume.lun is not None
    ]
    key = await backup_keys.of_vm(connection, vm)
    before = await projects.lock_usage(connection, vm.project)
    row = await connection.fetchrow(
        "INSERT INTO backups (id, vm, vm_name, repository, repository_name, node, spec, phase, excluded_volumes,"
        " trace, project, result, policy, encryption_key, described)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) RETURNING *",
        f"backup-{secrets.token_hex(8)}", vm.id, vm.name, into.id, into.name, node,
        msgspec.to_builtins(with_mac_addresses(vm.id, vm.spec)), BackupPhase.MAKING, msgspec.to_builtins(attached),
        traces.carry(), vm.project, msgspec.to_builtins(BackupResult()),
        "" if policy is None else policy.id, key, _described_of(vm),
    )  # fmt: skip
    await projects.check_quota(connection, vm.project, before)
    backup = of_row(row)
    why = "" if policy is None else f", for backup policy {policy.name}"
    await _record(connection, backup, "BackupAsked", f"{backup.id} into {into.name}{why}", actor)
    return backup


async def _node_of(connection: Connection, vm: Vm) -> str:
    """Return the node on which a VM's disk can be read. Raises IllegalState, Conflict, Unavailable."""
    if vm.node is None:
        raise IllegalState(f"VM {vm.name} has not been placed on a node yet", hint="wait until it is placed")
    if vm.clone_of is not None:
        raise Conflict(f"the disk of VM {vm.name} is still being created", hint="wait until that is done")
    node = await nodes.get(connection, vm.node)
    if not node.status.ready or node.status.inventory is None:
        raise NodeAway(f"node {vm.node} is not ready", hint="bring the node back first")
    image = next((image for image in node.status.inventory.images if image.name == vm.spec.image), None)
    if image is None or not image.disk_bytes or not vm.spec.own_disk:
        raise IllegalState(f"VM {vm.name} has no disk of its own to back up")
    return vm.node


async def get(connection: Connection, id: str, *, lock: bool = False) -> Backup:
    """Return the backup. Raises NotFound."""
    query = "SELECT * FROM backups WHERE id = $1" + (" FOR UPDATE" if lock else "")
    row = await connection.fetchrow(query, id)
    if row is None:
        raise NotFound(f"there is no backup {id!r}", hint="see: novacron backup list")
    return of_row(row)


async def verify(connection: Connection, id: str, actor: str) -> Backup:
    """Let a node read all of a backup back. Raises NotFound, IllegalState."""
    backup = await get(connection, id, lock=True)
    entered = await _enter(connection, backup, BackupPhase.VERIFYING)
    await _record(connection, entered, "BackupVerifyAsked", id, actor)
    return entered


async def delete(connection: Connection, id: str, actor: str) -> Backup:
    """Let a node take a backup out of its repository, and give one up that is being made. Raises NotFound,
    IllegalState."""
    backup = await get(connection, id, lock=True)
    runs = await connection.fetchval(RUNS_FROM_IT, id)
    if runs is not None:
        raise Conflict(
            f"VM {runs} runs from backup {id}, and does not have all of its disk yet",
            hint=f"wait until it has (novacron vm show {runs}), or delete the VM first",
        )
    is_there = await connection.fetchval("SELECT true FROM nodes WHERE name = $1", backup.node)
    if backup.phase is BackupPhase.FAILED or not is_there:
        await connection.execute("DELETE FROM backups WHERE id = $1", id)
        where = "" if is_there else f"; node {backup.node} is gone, so the data in its repository there is kept"
        await _record(connection, backup, "BackupDeleted", id + where, actor)
        return backup
    entered = await _enter(connection, backup, BackupPhase.DELETING)
    await _record(connection, entered, "BackupDeleteAsked", id, actor)
    return entered


async def _enter(connection: Connection, backup: Backup, phase: BackupPhase) -> Backup:
    check_transition(backup, phase)
    row = await connection.fetchrow(
        "UPDATE backups SET phase = $2, error = '', reason_code = '', trace = $3,"
        " verify_asked_at = CASE WHEN $4 THEN now() ELSE verify_asked_at END WHERE id = $1 RETURNING *",
        backup.id, phase, traces.carry(), phase is BackupPhase.VERIFYING,
    )  # fmt: skip
    return of_row(row)


class NewRestore(NamedTuple):
    """A VM that is to be made of a backup. ``changes`` are to its spec; ``node``: None is where the backup was made."""

    name: str
    changes: dict[str, Any]
    node: str | None = None
    metadata: Mapping[str, Any] | None = None
    """What is written about it; None: what was written about the VM that was backed up."""
    keep_macs: bool | None = False
    """It gets the MAC addresses that the VM had: True, or it is not made; None, those that no other VM has."""
    live: bool = False
    """It runs at once, while its disk is made."""
    bytes_per_s: int | None = None
    """Of its disk, while it runs; None: not limited."""


async def restore(connection: Connection, id: str, asked: NewRestore, actor: str) -> Vm:
    """Store a VM whose disk is to be made of a backup.

    Raises NotFound, Conflict, IllegalState, NoCapacity, InvalidInput, QuotaExceeded.
    """
    backup = await _restorable(connection, id)
    into = await backup_repositories.get(connection, backup.repository)
    key = await backup_keys.of_restored(connection, backup)
    spec = msgspec.structs.replace(clones.fresh(backup.spec), encryption_key=key, **asked.changes)
    if asked.keep_macs is not False:
        had = mac_addresses(backup.vm, backup.spec)
        spec = await macs.of_restored(connection, backup.project, spec, had, must=bool(asked.keep_macs))
    node = asked.node or backup.node
    held = await connection.fetchval("SELECT true FROM nodes WHERE name = $1", node)
    if held and not holds(await nodes.get(connection, node, field="node"), spec.image):
        raise IllegalState(
            f"node {node} does not hold image {spec.image}, from which the VM was created", field="node",
            hint=f"novacron image copy {spec.image} {node}",
        )  # fmt: skip
    source = backup_keys.source(backup, into, key)
    if asked.bytes_per_s is not None and not asked.live:
        raise InvalidInput(
            "only a restore that is live can be limited", field="bytes_per_s", hint="leave it out, or add --live"
        )
    if asked.live:
        await _check_live(connection, spec, node)
    of = CloneOf(backup.id, f"{backup.id} of {backup.vm_name}", linked=False, backup=source, live=asked.live,
                 bytes_per_s=asked.bytes_per_s)  # fmt: skip
    disk_mib = -(-backup.result.disk_bytes >> 20)
    new = new_vms.NewVm(
        asked.name,
        spec,
        disk_mib,
        node,
        clone_of=of,
        metadata=_described_of(backup.described) if asked.metadata is None else asked.metadata,
    )
    vm = await new_vms.create(connection, await projects.making(connection, backup.project), new, actor)
    how = ", which runs meanwhile" if asked.live else ""
    await _record(connection, backup, "RestoreAsked", f"{id} into VM {asked.name}{how}", actor)
    return vm


async def _check_live(connection: Connection, spec: VmSpec, node: str) -> None:
    """Raise InvalidInput, NodeBusy if a VM can't run from a backup there."""
    if spec.power is not Power.RUNNING:
        raise InvalidInput(
            "a VM that does not run is not restored live: QEMU copies its disk", field="live",
            hint="leave out --no-start, or --live",
        )  # fmt: skip
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext('live restores'))")  # or many would not count
    count = await connection.fetchval(LIVE_ON_NODE, node)
    if count >= limits.LIVE_RESTORES_PER_NODE_MAX:
        raise NodeBusy(
            f"{count} VMs on node {node} are being restored live already", hint="try again later, or without --live"
        )


async def _restorable(connection: Connection, id: str) -> Backup:
    """Return a backup of which a disk can be made, locked. Raises NotFound, IllegalState."""
    backup = await get(connection, id, lock=True)
    if backup.phase not in (BackupPhase.KEPT, BackupPhase.VERIFYING):
        raise IllegalState(
            f"backup {id} is {backup.phase}" + (f": {backup.error}" if backup.error else ""),
            hint="choose another one: novacron backup list",
        )
    await backup_keys.check_readable(connection, backup)
    return backup


async def replace(connection: Connection, id: str, actor: str) -> Vm:
    """Have what a backup has put in the place of the disk of the VM that was backed up, which is off.

    Raises NotFound, Conflict, IllegalState.
    """
    backup = await _restorable(connection, id)
    try:
        vm = await vms.get(connection, backup.vm, lock=True)
    except NotFound:
        raise NotFound(
            f"VM {backup.vm_name} of backup {id} was deleted",
            hint=f"restore it to a new VM: novacron backup restore {id} NAME",
        ) from None
    vms.check_action(vm, VmAction.CLONE, None)
    await vms.check_not_cloning(connection, vm, VmAction.SNAPSHOT)
    if not is_off(vm):
        raise IllegalState(
            f"VM {vm.name} is {vm.status.state}: its disk can only be replaced while it is off",
            hint=f"novacron vm stop {vm.name}",
        )
    backup_keys.check_same(backup, vm)
    if await snapshots.of_vm(connection, vm.id):
        raise IllegalState(
            f"VM {vm.name} has snapshots, which would be lost with its disk",
            hint=f"delete them (novacron snapshot list {vm.name}), or use a new VM: novacron backup restore {id} NAME",
        )
    into = await backup_repositories.get(connection, backup.repository)
    source = backup_keys.source(backup, into, vm.spec.encryption_key)
    of = CloneOf(backup.id, f"{backup.id} of {backup.vm_name}", linked=False, backup=source,
                 replaces=secrets.token_hex(8))  # fmt: skip
    row = await connection.fetchrow(
        "UPDATE vms SET clone_of = $2, trace = $3 WHERE id = $1 RETURNING *",
        vm.id, msgspec.to_builtins(of), traces.carry(),
    )  # fmt: skip
    await _record(connection, backup, "RestoreAsked", f"{id} in place of its disk", actor)
    return vms.of_row(row)


class BackupOnNode(NamedTuple):
    """What a node has to do about a backup, and the repository's key."""

    backup: Backup
    repository: BackupRepository
    begins: bool
    """The node may make the repository's directory: no backup is known to be in it."""


async def _of_node(connection: Connection, node: str) -> Decoded[Backup]:
    rows = await connection.fetch(
        "SELECT * FROM backups WHERE node = $1 AND phase = ANY($2) ORDER BY created_at, id", node, list(WORKING)
    )
    return decode("backups", rows, of_row)


async def on_node(connection: Connection, node: str) -> Decoded[BackupOnNode]:
    """Return the backups that a node has to work on, oldest first, and the ids of those that can't be decoded, or whose
    repository can't."""
    working, (backups, unreadable) = list[BackupOnNode](), await _of_node(connection, node)
    for backup in backups:
        try:
            repository = await backup_repositories.get(connection, backup.repository)
        except UNDECODABLE as error:
            report_bad_row("backup_repositories", backup.repository, error)
            unreadable.add(backup.id)
            continue
        kept = await connection.fetchval(
            "SELECT EXISTS (SELECT FROM backups WHERE repository = $1 AND node = $2 AND result ->> 'snapshot' <> '')",
            repository.id, node,
        )  # fmt: skip
        working.append(BackupOnNode(backup, repository, not kept))
    return Decoded(working, unreadable)


class BackupReport(NamedTuple):
    """What became of a backup that a node was to work on: ``done`` is the phase that it was told of."""

    id: str
    done: BackupPhase
    phase: BackupPhase
    result: BackupResult | None
    error: str
    code: str = ""


async def report(connection: Connection, node: str, report: BackupReport) -> None:
    """Store what a node says, unless something else was asked meanwhile."""
    id, done, phase, result, error, code = report
    row = await connection.fetchrow("SELECT * FROM backups WHERE id = $1 AND node = $2 FOR UPDATE", id, node)
    if row is None:
        return
    backup = of_row(row)
    if backup.phase is not done:
        return
    if done is BackupPhase.DELETING:
        if error:
            await connection.execute(
                "UPDATE backups SET error = $2, reason_code = $3 WHERE id = $1",
                id, error[:ERROR_LENGTH_MAX], hindrance(error, code),
            )  # fmt: skip
            return
        await connection.execute("DELETE FROM backups WHERE id = $1", id)
        await vm_backups.refresh(connection, [backup.vm])
        await _record(connection, backup, "BackupDeleted", id)
        return
    check_transition(backup, phase)
    if done is BackupPhase.MAKING:
        await backup_repositories.written_by(connection, backup.repository, node)
    verified = done is BackupPhase.VERIFYING and phase is BackupPhase.KEPT and not error
    await connection.execute(
        "UPDATE backups SET phase = $2, result = $3, error = $4, reason_code = $5,"
        " verified_at = CASE WHEN $6 THEN now() ELSE verified_at END,"
        " finished_at = coalesce(finished_at, now()) WHERE id = $1",
        id, phase, msgspec.to_builtins(result or backup.result), error[:ERROR_LENGTH_MAX], hindrance(error, code),
        verified,
    )  # fmt: skip
    await vm_backups.refresh(connection, [backup.vm])
    reason = {
        BackupPhase.KEPT: "BackupVerified" if verified else "BackupKept" if not error else "BackupNotVerified",
        BackupPhase.DAMAGED: "BackupDamaged",
        BackupPhase.FAILED: "BackupFailed",
    }[phase]
    message = f"{id}: {error}" if error else id
    if result is not None and phase is BackupPhase.KEPT:
        message += f": read: {result.mode}, because {result.mode_reason}" if result.mode_reason else ""
    await _record(connection, backup, reason, message)


async def _record(connection: Connection, backup: Backup, reason: str, message: str, actor: str = "system") -> None:
    new = events.NewEvent("vm", backup.vm, backup.vm_name, reason, message, actor, project=backup.project)
    await events.record(connection, new)
