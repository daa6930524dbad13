"""Snapshots: what users ask for, what nodes have done, and the tree that they make."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import NamedTuple

import asyncpg
import msgspec

from novacron.model import limits
from novacron.model.errors import Conflict, IllegalState, NotFound
from novacron.model.node import holds
from novacron.model.snapshot import (
    WORKING,
    ExcludedVolume,
    MachineLayout,
    Snapshot,
    SnapshotPhase,
    check_transition,
    volume_differences,
)
from novacron.model.vm import Power, Vm, VmAction, VmState
from novacron.store import events, nodes, projects, vms, volumes
from novacron.store.database import Connection
from novacron.store.hindered import ERROR_LENGTH_MAX, hindrance
from novacron.store.rows import Decoded, decode, object_of


def _snapshot(row: asyncpg.Record | None) -> Snapshot:
    return object_of(Snapshot, row)


async def of_vm(connection: Connection, vm: str) -> list[Snapshot]:
    """Return a VM's snapshots, oldest first."""
    rows = await connection.fetch("SELECT * FROM snapshots WHERE vm = $1 ORDER BY created_at, id", vm)
    return [_snapshot(row) for row in rows]


def _check_memory(vm: Vm) -> None:
    """Raise IllegalState if a snapshot can't save the memory of a VM that runs."""
    if vm.status.hardware is not None and vm.status.hardware.dimms_mib:
        raise IllegalState(
            f"VM {vm.name} got memory while running, which a snapshot with memory can't save", field="memory",
            hint="stop and start it first, or take the snapshot without memory",
        )  # fmt: skip
    has = None if vm.status.hardware is None else vm.status.hardware.nics
    if has is not None and has.changed:
        raise IllegalState(
            f"VM {vm.name} got or lost a network interface while running, which a snapshot with memory can't save",
            field="memory", hint="stop and start it first, or take the snapshot without memory",
        )  # fmt: skip
    if vm.spec.encryption_key:
        raise IllegalState(
            f"the disk of VM {vm.name} is encrypted, and QEMU can't write memory into such a disk", field="memory",
            hint="take the snapshot without memory",
        )  # fmt: skip
    if vm.spec.devices:
        raise IllegalState(
            f"VM {vm.name} has host devices, whose state a snapshot with memory can't save", field="memory",
            hint="take the snapshot without memory",
        )  # fmt: skip


async def create(connection: Connection, ref: str, name: str, memory: bool, quiesce: bool, actor: str) -> Snapshot:
    """Ask for a snapshot. Raises NotFound, Conflict, IllegalState."""
    vm = await _free(connection, ref)
    if vm.node is None or not await _has_disk(connection, vm):
        raise IllegalState(f"VM {vm.name} has no disk to take a snapshot of")
    if (memory or quiesce) and vm.status.state not in (VmState.RUNNING, VmState.PAUSED):
        what = "memory" if memory else "guest to write out what it has"
        raise IllegalState(
            f"VM {vm.name} is {vm.status.state}: it has no {what}", field="memory" if memory else "quiesce"
        )
    if memory:
        _check_memory(vm)
    if quiesce and vm.status.guest is None:
        raise IllegalState(f"the guest agent of VM {vm.name} does not answer", field="quiesce", hint="leave it out")
    if len(await of_vm(connection, vm.id)) >= limits.SNAPSHOTS_PER_VM_MAX:
        raise Conflict(f"VM {vm.name} has {limits.SNAPSHOTS_PER_VM_MAX} snapshots", hint="delete one first")
    before = await projects.lock_usage(connection, vm.project)
    parent = await connection.fetchval("SELECT snapshot FROM vms WHERE id = $1", vm.id)
    try:
        row = await connection.fetchrow(
            "INSERT INTO snapshots (id, vm, vm_name, name, parent, memory, quiesce, vcpus, memory_mib, phase,"
            " excluded_volumes) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) RETURNING *",
            f"snap-{secrets.token_hex(8)}", vm.id, vm.name, name, parent, memory, quiesce, vm.spec.vcpus,
            vm.spec.memory_mib, SnapshotPhase.CREATING, msgspec.to_builtins(await _attached(connection, vm)),
        )  # fmt: skip
    except asyncpg.UniqueViolationError:
        raise Conflict(
            f"VM {vm.name} already has a snapshot {name!r}", field="name", hint="choose another name"
        ) from None
    await projects.check_quota(connection, vm.project, before)
    await vms.touch(connection, vm.id)
    await events.record(connection, events.NewEvent("vm", vm.id, vm.name, "SnapshotAsked", f"snapshot {name}", actor))
    return _snapshot(row)


