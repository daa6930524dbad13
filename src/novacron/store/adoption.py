"""The end of a contradiction between a node and the database: an operator says who is right.

Either way the VM begins an epoch above all that any node has reported, which binds them all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import asyncpg
import msgspec

from novacron.model.errors import Conflict, InvalidInput, NotFound
from novacron.model.ownership import Claim
from novacron.model.unreconciled import Contradiction, UnreconciledVm, VmDescription, check_described
from novacron.model.vm import Vm, VmSpec, VmState, VmStatus
from novacron.model.volume import PoolKind, VolumePhase
from novacron.store import (
    events,
    lost_nodes,
    macs,
    networks,
    new_vms,
    nodes,
    projects,
    reconciling,
    sizes,
    unreconciled,
    vms,
)  # fmt: skip
from novacron.store.database import Connection
from novacron.telemetry import traces


class Adoption(msgspec.Struct, frozen=True):
    """How a VM is taken into the database: from which ``node``, under which ``name`` and in which ``project``, where
    that can't be seen."""

    node: str | None = None
    name: str | None = None
    project: str | None = None
    confirm: str | None = None
    """The VM's name, as a word that no other node runs it: where the node has not got it, or only a part of it."""


async def find(connection: Connection, ref: str) -> list[UnreconciledVm]:
    """Return what nodes know of the unreconciled VM with this id or name, locked: who has it first, then the latest.

    Raises NotFound, Conflict.
    """
    await nodes.take_turn(connection)
    rows = await connection.fetch(
        "SELECT * FROM unreconciled_vms WHERE ($1 IN (id, vm, vm_name) OR vm IN (SELECT id FROM vms WHERE name = $1))"
        " AND contradiction <> 'ending' ORDER BY NOT proven, claim <> 'owner', epoch DESC, node"
        " FOR UPDATE",
        ref,
    )
    records = [reconciling.of_row(row) for row in rows]
    if not records:
        await _check_ending(connection, ref)
        raise NotFound(
            f"no node has newer records of a VM {ref!r} than the database", hint="see: novacron vm unreconciled"
        )
    if len({record.vm for record in records}) > 1:
        ids = ", ".join(sorted({record.vm for record in records}))
        raise Conflict(f"several unreconciled VMs are called {ref}: {ids}", hint="use one of these ids")
    return records


async def _check_ending(connection: Connection, ref: str) -> None:
    """Raise Conflict if it was said already who is right about a VM."""
    row = await connection.fetchrow(
        "SELECT * FROM unreconciled_vms WHERE $1 IN (id, vm, vm_name) AND contradiction = 'ending' LIMIT 1", ref
    )
    if row is not None:
        ending = reconciling.of_row(row)
        raise Conflict(
            f"VM {ending.vm_name} is being reconciled: {ending.reason}", hint="see: novacron vm unreconciled"
        )


async def adopt(connection: Connection, ref: str, how: Adoption, actor: str) -> Vm:
    """Let the database have a VM as a node knows it. On the word of one that does not own it the VM is not begun anew
    before all nodes were heard that may. Raises NotFound, Conflict, InvalidInput, NoCapacity."""
    every = await find(connection, ref)
    record = next((record for record in every if how.node in (None, record.node)), None)
    if record is None:
        raise NotFound(f"node {how.node} has no newer records of VM {ref} than the database", field="node")
    if record.claim is Claim.INCOMING:
        raise Conflict(
            f"node {record.node} has only a part of VM {record.vm_name}",
            hint="start the agent of the node that has all of it, and adopt the VM from there",
        )
    if not record.proven and how.confirm != record.vm_name:
        raise InvalidInput(
            f"{record.reason}: the node may be compromised", field="confirm",
            hint=f"if you are sure that it has the VM, add --confirm {record.vm_name}",
        )  # fmt: skip
    if record.claim is not Claim.OWNER and how.confirm != record.vm_name:
        raise InvalidInput(
            f"{record.reason}: another node may have it, and connect later", field="confirm",
            hint=f"make sure that no other node runs it, then add --confirm {record.vm_name}",
        )  # fmt: skip
    if not record.proven or record.claim is Claim.RELEASED:
        await unreconciled.check_heard(connection, f"adopt VM {record.vm_name}", record.node)
    epoch = await _settle(connection, every, record)
    row = await connection.fetchrow("SELECT * FROM vms WHERE id = $1 FOR UPDATE", record.vm)
    if record.claim is Claim.NONE:
        return await _drop(connection, vms.of_row(row), record, actor)
    if record.contradiction is Contradiction.DAMAGED:
        vm = await _move(connection, row, record, epoch)
        message = f"as node {record.node} has it"
    else:
        vm = await _as_described(connection, row, record, how, epoch)
        message = f"as node {record.node} knows it"
    await events.record(connection, events.NewEvent("vm", vm.id, vm.name, "Adopted", message, actor, vm.project))
    await reconciling.let_end(connection, vm, [other for other in every if other.node != vm.node and _may_run(other)])
    return await vms.get(connection, vm.id)


