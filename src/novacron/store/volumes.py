"""Volumes: what users ask for, in whose hands each is, and what nodes have done."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import asyncpg

from novacron.model.devices import DiskBus
from novacron.model.errors import Conflict, IllegalState, InvalidInput, NoCapacity, NotFound
from novacron.model.fit import refusal_of_all
from novacron.model.node import Node, holds
from novacron.model.vm import Firmware, Power, Vm, VmAction, VmState
from novacron.model.volume import LUNS, Pool, PoolKind, Volume, VolumePhase
from novacron.model.waiting import WaitCode
from novacron.store import events, imports, nodes, projects, sizes, unreconciled, vms
from novacron.store.database import Connection
from novacron.store.hindered import ERROR_LENGTH_MAX, hindrance
from novacron.store.rows import Decoded, decode, decode_each, object_of
from novacron.telemetry import traces

POOLS = "see: novacron pool list"


def _volume(row: asyncpg.Record | None) -> Volume:
    return object_of(Volume, row)


def pools_of(node: Node) -> tuple[Pool, ...]:
    """Return the pools that a node has."""
    return node.status.inventory.pools if node.status.inventory else ()


class NewVolume(NamedTuple):
    """A volume that is asked for: on ``node`` or where most room is; as a copy of an image's disk, if one is named."""

    name: str
    pool: str
    size_mib: int
    node: str | None = None
    image: str | None = None
    iops: int | None = None
    bytes_per_s: int | None = None


async def create(connection: Connection, project: str, new: NewVolume, actor: str) -> Volume:
    """Ask for a volume of a project. Raises NotFound, NoCapacity, Conflict, InvalidInput, QuotaExceeded."""
    name, pool, size_mib, node, image, iops, bytes_per_s = new
    before = await projects.lock_usage(connection, project)
    if image is not None:
        await imports.check_usable(connection, image, project)
        has_mib = await sizes.image_disk_mib(connection, image)
        if not has_mib or size_mib < has_mib:
            why = f"image {image} has {'no disk' if not has_mib else f'a disk of {has_mib} MiB'}"
            raise InvalidInput(why, field="size_mib" if has_mib else "image", hint="see: novacron image list")
    if node is not None:
        await nodes.get(connection, node, field="node")
    chosen, kind = choose_pool(await nodes.all(connection), new)
    try:
        row = await connection.fetchrow(
            "INSERT INTO volumes (id, name, pool, kind, node, size_mib, iops, bytes_per_s, phase, image, project,"
            " trace, encryption_key) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) RETURNING *",
            f"vol-{secrets.token_hex(8)}", name, pool, kind, chosen, size_mib, iops, bytes_per_s,
            VolumePhase.CREATING, image, project, traces.carry(), (await projects.get(connection, project)).key_of_new,
        )  # fmt: skip
    except asyncpg.UniqueViolationError:
        raise Conflict(f"a volume named {name!r} exists", field="name", hint="choose another name") from None
    await projects.check_quota(connection, project, before)
    volume = _volume(row)
    await events.record(
        connection, events.NewEvent("volume", volume.id, name, "VolumeAsked", f"{size_mib} MiB in {pool}", actor)
    )
    return volume


def choose_pool(every: Sequence[Node], new: NewVolume) -> tuple[str, PoolKind]:
    """Return the node whose pool has the most space for a new volume, and the pool's kind.

    Raises NotFound, NoCapacity.
    """
    pool, node, image = new.pool, new.node, new.image
    having = [
        (pool_there, candidate)
        for candidate in every
        if node in (None, candidate.name) and (image is None or holds(candidate, image))
        for pool_there in pools_of(candidate)
        if pool_there.name == pool
    ]
    candidates = [
        (pool_there.bytes_free, candidate.name, pool_there.kind)
        for pool_there, candidate in having
        if refusal_of_all(candidate) is None
    ]
    if not candidates:
        raise _none_of([candidate for _, candidate in having], new)
    free, chosen, kind = max(candidates)
    if new.size_mib << 20 > free:
        raise NoCapacity(
            f"pool {pool} has {free >> 20} MiB free on node {chosen}, not {new.size_mib}",
            field="size_mib", hint=POOLS,
        )  # fmt: skip
    return chosen, kind