async def _attached(connection: Connection, vm: Vm) -> list[ExcludedVolume]:
    """Return the volumes that a VM has. Raises Conflict while it is to lose one."""
    attached = await volumes.of_vm(connection, vm.id)
    leaving = next((volume for volume in attached if volume.detaching), None)
    if leaving is not None:
        raise Conflict(f"volume {leaving.name} is being detached from VM {vm.name}", hint="wait until that is done")
    return [ExcludedVolume(volume.id, volume.name, volume.lun) for volume in attached if volume.lun is not None]


async def _check_fits(connection: Connection, vm: Vm, snapshot: Snapshot) -> None:
    """Raise IllegalState unless the VM is as it was when its memory was kept, as far as the database can tell: its node
    compares the rest."""
    if (snapshot.vcpus, snapshot.memory_mib) != (vm.spec.vcpus, vm.spec.memory_mib):
        size = f"{snapshot.vcpus} vCPUs and {snapshot.memory_mib} MiB"
        raise IllegalState(
            f"snapshot {snapshot.name} holds the memory of a VM with {size}",
            hint=f"novacron vm set {vm.name} --vcpus {snapshot.vcpus} --memory {snapshot.memory_mib}",
        )
    had, has = snapshot.excluded_volumes, await _attached(connection, vm)
    differences = [] if had is None else volume_differences(had, has)
    if had is None or not differences:
        return
    volumes = ", then ".join(volume.name for volume in sorted(had, key=lambda volume: volume.lun)) or "none"
    raise IllegalState(
        f"snapshot {snapshot.name} holds the memory of a VM with other volumes: {'; '.join(differences)}",
        hint=f"detach the volumes that differ, and attach, in this order, the ones it had: {volumes}",
    )


async def _free(connection: Connection, ref: str) -> Vm:
    """Return a VM with which nothing else goes on. Raises NotFound, Conflict, IllegalState."""
    vm = await vms.get(connection, ref, lock=True)
    vms.check_action(vm, VmAction.SNAPSHOT, None)
    await vms.check_not_cloning(connection, vm, VmAction.SNAPSHOT)
    await check_idle(connection, vm)
    return vm


async def check_idle(connection: Connection, vm: Vm) -> None:
    """Raise Conflict while there is something to do about one of the VM's snapshots."""
    busy = next((s for s in await of_vm(connection, vm.id) if s.phase in WORKING), None)
    if busy is not None:
        raise Conflict(f"snapshot {busy.name} of VM {vm.name} is {busy.phase}", hint="wait until that is done")


async def _has_disk(connection: Connection, vm: Vm) -> bool:
    if not vm.spec.own_disk:
        return False
    for node in await nodes.all(connection):
        if holds(node, vm.spec.image) and node.status.inventory is not None:
            return any(i.name == vm.spec.image and i.disk_bytes for i in node.status.inventory.images)
    return False


async def _get(connection: Connection, vm: Vm, name: str) -> Snapshot:
    row = await connection.fetchrow(
        "SELECT * FROM snapshots WHERE vm = $1 AND (name = $2 OR id = $2) FOR UPDATE", vm.id, name
    )
    if row is None:
        raise NotFound(f"VM {vm.name} has no snapshot {name!r}", hint=f"see: novacron snapshot list {vm.name}")
    return _snapshot(row)


async def _enter(connection: Connection, vm: Vm, snapshot: Snapshot, phase: SnapshotPhase) -> Snapshot:
    check_transition(snapshot, phase)
    row = await connection.fetchrow("UPDATE snapshots SET phase = $2 WHERE id = $1 RETURNING *", snapshot.id, phase)
    await vms.touch(connection, vm.id)
    return _snapshot(row)


async def revert(connection: Connection, ref: str, name: str, actor: str) -> Snapshot:
    """Let a VM go back to a snapshot; what it wrote since is lost. Raises NotFound, Conflict, IllegalState."""
    vm = await _free(connection, ref)
    snapshot = await _get(connection, vm, name)
    if snapshot.memory:
        await _check_fits(connection, vm, snapshot)
    starts_vm = snapshot.memory and vm.status.state not in (VmState.RUNNING, VmState.PAUSED)
    await connection.execute("UPDATE snapshots SET starts_vm = $2 WHERE id = $1", snapshot.id, starts_vm)
    entered = await _enter(connection, vm, snapshot, SnapshotPhase.REVERTING)
    if starts_vm or (snapshot.memory and vm.spec.power is not Power.RUNNING):
        spec = msgspec.structs.replace(vm.spec, power=Power.RUNNING, starts=vm.spec.starts + 1)
        await connection.execute("UPDATE vms SET spec = $2 WHERE id = $1", vm.id, msgspec.to_builtins(spec))
    await events.record(
        connection, events.NewEvent("vm", vm.id, vm.name, "RevertAsked", f"to snapshot {snapshot.name}", actor)
    )
    return entered


