"""Histories of a highly available VM whose nodes, links and server fail, made from a seed.

Leases are the product's on both sides: the agent's ``NodeLease`` and ``PeerWatch`` with its votes, the file that the
guard reads, the server's reader of heartbeats, ``store.leases``, the failover controller. Connections are simulated, as
is when the guard looks.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import msgspec

from novacron.model import limits
from novacron.server.database_watch import COUNT_S
from novacron.server.session import NodeSession
from novacron.store.database import Database
from novacron.wire import messages as wire
from tests.simulation.host import SimulatedHost
from tests.simulation.link import Links
from tests.simulation.world import Broken, World

NAMES = ("a", "b", "c", "d", "e")
COUNTS = (2, 3, 3, 3, 5)
TICK_S = 0.5
CONTROL_S = SAY_S = 1.0
CONTROL_ANYWAY_S = 5.0
"""Controllers that changes wake look so often though nothing has changed."""
DELAYS_S = (0.0, 0.0, 0.0, 0.5, 2.0)
CALM_S, FAIL_S, REST_S = 25.0, 100.0, 60.0
FAIL_CHANCE, KILL_CHANCE = 0.025, 0.005
SERVER = "server"
WHAT_IS_STATED = """
SELECT concat((SELECT string_agg(xmin::text, ',') FROM vms), '|', (SELECT string_agg(xmin::text, ',') FROM migrations),
              '|', (SELECT string_agg(xmin::text, ',') FROM unreconciled_vms)),
       concat((SELECT string_agg(xmin::text, ',') FROM nodes), '|', (SELECT string_agg(xmin::text, ',') FROM drains),
              '|', (SELECT string_agg(xmin::text, ',') FROM replicas))
