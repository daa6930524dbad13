"""A node's desired state, as it is sent to the node."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from novacron.model.backup import Backup, BackupPhase
from novacron.model.cloud_init import SealedSeed, StoredSeed
from novacron.model.cpu import CpuKind, CpuModel
from novacron.model.encryption import DataKey
from novacron.model.errors import Unavailable
from novacron.model.image import Import
from novacron.model.migration import Migration, MigrationPhase, Side
from novacron.model.ownership import Order, OrderKind
from novacron.model.snapshot import Snapshot
from novacron.model.vm import VmSpec
from novacron.model.volume import PoolKind, Volume, VolumePhase
from novacron.sealed_text import unseal
from novacron.store import (
    backups,
    exports,
    imports,
    migrations,
    network_members,
    nodes,
    owned,
    projects,
    replicas,
    snapshots,
    unreconciled,
    vms,
    volumes,
)
from novacron.store.backups import BackupOnNode
from novacron.store.database import Connection
from novacron.store.owned import OwnedVm
from novacron.store.replicas import FollowedReplica
from novacron.store.rows import Decoded, UnreadableRow, report_bad_row, whole
from novacron.store.savepoint import NOBODYS_FAULT, savepoint
from novacron.supervise import RESTARTS, Rarely
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)
_log_now = Rarely()


class Secrets(Protocol):
    """Gives the secrets of projects."""

    def page_keys(self, project_id: str, began: datetime | None) -> list[bytes]:
        """Return the keys of a project's pages, the one to use first: now, or in a migration that began then, both of
        whose nodes keep to one."""

    async def data_keys(self, connection: Connection, ids: Collection[str]) -> Mapping[str, DataKey]:
        """Return those of these keys of disks that are to be had now."""


MOVING = frozenset({MigrationPhase.PREPARING, MigrationPhase.TRANSFERRING})
"""Phases of migrations in which nodes have something to do."""
HasVm = TypeVar("HasVm", Snapshot, Volume)
T = TypeVar("T")


class NodeBasis(NamedTuple):
    """What of nodes the statements of a node's VMs depend on."""

    cpu: CpuModel | None
    """With which VMs there begin."""
    passthrough: tuple[str, ...]
    knows_unreadable: bool = False
    """Its agent leaves alone what messages name as unreadable."""


async def messages(
    connection: Connection, node: str, held: set[str], secrets: Secrets, of: NodeBasis,
    failed: list[str] | None = None,
) -> tuple[wire.Message, ...]:  # fmt: skip
    """Return all that ``node`` is to be told, a message of each kind. As for ``statements``.

    What is not in such a message is gone, to the node. So objects of which a row can't be decoded are named as
    unreadable. A kind is left out as a whole if it meets a defect, if one of the networks can't be decoded, or if the
    node's agent does not know what unreadable is: the node goes on with what it was told last. Networks and volumes are
    left out, too, while the node has a VM of which only it knows what belongs to it. Kinds that are to be tried again
    are added to ``failed``.
    """
    failed = [] if failed is None else failed

    async def networks_message() -> wire.Message:
        networks = await network_members.on_node(connection, node)
        is_gateway = any(network.is_gateway for network in networks)
        return wire.Networks(networks, await network_members.hosts(connection) if is_gateway else ())

    async def imports_message() -> wire.Message:
        working = _sayable("imports", await imports.working(connection, node), of)
        return wire.Imports(await _wanted_imports(connection, working.rows, secrets), _ids(working))

    async def exports_message() -> wire.Message:
        on_node = _sayable("exports", await exports.on_node(connection, node), of)
        on_their_way = (wire.ExportWanted(item.id, item.vm, item.phase, item.trace) for item in on_node.rows)
        return wire.Exports(tuple(on_their_way), _ids(on_node))

    async def backups_message() -> wire.Message:
        working = _sayable("backups", await backups.on_node(connection, node), of)
        return wire.Backups(await _wanted_backups(connection, working.rows, secrets), _ids(working))

    async def replicas_message() -> wire.Message:
        concerned, unreadable_vms = await replicas.on_node(connection, node)
        sent, kept = await _replicas(connection, node, _sayable("replicas", concerned, of).rows, secrets)
        return wire.Replicas(sent, kept, _ids(concerned), tuple(sorted(unreadable_vms)))

    async def volumes_message() -> wire.Message:
        desired = await _wanted_volumes(connection, node, secrets)
        left_over = await volumes.left_over(connection, node)
        return wire.Volumes(
            desired + tuple(wire.VolumeWanted(id, pool, 0, VolumePhase.DELETING) for id, pool in left_over)
        )

    readers: dict[str, Callable[[], Awaitable[wire.Message]]] = {
        "networks": networks_message, "imports": imports_message, "exports": exports_message,
        "backups": backups_message, "replicas": replicas_message, "volumes": volumes_message,
    }  # fmt: skip
    if await unreconciled.undescribed(connection, node):
        del readers["networks"], readers["volumes"]
    desired = wire.Desired(await statements(connection, node, held, secrets, of, failed))
    by_kind, errors = await _all_that_work(connection, readers)
    failed += [kind for kind, error in errors.items() if _is_defect(node, kind, error)]
    first = [by_kind.pop(kind) for kind in ("networks",) if kind in by_kind]
    return (*first, desired, *by_kind.values())