async def delete(connection: Connection, ref: str, name: str, actor: str) -> Snapshot:
    """Delete a snapshot; the VM does not change. Raises NotFound, Conflict, IllegalState."""
    vm = await _free(connection, ref)
    entered = await _enter(connection, vm, await _get(connection, vm, name), SnapshotPhase.DELETING)
    await events.record(
        connection, events.NewEvent("vm", vm.id, vm.name, "SnapshotDeleteAsked", f"snapshot {entered.name}", actor)
    )
    return entered


class SnapshotReport(NamedTuple):
    """What a VM's owner has done about a snapshot. ``done`` is the phase that it was told of; ``pause_ms`` how long the
    guest stood still for it."""

    vm: str
    epoch: int
    id: str
    done: SnapshotPhase
    error: str
    pause_ms: float | None
    layout: MachineLayout | None = None
    code: str = ""


async def report(connection: Connection, node: str, report: SnapshotReport) -> None:
    """Store what a VM's owner did. Anyone else's report is ignored."""
    vm_id, epoch, id, done, error, pause_ms, layout, code = report
    vm_row = await connection.fetchrow("SELECT name, node, epoch FROM vms WHERE id = $1 FOR UPDATE", vm_id)
    row = await connection.fetchrow("SELECT * FROM snapshots WHERE id = $1 AND vm = $2", id, vm_id)
    if vm_row is None or row is None or (vm_row["node"], vm_row["epoch"]) != (node, epoch):
        return
    snapshot = _snapshot(row)
    if snapshot.phase is not done:
        return
    if error:
        reason, message = "SnapshotFailed", f"{snapshot.name}: {done}: {error}"
        phase = SnapshotPhase.FAILED if done is SnapshotPhase.CREATING else SnapshotPhase.READY
        await connection.execute(
            "UPDATE snapshots SET phase = $2, error = $3, reason_code = $4 WHERE id = $1",
            id, phase, error[:ERROR_LENGTH_MAX], hindrance(error, code),
        )  # fmt: skip
    elif done is SnapshotPhase.DELETING:
        reason, message = "SnapshotDeleted", snapshot.name
        for table, column in (("snapshots", "parent"), ("vms", "snapshot")):
            await connection.execute(f"UPDATE {table} SET {column} = $2 WHERE {column} = $1", id, snapshot.parent)
        await connection.execute("DELETE FROM snapshots WHERE id = $1", id)
    else:
        reason = "SnapshotMade" if done is SnapshotPhase.CREATING else "Reverted"
        message = f"{snapshot.name}" + ("" if pause_ms is None else f", the guest was paused for {pause_ms:.0f} ms")
        await connection.execute(
            "UPDATE snapshots SET phase = $2, error = '', reason_code = '', pause_ms = coalesce($3, pause_ms),"
            " layout = coalesce($4, layout) WHERE id = $1",
            id, SnapshotPhase.READY, pause_ms, None if layout is None else msgspec.to_builtins(layout),
        )  # fmt: skip
        await connection.execute("UPDATE vms SET snapshot = $2 WHERE id = $1", vm_id, id)
    await events.record(connection, events.NewEvent("vm", vm_id, vm_row["name"], reason, message))


async def working(connection: Connection, ids: Sequence[str]) -> Decoded[Snapshot]:
    """Return the open work on VMs' snapshots, oldest first, and the VMs of those that can't be decoded."""
    rows = await connection.fetch(
        "SELECT * FROM snapshots WHERE vm = ANY($1) AND phase = ANY($2) ORDER BY created_at",
        ids, [phase.value for phase in WORKING],
    )  # fmt: skip
    return decode("snapshots", rows, _snapshot, of="vm")


async def check_movable(connection: Connection, vm: Vm, *, live: bool) -> None:
    """Raise Conflict or IllegalState when the VM's snapshots keep it from moving now."""
    await check_idle(connection, vm)
    if live and any(snapshot.phase is not SnapshotPhase.FAILED for snapshot in await of_vm(connection, vm.id)):
        raise IllegalState(
            f"VM {vm.name} has snapshots, so it can't migrate while it runs",
            hint=f"migrate it paused, with its snapshots: novacron vm migrate {vm.name} --warm",
        )
