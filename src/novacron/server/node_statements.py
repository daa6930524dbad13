"""A node's desired state, as it is sent to the node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from novacron.model.cpu import CpuKind, CpuModel
from novacron.model.migration import Phase, Side
from novacron.model.ownership import Order, OrderKind
from novacron.model.snapshot import Snapshot
from novacron.model.vm import VmSpec
from novacron.model.volume import PoolKind, Volume, VolumePhase
from novacron.store import (
    exports,
    imports,
    migrations,
    network_members,
    nodes,
    owned,
    projects,
    snapshots,
    vms,
    volumes,
)
from novacron.store.database import Connection
from novacron.store.owned import OwnedVm
from novacron.wire import messages as wire

PageKey = Callable[[str], bytes]
"""Gives the key of a project's pages."""


class NodeBasis(NamedTuple):
    """What of nodes the statements of a node's VMs depend on."""

    cpu: CpuModel | None
    """With which VMs there begin."""
    passthrough: tuple[str, ...]


async def messages(
    connection: Connection, node: str, held: set[str], page_key: PageKey, of: NodeBasis
) -> tuple[wire.Message, ...]:
    """Return all that ``node`` is to be told, a message of each kind. As for ``statements``."""
    return (
        wire.Networks(await network_members.on_node(connection, node)),
        wire.Desired(await statements(connection, node, held, page_key, of)),
        wire.Imports(tuple(wire.ImportWanted(i.id, i.spec, i.trace) for i in await imports.working(connection, node))),
        wire.Exports(
            tuple(
                wire.ExportWanted(export.id, export.vm, export.phase, export.trace)
                for export in await exports.on_node(connection, node)
            )
        ),
        wire.Volumes(
            tuple(
                wire.VolumeWanted(v.id, v.pool, v.size_mib, v.phase, v.image, v.trace)
                for v in await volumes.on_node(connection, node)
            )
            + tuple(
                wire.VolumeWanted(id, pool, 0, VolumePhase.DELETING)
                for id, pool in await volumes.left_over(connection, node)
            )
        ),
    )


def _attached(volume: Volume) -> wire.VolumeAttached:
    assert volume.lun is not None
    return wire.VolumeAttached(
        volume.id, volume.pool, volume.lun, volume.size_mib, volume.read_only, volume.boot_order, volume.iops,
        volume.bytes_per_s, volume.detaching, volume.kind is PoolKind.LOCAL,
    )  # fmt: skip


def _begins_with(spec: VmSpec, common: CpuModel | None) -> CpuModel | None:
    """Return the processor of a VM that has not been started yet."""
    return None if common is None or spec.cpu is CpuKind.HOST else common.with_flags(spec.cpu_flags)


def _owned(
    vm: OwnedVm,
    task: wire.Task | None,
    working: Sequence[Snapshot],
    has: Sequence[Volume],
    page_key: PageKey,
    of: NodeBasis,
) -> wire.Statement:
    assignment = wire.Assignment(
        vm.id, vm.name, vm.spec, vm.deleting, vm.machine, vm.reboots, vm.halted_at_start, vm.project_id,
        page_key(vm.project_id), vm.seed, vm.resets,
        tuple(wire.SnapshotWanted(s.id, s.phase, s.memory, s.quiesce, s.revision) for s in working), vm.clone_of,
        tuple(_attached(volume) for volume in has), cpu=vm.cpu or _begins_with(vm.spec, of.cpu),
        firmware_state=vm.firmware_state, passthrough=of.passthrough if vm.spec.devices else (),
        trace=vm.trace,
    )  # fmt: skip
    return wire.Statement(vm.id, Order(OrderKind.OWN, vm.epoch), assignment, task)


