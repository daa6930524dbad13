"""A small data centre in which all but the hardware is the product's: what can be done to it, and what must hold.

Real: the store in PostgreSQL, the controllers, what the server says and stores (``node_statements``, ``Reports``), the
agents' workers, dispatchers, journals and leases. Simulated: QEMU, the memory's transport, the link, time, hosts.
"""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Awaitable, Callable
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

import msgspec

from novacron import pki
from novacron.agent.vm.context import MayNotRun
from novacron.control import drain, failover, health, migration, placement, replicas
from novacron.control.fencing import Fenced
from novacron.control.objects import Objects
from novacron.model.errors import NovaError, Unavailable
from novacron.model.node import Accelerator, AcceleratorKind, Inventory
from novacron.model.ownership import Claim
from novacron.model.probe import MoveForeseen
from novacron.model.vm import Vm, VmSpec
from novacron.ownership_proofs import OwnershipProofs
from novacron.server.database_watch import DatabaseWatch
from novacron.server.node_statements import NodeBasis, VmReadings, statements
from novacron.server.reports import Reports
from novacron.store import identities, leases, lost_nodes, migrations, new_vms, nodes, owned, projects, vms
from novacron.store.database import Connection, Database
from novacron.wire import messages as wire
from tests.simulation import backup as backups
from tests.simulation.clock import SimulatedClock, settle
from tests.simulation.database import BEGINS_AT, SimulatedDatabase
from tests.simulation.disks import Disks
from tests.simulation.host import DISK_IMAGE, IMAGE, Death, SimulatedHost
from tests.simulation.machine import EXECUTES, SimulatedQemu
from tests.simulation.network import SimulatedNetwork
from tests.simulation.transport import Channel
from tests.support.project_secrets import PlainSecrets

T = TypeVar("T")

FENCE = Path("fence")
OFF_S = 20.0
"""How long a host that was cut off stays off."""
ROOTS = (b"what all servers have in their files",)
"""Of proofs: the same in every history, unlike the CA's keys."""
NO_BASIS = NodeBasis(None, ())
SETTLE_ROUNDS = 40
ROUND_S = 3.0
CALM_ROUNDS = 2
DELIVERIES_MAX = 500
"""Messages that are delivered in one round: more are an endless exchange."""
TABLES = (
    "nodes, node_leases, node_signs, revoked_keys, vms, macs, vm_tombstones, migrations, drains, unreconciled_vms,"
    " database_restored, database_marks, events, changes, replicas"
)
EARLIER = re.compile(rb'"written_at":[0-9.]+')
"""When a copy was made does not depend on how fast a history runs."""


class ServerFiles(StrEnum):
    """What becomes of the server's own files when an older database is put back."""

    KEPT = "kept"
    LOST = "lost"
    """Another machine becomes the server."""
    PUT_BACK = "put-back"
    """They are put back with the database."""
    GO_ON = "go-on"
    """Nothing: the server does not even begin again. A standby took over that lacked the last changes."""


class Broken(AssertionError):
    """What must never happen has happened."""


SECRETS = PlainSecrets()


