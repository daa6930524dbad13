"""What a node is told: how everything on it is to be."""

from __future__ import annotations

from collections.abc import Callable

from novacron.model.cpu import CpuKind, CpuModel
from novacron.model.migration import Phase, Side
from novacron.model.ownership import Order, OrderKind
from novacron.model.vm import VmSpec
from novacron.model.volume import PoolKind, Volume, VolumePhase
from novacron.store import exports, imports, members, migrations, nodes, projects, snapshots, vms, volumes
from novacron.store.database import Connection
from novacron.wire import messages as wire


async def messages(
    connection: Connection, node: str, held: set[str], page_key: Callable[[str], bytes]
) -> tuple[wire.Message, ...]:
    """Return all that ``node`` is to be told, a message of each kind. As for ``statements``."""
    return (
        wire.Networks(await members.on_node(connection, node)),
        wire.Desired(await statements(connection, node, held, page_key)),
        wire.Imports(tuple(wire.ImportWanted(one.id, one.spec) for one in await imports.working(connection, node))),
        wire.Exports(
            tuple(wire.ExportWanted(one.id, one.vm, one.phase) for one in await exports.on_node(connection, node))
        ),
        wire.Volumes(
            tuple(
                wire.VolumeWanted(one.id, one.pool, one.size_mib, one.phase, one.image)
                for one in await volumes.on_node(connection, node)
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


async def statements(
    connection: Connection, node: str, held: set[str], page_key: Callable[[str], bytes]
) -> tuple[wire.Statement, ...]:
    """Return everything that ``node`` is to know: what it owns, what it receives, and which of ``held`` is gone.

    Must run in a REPEATABLE READ transaction. A VM that the database has never known is left out: a restored backup
    must not make nodes destroy what was created after it. ``page_key`` gives a project's.
    """
    found: dict[str, wire.Statement] = {}
    active = {m.vm: m for m in await migrations.touching(connection, node)}
    working = await snapshots.working(connection, node)
    owned = await vms.owned_by(connection, node)
    having = await volumes.of_vms(connection, [*(vm.id for vm in owned), *active])
    common = await nodes.cpu_baseline(connection, node)
    listed = await nodes.passthrough(connection, node)
    attached = {vm: tuple(_attached(volume) for volume in found_of) for vm, found_of in having.items()}
    for vm in owned:
        task = None
        m = active.get(vm.id)
        if m is not None and m.phase in (Phase.PREPARING, Phase.TRANSFERRING):
            warm = None if m.endpoint else await nodes.dwcp_endpoint(connection, m.target)
            task = wire.Task(
                m.id, Side.SOURCE, m.kind, m.target, m.epoch, m.endpoint, warm, m.rate_bytes_per_s, m.policy
            )  # fmt: skip
        wanted = tuple(
            wire.SnapshotWanted(s.id, s.phase, s.memory, s.quiesce, s.revision) for s in working.get(vm.id, ())
        )
        keys = (vm.project_id, page_key(vm.project_id))
        assignment = wire.Assignment(
            vm.id, vm.name, vm.spec, vm.deleting, vm.machine, vm.reboots, vm.halted_at_start, *keys, vm.seed, vm.resets,
            wanted, vm.clone_of, attached.get(vm.id, ()), cpu=vm.cpu or _begins_with(vm.spec, common),
            firmware_state=vm.firmware_state, passthrough=listed if vm.spec.devices else (),
        )  # fmt: skip
        found[vm.id] = wire.Statement(vm.id, Order(OrderKind.OWN, vm.epoch), assignment, task)
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
                volumes=attached.get(incoming.id, ()),
                hardware=was.hardware,
                cpu=was.cpu,
            )
            warm = await nodes.dwcp_endpoint(connection, m.source)
            task = wire.Task(m.id, Side.TARGET, m.kind, m.source, m.epoch, None, warm, policy=m.policy)
            found[m.vm] = wire.Statement(m.vm, Order(OrderKind.RECEIVE, m.epoch), assignment, task)
    for vm_id, (epoch, deleted) in (await vms.epochs(connection, [vm for vm in held if vm not in found])).items():
        found[vm_id] = wire.Statement(vm_id, Order(OrderKind.GONE, epoch), deleted=deleted)
    return tuple(found.values())
