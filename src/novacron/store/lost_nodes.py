"""Nodes that are gone for good, on an operator's word: they are removed, and their VMs deleted or run elsewhere.

Nothing runs twice. A node must be silent for longer than its lease, so its highly available VMs have ended. For the
others, either the fence command has cut the node off since it was heard last, or the operator confirms, with its name,
that it is off. A VM that leaves it begins its next epoch: if the node comes back, it has to end what it has of it.
"""

from __future__ import annotations

import msgspec

from novacron.model.errors import Conflict, IllegalState, InvalidInput, Unavailable
from novacron.model.lease import LEASE_S, MARGIN_S
from novacron.model.node import Node
from novacron.model.vm import Vm, VmAction, VmState, VmStatus
from novacron.model.volume import PoolKind
from novacron.model.waiting import WaitCode
from novacron.store import events, leases, migrations, nodes, reconciling, sizes, unreconciled, vms, volumes
from novacron.store.database import Connection

NEXT_EPOCH = "epoch + (unreconciled IS NULL)::int"
"""What is unreconciled begins a later epoch once somebody has decided."""


async def check_gone(connection: Connection, node: Node, confirm: str | None) -> None:
    """Raise Conflict unless a node is silent, and InvalidInput unless it was cut off or its name is confirmed.

    Its lease can't be renewed as it was: if it comes back, it is told everything anew.
    """
    silence = await leases.silence(connection, node.name)
    if silence is not None and (node.status.ready or not silence.over):
        wait_s = LEASE_S + MARGIN_S - silence.silent_s
        raise Conflict(
            f"node {node.name} was heard {silence.silent_s:.0f} s ago: its VMs may still run",
            hint=f"if it is gone for good, wait {max(wait_s, 1):.0f} s; otherwise: novacron node drain {node.name}",
        )
    if silence is not None and not silence.cut_off and confirm != node.name:
        raise InvalidInput(
            f"node {node.name} is silent, but it has not been fenced: its VMs may still run",
            field="confirm", hint=f"make sure that the host is off, then add --confirm {node.name}",
        )  # fmt: skip
    if silence is not None and not await leases.take_over(connection, node.name):
        raise Unavailable(f"node {node.name} has just sent a heartbeat", hint="see: novacron node list")


async def remove_node(connection: Connection, name: str, confirm: str | None, actor: str) -> None:
    """Forget a node that is gone for good. Its VMs start elsewhere, those whose disk was on it stay without a node.

    Raises NotFound, Conflict, InvalidInput.
    """
    await nodes.take_turn(connection)
    node = await nodes.get(connection, name, lock=True)
    await check_gone(connection, node, confirm)
    await reconciling.node_removed(connection, name)
    await _end_migrations(connection, name)
    why = f"node {name} was removed"
    rows = await connection.fetch("SELECT id FROM vms WHERE node = $1 ORDER BY id", name)
    for row in rows:
        vm = await vms.get(connection, row["id"], lock=True)
        if await reconciling.is_owned_elsewhere(connection, vm.id, name):  # else nobody decides before it is removed
            unreconciled.check(vm, f"remove node {name}, which has")
        if vm.deleting:
            await vms.remove(connection, vm)
        elif (lost := await only_there(connection, vm)) is not None:
            await _lose(connection, vm, lost)
        else:
            await _release(connection, vm, why, actor)
    await volumes.node_removed(connection, name)
    await nodes.forget(connection, name, actor, f"removed by force, with {len(rows)} VMs on it")


async def _end_migrations(connection: Connection, node: str) -> None:
    """End the migrations from and to a node: their VMs stay where they are."""
    for row in await connection.fetch(
        "SELECT id FROM migrations WHERE finished_at IS NULL AND $1 IN (source, target) ORDER BY id", node
    ):
        await migrations.fail(connection, row["id"], f"node {node} is gone")


