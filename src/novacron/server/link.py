"""The server's end of the agent link: which nodes are connected, and what can be asked of them."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import msgspec
import structlog
import websockets
from websockets.asyncio.server import ServerConnection, serve

from novacron import pki
from novacron.key_ring import KeyRing
from novacron.model import limits
from novacron.model.console import ConsoleLine
from novacron.model.database_mark import DatabaseMark
from novacron.model.errors import MALFORMED, InvalidInput, NovaError, Unavailable
from novacron.model.event import ImageCopy
from novacron.model.lease import ClockSkew
from novacron.model.node import Inventory, NodeSpec
from novacron.model.probe import MoveForeseen, PathMeasured
from novacron.model.reachability import check_reachable
from novacron.ownership_proofs import OwnershipProofs
from novacron.platform_key import PlatformKeys
from novacron.server import dismissal
from novacron.server.copies import Copies
from novacron.server.desired_state import DesiredStateSender
from novacron.server.handshakes import CONNECTIONS, Handshakes, LinkConnection
from novacron.server.heartbeats import Heartbeats
from novacron.server.images import ImageUpkeep
from novacron.server.load_history import LoadHistory
from novacron.server.observations import Observations
from novacron.server.peers import PeerAnnouncer
from novacron.server.probes import Probes
from novacron.server.project_secrets import ProjectSecrets
from novacron.server.questions import Questions
from novacron.server.reader import Reader, Takers
from novacron.server.reports import Reports, remembered
from novacron.server.repository_prunes import RepositoryUpkeep
from novacron.server.session import ConsoleChannel, NodeSession
from novacron.store import conditions, database_marks, events, identities, leases, nodes, reconciling
from novacron.store.certificates import REJOIN
from novacron.store.database import Connection, Database
from novacron.store.feed import Change
from novacron.supervise import FewTasks, Rarely, end_all, supervise, until_one_ends
from novacron.telemetry import logs
from novacron.telemetry.values import counter, gauge
from novacron.wire import codec
from novacron.wire import messages as wire
from novacron.wire.questions import Question

log = logs.get(__name__)

A = TypeVar("A")

BREAKS = counter("novacron_link_breaks_total")

NO_PLATFORM_KEY = PlatformKeys(None)
TWO_HOSTS = (
    "node {name} now works on another host; if its state directory was copied here, remove the copy, and join this"
    " host under its own name"
)
ESTIMATE_S = 1.0
HELLO_S_MAX = 10.0
CLOSE_S_MAX = 10.0
CLOSING_MAX = 1000


class LinkServer:
    """Accepts agents over mutual TLS and sends each the desired state of its node."""

    def __init__(
        self, database: Database, authority: pki.Authority, keys: KeyRing,
        clock: Callable[[], float] = time.monotonic, mark: Callable[[], DatabaseMark | None] = lambda: None,
        platform_keys: PlatformKeys = NO_PLATFORM_KEY,
    ) -> None:  # fmt: skip
        """``mark`` returns what nodes are to remember of the database."""
        self._database = database
        self._authority = authority
        self._sessions: dict[str, NodeSession] = {}
        self._questions = Questions(self._session)
        self._probes = Probes(database, self._questions)
        self._copies = Copies(database, self._questions, self._send)
        self._images = ImageUpkeep(database, self._questions, self._copies)
        self._closing = FewTasks("closing links, counting nodes", CLOSING_MAX)
        self._peers = PeerAnnouncer(database, self._sessions, lambda: authority.pem)
        self._handshakes = Handshakes()
        secrets = ProjectSecrets(keys, platform_keys, lambda: self._desired_state.wake_all())
        self._proofs = OwnershipProofs(lambda: authority.roots)
        self._desired_state = DesiredStateSender(database, self._sessions, secrets, self._proofs.of_order)
        self._repositories = RepositoryUpkeep(database, self._questions, secrets, lambda: self._sessions)
        self._heartbeats = Heartbeats(database, clock)
        self._log_now = Rarely()
        self._observations = Observations(database)
        self._load_history = LoadHistory()
        self._takers = Takers(
            database, authority, clock, self._questions, self._images, self._desired_state, self._heartbeats,
            self._observations, Reports(database, clock, self._load_history.take, self._proofs.prove), Rarely(),
            lambda: self._proofs.seal(mark()),
        )  # fmt: skip
        gauge("novacron_link_nodes").read = lambda: {(): len(self._sessions)}
        gauge("novacron_link_consoles").read = lambda: {
            (): sum(len(session.channels) for session in self._sessions.values())
        }

    @contextlib.asynccontextmanager
    async def listen(self, host: str, port: int, context: ssl.SSLContext) -> AsyncIterator[None]:
        """Serve agents on ``host:port`` for as long as the block runs."""
        server = await serve(
            self._serve,
            host,
            port,
            ssl=context,
            create_connection=type("Connection", (LinkConnection,), {"handshakes": self._handshakes}),
            max_size=limits.LINK_MESSAGE_BYTES_MAX,
            ping_interval=10,
            ping_timeout=20,
            compression=None,
            close_timeout=2,
            logger=None,
        )
        works = {
            "peers": self._peers.run,
            "desired state": self._desired_state.run,
            "heartbeats": self._heartbeats.run,
            "observations": self._observations.run,
            "repositories": self._repositories.run,
            "load history": lambda: self._load_history.run(self._database),
        }
        tasks = [asyncio.create_task(supervise(name, work), name=name) for name, work in works.items()]
        try:
            yield
        finally:
            await end_all(tasks)
            for tasks_of in (self._images, self._copies, self._closing):
                await tasks_of.end()
            server.close()
            try:
                async with asyncio.timeout(CLOSE_S_MAX):
                    await server.wait_closed()
            except TimeoutError:
                log.warning("connections of nodes do not end", nodes=len(self._sessions))

    def changed(self, change: Change) -> None:
        """Wake the sessions that a change concerns."""
        self._desired_state.changed(change)
        if change.kind == "node":
            self._peers.changed.set()
            session = self._sessions.get(change.key)
            if session is not None and change.body is None:  # removed, or renamed
                self._closing.start(session.close("its node was renamed or removed"))
            elif session is not None and change.body is not None:
                with contextlib.suppress(*MALFORMED):  # a row that can't be read is its own node's matter
                    self._count_anew(session, msgspec.convert(change.body["spec"], NodeSpec))

    def _count_anew(self, session: NodeSession, spec: NodeSpec) -> None:
        """Let more, or less, of what a node reports count if that was decided."""
        was, session.accepted = session.accepted, (spec.accepted, spec.capacity)
        if was != session.accepted and session.inventory is not None:
            self._closing.start(self._store_inventory(session.node, session.inventory))

    async def _store_inventory(self, node: str, inventory: Inventory) -> None:
        try:
            await self._database.transact(lambda connection: nodes.connected(connection, node, inventory))
        except NovaError as error:  # the node's next report is counted right
            log.warning("what a node has can't be stored", node=node, error=str(error))

    def certified(self) -> None:
        """Tell nodes which CAs to trust, and prove with the present one's key what they were told."""
        self._peers.changed.set()
        self._desired_state.wake_all()

    def resync(self) -> None:
        """Wake every session: the feed was away."""
        self._desired_state.resync()

    def wake(self) -> None:
        """Let every node be told what has changed for its VMs."""
        self._desired_state.wake_all()

    def _session(self, node: str) -> NodeSession:
        session = self._sessions.get(node)
        if session is None:
            raise Unavailable(f"node {node} is not connected", hint="see: novacron node list")
        return session

    async def _send(self, node: str, message: wire.Message) -> None:
        await self._session(node).send(message)

    async def ask(self, node: str, question: Question[A]) -> A:
        """Ask a node something and return the answer. Raises Unavailable, InvalidInput."""
        return await self._questions.ask(node, question)

    async def copy_image(self, name: str, source: str | None, target: str, actor: str) -> ImageCopy:
        """Begin to copy an image to a node; events say how it ended.

        Raises NotFound, InvalidInput, Conflict, Unavailable.
        """
        return await self._copies.begin(name, source, target, actor)

    async def connected(self) -> list[str]:
        """Return the nodes that are connected to this server."""
        return sorted(self._sessions)

    async def open_console(self, node: str, vm: str, kind: ConsoleLine, port: int = 0) -> ConsoleChannel:
        """Open the console of a VM on a node, or (not 0) a port of it.

        Raises Unavailable when its agent is not connected here.
        """
        return await self._session(node).open_console(vm, kind, port)

    async def probe(self, source: str, target: str, seconds: float) -> PathMeasured:
        """Let one node measure the path to another. Raises Unavailable, NotFound, InvalidInput."""
        return (await self._probes.measure(source, target, seconds))[0]

    async def estimate_move(self, vm: str, source: str, target: str) -> MoveForeseen:
        """Let a VM's node measure what its move to ``target`` would be like, within the budgets of nodes and links.

        Raises Unavailable, NotFound.
        """
        _, foreseen = await self._probes.measure(source, target, ESTIMATE_S, vm)
        if foreseen is None:
            raise Unavailable(f"node {source} can't estimate a move", hint="update its agent")
        return foreseen

    async def _serve(self, socket: ServerConnection) -> None:
        ssl_object = socket.transport.get_extra_info("ssl_object")
        session, validity = NodeSession(pki.peer_name(ssl_object), socket), pki.peer_validity(ssl_object)
        session.certificate_ends_at_s = validity.ends_at_s
        session.certificate_authority = pki.peer_issuer(ssl_object, self._authority.trusted)
        try:
            if not session.certificate_authority:  # one that is retired: the TLS context may trust it still
                reason = "this node's certificate is from a retired CA; see: novacron agent --rejoin"
                await self._refuse(session, reason, hint=REJOIN.format(name=session.node))
            elif objection := validity.objection(time.time()):  # first: TLS lets such a node in to be told
                reason = f"this node's certificate {objection}; see: novacron agent --rejoin"
                await self._refuse(session, reason, hint=REJOIN.format(name=session.node))
            elif await self._admit(session, socket):
                await until_one_ends(Reader(session, self._takers).run(socket), self._desired_state.tell(session))
        except (websockets.ConnectionClosed, TimeoutError):
            pass  # the agent dials again
        except NovaError as error:
            await self._break(session, str(error))
        except Exception as error:
            if self._log_now.due(f"defect {session.node}"):
                log.exception("defect with a node's link", node=session.node)
            await self._break(session, f"a defect: {type(error).__name__}")
        finally:
            self._clear_up(session)

    async def _break(self, session: NodeSession, why: str) -> None:
        """End a connection; the agent dials again, and the next one begins with everything."""
        BREAKS.add()
        if self._log_now.due(f"lost {session.node}"):
            log.warning("the agent link was lost", node=session.node, error=why)
        await session.close("internal")

    async def _refuse(self, session: NodeSession, reason: str, **about: str) -> None:
        """End a connection that would be refused again. An agent that asks again and again fills no log."""
        CONNECTIONS.add("refused")
        if self._log_now.due(f"refused {session.node}"):
            log.warning("an agent is refused", node=session.node, reason=reason, **about)
        await session.refuse(reason)

    async def _admit(self, session: NodeSession, socket: ServerConnection) -> bool:
        """Take a node's hello and say whether the node may stay. Raises NovaError, TimeoutError, ConnectionClosed."""
        try:
            hello = await self._hello(socket)
        except InvalidInput as error:
            await self._refuse(session, str(error), said=str(error.__cause__ or ""))
            return False
        certified = session.node
        key_hash = session.key_hash = pki.peer_key_hash(socket.transport.get_extra_info("ssl_object"))
        async with self._handshakes.greeting(key_hash), self._database.transaction() as connection:
            name = await identities.node_of(connection, certified, key_hash)
            if name is not None:
                session.node = name
                if name == certified:
                    await identities.renamed(connection, name)
        if name is None:
            CONNECTIONS.add("refused")
            await dismissal.dismiss(self._database, session, socket, hello.held, self._log_now)
            return False
        if name != certified:
            await self._rename(session, socket)
            return False
        if await self._is_elsewhere(session.node, session.key_hash, hello.boot):
            await self._refuse(session, TWO_HOSTS.format(name=session.node))
            return False
        await self._welcome(session, hello)
        if isinstance(socket, LinkConnection):
            socket.settled()
        return True

    async def _is_elsewhere(self, node: str, key_hash: str, boot: str) -> bool:
        """Say whether a node works on another host at this moment: this one has a copy of its state folder, or of its
        whole disk."""
        async with self._handshakes.greeting(key_hash), self._database.transaction() as connection:
            elsewhere = await leases.another_host(connection, node, boot)
            if elsewhere:
                said = events.NewEvent(
                    "node", node, node, "TwoHosts", f"another host asks to be node {node}, and is refused"
                )
                await events.record(connection, said)
        return elsewhere

    async def _hello(self, socket: ServerConnection) -> wire.Hello:
        """Return the first message. Raises InvalidInput when it is none of this protocol, or other nodes could not act
        on it, and TimeoutError, ConnectionClosed."""
        async with asyncio.timeout(HELLO_S_MAX):
            raw = await socket.recv(decode=False)
        try:
            hello = codec.decode_from_agent(raw)
        except codec.Undecodable as error:
            raise InvalidInput(f"this server speaks protocol {wire.PROTOCOL}") from error
        if not isinstance(hello, wire.Hello) or hello.protocol != wire.PROTOCOL:
            raise InvalidInput(f"this server speaks protocol {wire.PROTOCOL}")
        check_reachable(hello.inventory)
        return hello

    async def _welcome(self, session: NodeSession, hello: wire.Hello) -> None:
        """Let a node be connected; an earlier connection of its ends."""
        node = session.node
        records = [remembered(held, self._proofs.prove) for held in hello.held]
        async with self._handshakes.greeting(session.key_hash):  # before anything is said to the node, or given to it
            await self._compare_mark(node, hello.database)
            await self._database.transact(lambda connection: reconciling.take(connection, node, records, whole=True))
            if all(record.proven for record in records if record.held is not None):
                await self._database.transact(lambda connection: reconciling.proved(connection, node))
        async with self._handshakes.greeting(session.key_hash), self._database.transaction() as connection:
            session.generation = await leases.begin(connection, node, _unread(hello), hello.boot)
            stored = await nodes.get(connection, node)
            session.clock = ClockSkew(stored.status.clock_skew_s)
            session.knows_unreadable = hello.knows_unreadable
            session.accepted, session.inventory = (stored.spec.accepted, stored.spec.capacity), hello.inventory
            await nodes.connected(connection, node, hello.inventory)
            await nodes.certified(connection, node, session.certificate_ends_at_s, session.certificate_authority)
            await conditions.refresh(connection, node)
        for held in hello.held:
            self._desired_state.hold(session, held.vm)
        earlier, self._sessions[node] = self._sessions.get(node), session
        if earlier is not None:
            await earlier.close("the node connected again")
        CONNECTIONS.add("accepted")
        structlog.contextvars.bind_contextvars(node=node)  # of this connection's task
        log.info("agent connected", node=node, held=len(hello.held))
        session.look_anew()
        self._peers.changed.set()

    async def _compare_mark(self, node: str, mark: DatabaseMark | None) -> None:
        """Look whether a node has seen more of the database than there is. Only servers can say so."""
        if mark is None:
            return
        is_proven = self._proofs.vouch_for(mark)

        async def work(connection: Connection) -> bool:
            counts = is_proven or await reconciling.is_believed(connection, node)
            if counts:
                await database_marks.compare(connection, node, mark)
            return counts

        if not await self._database.transact(work) and self._log_now.due(f"mark {node}"):
            log.warning("what a node has seen of the database is not proven, and does not count", node=node)

    def _clear_up(self, session: NodeSession) -> None:
        """Let go of everything that belonged to a connection."""
        for channel in list(session.channels.values()):
            channel.end(f"node {session.node} disconnected")
        for vm in list(session.held):
            self._desired_state.let_go(session, vm)
        self._questions.disconnected(session)
        if self._sessions.get(session.node) is session:
            del self._sessions[session.node]
            log.info("agent disconnected", node=session.node)

    async def _rename(self, session: NodeSession, socket: ServerConnection) -> None:
        """Give a node that comes under its old name a certificate for the new one, with which it comes again."""
        await session.send(wire.Rename(session.node))
        async with asyncio.timeout(HELLO_S_MAX):
            async for raw in socket:
                with contextlib.suppress(codec.Undecodable):
                    message = codec.decode_from_agent(raw if isinstance(raw, bytes) else raw.encode())
                    if isinstance(message, wire.RenewCertificate):
                        certificate = self._authority.issue_node(message.csr, session.node, session.key_hash)
                        await session.send(wire.CertificateIssued(certificate))
                        log.info("a node was renamed", node=session.node)
                        return


def _unread(hello: wire.Hello) -> list[str]:
    """Return the VMs of which a host can't read what it has written down."""
    return [vm.vm for vm in hello.held if vm.record is None]