def _none_of(having: Sequence[Node], new: NewVolume) -> NoCapacity | NotFound:
    """Return why none of the nodes that have a pool takes a volume."""
    if any(node.status.ready for node in having):
        said = "; ".join(filter(None, map(refusal_of_all, having[:3])))
        return NoCapacity(f"no node can take a volume in pool {new.pool} now: {said}", field="pool", hint=POOLS)
    where = "no ready node" if new.node is None else f"node {new.node}, as it is now,"
    image = "" if new.image is None else f", and image {new.image}"
    return NotFound(f"{where} has a pool {new.pool!r}{image}", field="pool", hint=POOLS)


async def get(connection: Connection, ref: str) -> Volume:
    """Return the volume with this id, locked after its VM, the order that every writer keeps.

    Raises NotFound.
    """
    query = "SELECT * FROM volumes WHERE id = $1"
    row = await connection.fetchrow(query, ref)
    if row is not None and row["vm"] is not None:
        await connection.execute("SELECT FROM vms WHERE id = $1 FOR UPDATE", row["vm"])
    row = await connection.fetchrow(f"{query} FOR UPDATE", ref)
    if row is None:
        raise NotFound(f"there is no volume {ref!r}", hint="see: novacron volume list")
    return _volume(row)


async def _ready(connection: Connection, ref: str) -> Volume:
    volume = await get(connection, ref)
    if volume.phase is not VolumePhase.READY:
        raise IllegalState(f"volume {volume.name} is {volume.phase}" + (f": {volume.error}" if volume.error else ""))
    return volume


class Attachment(NamedTuple):
    """How a VM is to have a volume."""

    read_only: bool = False
    boot_order: int | None = None
    bus: DiskBus = DiskBus.SCSI


async def attach(connection: Connection, ref: str, vm_ref: str, how: Attachment, actor: str) -> Volume:
    """Give a volume to a VM, at once if that runs. Raises NotFound, Conflict, IllegalState, InvalidInput."""
    try:
        vm = await vms.get(connection, vm_ref, lock=True)
    except NotFound as error:
        raise NotFound(error.detail, field="vm", hint=error.hint) from None
    vms.check_action(vm, VmAction.CONFIGURE, None)
    check_bus(vm, how.bus)
    volume = await _ready(connection, ref)
    await unreconciled.check_volumes(connection, [volume.id])
    if volume.project != vm.project:
        raise Conflict(
            f"volume {volume.name} belongs to project {volume.project}, VM {vm.name} to project {vm.project}",
            field="vm",
        )
    if volume.vm is not None:
        raise Conflict(
            f"volume {volume.name} is attached to VM {volume.vm_name}", hint=f"novacron volume detach {volume.name}"
        )
    if vm.node is None:
        raise IllegalState(f"VM {vm.name} has not been placed on a node yet", hint="wait until it is placed")
    if vm.spec.ha and volume.kind is PoolKind.LOCAL:
        raise Conflict(
            f"VM {vm.name} is highly available, but volume {volume.name} is on node {volume.node} only",
            field="vm", hint="use a volume in a shared pool",
        )  # fmt: skip
    why = unreachable(await nodes.get(connection, vm.node), volume)
    if why is not None:
        raise IllegalState(why, field="vm", hint=POOLS)
    row = await place(connection, volume.id, vm, how)
    await vms.touch(connection, vm.id)
    await events.record(
        connection, events.NewEvent("vm", vm.id, vm.name, "VolumeAttached", f"volume {volume.name}", actor)
    )
    return _volume(row)