async def take_place(connection: Connection, name: str) -> None:
    """A host has joined as a node that was there before: what it can start without the other host's files begins its
    next epoch, so that the other host, if it lives and connects, ends it. What only the other has stays as it is, and
    what was on its way to that host."""
    for row in await connection.fetch(
        "SELECT id FROM migrations WHERE finished_at IS NULL AND target = $1 ORDER BY id", name
    ):
        await migrations.fail(connection, row["id"], f"another host has taken the place of node {name}")
    for row in await connection.fetch("SELECT id FROM vms WHERE node = $1 ORDER BY id", name):
        vm = await vms.get(connection, row["id"], lock=True)
        if vm.migration is None and vm.unreconciled is None and await only_there(connection, vm) is None:
            await connection.execute("UPDATE vms SET epoch = epoch + 1 WHERE id = $1", vm.id)


async def only_there(connection: Connection, vm: Vm) -> str | None:
    """Say what of a VM its node alone has, or None if another one can start it."""
    if vm.clone_of is not None:
        return "it was still being cloned"
    if vm.spec.own_disk and await sizes.image_disk_mib(connection, vm.spec.image) != 0:
        return "its only disk was there"
    local = [volume for volume in await volumes.of_vm(connection, vm.id) if volume.kind is PoolKind.LOCAL]
    return f"its volume {local[0].name} was on that node only" if local else None


async def _release(connection: Connection, vm: Vm, why: str, actor: str, *, discard_disk: bool = False) -> Vm:
    """Let a VM be placed anew, at its next epoch."""
    was = vm.status
    status = VmStatus(reason=f"starts elsewhere: {why}")
    if discard_disk:
        await connection.execute("DELETE FROM snapshots WHERE vm = $1", vm.id)
        await connection.execute(
            f"UPDATE volumes SET {vms.DETACHED} WHERE vm = $1 AND kind = $2", vm.id, PoolKind.LOCAL
        )
    else:
        status = msgspec.structs.replace(
            status, machine=was.machine, cpu=was.cpu, halted_at_start=was.halted_at_start, reboots=was.reboots,
            resets=was.resets, hardware_renewals=was.hardware_renewals, booted_once_at=was.booted_once_at,
        )  # fmt: skip
    row = await connection.fetchrow(
        f"UPDATE vms SET node = NULL, lost_on = NULL, epoch = {NEXT_EPOCH}, status = $2,"
        " snapshot = CASE WHEN $3 THEN NULL ELSE snapshot END, clone_of = CASE WHEN $3 THEN NULL ELSE clone_of END"
        " WHERE id = $1 RETURNING *",
        vm.id, msgspec.to_builtins(status), discard_disk,
    )  # fmt: skip
    message = why + ("; it starts with a new disk" if discard_disk else "")
    await events.record(connection, events.NewEvent("vm", vm.id, vm.name, "Recovered", message, actor, vm.project))
    return vms.of_row(row)


async def _lose(connection: Connection, vm: Vm, what: str) -> None:
    """Keep a VM that no other node can start, without a node."""
    reason = f"node {vm.node} was removed, and {what}: see novacron vm recover {vm.name} --help"
    status = msgspec.structs.replace(
        vm.status, state=VmState.FAILED, reason=reason, reason_code=WaitCode.DISK_LOST, pid=0, guest=None, hardware=None
    )
    await connection.execute(
        f"UPDATE vms SET node = NULL, lost_on = node, epoch = {NEXT_EPOCH}, status = $2 WHERE id = $1",
        vm.id, msgspec.to_builtins(status),
    )  # fmt: skip
    await events.record(connection, events.NewEvent("vm", vm.id, vm.name, "Lost", reason, project=vm.project))