class World:
    """Hosts, a server, and one VM that belongs to exactly one of them."""

    def __init__(self, database: Database, directory: Path, names: tuple[str, ...], *, leased: bool = False) -> None:
        self.database, self.directory = database, directory
        self.clock, self.network = SimulatedClock(), SimulatedNetwork()
        self.channels: dict[str, Channel] = {}
        self.pids = itertools.count(1)
        self.newest_memory = 0
        """Counts what guests have done: a guest that goes on with less than this goes on from an old copy."""
        self.backup: backups.Backup | None = None
        self.violations: list[str] = []
        self.notes: list[str] = []
        """What happened, in its order: the same in every run of a seed."""
        self.leased = leased
        """The VM is highly available: a node that is cut off owns it as far as it knows, and its lease stops it."""
        self.is_up: Callable[[str, str], bool] = lambda source, target: True
        """Say whether what one node, or the server, says reaches another."""
        self.fence_works: Callable[[], bool] = lambda: False
        self.delay_s: Callable[[], float] = lambda: 0.0
        """How long the next message between nodes takes."""
        self.link_ends: Callable[[str], None] = lambda name: None
        """A node's agent drops its link to the server."""
        self.place: Callable[[str], SimulatedHost] = lambda name: self.hosts[name]
        """Return the host that the server knows under a node's name."""
        self.intruders: list[SimulatedHost] = []
        """Those on which an agent works with a copy of a node's state folder, beside the node's own agent."""
        self.authority = pki.Authority.open(directory / "authority", self.clock.time)
        self.proofs = OwnershipProofs(lambda: ROOTS, self.clock.time)
        self.disks = Disks()
        self.vm = ""
        self.deleted: set[str] = set()
        """VMs that an operator has deleted: nothing of them may go on."""
        self.names = names
        self.restated: Callable[[], None] = lambda: None
        """Nodes are to be told something else, though no VM has changed."""
        self._begin_server()
        self.generations: dict[str, int] = {}
        self.hosts = {name: SimulatedHost(self, name, directory / name) for name in names}

    # the server

    def _begin_server(self) -> None:
        self.reports = Reports(self.database, self.clock.monotonic, prove=self.proofs.prove)
        self.drains = drain.Drains(_estimate_nothing)
        self.failover, self.placement = failover.Failover(fence=FENCE), placement.PlacementController()
        self.objects = {
            name: Objects(name, clock=self.clock.monotonic)
            for name in ("health", "migration", "placement", "failover", "drain", "replicas")
        }
        self.watch = DatabaseWatch(self.database, self.mark_file, lambda: self.restated())

    @property
    def mark_file(self) -> Path:
        return self.directory / "authority" / "database.mark"

    async def back_up(self) -> None:
        """Somebody makes a backup of the database, and one of the server's files."""
        async with self.database.transaction(isolation="repeatable_read") as connection:
            self.backup = await backups.make(connection)
        self.marks_copy.unlink(missing_ok=True)
        if self.mark_file.exists():
            shutil.copy2(self.mark_file, self.marks_copy)

    @property
    def marks_copy(self) -> Path:
        return self.directory / "database.mark.copy"

    async def put_database_back(self, files: ServerFiles) -> None:
        """The database becomes what the backup is; the server begins again, but where a standby took over."""
        assert self.backup is not None
        backup = self.backup
        await self.transact(lambda connection: backups.put_back(connection, backup))
        if files is ServerFiles.GO_ON:
            return
        if files is not ServerFiles.KEPT:
            self.mark_file.unlink(missing_ok=True)
        if files is ServerFiles.PUT_BACK and self.marks_copy.exists():
            self.mark_file.write_bytes(EARLIER.sub(b'"written_at":1000000000', self.marks_copy.read_bytes()))
        self._begin_server()
        await self.watch.begin()

    async def transact(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        async with self.database.transaction() as connection:
            return await work(connection)

    async def begin(self, *, ha: bool = False, disk: bool = False) -> None:
        """Make the nodes and the VM, perhaps with a disk of its own."""

        database = self.database
        assert isinstance(database, SimulatedDatabase)

        async def make(connection: Connection) -> str:
            await connection.execute("CREATE TEMP TABLE projects_of_before ON COMMIT DROP AS SELECT * FROM projects")
            await connection.execute(
                f"TRUNCATE {TABLES} RESTART IDENTITY CASCADE"
            )  # of projects too, by their networks
            await connection.execute("INSERT INTO projects SELECT * FROM projects_of_before ON CONFLICT DO NOTHING")
            database.behind_s = 0.0
            await connection.execute("UPDATE simulation.clock SET at = $1", BEGINS_AT)
            for name in self.names:
                await identities.join(connection, name, self.hosts[name].key_hash)
                await nodes.connected(connection, name, self.inventory(name))
                self.generations[name] = await leases.begin(connection, name)
            return await self._new_vm(connection, self.names[0])

        self.spec = VmSpec(image=(DISK_IMAGE if disk else IMAGE).name, ha=ha)
        self.vm = await self.transact(make)
        await self.watch.begin()
        await self.back_up()

    async def _new_vm(self, connection: Connection, node: str | None) -> str:
        making = await projects.making(connection, "default")
        return (await new_vms.create(connection, making, new_vms.NewVm("web", self.spec, node=node), "test")).id

    async def replace_vm(self, delete: Callable[[Connection], Awaitable[object]]) -> None:
        """Delete the VM, and make another one. Raises NovaError."""

        async def work(connection: Connection) -> str:
            await delete(connection)
            return await self._new_vm(connection, None)

        new = await self.transact(work)
        self.deleted.add(self.vm)
        self.newest_memory, self.vm = 0, new
        await self.back_up()  # an older database would bring the first one back

    def inventory(self, name: str) -> Inventory:
        accelerator = Accelerator(AcceleratorKind.TCG, "")
        return Inventory(2, 8192, "x86_64", "6", "7", accelerator, (IMAGE, DISK_IMAGE), None, f"{name}:1", "0")

    async def fence(self, program: Path, node: str) -> Fenced:
        """Stands in for the fence command, which does not always work."""
        if not self.fence_works():
            return Fenced(cut_off=False, error="it does not answer")
        self.note(f"{node} is cut off")
        await self.hosts[node].switch_off(OFF_S)
        return Fenced(cut_off=True)

    async def join(self, name: str, key_hash: str) -> None:
        """A host joins, as the API lets it. Raises NovaError."""

        async def work(connection: Connection) -> None:
            holder = await identities.holder(connection, name, key_hash)
            await identities.join(connection, holder or name, key_hash)
            if holder is None:
                await lost_nodes.take_place(connection, name)

        await self.transact(work)

    async def say_to(self, name: str, *, compares: bool = False) -> None:
        """The server says to a node how things are now; the message is under way."""
        async with self.database.transaction(isolation="repeatable_read") as connection:
            stated = await statements(connection, name, {self.vm, *self.deleted}, SECRETS, NO_BASIS)
            if compares:
                brief = (await VmReadings.read(connection, [self.vm], SECRETS)).on(name, self.vm, SECRETS, NO_BASIS)
                assert brief is None or brief in stated, "what is read of one VM says the same"
        # Without an endpoint to warm up no session is opened early: sessions are not simulated.
        cold = tuple(
            s if s.task is None else msgspec.structs.replace(s, task=msgspec.structs.replace(s.task, warm=None))
            for s in (msgspec.structs.replace(s, proof=self.proofs.of_order(s.vm, s.order)) for s in stated)
        )
        self.network.to_host(name, wire.Desired(cold))

    @property
    def every_host(self) -> list[SimulatedHost]:
        """All that agents may work on."""
        return [*self.hosts.values(), *self.intruders]

    def qemus(self) -> list[SimulatedQemu]:
        """Return all that run anywhere."""
        return list({qemu.pid: qemu for host in self.every_host for qemu in host.qemus.values()}.values())

    async def server_hears(self, name: str, message: wire.Message) -> None:
        self.note(f"the server hears of {name}: {message}")
        match message:
            case wire.Observed(vm=vm, epoch=epoch, status=status):
                await self.transact(lambda connection: self._observe(connection, owned.Report(name, vm, epoch, status)))
            case wire.Stopped():
                pass
            case _:
                await self.reports.store(name, message)

    async def _observe(self, connection: Connection, report: owned.Report) -> None:
        if report.vm in self.deleted:
            await owned.observe(connection, [report])
            return
        before = await vms.get(connection, report.vm)
        await owned.observe(connection, [report])
        is_owners = (report.node, report.epoch) == (before.node, before.epoch)
        if not is_owners and (await vms.get(connection, report.vm)).status != before.status:
            self.violations.append(f"what {report.node} says at epoch {report.epoch} counts at {before.epoch}")

    def note(self, what: object) -> None:
        """Write down that something happened."""
        self.notes.append(f"{self.clock.now_s:.3f} {what}")

    async def host_hears(self, name: str, message: wire.Message) -> None:
        self.note(f"{name} hears {message}")
        host = self.place(name)
        if host.works:
            host.agent.dispatcher.take(message)
        await self.settle()

    async def control(self, *, changed: bool = True) -> None:
        """Every controller makes a pass; unless something has ``changed``, only those that look by themselves."""
        await health.step(self.database, self.objects["health"])
        if changed:
            await migration.step(self.database, self.objects["migration"])
            await self.placement.step(self.database, self.objects["placement"])
            await self.drains.step(self.database, self.objects["drain"])
            await self.objects["drain"].finish()
            await replicas.step(self.database, self.objects["replicas"])
        await self.take_over()
        for objects in self.objects.values():
            failing = [objects.failure(key) for key in list(objects._failures)]
            objects.end_pass()
            assert not any("internal error" in (failure or "") for failure in failing), failing

    async def take_over(self) -> None:
        """The controller of lost nodes makes a pass."""
        with patch.object(failover, "cut_off", self.fence):
            await self.failover.step(self.database, self.objects["failover"])
            await self.objects["failover"].finish()

    async def renew_leases(self) -> None:
        """Every node was heard just now."""
        beats = [leases.Beat(name, generation) for name, generation in self.generations.items()]
        await self.transact(lambda connection: leases.renew(connection, beats, 0.0))

    async def step_server_clock(self, seconds: float) -> None:
        """The server's clock is set, or time passes for it."""
        assert isinstance(self.database, SimulatedDatabase)
        self.database.step_clock(seconds)

    async def server_time(self) -> datetime:
        async with self.database.connection() as connection:
            at: datetime = await connection.fetchval("SELECT at FROM simulation.clock")
            return at

    async def migrate(self, target: str | None) -> None:
        """An operator asks for it; what refuses it is right to."""
        try:
            await self.transact(
                lambda connection: migrations.create(
                    connection, self.vm, migrations.MoveRequest(actor="test", target=target)
                )
            )
        except NovaError:
            return

    async def abort(self) -> None:
        async def work(connection: Connection) -> None:
            for active in await migrations.active(connection):
                await migrations.abort(connection, active.id, "test")

        await self.transact(work)

    # time and hosts

    async def pass_time(self, seconds: float) -> None:
        """Time passes, for everybody alike."""
        await self.clock.advance(seconds)
        await self.step_server_clock(seconds)
        await self.settle()

    async def settle(self) -> None:
        """Let everything happen that can happen now; agents that were killed meanwhile have successors."""
        await settle()
        for host in self.hosts.values():
            if host.has_died:
                await host.crash_agent()
                await settle()
        self.check()

    async def let_memory_flow(self, *, arrives: bool) -> None:
        """Sources hand everything on; perhaps the targets get it."""
        for channel in self.channels.values():
            channel.may_flow.set()
            if arrives:
                channel.may_arrive.set()
        await self.settle()

    async def cut_migrations(self) -> None:
        for channel in self.channels.values():
            channel.cut()
        await self.settle()

    async def kill_agent_at_its_next_write(self, name: str, death: Death) -> None:
        self.hosts[name].agent.dies = death

    # what must hold

    def guest_goes_on(self, qemu: SimulatedQemu) -> None:
        """A guest executes from now on: checked at that moment, whatever stops it again."""
        self.note(f"the guest goes on at {qemu.host.name}")
        if qemu.vm in self.deleted:
            self.violations.append(f"the guest of a VM that was deleted goes on at {qemu.host.name}")
            return
        running = [other.host.hardware.name for other in self.qemus()
                   if other is qemu or (other.vm == qemu.vm and other.run_state in EXECUTES)]  # fmt: skip
        if len(running) > 1:
            self.violations.append(
                f"{self.clock.now_s:.1f} s: the guest goes on at {qemu.host.hardware.name}, runs on {running}"
            )
        if qemu.memory < self.newest_memory:
            self.violations.append(f"the guest goes on at {qemu.host.name} from an old copy of its memory")
        self.newest_memory += 1
        qemu.memory = self.newest_memory

    def check(self) -> None:
        """Raise Broken if two may run the VM, do, or did since the last time."""
        owners = []
        for host in self.every_host:
            worker = host.agent.workers.get(self.vm) if host.works else None
            if worker is not None and _may_run(worker.context.check_may_run):
                owners.append(host.hardware.name)
                if (self.vm, worker.context.record.held.epoch) in host.promised:
                    self.violations.append(f"{host.name} may run the VM in spite of its promise")
        for qemu in self.qemus():
            if qemu.vm == self.vm and qemu.run_state in EXECUTES:  # whatever its guest has done meanwhile
                self.newest_memory = qemu.memory = max(qemu.memory, self.newest_memory) + 1
        if len(owners) > 1 and not self.leased:
            self.violations.append(f"{owners} may all run the VM")
        if self.violations:
            raise Broken("; ".join(self.violations))

    async def come_to_rest(self) -> Vm:
        """Messages arrive again and nothing fails: return the VM once everything has come to rest. Raises Broken."""
        self.network.lose_everything()
        for host in self.hosts.values():
            host.agent.dies = None
        calm = 0
        for _ in range(SETTLE_ROUNDS):
            await self._good_round()
            vm, restless = await self._restless()
            calm = 0 if restless else calm + 1
            if calm == CALM_ROUNDS:
                return vm
        raise Broken(restless or "it never stays at rest")

    async def _restless(self) -> tuple[Vm, str]:
        """Return the VM, and why not everything is at rest, or nothing."""
        async with self.database.connection() as connection:
            vm, active = await vms.get(connection, self.vm), await migrations.active(connection)
        states = [(qemu.host.name, qemu.run_state) for qemu in self.qemus()]
        if active:
            return vm, f"a migration never ends: {active[0].id} is {active[0].phase}"
        if states != [(vm.node, "running")]:
            status = f"{vm.status.state} {vm.status.reason} at epoch {vm.epoch}"
            return vm, f"the VM belongs to {vm.node}, is {status}, and its QEMUs are {states}"
        return vm, self._orphan(vm)

    def _orphan(self, vm: Vm) -> str:
        """Return what a host has of a VM that is not its own, or nothing."""
        for host in self.hosts.values():
            for id, worker in host.agent.workers.items() if host.works else ():
                record, held = worker.context.record, worker.context.record.held
                is_here = host.name == vm.node or record.damaged  # which binds a node until a later epoch
                if held.claim is not Claim.NONE and (id in self.deleted or not is_here):
                    return f"{host.name} still has {held} of VM {id}, which is on {vm.node}"
        return ""

    async def completed(self) -> int:
        """Return how many migrations were completed."""
        async with self.database.connection() as connection:
            count: int = await connection.fetchval("SELECT count(*) FROM migrations WHERE phase = 'completed'")
            return count

    async def _good_round(self) -> None:
        for name in self.names:
            await self.say_to(name)
        await self.let_memory_flow(arrives=True)
        for _ in range(DELIVERIES_MAX):
            if self.network.for_hosts:
                await self.host_hears(*self.network.for_hosts.pop(0))
            elif self.network.for_server:
                await self.server_hears(*self.network.for_server.pop(0))
            else:
                break
        await self.renew_leases()
        await self.control()
        await self.pass_time(ROUND_S)

    async def end(self) -> None:
        for host in self.every_host:
            await host.end()
        shutil.rmtree(self.directory)


async def _estimate_nothing(*_: object) -> MoveForeseen:
    raise Unavailable("moves are not measured in a simulation")


def _may_run(gate: Callable[[], None]) -> bool:
    try:
        gate()
    except MayNotRun:
        return False
    return True