class VmReadings:
    """How some VMs are to be, wherever they are: read at once, for all nodes that they concern."""

    def __init__(
        self, own: dict[str, OwnedVm], working: dict[str, list[Snapshot]], having: dict[str, list[Volume]],
        epochs: dict[str, tuple[int, bool]],
    ) -> None:  # fmt: skip
        self._owned, self._working, self._having, self._epochs = own, working, having, epochs

    @classmethod
    async def read(cls, connection: Connection, ids: Sequence[str]) -> VmReadings:
        """Must run in a REPEATABLE READ transaction."""
        own = {vm.id: vm for vm in await owned.all(connection, ids=ids)}
        working, having = await snapshots.working(connection, ids), await volumes.of_vms(connection, ids)
        return cls(own, working, having, await owned.epochs(connection, ids))

    def on(self, node: str, id: str, page_key: PageKey, of: NodeBasis) -> wire.Statement | None:
        """Return what a node is to be told of a VM that is there, or was; None: more has to be read for that."""
        vm = self._owned.get(id)
        if vm is not None and vm.migration is not None:
            return None
        if vm is not None and vm.node == node:
            return _owned(vm, None, self._working.get(id, ()), self._having.get(id, ()), page_key, of)
        if id not in self._epochs:
            return None
        epoch, deleted = self._epochs[id]
        return wire.Statement(id, Order(OrderKind.GONE, epoch), deleted=deleted)


async def statements(
    connection: Connection, node: str, held: set[str], page_key: PageKey, of: NodeBasis
) -> tuple[wire.Statement, ...]:
    """Return everything that ``node`` is to know: what it owns, what it receives, and which of ``held`` is gone.

    Must run in a REPEATABLE READ transaction. A VM that the database has never known is left out: a restored backup
    must not make nodes destroy what was created after it. ``page_key`` gives a project's.
    """
    stated: dict[str, wire.Statement] = {}
    active = {m.vm: m for m in await migrations.touching(connection, node)}
    own = await owned.all(connection, node=node)
    working = await snapshots.working(connection, [vm.id for vm in own])
    having = await volumes.of_vms(connection, [*(vm.id for vm in own), *active])
    for vm in own:
        task = None
        m = active.get(vm.id)
        if m is not None and m.phase in (Phase.PREPARING, Phase.TRANSFERRING):
            warm = None if m.endpoint else await nodes.dwcp_endpoint(connection, m.target)
            task = wire.Task(
                m.id, Side.SOURCE, m.kind, m.target, m.epoch, m.endpoint, warm, m.rate_bytes_per_s, m.policy,
                m.trace,
            )  # fmt: skip
        stated[vm.id] = _owned(vm, task, working.get(vm.id, ()), having.get(vm.id, ()), page_key, of)
    for m in active.values():
        if m.target == node and m.phase in (Phase.PREPARING, Phase.TRANSFERRING):
            incoming = await vms.get(connection, m.vm)
            was, id = incoming.status, (await projects.get(connection, incoming.project)).id
            assignment = wire.Assignment(
                incoming.id,
                incoming.name,
                incoming.spec,
                False,
                was.machine,
                was.reboots,
                was.halted_at_start,
                id,
                page_key(id),
                await vms.seed_of(connection, incoming.id),
                was.resets,
                volumes=tuple(_attached(volume) for volume in having.get(incoming.id, ())),
                hardware=was.hardware,
                cpu=was.cpu,
                trace=m.trace,
            )
            warm = await nodes.dwcp_endpoint(connection, m.source)
            task = wire.Task(m.id, Side.TARGET, m.kind, m.source, m.epoch, None, warm, policy=m.policy, trace=m.trace)
            stated[m.vm] = wire.Statement(m.vm, Order(OrderKind.RECEIVE, m.epoch), assignment, task)
    for vm_id, (epoch, deleted) in (await owned.epochs(connection, [vm for vm in held if vm not in stated])).items():
        stated[vm_id] = wire.Statement(vm_id, Order(OrderKind.GONE, epoch), deleted=deleted)
    return tuple(stated.values())