"""
"""The first differs whenever nodes are to be told something else, either whenever changes wake controllers."""


class FailoverHistory:
    """One history: calm, failures, and rest."""

    def __init__(self, database: Database, directory: Path, seed: int, *, fails: bool = True) -> None:
        self.random = random.Random(seed)
        self.fails = fails
        self.names = NAMES[: self.random.choice(COUNTS)]
        self.world = World(database, directory, self.names, leased=True)
        self.world.is_up = lambda source, target: self.up[source, target]
        self.world.delay_s = lambda: self.random.choice(DELAYS_S)
        self.world.link_ends = lambda name: self.links.end(name)
        self.up = {(a, b): True for a in (*self.names, SERVER) for b in (*self.names, SERVER)}
        self.world.restated = lambda: self.told.clear()
        self.links = Links(self.world, self._send)
        self.world.place = lambda name: self.links.connected_from.get(name) or self.world.hosts[name]
        self.mail: list[tuple[float, NodeSession, wire.Message, str]] = []
        """Messages under way: when they arrive, on which link, and where."""
        self.told: dict[str, tuple[NodeSession, str]] = {}
        """What each node was told last, on which link."""
        self.ticks = 0
        self.changed = True
        """Something has changed since the controllers looked last."""
        self._stood: tuple[str, ...] = ()

    async def run(self) -> int:
        """Return how often the VM was given to another node. Raises Broken."""
        try:
            await self.begin()
            await self.go_on(CALM_S, fails=False)
            await self.go_on(FAIL_S, fails=self.fails)
            return await self.rest()
        finally:
            await self.world.end()

    async def begin(self) -> None:
        await self.world.begin(ha=True)

    async def rest(self) -> int:
        """Everything works again: return at how many epochs the VM was before this one."""
        self.heal()
        await self.go_on(REST_S, fails=False)
        vm, restless = await self.world._restless()
        if restless:
            raise Broken(restless)
        return vm.epoch - 1

    def heal(self) -> None:
        self.up = dict.fromkeys(self.up, True)

    def cut_off(self, lost: str) -> None:
        """A node, or the server, hears nobody, and nobody hears it."""
        self.up = {(a, b): a == b or lost not in (a, b) for a, b in self.up}

    def _every(self, seconds: float) -> bool:
        return self.ticks % round(seconds / TICK_S) == 0

    async def go_on(self, seconds: float, *, fails: bool) -> None:
        for _ in range(round(seconds / TICK_S)):
            self.ticks += 1
            await self.world.pass_time(TICK_S)
            if fails and self.random.random() < FAIL_CHANCE:
                self._fail()
            if fails and self.random.random() < KILL_CHANCE:
                await self.world.hosts[self.random.choice(self.names)].crash_agent()
            if fails:
                await self.also_fails()
            for host in self.world.every_host:
                host.guard()
            await self._carry()
            for host in self.world.every_host:
                await self._node(host)
            if self._every(COUNT_S):
                await self.world.watch.step()
            if self._every(SAY_S):
                await self._say()
            if self._every(CONTROL_S):
                self.changed = self.changed or self._every(CONTROL_ANYWAY_S)
                await self.control()
                self.changed = False
            await self.world.settle()

    async def also_fails(self) -> None:
        """Let more fail than nodes, agents and connections."""

    async def control(self) -> None:
        """The controllers make a pass: all of them if something has ``changed``, as it wakes them."""
        await self.world.take_over()
        self.world.objects["failover"].end_pass()

    def _fail(self) -> None:
        """Let something fail, or everything be well again."""
        chance = self.random.random()
        if chance < 0.2:
            self.heal()
        elif chance < 0.6:
            self.cut_off(self.random.choice((*self.names, self.names[0])))
        elif chance < 0.65:
            self.cut_off(SERVER)
        elif chance < 0.8:  # two sides hear nothing of each other
            side = {name for name in (*self.names, SERVER) if self.random.random() < 0.5}
            self.up = {(a, b): (a in side) == (b in side) for a, b in self.up}
        else:
            for pair in self.random.sample(sorted(self.up), 3):
                self.up[pair] = not self.up[pair]

    def _send(self, session: NodeSession, message: wire.Message) -> None:
        """The server says something to a node."""
        self._post(session, message, session.node)

    def _post(self, session: NodeSession, message: wire.Message, to: str) -> None:
        """Send a message; those of one link arrive in their order."""
        earlier = [at for at, other, _, other_to in self.mail if other is session and other_to == to]
        self.mail.append((max([self.world.clock.now_s + self.world.delay_s(), *earlier]), session, message, to))

    async def _carry(self) -> None:
        """Deliver what is due."""
        now = self.world.clock.now_s
        due, self.mail = [item for item in self.mail if item[0] <= now], [item for item in self.mail if item[0] > now]
        beats: list[tuple[NodeSession, wire.Heartbeat]] = []
        for _, session, message, to in due:
            if isinstance(message, wire.Heartbeat):
                beats.append((session, message))
                continue
            await self._hear_together(beats)
            if not self.links.connected(session):
                continue
            if to != SERVER:
                if self.up[SERVER, to]:
                    await self.world.host_hears(to, message)
            else:
                await self.world.server_hears(session.node, message)
        await self._hear_together(beats)
        said, self.world.network.for_server = self.world.network.for_server, []
        for name, message in said:
            self._say_to_server(name, message)

    async def _hear_together(self, beats: list[tuple[NodeSession, wire.Heartbeat]]) -> None:
        """Heartbeats arrive that come one after another: they are stored together, as the server does it."""
        arrived = [(session, beat) for session, beat in beats if self.links.connected(session)]
        beats.clear()
        if arrived:
            await asyncio.gather(*(self.links.hear(session, beat) for session, beat in arrived))

    def _say_to_server(self, name: str, message: wire.Message) -> None:
        session = self.links.sessions.get(name)
        if session is not None and self.up[name, SERVER]:
            self._post(session, message, SERVER)

    async def _node(self, host: SimulatedHost) -> None:
        name = host.name
        both = self.up[name, SERVER] and self.up[SERVER, name]
        if not both and self.random.random() < 0.2:
            self.links.end(name)  # the connection is noticed to be dead
        if not host.works:
            return
        agent, is_connected = host.agent, self.links.connected_from.get(name) is host
        if not is_connected and both and host.is_certified() and not host.is_dismissed:
            ended = await self.links.connect(name, host)
            host.is_dismissed = ended is not None
            if ended:
                self.world.note(f"{name} is dismissed: {ended}")
                agent.dispatcher.take(wire.Desired(ended, whole=False))
                await self.world.settle()
        if self._every(limits.HEARTBEAT_INTERVAL_S) and host.is_connected_one():
            # Without the clock's time: the server compares that to the real clock.
            self._say_to_server(name, msgspec.structs.replace(agent.peers.heartbeat(), clock=0.0))

    async def _say(self) -> None:
        """Nodes are told how things are, if that has changed."""
        async with self.world.database.connection() as connection:
            stands = tuple(await connection.fetchrow(WHAT_IS_STATED) or ())
        self.changed, self._stood, stated = self.changed or stands != self._stood, stands, stands[0]
        for name, session in list(self.links.sessions.items()):
            if self.up[SERVER, name] and self.told.get(name) != (session, stated):
                self.told[name] = session, stated
                await self.world.say_to(name)
                await self.world.host_hears(*self.world.network.for_hosts.pop())