async def place(
    connection: Connection, id: str, vm: Vm, how: Attachment, *, with_vm: bool = False
) -> asyncpg.Record | None:
    """Let a volume have a place in a VM, and return its row. Raises Conflict where there is none."""
    taken = {volume_there.lun for volume_there in await of_vm(connection, vm.id)}
    lun = next((lun for lun in range(LUNS[how.bus]) if lun not in taken), None)
    if lun is None:
        raise Conflict(
            f"VM {vm.name} has no room for another volume on bus {how.bus}: {LUNS[how.bus]} at most, over all buses",
            hint="detach one first, or use another bus",
        )
    return await connection.fetchrow(
        "UPDATE volumes SET vm = $2, vm_name = $3, lun = $4, read_only = $5, boot_order = $6, bus = $7, with_vm = $8"
        " WHERE id = $1 RETURNING *",
        id, vm.id, vm.name, lun, how.read_only, how.boot_order, how.bus, with_vm,
    )  # fmt: skip


def check_bus(vm: Vm, bus: DiskBus) -> None:
    """Raise IllegalState or InvalidInput unless a VM can get, or lose, a volume on a bus as it is."""
    if bus is DiskBus.IDE and vm.spec.firmware is not Firmware.BIOS:
        raise InvalidInput("a VM with UEFI has no IDE bus", field="bus", hint="use sata")
    off = vm.spec.power is Power.STOPPED and vm.status.state in (VmState.STOPPED, VmState.PENDING)
    if bus is not DiskBus.SCSI and not off:
        raise IllegalState(
            f"a volume on bus {bus} can only be attached or detached while VM {vm.name} is stopped"
            " (stop it explicitly)",
            hint=f"novacron vm stop {vm.name} --wait; volumes on bus scsi can be attached and detached while it runs",
        )


def unreachable(node: Node, volume: Volume) -> str | None:
    """Say why a VM on ``node`` can't use a volume, or None if it can."""
    if volume.kind is PoolKind.LOCAL:
        return None if node.name == volume.node else f"volume {volume.name} is on node {volume.node}, not {node.name}"
    if any(pool.name == volume.pool and pool.kind is PoolKind.SHARED for pool in pools_of(node)):
        return None
    return f"node {node.name} does not have the shared pool {volume.pool} of volume {volume.name}"


def _uncarriable(node: Node, source: Node | None, volume: Volume) -> str | None:
    """Say why a VM with this volume can't be moved to ``node``, or None if it can: a local volume moves with it, from
    ``source``."""
    if volume.kind is not PoolKind.LOCAL or node.name == volume.node:
        return unreachable(node, volume)
    pool, here = _local(node, volume), None if source is None else _local(source, volume)
    if here is None:
        return f"node {volume.node} does not report pool {volume.pool} of volume {volume.name}"
    if pool is None:
        return f"node {node.name} has no pool {volume.pool} for volume {volume.name}"
    if pool.id == here.id:
        return f"pool {pool.name} of nodes {node.name} and {volume.node} is the same directory: make it a shared pool"
    free, needed = pool.bytes_free >> 20, volume.used_bytes >> 20
    if free < needed:
        return f"pool {pool.name} of node {node.name} has {free} MiB free, volume {volume.name} needs {needed}"
    return None


def _local(node: Node, volume: Volume) -> Pool | None:
    return next((pool for pool in pools_of(node) if pool.name == volume.pool and pool.kind is PoolKind.LOCAL), None)


def local_nodes(volumes: Sequence[Volume]) -> set[str]:
    """Return the nodes that hold these volumes, of those that are on one node only."""
    return {volume.node for volume in volumes if volume.kind is PoolKind.LOCAL and volume.node is not None}


def cannot_carry(node: Node, sources: Mapping[str, Node], volumes: Sequence[Volume]) -> str | None:
    """Say why a VM with these volumes can't be moved to ``node``, or None if it can. ``sources``: nodes that hold local
    ones."""
    reasons = (_uncarriable(node, sources.get(volume.node or ""), volume) for volume in volumes)
    return next((reason for reason in reasons if reason is not None), None)


