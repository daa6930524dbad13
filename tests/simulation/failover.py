"""Histories of a highly available VM whose nodes, links and server fail, made from a seed.

Leases are the product's on both sides: ``NodeLease``, the file that the guard reads, ``store.leases``, the failover
controller. The link and the votes between nodes are simulated, as are the guard's looks.
"""

from __future__ import annotations

import random
from pathlib import Path

from novacron.model import limits
from novacron.model.lease import POLL_S, Beats
from novacron.store import leases
from novacron.store.database import Database
from novacron.wire import messages as wire
from tests.simulation.world import Broken, World

NAMES = ("a", "b", "c")
TICK_S = 0.5
CONTROL_S = SAY_S = 1.0
DELAYS_S = (0.0, 0.0, 0.0, 0.5, 2.0)
CALM_S, FAIL_S, REST_S = 25.0, 100.0, 60.0
FAIL_CHANCE, KILL_CHANCE = 0.025, 0.005
SERVER = "server"


class FailoverHistory:
    """One history: calm, failures, and rest."""

    def __init__(self, database: Database, directory: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.world = World(database, directory, NAMES)
        self.world.leased = True
        self.up = {(a, b): True for a in (*NAMES, SERVER) for b in (*NAMES, SERVER)}
        self.sessions: dict[str, tuple[int, Beats]] = {}
        self.was_valid = dict.fromkeys(NAMES, False)
        self.mail: list[tuple[float, str, wire.Heartbeat | wire.Beaten, tuple[int, Beats]]] = []
        self.ticks = 0

    async def run(self) -> int:
        """Return at how many epochs the VM was by the end. Raises Broken."""
        try:
            await self.world.begin(ha=True)
            await self._go_on(CALM_S, fails=False)
            await self._go_on(FAIL_S, fails=True)
            self.up = dict.fromkeys(self.up, True)
            await self._go_on(REST_S, fails=False)
            vm, restless = await self.world._restless()
            if restless:
                raise Broken(restless)
            return vm.epoch
        finally:
            await self.world.end()

    def _every(self, seconds: float) -> bool:
        return self.ticks % round(seconds / TICK_S) == 0

    async def _go_on(self, seconds: float, *, fails: bool) -> None:
        for _ in range(round(seconds / TICK_S)):
            self.ticks += 1
            await self.world.pass_time(TICK_S)
            if fails and self.random.random() < FAIL_CHANCE:
                self._fail()
            if fails and self.random.random() < KILL_CHANCE:
                await self.world.hosts[self.random.choice(NAMES)].crash_agent()
            for host in self.world.hosts.values():
                host.guard()
            await self._carry()
            for name in NAMES:
                await self._node(name)
            if self._every(CONTROL_S):
                await self.world.failover.step(self.world.database, self.world.objects["failover"])
                await self.world.objects["failover"].finish()
                self.world.objects["failover"].end_pass()
            await self.world.settle()

    def _fail(self) -> None:
        """Let something fail, or everything be well again."""
        chance = self.random.random()
        if chance < 0.2:
            self.up = dict.fromkeys(self.up, True)
        elif chance < 0.6:  # one node is cut off
            lost = self.random.choice(NAMES)
            self.up = {(a, b): a == b or lost not in (a, b) for a, b in self.up}
        elif chance < 0.8:  # two sides hear nothing of each other
            side = {name for name in (*NAMES, SERVER) if self.random.random() < 0.5}
            self.up = {(a, b): (a in side) == (b in side) for a, b in self.up}
        else:
            for pair in self.random.sample(sorted(self.up), 3):
                self.up[pair] = not self.up[pair]

    async def _carry(self) -> None:
        """Deliver what is due of heartbeats and reports."""
        now = self.world.clock.now_s
        due, self.mail = [item for item in self.mail if item[0] <= now], [item for item in self.mail if item[0] > now]
        for _, name, message, session in due:
            if self.sessions.get(name) is not session:
                continue
            if isinstance(message, wire.Beaten):
                if self.up[SERVER, name]:
                    await self.world.host_hears(name, message)
            else:
                await self._store_beat(name, message, session)
        reports, self.world.network.for_server = self.world.network.for_server, []
        for name, report in reports:
            if self.up[name, SERVER] and name in self.sessions:
                await self.world.server_hears(name, report)

    async def _store_beat(self, name: str, beat: wire.Heartbeat, session: tuple[int, Beats]) -> None:
        """As ``server.reader`` does: first stored, then acknowledged."""
        generation, beats = session
        now = self.world.clock.now_s
        stored = leases.Beat(name, generation, beats.hears_until(beat.acknowledged), beat.steady_s, beat.voters)
        if not await self.world.transact(lambda connection: leases.renew(connection, [stored], now)):
            del self.sessions[name]
            return
        beats.acknowledge(beat.number, beat.acknowledged, now)
        self.mail.append((now + self.random.choice(DELAYS_S), name, wire.Beaten(beat.number), session))

    async def _node(self, name: str) -> None:
        now, agent = self.world.clock.now_s, self.world.hosts[name].agent
        lease, both = agent.services.lease, self.up[name, SERVER] and self.up[SERVER, name]
        if not both and self.random.random() < 0.2:
            self.sessions.pop(name, None)  # the connection is noticed to be dead
        if name not in self.sessions and both:
            await self._connect(name)
        if self._every(limits.HEARTBEAT_INTERVAL_S):
            number = lease.rule.beat(now)
            beat = wire.Heartbeat(number, lease.rule.acknowledged, lease.rule.steady_s(now), lease.rule.voters_next, ())
            if name in self.sessions and self.up[name, SERVER]:
                self.mail.append((now + self.random.choice(DELAYS_S), name, beat, self.sessions[name]))
        if self._every(POLL_S):
            if lease.silent():
                lease.may_go_on({name} | {other for other in NAMES if self._says_silent(name, other)}, now)
            if self.was_valid[name] and not lease.valid():
                for worker in agent.workers.values():
                    worker.on_lease_lost()
                self.sessions.pop(name, None)
            self.was_valid[name] = lease.valid()
        if name in self.sessions and self.up[SERVER, name] and self._every(SAY_S):
            await self.world.say_to(name)
            await self.world.host_hears(*self.world.network.for_hosts.pop())

    async def _connect(self, name: str) -> None:
        agent = self.world.hosts[name].agent
        agent.services.lease.rule.connected()
        agent.services.lease.rule.voters_next = NAMES
        for worker in agent.workers.values():
            worker.resync()
        generation = await self.world.transact(lambda connection: leases.begin(connection, name))
        self.sessions[name] = generation, Beats()

    def _says_silent(self, name: str, other: str) -> bool:
        answers = self.up[name, other] and self.up[other, name]
        return answers and self.world.hosts[other].agent.services.lease.silent()
