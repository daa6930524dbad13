"""The server's end of the agent link: who is connected, what each node is told, what its reports change."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import asyncpg
import structlog
import websockets
from websockets.asyncio.server import ServerConnection, serve

from novacron import pki
from novacron.model import limits
from novacron.model.console import ConsoleKind
from novacron.model.errors import NovaError, Unavailable
from novacron.model.event import ImageCopy
from novacron.model.lease import ClockSkew
from novacron.model.probe import MoveForeseen, PathMeasured
from novacron.server.copies import Copies
from novacron.server.desired_state import Teller
from novacron.server.heartbeats import Heartbeats
from novacron.server.observations import Observations
from novacron.server.probes import Probes
from novacron.server.questions import Questions
from novacron.server.session import ConsoleChannel, Session
from novacron.store import (
    clones,
    events,
    exports,
    identities,
    imports,
    leases,
    migrations,
    nodes,
    owned,
    rebalancing,
    snapshots,
    vms,
    volumes,
)
from novacron.store.database import LOST, Connection, Database
from novacron.store.feed import Change
from novacron.store.leases import Beat
from novacron.telemetry import logs, traces
from novacron.telemetry.values import counter, gauge
from novacron.wire import messages as wire
from novacron.wire.questions import Question, RemoveImage

log = logs.get(__name__)

MESSAGES = counter("novacron_link_messages_total")
CONNECTIONS = counter("novacron_link_connections_total")

A = TypeVar("A")

MARKS_MAX = 1000
FORESEE_S = 1.0
SEEN_MAX = 16
GREETED_MAX = 6
"""So many nodes that connect are looked up at once, at most: all of them come when the server has started."""
CLOSE_S_MAX = 10.0
PEERS_S = 1.0
"""How often nodes are told of others, at most."""


def _after(ring: Sequence[tuple[str, str]], node: str) -> list[tuple[str, str]]:
    """Return those that a node watches: the next ones by name, from the last on to the first."""
    at = bisect.bisect_left(ring, (node, ""))
    after = [one for one in (*ring[at : at + limits.WATCHED_BY + 1], *ring[: limits.WATCHED_BY]) if one[0] != node]
    return list(dict.fromkeys(after))[: limits.WATCHED_BY]


class Link:
    """Accepts agents over mutual TLS and keeps each told."""

    def __init__(
        self, database: Database, authority: pki.Authority, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._authority = authority
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._stopped_at: dict[str, float] = {}
        self._questions = Questions(self._session)
        self._probes = Probes(database, self._questions)
        self._copies = Copies(database, self._questions, self._send)
        self._collecting: set[asyncio.Task[None]] = set()
        self._peers_changed = asyncio.Event()
        self._greeting = asyncio.Semaphore(GREETED_MAX)
        self._teller = Teller(database, self._sessions, lambda project: authority.derive(f"pages of project {project}"))
        self._heartbeats = Heartbeats(database, clock)
        self._observations = Observations(database)
        gauge("novacron_link_nodes").read = lambda: {(): len(self._sessions)}
        gauge("novacron_link_consoles").read = lambda: {
            (): sum(len(session.channels) for session in self._sessions.values())
        }

    @contextlib.asynccontextmanager
    async def listen(self, host: str, port: int, context: ssl.SSLContext) -> Any:
        """Serve agents on ``host:port`` for as long as the block runs."""
        server = await serve(
            self._serve,
            host,
            port,
            ssl=context,
            max_size=limits.LINK_MESSAGE_BYTES_MAX,
            ping_interval=10,
            ping_timeout=20,
            compression=None,
            close_timeout=2,
            logger=None,
        )
        tasks = [
            asyncio.create_task(self._tell_peers(), name="peers"),
            asyncio.create_task(self._teller.run(), name="teller"),
            asyncio.create_task(self._heartbeats.run(), name="heartbeats"),
            asyncio.create_task(self._observations.run(), name="observations"),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            server.close()
            try:
                async with asyncio.timeout(CLOSE_S_MAX):
                    await server.wait_closed()
            except TimeoutError:
                log.warning("connections of nodes do not end", nodes=len(self._sessions))

    def changed(self, change: Change) -> None:
        """Wake the sessions that a change concerns."""
        self._teller.changed(change)
        if change.kind == "node":
            self._peers_changed.set()
            if change.body is None and change.key in self._sessions:  # removed, or renamed
                task = asyncio.create_task(self._sessions[change.key].close("its node is called otherwise, or removed"))
                self._collecting.add(task)
                task.add_done_callback(self._collecting.discard)

    def resync(self) -> None:
        """Wake every session: the feed was away."""
        self._teller.resync()

    def _session(self, node: str) -> Session:
        session = self._sessions.get(node)
        if session is None:
            raise Unavailable(f"node {node} is not connected", hint="see: novacron node list")
        return session

    async def _send(self, node: str, message: wire.Message) -> None:
        await self._session(node).send(message)

    async def ask(self, node: str, question: Question[A]) -> A:
        """Ask a node something and return the answer. Raises Unavailable, InvalidInput."""
        return await self._questions.ask(node, question)

    async def _collect(self, node: str, name: str, digest: str) -> None:
        """Let a node remove an image that no VM there needs, if another node has it."""
        try:
            async with self._database.connection() as connection:
                if await vms.made_of(connection, name, node) or not await nodes.others_hold(connection, node, digest):
                    return
            await self.ask(node, RemoveImage(name, digest))
            async with self._database.transaction() as connection:
                message = f"image {name}, of which no VM there is made"
                await events.record(connection, "node", node, node, "ImageRemoved", message)
        except NovaError as error:
            log.warning("an image that is not used stays", node=node, image=name, error=str(error))

    async def copy_image(self, name: str, source: str | None, target: str, actor: str) -> ImageCopy:
        """Begin to copy an image to a node; events say how it ended.

        Raises NotFound, InvalidInput, Conflict, Unavailable.
        """
        return await self._copies.begin(name, source, target, actor)

    async def connected(self) -> list[str]:
        """Return the nodes that are connected to this server."""
        return sorted(self._sessions)

    async def open_console(self, node: str, vm: str, kind: ConsoleKind) -> ConsoleChannel:
        """Open the console of a VM on a node. Raises Unavailable when its agent is not connected here."""
        return await self._session(node).open_console(vm, kind)

    async def probe(self, source: str, target: str, seconds: float) -> PathMeasured:
        """Let one node measure the path to another. Raises Unavailable, NotFound, InvalidInput."""
        return (await self._probes.measure(source, target, seconds))[0]

    async def foresee(self, vm: str, source: str, target: str) -> MoveForeseen:
        """Let a VM's node measure what its move to ``target`` would be like, within the budgets of nodes and links.

        Raises Unavailable, NotFound.
        """
        _, foreseen = await self._probes.measure(source, target, FORESEE_S, vm)
        if foreseen is None:
            raise Unavailable(f"node {source} can't foresee a move", hint="update its agent")
        return foreseen

    async def _serve(self, socket: ServerConnection) -> None:
        shown = socket.transport.get_extra_info("ssl_object")
        said, key_hash = pki.peer_name(shown), pki.peer_key_hash(shown)
        node = said
        session = Session(node, socket)
        try:
            hello = wire.from_agent.decode(await asyncio.wait_for(socket.recv(decode=False), 10))
            if not isinstance(hello, wire.Hello) or hello.protocol != wire.PROTOCOL:
                CONNECTIONS.add("refused")
                await session.close(f"this server speaks protocol {wire.PROTOCOL}")
                return
            async with self._greeting, self._database.transaction() as connection:
                found = await identities.known(connection, said, key_hash)
                if found is None:
                    CONNECTIONS.add("refused")
                    await session.close("this node was removed, or another host has taken its place")
                    return
                node = session.node = found
                if found == said:
                    await identities.renamed(connection, node)
            if found != said:
                await self._rename(session, socket)
                return
            async with self._greeting, self._database.transaction() as connection:
                session.generation = await leases.begin(connection, node)
                session.clock = ClockSkew((await nodes.get(connection, node)).status.clock_skew_s)
                await nodes.connected(connection, node, hello.inventory)
            for vm in hello.held:
                self._teller.hold(session, vm)
            old, self._sessions[node] = self._sessions.get(node), session
            if old is not None:
                await old.close("the node connected again")
            CONNECTIONS.add("accepted")
            structlog.contextvars.bind_contextvars(node=node)  # of this connection's task
            log.info("agent connected", node=node, held=len(hello.held))
            session.look_anew()
            self._peers_changed.set()
            teller = asyncio.create_task(self._teller.tell(session))
            try:
                async for raw in socket:
                    if isinstance(raw, bytes):
                        await self._hear(session, wire.from_agent.decode(raw))
            finally:
                teller.cancel()
                await asyncio.gather(teller, return_exceptions=True)
        except (websockets.ConnectionClosed, TimeoutError):
            pass  # the agent dials again
        except (NovaError, ValueError) as error:
            # Also a malformed message (msgspec.DecodeError is a ValueError): the next connection starts afresh.
            counter("novacron_link_breaks_total").add()
            log.warning("agent link broke off", node=node, error=str(error))
            await session.close("internal")
        finally:
            for channel in list(session.channels.values()):
                channel.end(f"node {node} disconnected")
            for vm in list(session.held):
                self._teller.let_go(session, vm)
            self._questions.disconnected(session)
            if self._sessions.get(node) is session:
                del self._sessions[node]
                log.info("agent disconnected", node=node)

    async def _rename(self, session: Session, socket: ServerConnection) -> None:
        """Give a node that comes under its old name a certificate for the new one, with which it comes again."""
        await session.send(wire.Rename(session.node))
        while True:
            message = wire.from_agent.decode(await asyncio.wait_for(socket.recv(decode=False), 10))
            if isinstance(message, wire.RenewCertificate):
                await session.send(wire.CertificateIssued(self._authority.issue_node(message.csr, session.node)))
                log.info("a node has another name", node=session.node)
                return

    async def _hear(self, session: Session, message: wire.Message) -> None:
        if not message.trace:
            await self._receive(session, message)
            return
        with traces.span(f"server hears {type(message).__name__}", parent=message.trace, node=session.node):
            await self._receive(session, message)

    async def _receive(self, session: Session, message: wire.Message) -> None:
        node = session.node
        MESSAGES.add(type(message).__name__)
        if session.unstored is not None:  # breaks the link off: everything is said again
            raise session.unstored
        match message:
            case wire.Heartbeat():
                await self._beaten(session, message)
                return
            case wire.ConsoleOutput(channel=number, data=data):
                if number in session.channels:
                    session.channels[number].feed(data)
                return
            case wire.ConsoleClosed(channel=number, reason=reason):
                if number in session.channels:
                    session.channels[number].end(reason)
                return
            case wire.Observed(vm=vm, epoch=epoch, status=status):
                session.watch(self._observations.add(owned.Report(node, vm, epoch, status)))
                return
            case wire.Removed(vm=vm):
                self._teller.let_go(session, vm)
                return
            case wire.RenewCertificate(csr=csr):
                await session.send(wire.CertificateIssued(self._authority.issue_node(csr, node)))
                return
            case wire.Reply():
                self._questions.take_reply(session, message)
                return
            case wire.ImageMissing(name=name):
                with contextlib.suppress(NovaError):  # it is on its way, or nobody has it: the VM's reason says so
                    await self._copies.begin(name, None, node, events.SYSTEM)
                return
            case wire.ImageIdle(name=name, digest=digest):
                task = asyncio.create_task(self._collect(node, name, digest))
                self._collecting.add(task)
                task.add_done_callback(self._collecting.discard)
                return
            case wire.Stopped(migration=id):
                if len(self._stopped_at) >= MARKS_MAX:
                    del self._stopped_at[next(iter(self._stopped_at))]
                self._stopped_at[id] = self._clock()
                return
        if session.observed is not None:  # what it said before is stored before
            await session.observed
        await self._database.transact(lambda connection: self._apply(connection, node, message))
        if isinstance(message, wire.Resumed):
            self._stopped_at.pop(message.migration, None)

    async def _beaten(self, session: Session, beat: wire.Heartbeat) -> None:
        """Store a heartbeat, and only then acknowledge it. Raises Conflict when the node has to begin anew."""
        skew_s = session.clock.differs(beat.clock, time.time())
        seen = tuple((peer.name, peer.silent) for peer in beat.seen[:SEEN_MAX])
        hears_until = session.beats.hears_until(beat.acknowledged)
        await self._heartbeats.store(
            Beat(session.node, session.generation, hears_until, beat.steady_s, beat.voters, seen)
        )
        if skew_s is not None:
            async with self._database.transaction() as connection:
                await nodes.skewed(connection, session.node, skew_s)
            session.clock.stored_s = skew_s
        session.beats.acknowledge(beat.number, beat.acknowledged, self._clock())
        await session.send(wire.Beaten(beat.number))

    async def _tell_peers(self) -> None:
        """Tell each node who the others are, when that changes."""
        while True:
            await self._peers_changed.wait()
            self._peers_changed.clear()
            try:
                async with self._database.connection() as connection:
                    every = await leases.neighbours(connection)
                ring = sorted(every)
                voters = tuple(wire.Peer(*one) for one in leases.voters_of(every))
                for session in list(self._sessions.values()):
                    watched = tuple(wire.Peer(*one) for one in _after(ring, session.node))
                    message = wire.Peers(voters, watched)
                    if message != session.peers:
                        session.peers = message
                        with contextlib.suppress(Unavailable):
                            await session.send(message)
            except (NovaError, asyncpg.PostgresError, *LOST) as error:
                log.warning("nodes can't be told of each other", error=str(error))
                self._peers_changed.set()
            await asyncio.sleep(PEERS_S)

    async def _apply(self, connection: Connection, node: str, message: wire.Message) -> None:
        match message:
            case wire.Measured(cpus=cpus):
                await rebalancing.measured(connection, node, cpus)
            case wire.InventoryChanged(inventory=inventory):
                await nodes.connected(connection, node, inventory)
            case wire.ExportStands(
                id=id, phase=export_phase, size_bytes=size, disk_bytes=disk, sha256=sha256, error=error
            ):
                await exports.report(connection, node, id, export_phase, size, disk, sha256, error)
            case wire.VolumeStands(id=id, phase=volume_phase, used_bytes=used, error=error):
                await volumes.report(connection, node, id, volume_phase, used, error)
            case wire.VolumeHandled(vm=vm, epoch=epoch, id=id, released=released, error=error):
                await volumes.handled(connection, node, vm, epoch, id, released, error)
            case wire.Cloned(vm=vm, epoch=epoch):
                await clones.made(connection, node, vm, epoch)
            case wire.ImportStands(id=id, phase=phase, held_bytes=held, error=error):
                await imports.report(connection, node, id, phase, held, error)
            case wire.SnapshotStands(vm=vm, epoch=epoch, id=id, done=done, error=error, pause_ms=pause_ms):
                await snapshots.report(connection, node, vm, epoch, id, done, error, pause_ms)
            case wire.TargetReady(migration=id, endpoint=endpoint):
                await migrations.target_ready(connection, id, node, endpoint)
            case wire.Progressed(migration=id, progress=progress):
                await migrations.progressed(connection, id, node, progress)
            case wire.Resumed(migration=id):
                stopped_at = self._stopped_at.get(id)
                if stopped_at is not None:
                    await migrations.record_downtime(connection, id, (self._clock() - stopped_at) * 1000)
            case wire.Voted(migration=id, side=side, epoch=epoch):
                await migrations.vote(connection, id, node, side, epoch)
            case wire.MigrationFailed(migration=id, reason=reason):
                self._stopped_at.pop(id, None)
                await migrations.fail(connection, id, f"node {node}: {reason}", node)
            case _:
                raise ValueError(f"unexpected message {type(message).__name__}")