async def detach(connection: Connection, ref: str, actor: str) -> Volume:
    """Take a volume from its VM, which it has left once ``vm`` is None. Raises NotFound, IllegalState, Conflict."""
    volume = await get(connection, ref)
    if volume.vm is None:
        raise IllegalState(f"volume {volume.name} is attached to no VM")
    vm = await vms.get(connection, volume.vm, lock=True)
    vms.check_action(vm, VmAction.CONFIGURE, None)
    check_bus(vm, volume.bus)
    row = await connection.fetchrow(
        "UPDATE volumes SET detaching = true, with_vm = false WHERE id = $1 RETURNING *", volume.id
    )
    await vms.touch(connection, vm.id)
    await events.record(
        connection, events.NewEvent("vm", vm.id, vm.name, "VolumeDetachAsked", f"volume {volume.name}", actor)
    )
    return _volume(row)


async def configure(connection: Connection, ref: str, changes: dict[str, Any], actor: str) -> Volume:
    """Change a volume's name, size or limits. It only grows. Raises NotFound, InvalidInput, NoCapacity, Conflict."""
    volume = await _ready(connection, ref)
    before = await projects.lock_usage(connection, volume.project)
    requested_mib = changes.get("size_mib", volume.size_mib)
    if requested_mib < volume.size_mib:
        raise InvalidInput(f"the volume has {volume.size_mib} MiB, and can only grow", field="size_mib")
    node = await nodes.get(connection, volume.node)
    free = next((pool.bytes_free for pool in pools_of(node) if pool.name == volume.pool), 0)
    if requested_mib - volume.size_mib > free >> 20:
        raise NoCapacity(f"pool {volume.pool} has {free >> 20} MiB free on node {node.name}", field="size_mib")
    columns = ", ".join(f"{column} = ${number}" for number, column in enumerate(changes, 2))
    try:
        row = await connection.fetchrow(
            f"UPDATE volumes SET {columns} WHERE id = $1 RETURNING *", volume.id, *changes.values()
        )
    except asyncpg.UniqueViolationError:
        raise Conflict(f"a volume named {changes['name']!r} exists", field="name", hint="choose another name") from None
    await projects.check_quota(connection, volume.project, before)
    if volume.vm is not None:
        await vms.touch(connection, volume.vm)
    changed = ", ".join(f"{key} {getattr(volume, key)} to {value}" for key, value in changes.items())
    await events.record(
        connection, events.NewEvent("volume", volume.id, volume.name, "VolumeConfigured", changed, actor)
    )
    assert row is not None
    return _volume(row)


async def delete(connection: Connection, ref: str, actor: str) -> Volume:
    """Delete a volume that is attached to no VM, and all that is in it. Raises NotFound, Conflict."""
    volume = await get(connection, ref)
    await unreconciled.check_volumes(connection, [volume.id])
    if volume.vm is not None:
        raise Conflict(
            f"volume {volume.name} is attached to VM {volume.vm_name}", hint=f"novacron volume detach {volume.name}"
        )
    node = volume.node
    if volume.kind is PoolKind.SHARED:  # any node that has the pool can
        able = [
            candidate.name
            for candidate in await nodes.all(connection)
            if candidate.status.ready and any(pool.name == volume.pool for pool in pools_of(candidate))
        ]
        node = node if node in able else next(iter(able), node)
    if not await nodes.some(connection, [node]):  # nobody is left who could remove it
        await connection.execute("DELETE FROM volumes WHERE id = $1", volume.id)
        message = f"node {node}, which had it, was removed earlier"
        await events.record(
            connection,
            events.NewEvent("volume", volume.id, volume.name, "VolumeDeleted", message, actor, volume.project),
        )
        return volume
    row = await connection.fetchrow(
        "UPDATE volumes SET phase = $2, node = $3, trace = $4 WHERE id = $1 RETURNING *",
        volume.id, VolumePhase.DELETING, node, traces.carry(),
    )  # fmt: skip
    await events.record(
        connection, events.NewEvent("volume", volume.id, volume.name, "VolumeDeleteAsked", "delete requested", actor)
    )
    return _volume(row)