async def delete_vm(connection: Connection, id: str, if_match: int | None, confirm: str | None, actor: str) -> Vm:
    """Delete a VM whose node is gone: its node, if it comes back, removes what it has.

    Raises NotFound, Conflict, InvalidInput.
    """
    vm = await vms.get(connection, id, lock=True)
    vms.check_action(vm, VmAction.DELETE, if_match)
    await vms.check_not_cloning(connection, vm, VmAction.DELETE)
    if vm.node is not None:
        await check_gone(connection, await nodes.get(connection, vm.node, lock=True), confirm)
    await events.record(
        connection, events.NewEvent("vm", vm.id, vm.name, "Delete", "delete by force requested", actor, vm.project)
    )
    await vms.remove(connection, vm)
    return msgspec.structs.replace(vm, deleting=True)


async def recover_vm(connection: Connection, id: str, confirm: str | None, actor: str, *, discard_disk: bool) -> Vm:
    """Let a VM run again whose node is gone: where its disk is, on another node, or with a new disk.

    Raises NotFound, Conflict, IllegalState, InvalidInput.
    """
    await nodes.take_turn(connection)
    vm = await vms.get(connection, id, lock=True)
    unreconciled.check(vm, "recover")
    await unreconciled.check_heard(connection, f"recover VM {vm.name}", vm.node or vm.lost_on)
    if vm.deleting:
        raise IllegalState(f"cannot recover VM {vm.name}: it is being deleted")
    if vm.lost_on is not None and not discard_disk:
        return await _give_back(connection, vm, vm.lost_on, actor)
    if vm.node is None:
        if vm.lost_on is None:
            raise IllegalState(f"VM {vm.name} waits for a node: {vm.status.reason}", hint="see: novacron node list")
        return await _release(connection, vm, f"node {vm.lost_on} was removed", actor, discard_disk=True)
    node = await nodes.get(connection, vm.node, lock=True)
    _check_disk_missed(vm, node)
    await check_gone(connection, node, confirm)
    lost = await only_there(connection, vm)
    if lost is not None and not discard_disk:
        raise Conflict(
            f"VM {vm.name} can only be started on node {vm.node}: {lost}",
            hint="bring that host back, restore a copy, or start with a new disk: --discard-disk",
        )
    if vm.migration is not None:
        await migrations.fail(connection, vm.migration, f"node {vm.node} is gone")
        vm = await vms.get(connection, id, lock=True)
    return await _release(connection, vm, f"node {vm.node} is gone", actor, discard_disk=lost is not None)


def _check_disk_missed(vm: Vm, node: Node) -> None:
    """Raise Conflict for a VM whose node is there, and says that the VM's disk is not: to wait would be of no use."""
    if node.status.ready and vm.status.reason_code == WaitCode.DISK_LOST:
        raise Conflict(
            f"the disk of VM {vm.name} is missing on node {node.name}, whose agent is connected",
            hint=(
                "restore the disk there, or restore a backup to a new VM (novacron backup restore) and then"
                f" novacron vm delete {vm.name}; to start with a new disk, switch the host off, then:"
                f" novacron vm recover {vm.name} --discard-disk --confirm {node.name}"
            ),
        )


async def _give_back(connection: Connection, vm: Vm, node: str, actor: str) -> Vm:
    """Give a VM back to the node that has its disk, which has joined again."""
    known = {stored.name: stored for stored in await nodes.some(connection, [node])}
    if node not in known or not known[node].status.ready:
        raise Conflict(
            f"the disk of VM {vm.name} is on node {node}, which was removed",
            hint=f"let that host join again as {node}, restore a copy, or start with a new disk: --discard-disk",
        )
    status = msgspec.structs.replace(vm.status, state=VmState.PENDING, reason=f"node {node} is back")
    row = await connection.fetchrow(
        "UPDATE vms SET node = $2, lost_on = NULL, epoch = epoch + 1, status = $3 WHERE id = $1 RETURNING *",
        vm.id, node, msgspec.to_builtins(status),
    )  # fmt: skip
    await events.record(
        connection, events.NewEvent("vm", vm.id, vm.name, "Recovered", f"node {node} is back", actor, vm.project)
    )
    return vms.of_row(row)
