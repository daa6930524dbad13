"""Steps of plans that move VMs to where their replicas are, or back: nothing is lost, and nothing that a VM has."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from novacron.model.errors import Conflict, NotFound
from novacron.model.migration import MigrationPhase
from novacron.model.plan import PlanAction, PlanRun, PlanStep, StepPhase, home_of
from novacron.model.replica import Replica
from novacron.model.vm import Vm
from novacron.store import migrations, nodes, replicas
from novacron.store.database import Connection
from novacron.store.migrations import MoveRequest


async def start(
    connection: Connection, vm: Vm, run: PlanRun, earlier: Sequence[PlanRun], step: PlanStep, now: datetime
) -> PlanStep:
    """Begin to move a VM; a replica follows at the node that it leaves from now on. Raises NovaError."""
    if run.action is PlanAction.SWITCH:
        replica = await _elsewhere(connection, vm)
    else:
        home = home_of(earlier, vm.id)
        if not home:
            raise Conflict(
                f"VM {vm.name} has not moved: this plan has no failover or switch to undo",
                hint="see its reports: novacron plan show",
            )
        if vm.node == home:
            return msgspec.structs.replace(
                step, phase=StepPhase.READY, node=home, began_at=now, ended_at=now, took_s=0.0, lost_s=0.0
            )
        replica = await _at_home(connection, vm, home)
    turned = await replicas.turn(connection, vm, replica, vm.node, run.actor)
    request = MoveRequest(actor=run.actor, target=replica.node)
    migration = await migrations.create(connection, vm.id, request)
    return msgspec.structs.replace(
        step, phase=StepPhase.STARTING, node=replica.node, came_from=vm.node or "", migration=migration.id,
        turned=turned, began_at=now, lost_s=0.0,
    )  # fmt: skip


class StepMove(NamedTuple):
    """How far the move of a step is."""

    error: str
    """Why it did not come about."""
    ended_at: datetime | None
    """None: it is under way, or that is not known any more."""
    is_under_way: bool = False
    """It has limits of its own."""
    waits_for: str = ""
    """Why it has not begun yet."""


async def look(connection: Connection, step: PlanStep, vm: Vm) -> StepMove:
    """Return how far the move of a step is."""
    if vm.migration == step.migration:
        now = await migrations.get(connection, step.migration)
        return StepMove("", None, is_under_way=True, waits_for=now.waits_for or "")
    try:
        moved = await migrations.get(connection, step.migration)
    except NotFound:
        return StepMove("" if vm.node == step.node else f"it did not move: it is on node {vm.node}", None)
    why = ""
    if vm.node != step.node and moved.phase in (MigrationPhase.FAILED, MigrationPhase.ABORTED):
        why = f"it did not move, and continues where it is: {moved.error or moved.phase}"
    return StepMove(why, moved.finished_at)


async def _elsewhere(connection: Connection, vm: Vm) -> Replica:
    """Return the replica to which a VM switches: the one with the newest point. Raises Conflict."""
    for replica in await replicas.of_vm(connection, vm.id):
        if replica.points and replica.node != vm.node:
            return replica
    raise Conflict(f"VM {vm.name} has no replica with a point elsewhere", hint="see: novacron replica list")


async def _at_home(connection: Connection, vm: Vm, home: str) -> Replica:
    """Return the replica on the node where a VM was, or else in its site. Raises Conflict."""
    of_vm = [replica for replica in await replicas.of_vm(connection, vm.id) if replica.node != vm.node]
    sites = [node.spec.site for node in await nodes.some(connection, [home])]
    near = [replica for replica in of_vm if replica.node == home] or [
        replica for replica in of_vm if replica.site in sites
    ]
    if not near:
        raise Conflict(
            f"VM {vm.name} has no replica on node {home}, where it ran before, or in that site",
            hint=f"replicate it there, then try again: novacron vm replicate {vm.name} --to-node {home}",
        )
    if not near[0].points:
        why = near[0].error or "its first round has not finished"
        raise Conflict(f"the replica of VM {vm.name} on node {near[0].node} has no point: {why}")
    return near[0]