def _may_run(record: UnreconciledVm) -> bool:
    """Say whether a VM may run on a node until that is told otherwise."""
    if not record.proven:
        return False  # nobody waits for such a node's word
    return record.claim is Claim.OWNER or record.contradiction is Contradiction.DAMAGED


async def _as_described(
    connection: Connection, row: asyncpg.Record | None, record: UnreconciledVm, how: Adoption, epoch: int
) -> Vm:
    """Let the database have a VM as its node describes it."""
    described = _description(record)
    described = msgspec.structs.replace(described, spec=_begun_anew(described.spec, record))
    if row is None:
        vm = await _create(connection, record, described, how, epoch)
    else:
        vm = await _correct(connection, vms.of_row(row), record, described, how, epoch)
    await _attach_volumes(connection, vm, described)
    return vm


async def _move(connection: Connection, row: asyncpg.Record | None, record: UnreconciledVm, epoch: int) -> Vm:
    """Let a VM be on the node that can't say what it is, as the database knows it. Raises Conflict."""
    if row is None:
        raise Conflict(
            f"neither the database nor node {record.node} has the spec of VM {record.vm_name}",
            hint=f"restore the VM's file in the node's journal directory, or: novacron vm forget {record.vm_name}",
        )
    machine = vms.of_row(row).status.machine
    row = await connection.fetchrow(
        "UPDATE vms SET node = $2, status = $3, epoch = $4, lost_on = NULL, unreconciled = NULL, deleting = false,"
        " trace = $5 WHERE id = $1 RETURNING *",
        record.vm, record.node, _status(record, machine), epoch, traces.carry(),
    )  # fmt: skip
    await connection.execute(
        "UPDATE volumes SET node = $2 WHERE vm = $1 AND kind = $3", record.vm, record.node, PoolKind.LOCAL
    )
    return vms.of_row(row)


async def forget(connection: Connection, ref: str, confirm: str | None, actor: str) -> Vm | None:
    """Let the database be right about a VM: nodes that have it otherwise end what they have of it.

    Return the VM, None if there is none. Raises NotFound, Conflict, InvalidInput.
    """
    every = await find(connection, ref)
    first = every[0]
    if confirm != first.vm_name:
        raise InvalidInput(
            "forgetting the VM makes nodes delete their copies of it, with its disk", field="confirm",
            hint=f"to confirm, add --confirm {first.vm_name}",
        )  # fmt: skip
    await unreconciled.check_heard(connection, f"forget VM {first.vm_name}")
    epoch = await _settle(connection, every, first)
    message = "the database is right: " + "; ".join(record.reason for record in every)
    row = await connection.fetchrow("SELECT * FROM vms WHERE id = $1 FOR UPDATE", first.vm)
    if row is None:
        await connection.execute(
            "INSERT INTO vm_tombstones (vm, epoch) VALUES ($1, $2)"
            " ON CONFLICT (vm) DO UPDATE SET epoch = excluded.epoch, deleted_at = now()",
            first.vm, epoch,
        )  # fmt: skip
        await events.record(
            connection, events.NewEvent("vm", first.vm, first.vm_name, "Forgotten", message, actor, first.project)
        )
        return None
    vm = vms.of_row(row)
    spec = _begun_anew(vm.spec, next((record for record in _proven(every) if record.node == vm.node), None))
    node, lost_on, status = vm.node, vm.lost_on, VmStatus(machine=vm.status.machine, reason="the database was right")
    if any(record.node == vm.node and record.claim in (Claim.NONE, Claim.INCOMING) for record in _proven(every)):
        lost = await lost_nodes.only_there(connection, vm)
        node, lost_on = None, None if lost is None else vm.node
        if lost is not None:
            reason = f"node {vm.node} has removed it, and {lost}: see novacron vm recover {vm.name} --help"
            status = VmStatus(state=VmState.FAILED, machine=vm.status.machine, reason=reason)
    row = await connection.fetchrow(
        "UPDATE vms SET node = $2, lost_on = $3, epoch = $4, status = $5, spec = $6, unreconciled = NULL WHERE id = $1"
        " RETURNING *",
        vm.id, node, lost_on, epoch, msgspec.to_builtins(status), msgspec.to_builtins(spec),
    )  # fmt: skip
    await events.record(connection, events.NewEvent("vm", vm.id, vm.name, "Forgotten", message, actor, vm.project))
    others = [other for other in _proven(every) if other.claim is not Claim.NONE and other.node != node]
    await reconciling.let_end(connection, vms.of_row(row), others)
    return await vms.get(connection, vm.id)


