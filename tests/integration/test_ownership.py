"""A VM never runs in two places: a state machine over the real store and the real rule, with simulated hosts.

The server's side is the real one: its tables, its transactions, what it tells nodes. Hosts are simulated: each has a
durable memory, a QEMU that outlives its agent, and a network that loses, repeats and delays every message in both
directions. Agents crash, hosts crash, clocks step, operators migrate and abort at will.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from lab.platform import open_directory
from novacron.control import migration as controller
from novacron.control.objects import Objects
from novacron.local.postgres import Postgres
from novacron.model.errors import NovaError
from novacron.model.migration import Kind, Side
from novacron.model.node import Accelerator, AcceleratorKind, ImageInfo, Inventory
from novacron.model.ownership import Claim, Held, Verdict, may_run, obey, release
from novacron.model.vm import VmSpec, VmState, VmStatus
from novacron.server.node_statements import NodeBasis, VmReadings, statements
from novacron.store import identities, leases, migrations, new_vms, nodes, owned, projects, vms
from novacron.store.database import Connection, Database
from novacron.wire import messages as wire

HOSTS = ("a", "b", "c")
MESSAGES_MAX = 30
NO_BASIS = NodeBasis(None, ())


def page_key(project: str) -> bytes:
    return b"k" * 32


SETTLE_ROUNDS = 30


class SimulatedHost:
    """One host: what is on its disk, and its QEMU. An agent's crash loses neither, a host's crash only QEMU."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.held = Held()
        self.migration: str | None = None
        self.told: wire.Statement | None = None
        self.sending: str | None = None
        """The migration that its agent is sending for: gone when the agent crashes."""
        self.qemu = "absent"
        """``running``, ``stopped`` (everything was sent), ``loading``, ``loaded``, or ``absent``."""

    def obey(self, statement: wire.Statement) -> list[wire.Message]:
        """Do what ``agent.worker`` does with a statement; return what it says to the server."""
        self.told = statement
        before = self.held
        self.held, verdict = obey(self.held, statement.order)
        if self.held.epoch > before.epoch:
            self.sending = None
            if self.qemu == "loading":
                self.qemu = "absent"
        task = statement.task
        match verdict:
            case Verdict.RUN:
                assert may_run(self.held)
                assert statement.assignment is not None
                if self.qemu == "loading":  # what it waited for will not come
                    self.qemu = "absent"
                said: list[wire.Message] = []
                if task is not None and task.side is Side.SOURCE and task.endpoint is not None:
                    if self.sending == task.migration:
                        return []  # see `everything_is_sent`
                    if self.migration != task.migration and self.qemu == "running" and task.kind is Kind.LIVE:
                        self.migration = self.sending = task.migration
                        return []
                    said = [wire.MigrationFailed(task.migration, "it was begun before, or is not running")]
                self.qemu = "running"
                return [*said, self._observed()]
            case Verdict.RECEIVE:
                assert task is not None
                if self.migration == task.migration:
                    if self.qemu == "loaded":
                        return [wire.Voted(task.migration, Side.TARGET, task.epoch)]
                    if self.qemu == "loading":
                        return [wire.TargetReady(task.migration, "x:1")]
                    return [wire.MigrationFailed(task.migration, "gone")]
                self.migration, self.qemu = task.migration, "loading"
                return [wire.TargetReady(task.migration, "x:1")]
            case Verdict.DESTROY:
                self.qemu = "absent"
            case Verdict.HOLD:
                if self.held.claim is Claim.RELEASED and task is not None:
                    return [wire.Voted(task.migration, Side.SOURCE, task.epoch)]
        return []

    def _observed(self) -> wire.Message:
        return wire.Observed(VM[0], self.held.epoch, VmStatus(state=VmState.RUNNING))

    def sends(self) -> wire.Task | None:
        """Return its task if it is in the middle of sending."""
        task = None if self.told is None else self.told.task
        if task is None or self.sending != task.migration:
            return None
        return task if self.held == Held(task.epoch, Claim.OWNER) and self.qemu == "running" else None