async def _all_that_work(
    connection: Connection, readers: Mapping[str, Callable[[], Awaitable[T]]], asking: Collection[str] | None = None
) -> tuple[dict[str, T], dict[str, Exception]]:
    """Call all readers, by name; return what each returns, and what those raise that fail. ``asking``: those that ask
    the database; None: all. Raises Unavailable, and what no reader has caused."""
    results, errors = dict[str, T](), dict[str, Exception]()
    for name, read in readers.items():
        try:
            async with savepoint(connection) if asking is None or name in asking else contextlib.nullcontext():
                results[name] = await read()
        except (*NOBODYS_FAULT, Unavailable):
            raise
        except Exception as error:  # with this one; the node is told of the others
            errors[name] = error
    return results, errors


def _sayable(table: str, decoded: Decoded[T], of: NodeBasis) -> Decoded[T]:
    """Return rows of which a node can be told. Raises UnreadableRow if it would take what is unreadable for gone."""
    if not of.knows_unreadable:
        whole(table, decoded)
    return decoded


def _ids(decoded: Decoded[T]) -> tuple[str, ...]:
    return tuple(sorted(decoded.unreadable))


async def _wanted_backups(
    connection: Connection, working: Sequence[BackupOnNode], secrets: Secrets
) -> tuple[wire.BackupWanted, ...]:
    """Return backups that a node has work with, with the keys of their repositories and of what they hold."""
    making = {backup.id: backup.encryption_key for backup, *_ in working if backup.phase is BackupPhase.MAKING}
    keys = await secrets.data_keys(connection, {repository.key for _, repository, _ in working} | {*making.values()})
    return tuple(
        wire.BackupWanted(
            backup.id, backup.vm, backup.vm_name, backup.phase, repository.id, begins, backup.result.snapshot,
            _description(backup), keys.get(repository.key), backup.trace, backup.project,
            keys.get(making.get(backup.id, "")),
        )
        for backup, repository, begins in working
    )  # fmt: skip


async def _replicas(
    connection: Connection, node: str, concerned: Sequence[FollowedReplica], secrets: Secrets
) -> tuple[tuple[wire.ReplicaSent, ...], tuple[wire.ReplicaKept, ...]]:
    """Return what a node sends and keeps of replicas."""
    sent = [
        wire.ReplicaSent(replica.id, replica.vm, replica.node, endpoint, replica.rpo_s, bool(replica.points))
        for replica, owner, *_ in concerned
        if owner == node and (endpoint := await nodes.dwcp_endpoint(connection, replica.node))
    ]
    kept = [
        wire.ReplicaKept(
            item.replica.id, item.replica.vm, item.replica.phase, item.owner or "", item.replica.points_kept,
            item.image, item.image_digest, item.disk_mib, secrets.page_keys(item.project_id, None)[0],
        )
        for item in concerned if item.replica.node == node
    ]  # fmt: skip
    return tuple(sent), tuple(kept)


def _description(backup: Backup) -> bytes:
    """Return what a repository keeps of a VM beside its disk: enough to know it without the database."""
    about = {"backup": backup.id, "vm": backup.vm, "name": backup.vm_name, "project": backup.project}
    about |= {"encryption_key": backup.encryption_key} if backup.encryption_key else {}
    excluded = [volume.name for volume in backup.excluded_volumes]
    return msgspec.json.encode({**about, "spec": backup.spec, "excluded_volumes": excluded})


async def _wanted_imports(
    connection: Connection, working: Sequence[Import], secrets: Secrets
) -> tuple[wire.ImportWanted, ...]:
    """Return the images that are to come to a node, with the keys of those that are encrypted there."""
    ids = await imports.keys(connection, {item.spec.name for item in working if item.project is not None})
    keys = await secrets.data_keys(connection, ids.values())
    return tuple(
        wire.ImportWanted(
            item.id, item.spec, item.trace, item.disk_mib << 20, ids.get(item.spec.name, ""),
            keys.get(ids.get(item.spec.name, "")),
        )
        for item in working
    )  # fmt: skip


