"""Histories of one VM on nodes whose state folders are wiped, put back and damaged, and whose certificates end, beside
all else that fails, made from a seed.

What the agents do about it when they begin, and the server when they join and connect, is the product's.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from novacron.agent.vm.journal import peek
from novacron.model.drain import DrainPolicy
from novacron.model.errors import NovaError
from novacron.model.ownership import Claim
from novacron.model.unreconciled import Contradiction, UnreconciledVm
from novacron.model.vm import VmAction
from novacron.store import adoption, nodes, replicas, vms
from novacron.store.adoption import Adoption
from novacron.store.database import Connection, Database
from tests.simulation import disks
from tests.simulation.copies import CopiesAtWork
from tests.simulation.disks import GONE
from tests.simulation.failover import FailoverHistory
from tests.simulation.host import Death, SimulatedHost
from tests.simulation.lost_hosts import LostHosts
from tests.simulation.world import Broken, ServerFiles

ACTS_CHANCE = 0.12
DISK_CHANCE = 0.3
FENCES_CHANCE = 0.6
COPIES_EVERY = 2
"""In every second history agents begin with copies of state folders: with all else in each, all would be rare."""
ROUND_S = 2.0
OF_FOLDERS = frozenset(
    {"_wipes", "_copies", "_puts_back", "_puts_journal_back", "_damages", "_copy_begins_beside",
     "_copy_begins_elsewhere", "_moves_to_other_hardware"}
)  # fmt: skip
"""Where an agent works from a copy of the folder, it ends instead."""
MOVES = ("_migrates", "_aborts", "_drains", "_uncordons", "_cuts_migrations")
BEGINS_CHANCE = 0.1
"""In each tick, an operator helps an agent that can't begin, or that is refused."""
RECONCILES_CHANCE = 0.03
FLOWS_CHANCE = 0.4
CALM_S, FAIL_S, REST_S, REST_S_MAX = 15.0, 60.0, 10.0, 600.0


IS_KNOWN = "SELECT EXISTS (SELECT FROM vms WHERE id = $1)"
"""Nobody adopts a VM of which nobody knows what it is: its node can't read its record."""


