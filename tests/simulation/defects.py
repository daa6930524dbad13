"""Defects that are put into the product's code, each of which the simulation must find."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from novacron.agent import worker
from novacron.agent.control import peers
from novacron.agent.host import host_identity
from novacron.agent.vm import context, journal, leftovers, reconciler
from novacron.agent.vm.context import VmContext
from novacron.agent.vm.journal import Journal, Record
from novacron.control import failover
from novacron.model import lease, ownership, unreconciled
from novacron.model.database_mark import DatabaseMark
from novacron.model.migration import Migration, MigrationPhase
from novacron.model.node import Node
from novacron.model.ownership import Claim, Order, OrderKind, OrderVerdict, OwnershipRecord
from novacron.model.replica import Replica
from novacron.model.unreconciled import Contradiction, Recorded
from novacron.model.vm import Vm
from novacron.qemu import lease_guard
from novacron.qemu.running import RunningQemu
from novacron.store import (
    database_marks,
    leases,
    lost_nodes,
    migrations,
    owned,
    reconciling,
    replica_failover,
    vms,
)
from novacron.store.database import Connection
from tests.simulation import bad_days, machine
from tests.simulation.bad_days import BadDay
from tests.simulation.lost_hosts import LostHosts


def promise_does_not_bind(patch: pytest.MonkeyPatch) -> None:
    """Whoever is told at the epoch of its promise that it owns the VM runs it."""

    def obey(held: OwnershipRecord, order: Order) -> tuple[OwnershipRecord, OrderVerdict]:
        if order.kind is OrderKind.OWN and order.epoch == held.epoch and held.claim is Claim.RELEASED:
            return OwnershipRecord(order.epoch, Claim.OWNER), OrderVerdict.RUN
        return ownership.obey(held, order)

    patch.setattr(journal, "obey", obey)


def failed_migration_keeps_its_epoch(patch: pytest.MonkeyPatch) -> None:
    end = migrations._end

    async def keep(
        connection: Connection, migration: Migration, phase: MigrationPhase, owner: str, error: str | None = None
    ) -> None:
        await end(connection, migration, phase, owner, error)
        if phase is not MigrationPhase.COMPLETED:
            await connection.execute("UPDATE vms SET epoch = epoch - 1 WHERE id = $1", migration.vm)

    patch.setattr(migrations, "_end", keep)


def target_alone_switches(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        migrations, "switches", lambda phase, _source, target: phase is MigrationPhase.TRANSFERRING and target
    )


def may_run_after_release(patch: pytest.MonkeyPatch) -> None:
    """The last gate before a guest executes is open after a promise."""
    patch.setattr(context, "may_run", lambda held: held.claim in (Claim.OWNER, Claim.RELEASED))


def journal_is_not_written(patch: pytest.MonkeyPatch) -> None:
    """What is remembered is in memory alone."""

    async def update(self: VmContext, change: Callable[[Record], Record]) -> None:
        before, self.record = self.record, change(self.record)
        if msgspec.structs.replace(before, held=self.record.held) != self.record:
            self.services.journal.store(self.vm, msgspec.structs.replace(self.record, held=before.held))

    patch.setattr(VmContext, "update", update)


def failover_does_not_wait_for_the_lease(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(leases, "LEASE_S", 6.0)


def lease_is_prolonged(patch: pytest.MonkeyPatch) -> None:
    """Nodes think that leases last longer than the server does, and so does what ends their VMs."""
    patch.setattr(lease, "LEASE_S", 40.0)
    patch.setattr(lease_guard, "REMAINING_S_MAX", 41.0)


def node_goes_on_without_a_majority(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lease, "majority_is_silent", lambda silent, voters: bool(set(silent) & set(voters)))


def server_takes_over_without_voters(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(failover, "may_take_over", lambda steady, voters: True)


def guard_does_not_look_at_the_lease(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lease_guard, "valid", lambda path, now_s=None: True)


def released_record_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A promise is in memory alone."""
    store = Journal.store

    def forget(self: Journal, vm: str, record: Record) -> None:
        if record.held.claim is not Claim.RELEASED:
            store(self, vm, record)

    patch.setattr(Journal, "store", forget)


