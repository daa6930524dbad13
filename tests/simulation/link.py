"""The server's end of the links to nodes: what reads heartbeats, stores them and acknowledges them is the product's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from websockets.asyncio.server import ServerConnection

from novacron.model.errors import Conflict
from novacron.model.ownership import Order, OrderKind
from novacron.server.heartbeats import Heartbeats
from novacron.server.peers import PeerAnnouncer
from novacron.server.reader import Reader, Takers
from novacron.server.reports import remembered
from novacron.server.session import NodeSession
from novacron.store import database_marks, identities, leases, nodes, owned, reconciling
from novacron.store.database import Database
from novacron.store.leases import Beat
from novacron.supervise import Rarely
from novacron.wire import codec
from novacron.wire import messages as wire

if TYPE_CHECKING:
    from tests.simulation.host import SimulatedHost
    from tests.simulation.world import World


class PromptHeartbeats(Heartbeats):
    """Stores together what comes in one turn of the loop: gathering for longer takes time of the real clock."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        super().__init__(database, clock)
        self._came: list[tuple[Beat, asyncio.Future[None]]] = []

    async def store(self, beat: Beat) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._came.append((beat, done))
        if len(self._came) == 1:
            await asyncio.sleep(0)  # others of this turn
            came, self._came = self._came, []
            await self._store_batch(came)
        await done


class SimulatedSocket:
    """One connection: what the server sends is under way."""

    def __init__(self, deliver: Callable[[wire.Message], None]) -> None:
        self._deliver = deliver

    async def send(self, data: bytes) -> None:
        self._deliver(codec.decode_from_server(data)[0])


class Links:
    """Which nodes are connected. ``deliver`` takes what is sent to a node, with the session that it belongs to."""

    def __init__(self, world: World, deliver: Callable[[NodeSession, wire.Message], None]) -> None:
        self._world, self._deliver = world, deliver
        self._database = database = world.database
        clock = world.clock.monotonic
        self.sessions: dict[str, NodeSession] = {}
        self.connected_from: dict[str, SimulatedHost] = {}
        """The host that each session is of."""
        self._last: dict[str, SimulatedHost] = {}
        self._announcer = PeerAnnouncer(database, self.sessions, lambda: b"")
        unused = cast(Any, None)
        self._takers = Takers(
            database, unused, clock, unused, unused, unused, PromptHeartbeats(database, clock), unused, unused,
            Rarely(), lambda: world.proofs.seal(world.watch.mark),
        )  # fmt: skip

    async def connect(self, name: str, host: SimulatedHost | None = None) -> tuple[wire.Statement, ...] | None:
        """As ``LinkServer._admit`` does. Return what a host is told that is no node any more, and is refused. A host
        is refused without a word while another one is the node."""
        host, proofs = host or self._world.hosts[name], self._world.proofs
        held, seen = host.agent.hello(), host.agent.services.database_mark.mark
        async with self._database.transaction() as connection:
            known = await identities.node_of(connection, name, host.own_key_hash)
        if known is None:
            return await self._dismiss(held)
        boot = host.hardware.name
        if await self._database.transact(lambda connection: leases.another_host(connection, name, boot)):
            return None
        socket = SimulatedSocket(lambda message: self._deliver(session, message))
        session = NodeSession(name, cast(ServerConnection, cast(Any, socket)))
        records = [remembered(vm, proofs.prove) for vm in held]
        if seen is not None and proofs.vouch_for(seen):
            await self._database.transact(lambda connection: database_marks.compare(connection, name, seen))
        await self._database.transact(lambda connection: reconciling.take(connection, name, records, whole=True))
        async with self._database.transaction() as connection:
            damaged = [vm.vm for vm in held if vm.record is None]
            session.generation = await leases.begin(connection, name, damaged, boot)
            await nodes.connected(connection, name, self._world.inventory(name))
        if self._last.get(name, host) is not host:  # what the other one has said on its way out
            network = self._world.network
            network.for_server = [item for item in network.for_server if item[0] != name]
        self.sessions[name], self.connected_from[name], self._last[name] = session, host, host
        async with self._database.connection() as connection:
            every = await leases.neighbours(connection)
        await self._announcer._announce(every, wire.Revoked(()))
        return None

    async def _dismiss(self, held: tuple[wire.HeldVm, ...]) -> tuple[wire.Statement, ...]:
        """As ``dismissal.dismiss`` does it, which listens to the host for a while."""
        async with self._database.connection() as connection:
            epochs = await owned.epochs(connection, [vm.vm for vm in held])
        return tuple(
            wire.Statement(vm, Order(OrderKind.GONE, epoch), deleted=deleted) for vm, (epoch, deleted) in epochs.items()
        )

    def end(self, name: str) -> None:
        self.sessions.pop(name, None)
        self.connected_from.pop(name, None)

    def connected(self, session: NodeSession) -> bool:
        return self.sessions.get(session.node) is session

    async def hear(self, session: NodeSession, heartbeat: wire.Heartbeat) -> None:
        """A heartbeat arrives."""
        try:
            await Reader(session, self._takers)._store_heartbeat(heartbeat)
        except Conflict:  # its VMs were given away: it has to connect again
            self.end(session.node)