async def node_removed(connection: Connection, node: str) -> None:
    """A node is about to go: another one sees to its volumes in shared pools, those of its own are said to be lost."""
    await connection.execute("DELETE FROM volumes WHERE node = $1 AND kind = 'local' AND phase = 'deleting'", node)
    await connection.execute(
        "UPDATE volumes SET error = $2, reason_code = $3,"
        " phase = CASE WHEN phase = 'creating' THEN 'failed' ELSE phase END WHERE node = $1 AND kind = 'local'",
        node, f"node {node}, which has it, was removed", WaitCode.NODE_REMOVED,
    )  # fmt: skip
    every = [other for other in await nodes.all(connection) if other.name != node]
    every.sort(key=lambda other: not other.status.ready)
    for row in await connection.fetch(
        "SELECT DISTINCT pool FROM volumes WHERE node = $1 AND kind = 'shared' ORDER BY pool", node
    ):
        able = (
            other.name for other in every
            if any(pool.name == row["pool"] and pool.kind is PoolKind.SHARED for pool in pools_of(other))
        )  # fmt: skip
        await connection.execute(
            "UPDATE volumes SET node = $3 WHERE node = $1 AND pool = $2 AND kind = 'shared'",
            node, row["pool"], next(able, node),
        )  # fmt: skip


async def of_vm(connection: Connection, vm: str) -> list[Volume]:
    """Return a VM's volumes, in the order of their places."""
    rows = await connection.fetch("SELECT * FROM volumes WHERE vm = $1 ORDER BY lun", vm)
    return [_volume(row) for row in rows]


async def of_vms(connection: Connection, ids: Sequence[str]) -> Decoded[Volume]:
    """Return the volumes of several VMs, in the order of each VM's, and the VMs of those that can't be decoded."""
    rows = await connection.fetch("SELECT * FROM volumes WHERE vm = ANY($1) ORDER BY lun", ids)
    return decode("volumes", rows, _volume, of="vm")


async def on_node(connection: Connection, node: str) -> list[Volume]:
    """Return the volumes that a node is to see to, but those that can't be decoded: it leaves these alone."""
    rows = await connection.fetch(
        "SELECT * FROM volumes WHERE node = $1 AND phase <> $2"
        f" AND (phase <> 'deleting' OR {unreconciled.NOT_OF_ONE.format('volumes.id')}) ORDER BY id",
        node, VolumePhase.FAILED,
    )  # fmt: skip
    return decode_each("volumes", rows, _volume)


async def check_movable(connection: Connection, vm: Vm) -> list[Volume]:
    """Return the volumes that a VM takes with it. Raises IllegalState while one is in between."""
    volumes = await of_vm(connection, vm.id)
    going = next((volume for volume in volumes if volume.detaching), None)
    if going is not None:
        raise IllegalState(f"volume {going.name} is being detached from VM {vm.name}", hint="wait until that is done")
    return volumes


async def moved(connection: Connection, vm: str, source: str, target: str, *, arrived: bool) -> None:
    """A VM's move has ended: its local volumes are at the target, or stay; what lies at the other node has to go."""
    other = source if arrived else target
    await connection.execute(
        "INSERT INTO volume_leftovers (volume, pool, node) SELECT id, pool, $2 FROM volumes"
        " WHERE vm = $1 AND kind = 'local' ON CONFLICT DO NOTHING",
        vm, other,
    )  # fmt: skip
    if arrived:
        await connection.execute("UPDATE volumes SET node = $2 WHERE vm = $1 AND kind = 'local'", vm, target)


async def left_over(connection: Connection, node: str) -> list[tuple[str, str]]:
    """Return volumes, and their pools, of which a node has a copy that nobody needs."""
    rows = await connection.fetch(
        "SELECT volume, pool FROM volume_leftovers WHERE node = $1"
        f" AND {unreconciled.NOT_OF_ONE.format('volume_leftovers.volume')} ORDER BY volume",
        node,
    )
    return [(row["volume"], row["pool"]) for row in rows]


