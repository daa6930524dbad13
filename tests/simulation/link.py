"""The server's end of the links to nodes: what reads heartbeats, stores them and acknowledges them is the product's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from websockets.asyncio.server import ServerConnection

from novacron.model.database_mark import DatabaseMark
from novacron.model.errors import Conflict
from novacron.server.heartbeats import Heartbeats
from novacron.server.peers import PeerAnnouncer
from novacron.server.reader import Reader, Takers
from novacron.server.session import NodeSession
from novacron.store import database_marks, leases, reconciling
from novacron.store.database import Database
from novacron.store.leases import Beat
from novacron.supervise import Rarely
from novacron.wire import codec
from novacron.wire import messages as wire


class UnbatchedHeartbeats(Heartbeats):
    """Stores each at once: gathering takes time of the real clock."""

    async def store(self, beat: Beat) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self._store_batch([(beat, done)])
        await done


class SimulatedSocket:
    """One connection: what the server sends is under way."""

    def __init__(self, deliver: Callable[[wire.Message], None]) -> None:
        self._deliver = deliver

    async def send(self, data: bytes) -> None:
        self._deliver(codec.decode_from_server(data)[0])


class Links:
    """Which nodes are connected. ``deliver`` takes what is sent to a node, with the session that it belongs to."""

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float],
        deliver: Callable[[NodeSession, wire.Message], None],
        mark: Callable[[], DatabaseMark | None] = lambda: None,
    ) -> None:
        self._database, self._deliver = database, deliver
        self.sessions: dict[str, NodeSession] = {}
        self._announcer = PeerAnnouncer(database, self.sessions, lambda: b"")
        unused = cast(Any, None)
        self._takers = Takers(
            database, unused, clock, unused, unused, unused, UnbatchedHeartbeats(database, clock), unused, unused,
            Rarely(), mark,
        )  # fmt: skip

    async def connect(self, name: str, held: tuple[wire.HeldVm, ...], seen: DatabaseMark | None = None) -> None:
        """As ``LinkServer._welcome`` does. ``seen``: what the node has seen of the database."""
        socket = SimulatedSocket(lambda message: self._deliver(session, message))
        session = NodeSession(name, cast(ServerConnection, cast(Any, socket)))
        records = [reconciling.NodeRecord(vm.vm, vm.record) for vm in held]
        await self._database.transact(lambda connection: database_marks.compare(connection, name, seen))
        await self._database.transact(lambda connection: reconciling.take(connection, name, records, whole=True))
        async with self._database.transaction() as connection:
            session.generation = await leases.begin(connection, name, [vm.vm for vm in held if vm.record is None])
        self.sessions[name] = session
        async with self._database.connection() as connection:
            every = await leases.neighbours(connection)
        await self._announcer._announce(every, wire.Revoked(()))

    def end(self, name: str) -> None:
        self.sessions.pop(name, None)

    def connected(self, session: NodeSession) -> bool:
        return self.sessions.get(session.node) is session

    async def hear(self, session: NodeSession, heartbeat: wire.Heartbeat) -> None:
        """A heartbeat arrives."""
        try:
            await Reader(session, self._takers)._store_heartbeat(heartbeat)
        except Conflict:  # its VMs were given away: it has to connect again
            self.end(session.node)