def _begun_anew(spec: VmSpec, record: UnreconciledVm | None) -> VmSpec:
    """Let the guest of a node that has handed it over begin anew: it may have run elsewhere since, and what it has in
    memory there is not what is on its disks."""
    if record is None or record.claim is not Claim.RELEASED:
        return spec
    resets = [spec.resets]
    with contextlib.suppress(Conflict):
        resets.append(_description(record).spec.resets)
    return msgspec.structs.replace(spec, resets=max(resets) + 1)


def _proven(every: Iterable[UnreconciledVm]) -> list[UnreconciledVm]:
    return [record for record in every if record.proven]


async def _settle(connection: Connection, every: list[UnreconciledVm], decided: UnreconciledVm) -> int:
    """Let a VM be reconciled; return the epoch that it begins, above all that are known. What is claimed without proof
    is only known of what was ``decided``."""
    id = every[0].vm
    await connection.execute("DELETE FROM unreconciled_vms WHERE vm = $1 AND contradiction <> 'ending'", id)
    epoch: int = await connection.fetchval(
        "SELECT 1 + greatest($2, (SELECT epoch FROM vms WHERE id = $1),"
        " (SELECT epoch FROM vm_tombstones WHERE vm = $1))",
        id, max(record.epoch for record in [decided, *_proven(every)]),
    )  # fmt: skip
    await reconciling.count(connection, {record.node for record in every})
    return epoch


def _description(record: UnreconciledVm) -> VmDescription:
    """Return what a node knows of a VM. Raises Conflict."""
    try:
        described = msgspec.convert(record.description, VmDescription)
        check_described(record.vm, described)
        return described
    except (msgspec.ValidationError, InvalidInput) as error:
        why = (
            "does not report"
            if record.description is None
            else f"reports in a form that this version can't read ({error})"
        )
        raise Conflict(
            f"node {record.node} {why} the spec of VM {record.vm_name}",
            hint="check that its agent is connected and up to date",
        ) from None


async def _drop(connection: Connection, vm: Vm, record: UnreconciledVm, actor: str) -> Vm:
    """Take a VM out of the database that its node has not got any more. Should another node have it, and connect, that
    can still be adopted: so nothing says that it was deleted."""
    await vms.leave(connection, vm)
    message = f"node {record.node} has removed it or given it away"
    await events.record(connection, events.NewEvent("vm", vm.id, vm.name, "Forgotten", message, actor, vm.project))
    return msgspec.structs.replace(vm, deleting=True)


def _status(record: UnreconciledVm, machine: str) -> dict[str, Any]:
    status = VmStatus(machine=machine, reason=f"adopted from node {record.node}")
    return msgspec.to_builtins(status)  # type: ignore[no-any-return]  # a struct becomes a dict