async def _wanted_volumes(connection: Connection, node: str, secrets: Secrets) -> tuple[wire.VolumeWanted, ...]:
    """Return the volumes of a node, with the keys of those that are to be made."""
    there = await volumes.on_node(connection, node)
    making = [volume for volume in there if volume.phase is VolumePhase.CREATING]
    keys = await secrets.data_keys(connection, {volume.encryption_key for volume in making})
    digests = await imports.digests(connection, {volume.image for volume in there if volume.image is not None})
    return tuple(
        wire.VolumeWanted(
            v.id, v.pool, v.size_mib, v.phase, v.image, v.trace, v.encryption_key,
            keys.get(v.encryption_key) if v.phase is VolumePhase.CREATING else None, digests.get(v.image or ""),
        )
        for v in there
    )  # fmt: skip


def _is_defect(node: str, kind: str, error: Exception, id: str = "") -> bool:
    """Count and log why a node is not told of one kind, or of one object; say whether the same rows may be of use
    another time."""
    match error:
        case UnreadableRow():  # counted and logged where it was read
            is_defect = False
        case msgspec.ValidationError():
            report_bad_row(kind, id or node, error)
            is_defect = False
        case _:
            RESTARTS.add(f"tell-{kind}")
            is_defect = True
    what = f"{kind} {id}".rstrip()
    if _log_now.due(f"{node} {what}"):
        text = f"{type(error).__name__}: {error}"
        log.warning(
            "a node keeps what it was told of this last", node=node, what=what, error=text,
            exc_info=error if is_defect else None,
        )  # fmt: skip
    return is_defect


def _attached(volume: Volume) -> wire.VolumeAttached:
    assert volume.lun is not None
    return wire.VolumeAttached(
        volume.id, volume.pool, volume.lun, volume.size_mib, volume.read_only, volume.boot_order, volume.iops,
        volume.bytes_per_s, volume.detaching, volume.kind is PoolKind.LOCAL, volume.encryption_key,
        volume.bus, volume.phase is VolumePhase.CREATING,
    )  # fmt: skip


def _snapshot_wanted(snapshot: Snapshot) -> wire.SnapshotWanted:
    return wire.SnapshotWanted(
        snapshot.id, snapshot.phase, snapshot.memory, snapshot.quiesce, snapshot.revision, snapshot.layout,
        snapshot.starts_vm,
    )  # fmt: skip


def _cpu_of(vm: OwnedVm) -> CpuModel | None:
    """Return the processor that a VM keeps, None if one is to be chosen."""
    return vm.cpu if vm.spec.hardware_renewals <= vm.hardware_renewals else None


def _begins_with(spec: VmSpec, common: CpuModel | None) -> CpuModel | None:
    """Return the processor of a VM that has not been started yet."""
    return None if common is None or spec.cpu is CpuKind.HOST else common.with_flags(spec.cpu_flags)


class Belongings(NamedTuple):
    """What belongs to a VM: snapshots that are worked on, volumes, and the keys of its disks."""

    working: Sequence[Snapshot]
    volumes: Sequence[Volume]
    keys: tuple[DataKey, ...]


def _key_ids(spec: VmSpec, volumes_of_it: Iterable[Volume]) -> set[str]:
    """Return the ids of the keys of a VM's disks."""
    return {spec.encryption_key, *(volume.encryption_key for volume in volumes_of_it)} - {""}


def _opened(seed: SealedSeed | None, keys: Iterable[DataKey]) -> StoredSeed | None:
    """Return the first-boot data of a VM; without its user data where their key is not to be had: without that the VM
    does not start either."""
    if seed is None:
        return None
    if seed.sealed is None:
        return seed.opened("")
    for key in keys:
        if key.id == seed.sealed.key:
            try:
                return seed.opened(unseal(key, seed.sealed))
            except ValueError as error:
                log.error("the user data of a VM can't be read", error=str(error))
    return seed.opened("")