VM = [""]
"""The id of the one VM, set when an example begins."""
COMPLETED = [0]
"""In how many examples the VM ended elsewhere: a machine that moves nothing proves nothing."""


class Ownership(RuleBasedStateMachine):
    database: Database
    runner: asyncio.Runner

    def __init__(self) -> None:
        super().__init__()
        self.hosts = {name: SimulatedHost(name) for name in HOSTS}
        self.to_host: list[tuple[str, wire.Statement]] = []
        self.to_server: list[tuple[str, wire.Message]] = []

    def do(self, work: Any) -> Any:
        async def within() -> Any:
            async with self.database.transaction() as connection:
                return await work(connection)

        return self.runner.run(within())

    @initialize()
    def begin(self) -> None:
        async def work(connection: Connection) -> None:
            await connection.execute(
                "TRUNCATE nodes, node_leases, vms, vm_tombstones, migrations, events, changes CASCADE"
            )
            accelerator = Accelerator(AcceleratorKind.TCG, "")
            images = (ImageInfo("tiny", "0", 1, "kernel"),)
            inventory = Inventory(2, 8192, "x86_64", "6", "7", accelerator, images, None, "x:1", "0")
            for name in HOSTS:
                await identities.join(connection, name, "")
                await nodes.connected(connection, name, inventory)
            making = await projects.making(connection, "default")
            vm = await new_vms.create(connection, making, new_vms.NewVm("web", VmSpec(image="tiny"), node="a"), "test")
            VM[0] = vm.id

        self.do(work)
        self.links_work(["a"], answers=True)

    # the server

    @rule(host=st.sampled_from(HOSTS))
    def server_tells(self, host: str) -> None:
        """The server says to a host how things are now; the message is under way."""

        async def work() -> Any:
            async with self.database.transaction(isolation="repeatable_read") as connection:
                told = await statements(connection, host, {VM[0]}, page_key, NO_BASIS)
                briefly = (await VmReadings.read(connection, [VM[0]])).on(host, VM[0], page_key, NO_BASIS)
                assert briefly is None or briefly in told, "what is read of one VM says the same"
                return told

        for statement in self.runner.run(work()):
            self.to_host.append((host, statement))
        del self.to_host[:-MESSAGES_MAX]

    @rule(where=st.none() | st.sampled_from(HOSTS))
    def operator_migrates(self, where: str | None) -> None:
        async def work(connection: Connection) -> None:
            await migrations.create(connection, VM[0], migrations.MoveRequest(actor="test", target=where))

        with_refusal(lambda: self.do(work))
        self.runner.run(controller.step(self.database, Objects("migration")))

    @rule()
    def operator_aborts(self) -> None:
        async def work(connection: Connection) -> None:
            for found in await migrations.active(connection):
                await migrations.abort(connection, found.id, "test")

        self.do(work)

    @rule(step_s=st.sampled_from((-3600, 0, 0, 0, 30, 3600)))
    def controller_runs(self, step_s: int) -> None:
        """The controller looks, perhaps after the clock was set."""

        async def step(connection: Connection) -> None:
            await connection.execute(
                "UPDATE migrations SET moved_at = moved_at - make_interval(secs => $1)", float(step_s)
            )
            await connection.execute(
                "UPDATE node_leases SET renewed_at = renewed_at - make_interval(secs => $1)", float(step_s)
            )

        self.do(step)
        self.runner.run(controller.step(self.database, Objects("migration")))
        self.do(self._renew)

    async def _renew(self, connection: Connection) -> None:
        for name in HOSTS:
            await leases.renew(connection, [leases.Beat(name, await leases.begin(connection, name))], 0.0)

    # the network: what is delivered is chosen freely, kept or dropped afterwards; what never is chosen is lost

    @precondition(lambda self: self.to_host)
    @rule(data=st.data(), again=st.booleans())
    def host_hears(self, data: st.DataObject, again: bool) -> None:
        position = data.draw(st.integers(0, len(self.to_host) - 1))
        host, statement = self.to_host[position] if again else self.to_host.pop(position)
        self._say(host, self.hosts[host].obey(statement))

    @precondition(lambda self: self.to_server)
    @rule(data=st.data(), again=st.booleans())
    def server_hears(self, data: st.DataObject, again: bool) -> None:
        position = data.draw(st.integers(0, len(self.to_server) - 1))
        host, message = self.to_server[position] if again else self.to_server.pop(position)
        self._apply(host, message)

    def _say(self, host: str, messages: list[wire.Message]) -> None:
        self.to_server += [(host, message) for message in messages]
        del self.to_server[:-MESSAGES_MAX]

    def _apply(self, host: str, message: wire.Message) -> None:
        async def work(connection: Connection) -> None:
            match message:
                case wire.Observed(vm=vm, epoch=epoch, status=status):
                    await owned.observe(connection, [owned.Report(host, vm, epoch, status)])
                case wire.TargetReady(migration=id, endpoint=endpoint):
                    await migrations.target_ready(connection, id, host, endpoint)
                case wire.Voted(migration=id, side=side, epoch=epoch):
                    await migrations.vote(connection, id, host, side, epoch)
                case wire.MigrationFailed(migration=id, reason=reason):
                    await migrations.fail(connection, id, reason, host)
                case _:
                    raise AssertionError(f"{message} is not simulated")

        self.do(work)

    @rule(hosts=st.lists(st.sampled_from(HOSTS), min_size=1, max_size=6), answers=st.booleans())
    def links_work(self, hosts: list[str], answers: bool) -> None:
        """Hosts are told, hear it at once, and perhaps their answers arrive too; copies of all stay under way."""
        for host in hosts:
            self.server_tells(host)
            for statement in [statement for to, statement in self.to_host if to == host][-1:]:
                messages = self.hosts[host].obey(statement)
                self.never_runs_in_two_places()
                self._say(host, messages)
                for message in messages if answers else ():
                    self._apply(host, message)

    @rule(steps=st.integers(3, 10), promises=st.sampled_from((True, True, False)), told_again=st.booleans())
    def a_migration_goes_well_for_a_while(self, steps: int, promises: bool, told_again: bool) -> None:
        """The way to the switch, left at any step: chance alone rarely gets that far.

        Between the promise and the switch the hosts may hear again how things were.
        """

        def sent() -> None:
            for host in HOSTS:
                self.everything_is_sent(host, arrives=True, promises=promises)
            self.links_work(list(HOSTS) if told_again else [], answers=False)

        def votes_arrive() -> None:
            for host, message in list(self.to_server):
                if isinstance(message, wire.Voted):
                    self._apply(host, message)

        def target_hears_first() -> None:
            self.links_work(sorted(HOSTS, key=lambda name: self.hosts[name].qemu != "loaded"), answers=True)

        way: tuple[Callable[[], object], ...] = (
            lambda: self.links_work(list(HOSTS), answers=True),
            lambda: self.operator_migrates(None),
            lambda: self.links_work(list(HOSTS), answers=True),
            lambda: self.links_work(list(HOSTS), answers=True),
            sent,
            votes_arrive,
            target_hears_first,
        )
        for step in way[:steps]:
            step()
            self.never_runs_in_two_places()

    # hosts

    @rule(host=st.sampled_from(HOSTS), arrives=st.booleans(), promises=st.sampled_from((True, True, False)))
    def everything_is_sent(self, host: str, arrives: bool, promises: bool = True) -> None:
        """QEMU at the source has given all of the guest, which stands still; perhaps the target gets it.

        The source's agent may crash just before it promises not to run the guest: then it goes on there.
        """
        source = self.hosts[host]
        task = source.sends()
        if task is None:
            return
        source.sending = None
        if promises:
            source.qemu = "stopped"
            source.held = release(source.held, task.epoch)
            self._say(host, [wire.Voted(task.migration, Side.SOURCE, task.epoch)])
        else:
            source.told = None
        target = self.hosts[task.peer]
        if arrives and target.qemu == "loading" and target.migration == task.migration:
            target.qemu = "loaded"
            self._say(target.name, [wire.Voted(task.migration, Side.TARGET, task.epoch)])

    @rule(host=st.sampled_from(HOSTS))
    def agent_crashes(self, host: str) -> None:
        """Its memory is gone, a QEMU that was loading with it; one that sends goes on running."""
        crashed = self.hosts[host]
        if crashed.qemu == "loading":
            crashed.qemu = "absent"
        crashed.told = crashed.sending = None

    @rule(host=st.sampled_from(HOSTS))
    def host_crashes(self, host: str) -> None:
        crashed = self.hosts[host]
        crashed.qemu = "absent"
        crashed.told = crashed.sending = None

    @rule(host=st.sampled_from(HOSTS))
    def link_of_a_migration_breaks(self, host: str) -> None:
        target = self.hosts[host]
        if target.qemu == "loading" and target.migration is not None:
            target.qemu = "absent"
            self._say(host, [wire.MigrationFailed(target.migration, "the connection was lost")])

    # what must hold

    @invariant()
    def never_runs_in_two_places(self) -> None:
        running = [host.name for host in self.hosts.values() if host.qemu == "running"]
        owners = [host.name for host in self.hosts.values() if may_run(host.held)]
        assert len(running) <= 1, f"runs on {running}"
        assert len(owners) <= 1, f"{owners} may run it"
        assert set(running) <= set(owners), f"runs on {running}, which may not"

    def teardown(self) -> None:
        """Once messages arrive again, everything comes to rest, with the VM running on its owner and nowhere else."""
        if not VM[0]:
            return
        self.to_host.clear()
        self.to_server.clear()
        for source in self.hosts.values():
            for target in self.hosts.values():
                begun = source is not target and source.migration == target.migration
                if begun and source.sending is None and target.qemu == "loading":
                    self.link_of_a_migration_breaks(target.name)  # what it waits for was lost, and is not sent again
        for _ in range(SETTLE_ROUNDS):
            for host in HOSTS:
                self.server_tells(host)
                self.everything_is_sent(host, arrives=True)
            while self.to_host:
                host, statement = self.to_host.pop(0)
                self._say(host, self.hosts[host].obey(statement))
            while self.to_server:
                self._apply(*self.to_server.pop(0))
            self.controller_runs(0)
            self.never_runs_in_two_places()

        async def look(connection: Connection) -> tuple[Any, int]:
            return await vms.get(connection, VM[0]), len(await migrations.active(connection))

        vm, active = self.do(look)
        COMPLETED[0] += vm.epoch > 1 and vm.node != "a"
        assert active == 0, "a migration never ends"
        running = [host.name for host in self.hosts.values() if host.qemu != "absent"]
        assert running == [vm.node], f"there is a QEMU on {running}, the owner is {vm.node}"
        assert self.hosts[vm.node].qemu == "running"


def with_refusal(work: Any) -> None:
    """Do something that the state may forbid."""
    try:
        work()
    except NovaError:
        return


def check(examples: int) -> None:
    with open_directory("nvown-") as directory, asyncio.Runner() as runner:
        server = Postgres(directory / "pg")
        Ownership.runner = runner
        try:
            Ownership.database = runner.run(Database.open(server.start()))
            run_state_machine_as_test(
                Ownership,
                settings=settings(
                    max_examples=examples,
                    stateful_step_count=30,
                    database=None,
                    print_blob=True,
                    phases=(Phase.explicit, Phase.generate),  # shrinking takes minutes: a history is short enough
                    suppress_health_check=list(HealthCheck),
                ),
            )
            runner.run(Ownership.database.close())
            print(f"the VM ended on another host in {COMPLETED[0]} examples")
            assert COMPLETED[0] >= examples / 20
        finally:
            server.stop()


@pytest.mark.timeout(300)
def test_two_owners_never_run() -> None:
    check(int(os.environ.get("NOVACRON_EXAMPLES", "60")))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_owners_never_run_in_many_more_histories() -> None:
    check(1000)