async def _create(
    connection: Connection, record: UnreconciledVm, described: VmDescription, how: Adoption, epoch: int
) -> Vm:
    """Store a VM that the database does not know."""
    spec, name, project = described.spec, how.name or described.name, how.project or record.project
    if project is None:
        raise Conflict(
            f"the project of VM {name} is not in the database",
            field="project",
            hint="choose another project: --project",
        )
    await projects.get(connection, project)
    await networks.check_given(connection, spec.nics, project)
    await macs.check_kept(connection, record.vm, spec, project)
    disk_mib = (spec.disk_mib or await sizes.image_disk_mib(connection, spec.image) or 0) if spec.own_disk else 0
    await connection.execute("DELETE FROM vm_tombstones WHERE vm = $1", record.vm)
    try:
        row = await connection.fetchrow(
            new_vms.INSERT_ADOPTED,
            record.vm, name, msgspec.to_builtins(spec), _status(record, described.machine), record.node, epoch,
            project, disk_mib, traces.carry(),
        )  # fmt: skip
    except asyncpg.UniqueViolationError:
        raise _name_taken(name) from None
    vm = vms.of_row(row)
    await networks.attach(connection, vm.id, spec)
    return vm


def _name_taken(name: str) -> Conflict:
    return Conflict(f"another VM is named {name!r}", field="name", hint="adopt it under another name: --name")


async def _correct(
    connection: Connection, vm: Vm, record: UnreconciledVm, described: VmDescription, how: Adoption, epoch: int
) -> Vm:
    """Let the row of a VM say what its node knows."""
    await connection.execute("DELETE FROM nics WHERE vm = $1", vm.id)
    await networks.check_given(connection, described.spec.nics, vm.project)
    await macs.check_kept(connection, vm.id, described.spec, vm.project)
    try:
        row = await connection.fetchrow(
            "UPDATE vms SET name = $2, spec = $3, status = $4, node = $5, epoch = $6, lost_on = NULL,"
            " unreconciled = NULL, deleting = false, trace = $7 WHERE id = $1 RETURNING *",
            vm.id, how.name or described.name, msgspec.to_builtins(described.spec),
            _status(record, described.machine or vm.status.machine), record.node, epoch, traces.carry(),
        )  # fmt: skip
    except asyncpg.UniqueViolationError:
        raise _name_taken(how.name or described.name) from None
    await networks.attach(connection, vm.id, described.spec)
    return vms.of_row(row)


async def _attach_volumes(connection: Connection, vm: Vm, described: VmDescription) -> None:
    """Let a VM have the volumes that its node knows, and no others."""
    ids = [volume.id for volume in described.volumes]
    await connection.execute(f"UPDATE volumes SET {vms.DETACHED} WHERE vm = $1 AND id <> ALL($2)", vm.id, ids)
    for volume in described.volumes:
        kind = PoolKind.LOCAL if volume.moves else PoolKind.SHARED
        stored = await connection.fetchrow(
            "INSERT INTO volumes AS v (id, name, pool, kind, node, size_mib, iops, bytes_per_s, phase, project, vm,"
            " vm_name, lun, read_only, boot_order, bus) VALUES ($1, $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12,"
            " $13, $14, $15) ON CONFLICT (id) DO UPDATE SET vm = $10, vm_name = $11, lun = $12, read_only = $13,"
            " boot_order = $14, bus = $15, detaching = false, error = '', phase = $8,"
            " size_mib = greatest(v.size_mib, $5),"
            " node = CASE WHEN v.kind = 'local' THEN $4 ELSE v.node END"
            " WHERE (v.vm IS NULL OR v.vm = $10) AND v.project = $9 RETURNING id",
            volume.id, volume.pool, kind, vm.node, volume.size_mib, volume.iops, volume.bytes_per_s,
            VolumePhase.READY, vm.project, vm.id, vm.name, volume.lun, volume.read_only, volume.boot_order,
            volume.bus,
        )  # fmt: skip
        if stored is None:
            raise Conflict(
                f"volume {volume.id} of VM {vm.name} now belongs to another VM or project",
                hint=f"detach it there first: novacron volume detach {volume.id}",
            )
        await connection.execute("DELETE FROM volume_leftovers WHERE volume = $1 AND node = $2", volume.id, vm.node)