def old_reports_count(patch: pytest.MonkeyPatch) -> None:
    """What a node says of an earlier epoch is taken for the present."""
    observe = owned.observe

    async def at_the_present(connection: Connection, reports: Sequence[owned.Report]) -> None:
        now = {report.vm: await vms.get(connection, report.vm) for report in reports}
        await observe(
            connection,
            [report._replace(epoch=now[report.vm].epoch, node=now[report.vm].node or "") for report in reports],
        )

    patch.setattr(owned, "observe", at_the_present)


def damaged_journal_fails_open(patch: pytest.MonkeyPatch) -> None:
    """A record that can't be read counts as none, and what the server knows of the vote binds nobody."""
    load_one = Journal.load_one

    def load(self: Journal, vm: str) -> Record:
        record = load_one(self, vm)
        return Record() if record.damaged else record

    patch.setattr(Journal, "load_one", load)
    patch.setattr(worker, "has_voted", lambda statement: False)


def qemus_are_found_by_path_alone(patch: pytest.MonkeyPatch) -> None:
    """An agent knows the QEMUs in its state folder, and no others."""

    def choose(found: list[RunningQemu], directory: Path, owner: str) -> RunningQemu | None:
        return next((qemu for qemu in found if qemu.directory == directory.resolve()), None)

    patch.setattr(BadDay, "only", ("_wipes", "_copies", "_puts_back"))  # or else it takes many histories
    patch.setattr(leftovers.Leftovers, "check", lambda self: [])
    patch.setattr(machine, "choose", choose)


def servers_trust_every_database(patch: pytest.MonkeyPatch) -> None:
    """A server takes any database for the latest, whatever it has seen itself or nodes have."""

    async def no_doubt(connection: Connection, mark: object) -> str:
        return ""

    async def compare(connection: Connection, node: str, mark: object) -> None: ...

    count = database_marks.count

    async def count_anyway(connection: Connection, mark: DatabaseMark) -> DatabaseMark | None:
        await connection.execute(
            "INSERT INTO database_marks (server, number) VALUES ($1, $2)"
            " ON CONFLICT (server) DO UPDATE SET number = excluded.number",
            mark.server, mark.number,
        )  # fmt: skip
        return await count(connection, mark)

    patch.setattr(database_marks, "doubt", no_doubt)
    patch.setattr(database_marks, "compare", compare)
    patch.setattr(database_marks, "count", count_anyway)


def damaged_records_count_as_heard(patch: pytest.MonkeyPatch) -> None:
    """A node that can't read what it has written down of a VM is taken to have said that it has nothing of it."""
    patch.setattr(reconciling, "_may_be_later", lambda record, row, unheard_since: False)


def withheld_vms_are_begun(patch: pytest.MonkeyPatch) -> None:
    """Agents begin VMs that another node may have."""
    patch.setattr(reconciler, "BEGINS", frozenset())


def agent_forgets_whom_the_server_knows(patch: pytest.MonkeyPatch) -> None:
    """A new agent goes on by the word of the voters that were stored last alone."""
    patch.setattr(peers.KeptPeers, "known", property(lambda self: ()))


def only_by_force(patch: pytest.MonkeyPatch, *ways: str) -> None:
    """Nothing befalls hosts but what operators do to lost ones in these ways: or else it takes many histories."""
    patch.setattr(BadDay, "only", ("_loses_host", "_forces", "_replicates"))
    patch.setattr(bad_days, "REST_S_MAX", 120.0)  # what never comes to rest is waited for
    patch.setattr(LostHosts, "only", ways)


def nodes_are_removed_that_may_live(patch: pytest.MonkeyPatch) -> None:
    """Whoever removes a node by force is believed that it is gone."""

    async def believe(connection: Connection, node: Node, confirm: str | None) -> None: ...

    only_by_force(patch, "removes-node")
    patch.setattr(lost_nodes, "check_gone", believe)


def vms_are_recovered_at_their_epoch(patch: pytest.MonkeyPatch) -> None:
    """A VM that is recovered starts elsewhere, and its former node does not learn that it is not its own any more."""
    release = lost_nodes._release

    async def keep(connection: Connection, vm: Vm, why: str, actor: str, *, discard_disk: bool = False) -> Vm:
        released = await release(connection, vm, why, actor, discard_disk=discard_disk)
        await connection.execute("UPDATE vms SET epoch = $2 WHERE id = $1", vm.id, vm.epoch)
        return released

    only_by_force(patch, "recovers-vm")
    patch.setattr(lost_nodes, "_release", keep)


