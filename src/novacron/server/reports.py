"""What a node's messages change in the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from novacron.model.ownership import OwnershipRecord
from novacron.model.reachability import check_endpoint, check_reachable
from novacron.store import (
    backups,
    clones,
    conditions,
    exports,
    imports,
    migrations,
    network_problems,
    nodes,
    rebalancing,
    reconciling,
    replicas,
    snapshots,
    volumes,
)
from novacron.store.database import Connection, Database
from novacron.wire import messages as wire

STOPPED_MAX = 1000
"""Migrations whose guest stands still, of which this process remembers since when."""


Prove = Callable[[str, OwnershipRecord, str], bool]
TakeLoad = Callable[[str, Sequence[tuple[str, float]]], None]


def _ignore_load(node: str, used: Sequence[tuple[str, float]]) -> None:
    """For who stores nothing of it."""


def remembered(held: wire.HeldVm, prove: Prove) -> reconciling.NodeRecord:
    """Return what a node that connects remembers of a VM; ``prove`` says whether a server has said so."""
    said = held.record or held.bound
    is_proven = said is not None and prove(held.vm, said, held.proof)
    bound_at = held.bound.epoch if held.record is None and held.bound is not None and is_proven else 0
    return reconciling.NodeRecord(held.vm, held.record, proven=is_proven, bound_at=bound_at)


class Reports:
    """Stores reports of nodes, each in a transaction of its own."""

    def __init__(
        self, database: Database, clock: Callable[[], float] = time.monotonic, take_load: TakeLoad = _ignore_load,
        prove: Prove = lambda vm, held, proof: False,
    ) -> None:  # fmt: skip
        """``take_load`` gets what VMs of a node have used of its processors; ``prove`` says whether a server has said
        what a node remembers of a VM."""
        self._database = database
        self._clock = clock
        self._take_load = take_load
        self._prove = prove
        self._stopped_at: dict[str, float] = {}

    def guest_stopped(self, migration: str) -> None:
        """Note that a migrating guest stands still from now on."""
        if len(self._stopped_at) >= STOPPED_MAX:
            del self._stopped_at[next(iter(self._stopped_at))]
        self._stopped_at[migration] = self._clock()

    async def store(self, node: str, message: wire.Message) -> None:
        """Store one report. Raises NovaError, and ValueError for a message that is none."""
        if isinstance(message, wire.Measured):
            used = await self._database.transact(lambda c: rebalancing.measured(c, node, message.cpus))
            self._take_load(node, used)
            return
        await self._database.transact(lambda connection: self._apply(connection, node, message))
        if isinstance(message, wire.Resumed):
            self._stopped_at.pop(message.migration, None)

    async def _apply(self, connection: Connection, node: str, message: wire.Message) -> None:
        match message:
            case wire.TargetReady() | wire.Progressed() | wire.Resumed() | wire.Voted() | wire.MigrationFailed():
                await self._apply_to_migration(connection, node, message)
            case wire.Contradicted(vm=vm, record=record, description=description, proof=proof):
                said = reconciling.NodeRecord(vm, record, description, self._prove(vm, record, proof))
                await reconciling.take(connection, node, [said], whole=False)
            case wire.Removed(vm=vm):
                await reconciling.ended(connection, node, vm)
            case wire.InventoryChanged(inventory=inventory):
                check_reachable(inventory)
                await nodes.connected(connection, node, inventory)
            case wire.ConditionsFound(conditions=found, peers=peers):
                await conditions.record(connection, node, found, peers)
            case wire.ExportStands() as export:
                report = exports.ExportReport(
                    export.id, export.phase, export.size_bytes, export.disk_bytes, export.sha256, export.error,
                    export.code,
                )  # fmt: skip
                await exports.report(connection, node, report)
            case wire.BackupStands() as backup:
                outcome = backups.BackupReport(
                    backup.id, backup.done, backup.phase, backup.result, backup.error, backup.code
                )
                await backups.report(connection, node, outcome)
            case wire.ReplicaStands(id=id, gone=True):
                await replicas.gone(connection, node, id)
            case wire.ReplicaStands(id=id, points=points, used_bytes=used_bytes):
                kept = [replicas.PointReport(p.number, p.age_s, p.sent_bytes, p.quiesced) for p in points]
                await replicas.stands(connection, node, id, kept, used_bytes)
            case wire.ReplicaRound() as sent:
                ended = replicas.RoundReport(sent.id, sent.error, sent.code, sent.unchanged, sent.kind, sent.reason)
                await replicas.round_ended(connection, node, ended)
            case wire.VolumeStands() as volume:
                stands = volumes.VolumeState(volume.phase, volume.used_bytes, volume.error, volume.code)
                await volumes.report(connection, node, volume.id, stands)
            case wire.VolumeHandled(vm=vm, epoch=epoch, id=id, released=released, error=error, code=code):
                await volumes.handled(connection, node, volumes.VolumeReport(vm, epoch, id, released, error, code))
            case wire.NetworksStand(problems=problems):
                await network_problems.record(connection, node, problems)
            case wire.Cloned(vm=vm, epoch=epoch, error=error, code=code):
                await clones.made(connection, node, clones.CloneReport(vm, epoch, error, code))
            case wire.ImportStands() as stands:
                import_ = imports.ImportReport(
                    stands.id, stands.phase, stands.held_bytes, stands.error, stands.code, stands.disk_bytes
                )
                await imports.report(connection, node, import_)
            case wire.SnapshotStands() as snapshot:
                done = snapshots.SnapshotReport(
                    snapshot.vm, snapshot.epoch, snapshot.id, snapshot.done, snapshot.error, snapshot.pause_ms,
                    snapshot.layout, snapshot.code,
                )  # fmt: skip
                await snapshots.report(connection, node, done)
            case _:
                raise ValueError(f"unexpected message {type(message).__name__}")

    async def _apply_to_migration(
        self,
        connection: Connection,
        node: str,
        message: wire.TargetReady | wire.Progressed | wire.Resumed | wire.Voted | wire.MigrationFailed,
    ) -> None:
        id = message.migration
        match message:
            case wire.TargetReady(endpoint=endpoint):
                await migrations.target_ready(connection, id, node, check_endpoint(endpoint))
            case wire.Progressed(progress=progress):
                await migrations.progressed(connection, id, node, progress)
            case wire.Resumed():
                stopped_at = self._stopped_at.get(id)
                if stopped_at is not None:
                    await migrations.record_downtime(connection, id, (self._clock() - stopped_at) * 1000)
            case wire.Voted(side=side, epoch=epoch):
                await migrations.vote(connection, id, node, side, epoch)
            case wire.MigrationFailed(reason=reason):
                self._stopped_at.pop(id, None)
                await migrations.fail(connection, id, f"node {node}: {reason}", node)