async def not_yet(connection: Connection, vm: str) -> dict[str, str]:
    """Return the nodes that have yet to remove what they had of a VM's volumes, and say so."""
    rows = await connection.fetch(
        "SELECT l.node, v.name FROM volume_leftovers l JOIN volumes v ON v.id = l.volume WHERE v.vm = $1", vm
    )
    return {row["node"]: f"node {row['node']} has not yet removed its old copy of volume {row['name']}" for row in rows}


class VolumeState(NamedTuple):
    """How a volume stands, as its node says. ``code`` is ``error`` for programs."""

    phase: VolumePhase
    used_bytes: int
    error: str
    code: str = ""


async def report(connection: Connection, node: str, id: str, state: VolumeState) -> None:
    """Store what a node has done about a volume of its own."""
    phase, used_bytes, error, code = state
    if phase is VolumePhase.DELETED:
        await connection.execute("DELETE FROM volume_leftovers WHERE volume = $1 AND node = $2", id, node)
    row = await connection.fetchrow("SELECT * FROM volumes WHERE id = $1 AND node = $2 FOR UPDATE", id, node)
    if row is None:
        return
    volume = _volume(row)
    if phase is VolumePhase.DELETED:
        if volume.phase is VolumePhase.DELETING:
            await connection.execute("DELETE FROM volumes WHERE id = $1", id)
            await events.record(
                connection, events.NewEvent("volume", id, volume.name, "VolumeDeleted", "with all its data")
            )
        return
    if volume.phase is not VolumePhase.CREATING and phase is not volume.phase:
        return
    now = (phase, used_bytes, error[:ERROR_LENGTH_MAX], hindrance(error, code))
    if (volume.phase, volume.used_bytes, volume.error, volume.reason_code) == now:
        return
    await connection.execute(
        "UPDATE volumes SET phase = $2, used_bytes = $3, error = $4, reason_code = $5 WHERE id = $1", id, *now
    )
    if phase is not volume.phase:
        if volume.vm is not None:  # which waits for it
            await vms.touch(connection, volume.vm)
        reason = "VolumeMade" if phase is VolumePhase.READY else "VolumeFailed"
        await events.record(connection, events.NewEvent("volume", id, volume.name, reason, error or f"on {node}"))
    elif now[3] and now[3] != volume.reason_code:
        await events.record(connection, events.NewEvent("volume", id, volume.name, now[3], error))


class VolumeReport(NamedTuple):
    """What a VM's owner has done with a volume: whether it has let go of it, or why it could not obey."""

    vm: str
    epoch: int
    id: str
    released: bool
    error: str
    code: str = ""


async def handled(connection: Connection, node: str, report: VolumeReport) -> None:
    """Store what a VM's owner did with a volume: anyone else's word is ignored."""
    vm, epoch, id, released, error, code = report
    owner = await connection.fetchrow("SELECT name, node, epoch FROM vms WHERE id = $1 FOR UPDATE", vm)
    row = await connection.fetchrow("SELECT * FROM volumes WHERE id = $1 AND vm = $2 FOR UPDATE", id, vm)
    if owner is None or row is None or (owner["node"], owner["epoch"]) != (node, epoch):
        return
    volume = _volume(row)
    if released and volume.detaching:
        await connection.execute(f"UPDATE volumes SET {vms.DETACHED} WHERE id = $1", id)
        await events.record(
            connection, events.NewEvent("vm", vm, owner["name"], "VolumeDetached", f"volume {volume.name}")
        )
    elif not released and error[:ERROR_LENGTH_MAX] != volume.error:
        await connection.execute(
            "UPDATE volumes SET error = $2, reason_code = $3 WHERE id = $1",
            id, error[:ERROR_LENGTH_MAX], hindrance(error, code),
        )  # fmt: skip
        if error:
            message = f"volume {volume.name}: {error}"
            await events.record(connection, events.NewEvent("vm", vm, owner["name"], "VolumeFailed", message))