class BadDay(FailoverHistory):
    """One history. Every second one is of a highly available VM."""

    only: tuple[str, ...] = ()
    """The acts that there are, if not all."""

    def __init__(self, database: Database, directory: Path, seed: int) -> None:
        super().__init__(database, directory, seed)
        self.ha = self.random.random() < 0.5
        self.disk = self.random.random() < DISK_CHANCE
        """The VM has a disk of its own, and a replica. It is not moved: disks on their way are not simulated."""
        self.world.fence_works = lambda: self.random.random() < FENCES_CHANCE
        self.lost = LostHosts(
            self.world, self.random, lambda what: self.done.append(f"{self.world.clock.now_s:.1f} {what}")
        )
        self.copies: dict[str, Path] = {}
        """An earlier state folder of each node."""
        self.has_copies = seed % COPIES_EVERY == 0
        """Agents begin with copies of state folders."""
        self.copies_at_work = CopiesAtWork(self.world, self.random)
        self.done: list[str] = []
        """What has been done, for whoever reads of a violation."""
        self.aside = 0

    async def run(self) -> int:
        """Return at how many epochs the VM was before the last one. Raises Broken."""
        try:
            await self.world.begin(ha=self.ha and not self.disk, disk=self.disk)
            await self.go_on(CALM_S, fails=False)
            if self.disk:
                await self._replicates(self.world.hosts[self.names[-1]])
            await self.go_on(FAIL_S, fails=True)
            return await self.rest()
        except Broken as error:
            raise Broken(f"{error}; done: {', '.join(self.done)}") from error
        finally:
            await self.world.end()

    async def control(self) -> None:
        await self.world.control(changed=self.changed)
        await self.lost.attend()
        await self.copies_at_work.attend()
        if self.disk and self._every(ROUND_S):
            await disks.rounds(self.world)
            if self.ha:
                await self._becomes_available()

    async def rest(self) -> int:
        self.heal()
        await self.copies_at_work.end()
        waited_s, restless = 0.0, "it has just begun"
        while restless:
            if waited_s > REST_S_MAX:
                raise Broken(f"{restless}; {self._standing()}")
            await self._operators_help()
            await self.world.let_memory_flow(arrives=True)
            await self.go_on(REST_S, fails=False)
            waited_s += REST_S
            vm, restless = await self.world._restless()
        return vm.epoch - 1

    def _standing(self) -> str:
        """Say how agents see it, for whoever reads of a violation."""
        said = []
        for name, host in self.world.hosts.items():
            workers = host.agent.workers if host.works else {}
            held = {vm: worker.context.record.held for vm, worker in workers.items()}
            connected = "connected" if name in self.links.sessions else "not connected"
            said.append(f"{name}: {connected} {host.refusal or held}")
        return "; ".join(said)

    async def _operators_help(self) -> None:
        """Do what errors and reasons ask for."""
        for host in self.world.hosts.values():
            await self._help(host)
            await self._uncordons(host)
        async with self.world.database.connection() as connection:
            vm = await vms.get(connection, self.world.vm)
        await self._reconciles()
        await self.lost.help()
        if vm.status.record_lost:
            await self._ask(lambda connection: vms.act(connection, vm.id, VmAction.START, None, "test"))

    async def _help(self, host: SimulatedHost) -> None:
        if not host.works and not host.is_off:
            if host.refusal and self.random.random() < 0.5:  # the VMs there are stopped before another folder is used
                host.lose_power()
            await host.begin_agent()
        if host.works and (host.is_dismissed or not host.is_certified()):
            try:
                await host.rejoin()
            except NovaError as error:
                self.done.append(f"{self.world.clock.now_s:.1f} can't rejoin {host.name}: {error}")

    async def _ask(self, work: Callable[[Connection], Awaitable[object]]) -> None:
        """Ask the server for something; what it refuses it is right to."""
        try:
            await self.world.transact(work)
        except NovaError:
            return

    async def also_fails(self) -> None:
        if self.random.random() < FLOWS_CHANCE:
            await self.world.let_memory_flow(arrives=self.random.random() < 0.7)
        if self.random.random() < RECONCILES_CHANCE:
            await self._reconciles()
        if self.random.random() < BEGINS_CHANCE:
            await self._help(self.world.hosts[self.random.choice(self.names)])
        if self.random.random() >= ACTS_CHANCE:
            return
        acts: tuple[tuple[int, Callable[[SimulatedHost], Awaitable[None]]], ...] = (
            (8, self._migrates), (1, self._aborts), (2, self._drains), (1, self._uncordons), (2, self._cuts_migrations),
            (3, self._dies_at_a_write), (3, self._loses_power), (3, self._wipes), (2, self._copies),
            (3, self._puts_back), (2, self._puts_journal_back), (2, self._damages), (2, self._certificate_ends),
            (2, self._backs_database_up), (3, self._puts_database_back), (5, self._loses_host), (4, self._forces),
            (2, self._replicates),
        )  # fmt: skip
        if self.has_copies:
            acts += (
                (3, self._copy_begins_beside), (2, self._copy_begins_elsewhere), (3, self._moves_to_other_hardware),
                (2, self._copies_end),
            )  # fmt: skip
        left_out = MOVES if self.disk else ("_replicates",)
        acts = tuple(
            (weight, act) for weight, act in acts
            if act.__name__ not in left_out and (not self.only or act.__name__ in self.only)
        )  # fmt: skip
        act = self.random.choices([act for _, act in acts], [weight for weight, _ in acts])[0]
        async with self.world.database.connection() as connection:
            owner = (await vms.get(connection, self.world.vm)).node
        name = owner if owner is not None and self.random.random() < 0.6 else self.random.choice(self.names)
        self.done.append(f"{self.world.clock.now_s:.1f} {act.__name__.strip('_')} {name}")
        if act.__name__ in OF_FOLDERS and self.copies_at_work.is_used(self.world.hosts[name]):
            act = self._copies_end
        await act(self.world.hosts[name])

    # what operators do

    async def _loses_host(self, host: SimulatedHost) -> None:
        await self.lost.lose(host)

    async def _forces(self, host: SimulatedHost) -> None:
        await self.lost.force(host)

    async def _becomes_available(self) -> None:
        """A VM whose disk has a replica with a point may be highly available, and is from then on."""
        async with self.world.database.connection() as connection:
            vm = await vms.get(connection, self.world.vm)
        if not vm.spec.ha:
            await self._ask(lambda connection: vms.configure(connection, vm.id, None, {"ha": True}, None, "test"))

    async def _replicates(self, host: SimulatedHost) -> None:
        new = replicas.NewReplica(None, host.name)
        await self._ask(lambda connection: replicas.create(connection, self.world.vm, new, "test"))

    async def _migrates(self, host: SimulatedHost) -> None:
        await self.world.migrate(None)

    async def _aborts(self, host: SimulatedHost) -> None:
        await self.world.abort()

    async def _drains(self, host: SimulatedHost) -> None:
        policy = self.random.choice(tuple(DrainPolicy))
        await self._ask(lambda connection: nodes.drain(connection, host.name, policy, None, "test"))

    async def _uncordons(self, host: SimulatedHost) -> None:
        await self._ask(lambda connection: nodes.uncordon(connection, host.name, None, "test", bring_back=False))

    async def _backs_database_up(self, host: SimulatedHost) -> None:
        await self.world.back_up()

    async def _puts_database_back(self, host: SimulatedHost) -> None:
        """An older database takes the place of the present one. Nodes that are wiped since have another key there."""
        files = self.random.choice(tuple(ServerFiles))
        self.done.append(str(files))
        await self.be_put_back(files)

    async def be_put_back(self, files: ServerFiles) -> None:
        """The backup of the database is put back."""
        await self.world.put_database_back(files)
        await self._forget_disks()
        self.told.clear()
        if files is not ServerFiles.GO_ON:
            self.mail.clear()
            for name in self.names:
                self.links.end(name)

    async def _reconciles(self) -> None:
        """Say who is right where nodes know more than the database: who has the VM, or else the database."""
        async with self.world.database.connection() as connection:
            rows = await connection.fetch("SELECT DISTINCT vm FROM unreconciled_vms ORDER BY vm")
        for row in rows:
            await self._ask(functools.partial(self._reconcile, row["vm"]))

    async def _reconcile(self, vm: str, connection: Connection) -> None:
        every = await adoption.find(connection, vm)
        first, disks = every[0], self.world.disks
        has_it = [record for record in every if record.contradiction is Contradiction.DAMAGED and self._has(record)]
        if first.claim is Claim.OWNER and vm not in self.world.deleted:
            await adoption.adopt(connection, first.vm, Adoption(node=first.node), "test")
        elif has_it and self.ticks % 2 == 0 and await connection.fetchval(IS_KNOWN, vm):
            node = has_it[0].node
            await adoption.adopt(connection, first.vm, Adoption(node=node, confirm=first.vm_name), "test")
            disks.put_back(vm, self.world.hosts[node].directory)
        else:
            stays = await adoption.forget(connection, first.vm, first.vm_name, "test")
            for node in {record.node for record in every} - {stays.node if stays is not None else None}:
                disks.take_away(vm, self.world.hosts[node].directory)

    def _has(self, record: UnreconciledVm) -> bool:
        """Whoever looks finds the VM on this node."""
        host = self.world.hosts[record.node]
        return (host.directory / "vms" / record.vm).exists() or bool(host.qemus_of(record.vm))

    # what befalls hosts

    async def _cuts_migrations(self, host: SimulatedHost) -> None:
        await self.world.cut_migrations()

    async def _dies_at_a_write(self, host: SimulatedHost) -> None:
        if host.works:
            host.agent.dies = self.random.choice(tuple(Death))

    async def _loses_power(self, host: SimulatedHost) -> None:
        await host.crash()

    async def _certificate_ends(self, host: SimulatedHost) -> None:
        if host.works:
            host.let_certificate_end()

    # agents that work from copies of state folders

    async def _copy_begins_beside(self, host: SimulatedHost) -> None:
        """An agent begins with a copy on the same host: the original works, was killed, or its host was off."""
        how = self.random.choice(("beside it", "in its place", "after a crash"))
        copy = await self._copy_to_use(host)
        if copy is None:
            return
        if how != "beside it":
            await host.end_agent()
        if how == "after a crash":
            host.lose_power()
        self.done.append(f"{how}: {await self.copies_at_work.begin_beside(host, copy) or 'works'}")

    async def _copy_begins_elsewhere(self, host: SimulatedHost) -> None:
        """An agent begins with a copy on another host, perhaps one that was installed from the same image."""
        copy = await self._copy_to_use(host)
        if copy is not None:
            clone = self.random.random() < 0.5
            said = await self.copies_at_work.begin_elsewhere(host, copy, clone=clone)
            self.done.append(f"{'on a clone' if clone else 'on another host'}: {said or 'works'}")

    async def _moves_to_other_hardware(self, host: SimulatedHost) -> None:
        """The host is off for good, and a copy of its folder goes on at another one, as somebody says."""
        copy = await self._copy_to_use(host)
        if copy is not None:
            self.done.append(await self.copies_at_work.move(host, copy) or "works")

    async def _copies_end(self, host: SimulatedHost) -> None:
        await self.copies_at_work.end()

    async def _copy_to_use(self, host: SimulatedHost) -> Path | None:
        """Return a copy of the state folder that an agent can be started from; often a new one. None: there is none."""
        older = self.copies.get(host.name)
        if older is None or not older.exists() or self.random.random() < 0.5:
            await self._copies(host)
        copy = self.copies.pop(host.name)
        return copy if (copy / "identity" / "node.crt").exists() else None

    # what befalls state folders

    async def _copies(self, host: SimulatedHost) -> None:
        """Somebody makes a backup of the state folder."""
        copy = self.copies.setdefault(host.name, host.directory.with_name(f"{host.name}.copy"))
        shutil.rmtree(copy, ignore_errors=True)
        if host.directory.exists():
            shutil.copytree(host.directory, copy)
            self.world.disks.copied(self.world.vm, copy)

    async def _wipes(self, host: SimulatedHost) -> None:
        """The state folder is removed or moved away; perhaps the host lost its power, too."""
        await self._stop(host)
        self._clear(host)
        host.promised.clear()
        await host.begin_agent()

    async def _puts_back(self, host: SimulatedHost) -> None:
        """An earlier state folder takes the place of the present one."""
        copy = self.copies.pop(host.name, None)
        if copy is None or not copy.exists():
            await self._copies(host)
            return
        await self._stop(host)
        is_gone = self.world.disks.current.get(self.world.vm) == GONE
        had_disk = self._clear(host)
        copy.rename(host.directory)
        if had_disk and not is_gone:
            self.world.disks.put_back(self.world.vm, host.directory)
        host.promised.clear()
        await host.begin_agent()

    async def _puts_journal_back(self, host: SimulatedHost) -> None:
        """The files of an earlier journal are copied over the present ones."""
        copy = self.copies.get(host.name)
        if copy is None or not (copy / "journal").exists() or not host.directory.exists():
            await self._copies(host)
            return
        await self._stop(host)
        shutil.copytree(copy / "journal", host.directory / "journal", dirs_exist_ok=True)
        host.promised.clear()
        await self._forget_disks()
        await host.begin_agent()

    async def _forget_disks(self) -> None:
        """A disk of which neither the database nor the journal of its host knows, as both were put back, is lost."""
        async with self.world.database.connection() as connection:
            owner = await connection.fetchval("SELECT coalesce(node, lost_on) FROM vms WHERE id = $1", self.world.vm)
        for host in self.world.hosts.values():
            record = peek(host.directory / "journal", self.world.vm)
            is_forgotten = owner != host.name and record is not None and record.held.claim is Claim.NONE
            if is_forgotten and self.world.disks.is_there(self.world.vm, host.directory):
                self.world.disks.current[self.world.vm] = GONE

    async def _damages(self, host: SimulatedHost) -> None:
        """The VM's record in the journal is damaged."""
        await self._stop(host)
        record = host.directory / "journal" / f"{self.world.vm}.json"
        if record.exists():
            record.write_bytes(self.random.choice((b"", b"{}", b"\0" * 64, record.read_bytes()[:-9])))
        await host.begin_agent()

    async def _stop(self, host: SimulatedHost) -> None:
        await host.end_agent()
        if self.random.random() < 0.4:
            host.lose_power()

    def _clear(self, host: SimulatedHost) -> bool:
        """Remove a state folder; say whether the VM's disk was there."""
        had_disk = self.world.disks.take_away(self.world.vm, host.directory)
        if self.random.random() < 0.5 and host.directory.exists():
            self.aside += 1
            host.directory.rename(host.directory.with_name(f"{host.name}.aside-{self.aside}"))
        shutil.rmtree(host.directory, ignore_errors=True)
        return had_disk
