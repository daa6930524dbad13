"""Histories of one VM that an operator moves about while everything fails, made by hypothesis."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from unittest.mock import patch

from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from lab.platform import open_directory
from novacron.agent.host import presence
from novacron.local.postgres import Postgres
from novacron.store.database import Database
from novacron.wire import messages as wire
from tests.simulation.clock import SimulationLoop
from tests.simulation.database import open_database
from tests.simulation.host import Death
from tests.simulation.network import MESSAGES_MAX
from tests.simulation.world import World

HOSTS = ("a", "b", "c")
STEPS_MAX = 40
CLOCK_STEPS_S = (-3600, 0, 0, 0, 30, 3600)
hosts = st.sampled_from(HOSTS)
numbers = st.integers(0, MESSAGES_MAX - 1)
T = TypeVar("T")


class Ownership(RuleBasedStateMachine):
    """One history. The runner and the database are the same for all."""

    runner: ClassVar[asyncio.Runner]
    database: ClassVar[Database]
    directory: ClassVar[Path]
    begun: ClassVar[int] = 0
    moved: ClassVar[int] = 0
    """Migrations that were completed: a machine that moves nothing proves nothing."""

    world: World

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @initialize()
    def begin(self) -> None:
        type(self).begun += 1

        async def work() -> None:
            self.world = World(self.database, self.directory / f"history-{self.begun}", HOSTS)
            await self.world.begin()

        self.do(work())
        self.links_work(["a"], answers=True)

    # the server and its operator

    @rule(host=hosts)
    def server_says(self, host: str) -> None:
        self.do(self.world.say_to(host, compares=True))

    @rule(where=st.none() | hosts)
    def operator_migrates(self, where: str | None) -> None:
        async def work() -> None:
            await self.world.migrate(where)
            await self.world.control()

        self.do(work())

    @rule()
    def operator_aborts(self) -> None:
        self.do(self.world.abort())

    @rule(step_s=st.sampled_from(CLOCK_STEPS_S))
    def controllers_run(self, step_s: int) -> None:
        """The controllers look, perhaps after the server's clock was set."""

        async def work() -> None:
            await self.world.step_server_clock(step_s)
            await self.world.control()
            await self.world.renew_leases()

        self.do(work())

    @rule(seconds=st.sampled_from((0.5, 2.5, 6.0, 70.0)))
    def time_passes(self, seconds: float) -> None:
        self.do(self.world.pass_time(seconds))

    # the network: what is delivered is chosen freely, kept or dropped afterwards; what never is chosen is lost

    @rule(number=numbers, again=st.booleans())
    def host_hears(self, number: int, again: bool) -> None:
        messages = self.world.network.for_hosts
        if messages:
            number %= len(messages)
            self.do(self.world.host_hears(*(messages[number] if again else messages.pop(number))))

    @rule(number=numbers, again=st.booleans())
    def server_hears(self, number: int, again: bool) -> None:
        messages = self.world.network.for_server
        if messages:
            number %= len(messages)
            self.do(self.world.server_hears(*(messages[number] if again else messages.pop(number))))

    @rule(names=st.lists(hosts, min_size=1, max_size=6), answers=st.booleans())
    def links_work(self, names: list[str], answers: bool) -> None:
        """Hosts hear at once how things are, and perhaps their answers arrive too; copies of all stay under way."""
        self.do(self._links_work(names, answers=answers))

    async def _links_work(self, names: list[str], *, answers: bool) -> None:
        network = self.world.network
        for name in names:
            await self.world.say_to(name)
            sent = [message for to, message in network.for_hosts if to == name][-1:]
            before = list(network.for_server)
            for message in sent:
                await self.world.host_hears(name, message)
            for host, message in [item for item in network.for_server if item not in before] if answers else ():
                await self.world.server_hears(host, message)

    @rule(
        steps=st.sampled_from((3, 4, 5, 6, 7, 7, 7)),
        death=st.sampled_from((None, None, None, *Death)),
        again=st.booleans(),
    )
    def a_migration_goes_well_for_a_while(self, steps: int, death: Death | None, again: bool) -> None:
        """The way to the switch, left at any step: chance alone rarely gets that far.

        The source's agent may be killed at its promise; between that and the switch hosts may hear again how things
        were.
        """
        world = self.world

        async def memory_flows() -> None:
            if death is not None:
                for host in world.hosts.values():
                    if any(qemu.outgoing is not None for qemu in host.qemus.values()):
                        host.agent.dies = death
            await world.let_memory_flow(arrives=True)
            if again:
                await self._links_work(list(HOSTS), answers=False)

        async def votes_arrive() -> None:
            for host, message in list(world.network.for_server):
                if isinstance(message, wire.Voted):
                    await world.server_hears(host, message)

        async def asked() -> None:
            await world.migrate(None)
            await world.control()

        async def target_hears_first() -> None:
            loaded = {
                host.name for host in world.hosts.values() for q in host.qemus.values() if q.run_state == "paused"
            }
            await self._links_work(sorted(HOSTS, key=lambda name: name not in loaded), answers=True)

        way: tuple[Callable[[], Coroutine[Any, Any, None]], ...] = (
            lambda: self._links_work(list(HOSTS), answers=True),
            asked,
            lambda: self._links_work(list(HOSTS), answers=True),
            lambda: self._links_work(list(HOSTS), answers=True),
            memory_flows,
            votes_arrive,
            target_hears_first,
        )

        async def work() -> None:
            for step in way[:steps]:
                await step()
                world.check()

        self.do(work())

    # what fails

    @rule(arrives=st.booleans())
    def memory_flows(self, arrives: bool) -> None:
        self.do(self.world.let_memory_flow(arrives=arrives))

    @rule()
    def links_of_migrations_break(self) -> None:
        self.do(self.world.cut_migrations())

    @rule(host=hosts)
    def agent_is_killed(self, host: str) -> None:
        async def work() -> None:
            await self.world.hosts[host].crash_agent()
            await self.world.settle()

        self.do(work())

    @rule(host=hosts, death=st.sampled_from(Death))
    def agent_is_killed_at_its_next_write(self, host: str, death: Death) -> None:
        self.do(self.world.kill_agent_at_its_next_write(host, death))

    @rule(host=hosts)
    def host_crashes(self, host: str) -> None:
        async def work() -> None:
            await self.world.hosts[host].crash()
            await self.world.settle()

        self.do(work())

    def teardown(self) -> None:
        """Once messages arrive again, everything comes to rest, with the VM running on its owner and nowhere else."""
        if not hasattr(self, "world"):
            return

        async def work() -> None:
            try:
                if not self.world.violations:
                    await self.world.come_to_rest()
                    type(self).moved += await self.world.completed()
            finally:
                await self.world.end()

        self.do(work())


