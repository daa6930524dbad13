"""VMs whose node has failed: to whom they are given."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from novacron.model.fit import cannot_run
from novacron.model.node import Node
from novacron.model.placement import Wish
from novacron.model.replica import Replica
from novacron.model.restarted import begun_elsewhere
from novacron.model.vm import Power, Vm, VmState, bound_to
from novacron.store import (
    events,
    fleet,
    leases,
    lost_nodes,
    migrations,
    nodes,
    replica_failover,
    unreconciled,
    vms,
    volumes,
)
from novacron.store.database import Connection
from novacron.store.fleet_index import FleetIndex

SAID_AGAIN_AFTER_S = 300.0


async def waiting(connection: Connection, node: str) -> list[str]:
    """Return the VMs of a node that are to be started elsewhere, the most important first."""
    rows = await connection.fetch(
        "SELECT id FROM vms WHERE node = $1 AND (spec ->> 'ha')::bool AND NOT deleting AND unreconciled IS NULL"
        " AND spec -> 'power' <> '\"stopped\"' AND clone_of IS NULL"
        " ORDER BY spec -> 'ha_priority' DESC, spec -> 'start_order', id",
        node,
    )
    return [row["id"] for row in rows]


async def restart_elsewhere(
    connection: Connection, id: str, node: str, why: str, index: FleetIndex | None = None
) -> str | None:
    """Give a VM to another node, which starts it; return that, or None if none takes it now.

    Must run in one transaction. Its node's lease must be over, and is seen to not to be renewed as it was.
    """
    vm = await vms.get(connection, id, lock=True)
    if vm.node != node or not vm.spec.ha or vm.deleting or vm.spec.power is Power.STOPPED or vm.unreconciled:
        return None
    if not vm.status.kept and vm.status.state is not VmState.PENDING:
        await record_unless_repeated(
            connection, vm, "FailoverRefused", "it was started before it was highly available, and may still run"
        )
        return None
    if vm.migration is not None:
        await migrations.fail(connection, vm.migration, f"node {node} is lost")
        vm = await vms.get(connection, id, lock=True)
    unheard = await unreconciled.not_heard(connection, node)
    if unheard:
        await record_unless_repeated(connection, vm, "FailoverWaits", unreconciled.UNHEARD % unheard[0])
        return None
    await nodes.take_turn(connection)
    having = await replica_failover.nodes_with_points(connection, vm)
    if not having and (lost := await lost_nodes.only_there(connection, vm)) is not None:
        await record_unless_repeated(connection, vm, "FailoverWaits", f"it has no usable replica, and {lost}")
        return None
    target = await _target(connection, vm, having, index)
    if target is None or not await leases.take_over(connection, node):
        return None
    if target in having:
        await replica_failover.start_from(connection, vm, having[target], None, why)
        return target
    await connection.execute(
        "UPDATE vms SET node = $2, epoch = epoch + 1, status = $3 WHERE id = $1",
        vm.id, target, msgspec.to_builtins(begun_elsewhere(vm.status, f"starts on {target}: {why}")),
    )  # fmt: skip
    await events.record(
        connection, events.NewEvent("vm", vm.id, vm.name, "RestartedElsewhere", f"starts on {target}: {why}")
    )
    return target


async def _target(
    connection: Connection, vm: Vm, having: Mapping[str, Replica], index: FleetIndex | None
) -> str | None:
    """Return the node on which a VM is to start, one of those that have a replica if there are any."""
    attached = await volumes.of_vm(connection, vm.id)
    sources = {source.name: source for source in await nodes.some(connection, volumes.local_nodes(attached))}

    def refuses(other: Node) -> str | None:
        return cannot_run(other, bound_to(vm.spec, vm.status), runs=False) or volumes.cannot_carry(
            other, sources, attached
        )

    # What it wrote is in its replicas, and nowhere else: the one with the newest point first.
    each = [replica_failover.refusal(vm, node) for node in having] or [refuses]
    for refusal in each:
        wish = Wish(vm.id, fleet.of_project(vm.spec, vm.project), vm.node, refuses=refusal)
        choice = await fleet.choose(connection, wish, index)
        if choice.node is not None:
            return choice.node
    reasons = fleet.why_not(choice.fleet, wish)
    await record_unless_repeated(connection, vm, "FailoverWaits", f"no other node can take it: {reasons}")
    return None


async def record_unless_repeated(connection: Connection, vm: Vm, reason: str, message: str) -> None:
    """Record something of a VM, unless the same was said a moment ago."""
    again = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM events WHERE object = $1 AND reason = $2 AND message = $3"
        " AND at > now() - make_interval(secs => $4))",
        vm.id, reason, message, SAID_AGAIN_AFTER_S,
    )  # fmt: skip
    if not again:
        await events.record(connection, events.NewEvent("vm", vm.id, vm.name, reason, message))