def deleted_vms_keep_their_epoch(patch: pytest.MonkeyPatch) -> None:
    """A node that comes back with a VM that was deleted by force keeps it, and nobody sees that."""
    remove, contradiction = vms.remove, unreconciled.contradiction

    def overlook(node: str, held: OwnershipRecord, recorded: Recorded | None) -> Contradiction | None:
        is_same = recorded is not None and recorded.deleted and held.epoch == recorded.epoch
        return None if is_same else contradiction(node, held, recorded)

    async def keep(connection: Connection, vm: Vm) -> None:
        await remove(connection, vm)
        await connection.execute("UPDATE vm_tombstones SET epoch = $2 WHERE vm = $1", vm.id, vm.epoch)

    only_by_force(patch, "deletes-vm")
    patch.setattr(vms, "remove", keep)
    patch.setattr(reconciling, "contradiction", overlook)


def former_nodes_keep_what_fails_over(patch: pytest.MonkeyPatch) -> None:
    """A VM goes on from its replica at the epoch at which its former node has it."""
    start = replica_failover.start_from

    async def keep(connection: Connection, vm: Vm, replica: Replica, point: int | None, why: str) -> Vm:
        started = await start(connection, vm, replica, point, why)
        await connection.execute("UPDATE vms SET epoch = $2 WHERE id = $1", vm.id, vm.epoch)
        return started

    only_by_force(patch, "fails-over")
    patch.setattr(bad_days, "DISK_CHANCE", 1.0)
    patch.setattr(replica_failover, "start_from", keep)


def only_copies_elsewhere(patch: pytest.MonkeyPatch) -> None:
    """Nothing else befalls state folders than that copies are used on other hosts: or else it takes many histories."""
    patch.setattr(BadDay, "only", ("_copy_begins_elsewhere",))
    patch.setattr(bad_days, "COPIES_EVERY", 1)


def copies_work_on_any_host(patch: pytest.MonkeyPatch) -> None:
    """A state folder does not tell that it was copied to another host."""
    only_copies_elsewhere(patch)
    patch.setattr(host_identity, "check", lambda path: None)


def any_host_takes_a_nodes_place(patch: pytest.MonkeyPatch) -> None:
    """The server takes a host for a node though another one is heard as that."""

    async def nobody(connection: Connection, node: str, boot: str) -> bool:
        return False

    only_copies_elsewhere(patch)
    patch.setattr(leases, "another_host", nobody)


def nodes_forget_the_servers_proofs(patch: pytest.MonkeyPatch) -> None:
    """What nodes know more than an older database can't be proven, and does not count."""
    patch.setattr(journal, "_proof", lambda before, held, order, proof: "")


Defect = Callable[[pytest.MonkeyPatch], None]
LEASES: dict[Defect, int] = {
    failover_does_not_wait_for_the_lease: 5,
    lease_is_prolonged: 1,
    node_goes_on_without_a_majority: 1,
    server_takes_over_without_voters: 28,
    guard_does_not_look_at_the_lease: 1,
}
"""With the seed of a failover history that finds it, to begin with."""
OWNERSHIP: dict[Defect, int] = {
    promise_does_not_bind: 20,
    failed_migration_keeps_its_epoch: 20,
    target_alone_switches: 20,
    may_run_after_release: 20,
    journal_is_not_written: 20,
    released_record_is_forgotten: 20,
    old_reports_count: 8,
}
"""With the seed from which a random history finds it soon."""
BAD_DAYS: dict[Defect, int] = {
    qemus_are_found_by_path_alone: 0,
    servers_trust_every_database: 15,
    withheld_vms_are_begun: 15,
    deleted_vms_keep_their_epoch: 0,
    copies_work_on_any_host: 11,
    any_host_takes_a_nodes_place: 0,
}
"""With the seed of a bad day that finds it, to begin with."""
RARE_DAYS: dict[Defect, int] = {
    nodes_are_removed_that_may_live: 0,
    vms_are_recovered_at_their_epoch: 0,
    former_nodes_keep_what_fails_over: 0,
    nodes_forget_the_servers_proofs: 0,
}
"""Those that it takes many bad days to find."""