def _owned(
    vm: OwnedVm,
    task: wire.Task | None,
    belongings: Belongings,
    page_keys: Sequence[bytes],
    of: NodeBasis,
) -> wire.Statement:
    page_key, *other_page_keys = page_keys
    assignment = wire.Assignment(
        vm.id, vm.name, vm.spec, vm.deleting, vm.machine, vm.reboots, vm.halted_at_start, vm.project_id,
        page_key, _opened(vm.seed, belongings.keys), vm.resets,
        tuple(_snapshot_wanted(snapshot) for snapshot in belongings.working), vm.clone_of,
        tuple(_attached(volume) for volume in belongings.volumes), cpu=_cpu_of(vm) or _begins_with(vm.spec, of.cpu),
        firmware_state=vm.firmware_state, passthrough=of.passthrough if vm.spec.devices else (),
        image_digest=vm.image_digest, trace=vm.trace, withheld=vm.withheld, keys=belongings.keys,
        other_page_keys=tuple(other_page_keys), hardware_renewals=vm.hardware_renewals,
        booted_once_at=vm.booted_once_at, nic_ports=vm.nic_ports,
    )  # fmt: skip
    return wire.Statement(vm.id, Order(OrderKind.OWN, vm.epoch), assignment, task)


def _by_vm(rows: Iterable[HasVm]) -> dict[str, list[HasVm]]:
    by_vm: dict[str, list[HasVm]] = {}
    for row in rows:
        assert row.vm is not None
        by_vm.setdefault(row.vm, []).append(row)
    return by_vm


def _all_key_ids(own: Sequence[OwnedVm], having: Iterable[Volume]) -> set[str]:
    return (
        {vm.spec.encryption_key for vm in own}
        | {key for vm in own for key in vm.image_keys}
        | {_repository_key(vm) for vm in own}
        | {volume.encryption_key for volume in having}
    )


def _repository_key(vm: OwnedVm) -> str:
    """Return the id of the key of the repository from which a VM's disk is to come; empty for none."""
    return "" if vm.clone_of is None or vm.clone_of.backup is None else vm.clone_of.backup.opened_by


def _keys_beside(vm: OwnedVm) -> tuple[str, ...]:
    """Return the ids of the keys of what a VM's disk is made of."""
    return (*vm.image_keys, _repository_key(vm))


def _belongings(
    spec: VmSpec, working: Sequence[Snapshot], has: Sequence[Volume], keys: Mapping[str, DataKey],
    beside: Iterable[str] = (),
) -> Belongings:  # fmt: skip
    ids = sorted((_key_ids(spec, has) | set(beside)) & keys.keys()) if keys else ()
    return Belongings(working, has, tuple(keys[id] for id in ids))


class VmReadings:
    """How some VMs are to be, wherever they are: read at once, for all nodes that they concern.

    No node is told anything of VMs that are ``unreadable``: each keeps what it has.
    """

    def __init__(
        self, own: Decoded[OwnedVm], working: Decoded[Snapshot], having: Decoded[Volume],
        epochs: dict[str, tuple[int, bool]], keys: Mapping[str, DataKey],
    ) -> None:  # fmt: skip
        self.unreadable = own.unreadable | working.unreadable | having.unreadable
        self._owned = {vm.id: vm for vm in own.rows}
        self._working, self._having, self._epochs = _by_vm(working.rows), _by_vm(having.rows), epochs
        self._keys = keys

    @classmethod
    async def read(cls, connection: Connection, ids: Sequence[str], secrets: Secrets) -> VmReadings:
        """Must run in a REPEATABLE READ transaction."""
        own = await owned.all(connection, ids=ids)
        working, having = await snapshots.working(connection, ids), await volumes.of_vms(connection, ids)
        keys = await secrets.data_keys(connection, _all_key_ids(own.rows, having.rows))
        return cls(own, working, having, await owned.epochs(connection, ids), keys)

    def on(self, node: str, id: str, secrets: Secrets, of: NodeBasis) -> wire.Statement | None:
        """Return what a node is to be told of a VM that is there, or was; None: more has to be read for that."""
        vm = self._owned.get(id)
        if id in self.unreadable or (vm is not None and vm.migration is not None):
            return None
        if vm is not None and vm.node == node:
            belongings = _belongings(
                vm.spec, self._working.get(id, ()), self._having.get(id, ()), self._keys, _keys_beside(vm)
            )
            return _owned(vm, None, belongings, secrets.page_keys(vm.project_id, None), of)
        if id not in self._epochs:
            return None
        epoch, deleted = self._epochs[id]
        return wire.Statement(id, Order(OrderKind.GONE, epoch), deleted=deleted)