@contextmanager
def simulation_database() -> Iterator[tuple[asyncio.Runner, Database, Path]]:
    """Give a loop without threads, a database whose clock is the simulation's, and a directory for hosts."""
    with (
        open_directory("nvsim-") as directory,
        open_directory("nvsim-hosts-") as hosts_directory,
        asyncio.Runner(loop_factory=SimulationLoop) as runner,
        patch.object(presence, "directory", lambda: None),  # the locks of agents that are simulated
    ):
        server = Postgres(directory / "pg")
        try:
            database = runner.run(open_database(server.start()))
            try:
                yield runner, database, hosts_directory
            finally:
                runner.run(database.close())
        finally:
            server.stop()


def run_histories(place: tuple[asyncio.Runner, Database, Path], examples: int, seed: int) -> int:
    """Run so many histories; return how many migrations were completed in them. Raises what breaks."""

    class Histories(Ownership):
        runner, database, directory = place[0], place[1], place[2]

    def check() -> None:
        run_state_machine_as_test(
            Histories,
            settings=settings(
                max_examples=examples,
                stateful_step_count=STEPS_MAX,
                database=None,
                print_blob=True,
                deadline=None,
                phases=(Phase.explicit, Phase.generate),  # shrinking takes minutes: a history is short enough
                suppress_health_check=list(HealthCheck),
            ),
        )

    print(f"hypothesis seed {seed}")
    with_seed(seed)(Histories)
    try:
        check()
    finally:
        print(f"{Histories.begun} histories; {Histories.moved} migrations were completed")
    return Histories.moved
