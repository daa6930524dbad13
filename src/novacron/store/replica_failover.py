"""VMs that go on from a replica: the VM itself, once its node is gone, or one that is tried beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from novacron.model.errors import Conflict, IllegalState, NoCapacity
from novacron.model.fit import cannot_run
from novacron.model.node import Node
from novacron.model.placement import Wish
from novacron.model.replica import Replica, ReplicaPhase
from novacron.model.replica_source import ReplicaSource
from novacron.model.restarted import begun_elsewhere
from novacron.model.vm import CloneOf, Vm, bound_to
from novacron.store import (
    clones,
    events,
    fleet,
    lost_nodes,
    migrations,
    new_vms,
    nodes,
    projects,
    replicas,
    unreconciled,
    vms,
)
from novacron.store.database import Connection

SEE = "see: novacron replica list"


class FailoverRequest(NamedTuple):
    """How a VM is to go on. ``replica`` and ``point``: None is the newest; ``confirm``: its node, which is off."""

    replica: str | None = None
    point: int | None = None
    confirm: str | None = None


def source_of(replica: Replica, point: int | None = None) -> ReplicaSource:
    """Return a point of a replica as a VM's disk comes from it, the newest by default. Raises Conflict."""
    numbers = [kept.number for kept in replica.points]
    if not numbers:
        raise Conflict(f"replica {replica.id} has no point yet", hint=SEE)
    if point is not None and point not in numbers:
        raise Conflict(
            f"replica {replica.id} has no point {point}", field="point",
            hint="it has " + ", ".join(map(str, numbers)),
        )  # fmt: skip
    return ReplicaSource(replica.id, numbers[-1] if point is None else point, or_newest=point is None)


async def start_from(connection: Connection, vm: Vm, replica: Replica, point: int | None, why: str) -> Vm:
    """Let a VM go on from a point of a replica, at its next epoch; what it was before is none any more. The caller has
    seen to it that it may. Raises Conflict."""
    source = source_of(replica, point)
    of = CloneOf(vm.id, vm.name, linked=True, replica=source)
    at = next(kept.at for kept in replica.points if kept.number == source.point)
    status = begun_elsewhere(vm.status, f"starts on {replica.node} from its replica: {why}")
    await replicas.turn(connection, vm, replica, vm.node or vm.lost_on, events.SYSTEM)
    await connection.execute("DELETE FROM snapshots WHERE vm = $1", vm.id)
    await connection.execute(
        "UPDATE replicas SET late_at = NULL, error = '', reason_code = '' WHERE id = $1", replica.id
    )
    row = await connection.fetchrow(
        "UPDATE vms SET node = $2, lost_on = NULL, epoch = epoch + 1, status = $3, clone_of = $4, snapshot = NULL"
        " WHERE id = $1 RETURNING *",
        vm.id, replica.node, msgspec.to_builtins(status), msgspec.to_builtins(of),
    )  # fmt: skip
    message = f"on {replica.node}, as it was at {at:%Y-%m-%d %H:%M:%S} UTC (point {source.point}): {why}"
    await events.record(connection, events.NewEvent("vm", vm.id, vm.name, "FailedOver", message, project=vm.project))
    return vms.of_row(row)


async def fail_over(connection: Connection, ref: str, asked: FailoverRequest, actor: str) -> Vm:
    """Let a VM whose node is gone go on from a replica.

    Raises NotFound, Conflict, IllegalState, InvalidInput, NoCapacity, Unavailable.
    """
    await nodes.take_turn(connection)
    vm = await vms.get(connection, ref, lock=True)
    unreconciled.check(vm, "fail over")
    if vm.deleting:
        raise IllegalState(f"cannot fail over VM {vm.name}: it is being deleted")
    replica = await _chosen(connection, vm, asked)
    pending = vm.clone_of is not None and vm.clone_of.replica is not None
    if vm.node == replica.node and not pending:
        raise Conflict(f"VM {vm.name} is already on node {vm.node}, which has the replica", field="replica", hint=SEE)
    source_of(replica, asked.point)
    if vm.node != replica.node:
        await _check_room(connection, vm, replica.node)
    if vm.node is not None and not pending:  # without a disk it has run nowhere since
        await lost_nodes.check_gone(connection, await nodes.get(connection, vm.node, lock=True), asked.confirm)
    elif vm.node is None and vm.lost_on is None:
        raise IllegalState(f"VM {vm.name} waits for a node: {vm.status.reason}", hint="see: novacron node list")
    if vm.migration is not None:
        await migrations.fail(connection, vm.migration, f"node {vm.node} is gone")
        vm = await vms.get(connection, vm.id, lock=True)
    why = f"{actor} confirmed that node {vm.node or vm.lost_on} is gone"
    return await start_from(connection, vm, replica, asked.point, why)


async def _chosen(connection: Connection, vm: Vm, asked: FailoverRequest) -> Replica:
    of_vm = [replica for replica in await replicas.of_vm(connection, vm.id) if asked.replica in (None, replica.id)]
    if not of_vm:
        which = f"no replica {asked.replica}" if asked.replica is not None else "no replica"
        raise Conflict(f"VM {vm.name} has {which}", field="replica", hint=SEE)
    return of_vm[0]


async def _check_room(connection: Connection, vm: Vm, node: str) -> None:
    """Raise NoCapacity unless a node can run a VM."""
    wish = Wish(vm.id, fleet.of_project(vm.spec, vm.project), vm.node, refuses=refusal(vm, node), images_come=False)
    choice = await fleet.choose(connection, wish, None)
    if choice.node is None:
        raise NoCapacity(f"node {node} can't take VM {vm.name}: {fleet.why_not(choice.fleet, wish)}")


def refusal(vm: Vm, name: str) -> Callable[[Node], str | None]:
    """Return what says why a node can't go on with a VM of which this one has the replica."""

    def refuses(node: Node) -> str | None:
        if node.name != name:
            return "it does not have the replica"
        return cannot_run(node, bound_to(vm.spec, vm.status), runs=False)

    return refuses


async def try_out(
    connection: Connection, id: str, name: str, point: int | None, actor: str
) -> Vm:  # fmt: skip
    """Make a VM of a point of a replica, connected to nothing, on the replica's node; rounds go on meanwhile.

    Raises NotFound, Conflict, IllegalState, NoCapacity, QuotaExceeded.
    """
    replica = await replicas.get(connection, id, lock=True)
    if replica.phase is not ReplicaPhase.FOLLOWING:
        raise IllegalState(f"replica {id} is being deleted", hint=SEE)
    source = await vms.get(connection, replica.vm)
    of = CloneOf(source.id, source.name, linked=True, replica=source_of(replica, point))
    spec = msgspec.structs.replace(clones.fresh(source.spec), **clones.ISOLATED)
    about = f"created from replica {id} of VM {source.name} to test that it starts; delete it afterwards"
    new = new_vms.NewVm(name, spec, None, replica.node, clone_of=of, metadata={"description": about})
    vm = await new_vms.create(connection, await projects.making(connection, replica.project), new, actor)
    tried = events.NewEvent(
        "vm", source.id, source.name, "ReplicaTried", f"{id} as VM {name}", actor, project=replica.project
    )
    await events.record(connection, tried)
    return vm


async def nodes_with_points(connection: Connection, vm: Vm) -> dict[str, Replica]:
    """Return the replicas of a VM that have a point, by their nodes, the one with the newest point first."""
    return {replica.node: replica for replica in await replicas.of_vm(connection, vm.id) if replica.points}