async def statements(
    connection: Connection, node: str, held: set[str], secrets: Secrets, of: NodeBasis,
    failed: list[str] | None = None,
) -> tuple[wire.Statement, ...]:  # fmt: skip
    """Return everything that ``node`` is to know: what it owns, what it receives, and which of ``held`` is gone.

    Must run in a REPEATABLE READ transaction. A VM that the database has never known is left out: a restored backup
    must not make nodes destroy what was created after it. So is a VM of which a row can't be decoded, that meets a
    defect (which is said in ``failed``), or that is unreconciled: the node keeps what it has.
    """
    failed = [] if failed is None else failed
    moving = await migrations.touching(connection, node)
    own = await owned.all(connection, node=node)
    active, ids = {m.vm: m for m in moving.rows}, [vm.id for vm in own.rows]
    snapshot_rows = await snapshots.working(connection, ids)
    volume_rows = await volumes.of_vms(connection, [*ids, *active])
    unreadable = moving.unreadable | own.unreadable | snapshot_rows.unreadable | volume_rows.unreadable
    working, having = _by_vm(snapshot_rows.rows), _by_vm(volume_rows.rows)
    keys = await secrets.data_keys(connection, _all_key_ids(own.rows, volume_rows.rows))

    async def of_owner(vm: OwnedVm) -> wire.Statement:
        m = active.get(vm.id)
        task = await _source_task(connection, m)
        page_keys = secrets.page_keys(vm.project_id, None if m is None else m.created_at)
        belongings = _belongings(vm.spec, working.get(vm.id, ()), having.get(vm.id, ()), keys, _keys_beside(vm))
        return _owned(vm, task, belongings, page_keys, of)

    readers: dict[str, Callable[[], Awaitable[wire.Statement]]] = {vm.id: partial(of_owner, vm) for vm in own.rows}
    for m in active.values():
        if m.target == node and m.phase in MOVING:
            readers[m.vm] = partial(_incoming, connection, m, having.get(m.vm, ()), secrets)
    readable = {id: read for id, read in readers.items() if id not in unreadable}
    stated, errors = await _all_that_work(connection, readable, asking=active.keys())
    failed += ["vms" for id, error in errors.items() if _is_defect(node, "vms", error, id)]
    unreadable |= errors.keys()
    return (*stated.values(), *await _gone(connection, node, held - stated.keys() - unreadable))


async def _gone(connection: Connection, node: str, ids: set[str]) -> list[wire.Statement]:
    """Return what a node is told of VMs that it has something of, and is not to have."""
    return [
        wire.Statement(vm, Order(OrderKind.GONE, epoch), deleted=deleted)
        for vm, (epoch, deleted) in (await owned.epochs(connection, list(ids), node)).items()
    ]


async def _source_task(connection: Connection, m: Migration | None) -> wire.Task | None:
    """Return what a VM's owner is to do for its migration, if that has begun."""
    if m is None or m.phase not in MOVING:
        return None
    warm = None if m.endpoint else await nodes.dwcp_endpoint(connection, m.target)
    return wire.Task(
        m.id, Side.SOURCE, m.kind, m.target, m.epoch, m.endpoint, warm, m.rate_bytes_per_s, m.policy, m.trace,
        m.source_vote,
    )  # fmt: skip


async def _incoming(
    connection: Connection, m: Migration, attached: Sequence[Volume], secrets: Secrets
) -> wire.Statement:  # fmt: skip
    """Return what a migration's target is told. Raises ValidationError if a row of the VM can't be decoded."""
    vm = await vms.get(connection, m.vm)
    was, project = vm.status, (await projects.get(connection, vm.project)).id
    page_key, *other_page_keys = secrets.page_keys(project, m.created_at)
    image_keys = (await imports.keys(connection, {vm.spec.image, *vm.spec.media})).values()
    keys = await secrets.data_keys(connection, _key_ids(vm.spec, attached) | set(image_keys))
    given = _belongings(vm.spec, (), attached, keys, image_keys).keys
    assignment = wire.Assignment(
        vm.id, vm.name, vm.spec, False, was.machine, was.reboots, was.halted_at_start, project,
        page_key,
        _opened(await vms.seed_of(connection, vm.id), given), was.resets,
        volumes=tuple(_attached(volume) for volume in attached), hardware=was.hardware, cpu=was.cpu, trace=m.trace,
        keys=given, image_digest=vm.image_digest,
        other_page_keys=tuple(other_page_keys), hardware_renewals=was.hardware_renewals,
        booted_once_at=was.booted_once_at,
    )  # fmt: skip
    warm = await nodes.dwcp_endpoint(connection, m.source)
    task = wire.Task(m.id, Side.TARGET, m.kind, m.source, m.epoch, None, warm, policy=m.policy, trace=m.trace)
    return wire.Statement(m.vm, Order(OrderKind.RECEIVE, m.epoch), assignment, task)
