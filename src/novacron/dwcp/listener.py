"""Accepts connections from other nodes, and gives each to the session that it opens."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator

import msgspec

from novacron.dwcp import frames, sockets
from novacron.dwcp.admittance import Admittance
from novacron.dwcp.connection import POOL_IDLE_S, READ_AHEAD_BYTES, FrameConnection
from novacron.dwcp.frames import ErrorCode, Frame, FrameType, ProtocolError, SessionHello
from novacron.dwcp.receiver import SILENCE_S, ReceiveOptions, ReceiveSession, code_of
from novacron.dwcp.sender import CONNECTION_LOST
from novacron.model.errors import MALFORMED

ANNOUNCED_S = 4.0
"""How long a sender may wait for a session that was announced: less than it waits for an answer."""
GRACE_S = 0.2
LOOK_S = 0.005
BACKLOG = 64
HANDSHAKE_S_MAX = 10.0
"""Who connects and says nothing is cut off after that."""
CONNECTIONS_MAX = 1024
CONNECTIONS_PER_PEER_MAX = 128
"""One node can't keep all others out, nor can a few."""
SESSION_SHOWN = 200
"""Characters of an unknown session's name that are repeated."""


class Listener:
    """Accepts connections of expected sessions, each from the one node that may open it."""

    def __init__(
        self,
        context: ssl.SSLContext,
        name_of: Callable[[ssl.SSLObject], str],
        admittance: Admittance | None = None,
    ) -> None:
        """``admittance``: whose connections are refused; None: nobody's."""
        self._context = sockets.require_tls13(context)
        self._name_of = name_of
        self._admittance = admittance
        self.on_knock: Callable[[str, str], None] | None = None
        """Called with the name of an unexpected session and the node that opens it, shortly before it is refused."""
        self.vitals: Callable[[], bytes] = bytes
        """Returns this node's answer to VITALS."""
        self._expected: dict[str, ReceiveSession] = {}
        self._announced: set[tuple[str, str]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._by_peer: Counter[str] = Counter()
        """How many connections each node has."""

    @contextlib.asynccontextmanager
    async def listen(self, host: str, port: int) -> AsyncIterator[int]:
        """Listen for as long as the block runs; yields the port."""
        server = await asyncio.start_server(
            self._serve, host, port, ssl=self._context, backlog=BACKLOG, limit=READ_AHEAD_BYTES,
            ssl_handshake_timeout=HANDSHAKE_S_MAX,
        )  # fmt: skip
        for sock in server.sockets:
            sockets.enlarge(sock)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            for incoming in list(self._expected.values()):
                incoming.fail("the receiving node is shutting down", ErrorCode.SHUTTING_DOWN)
            server.close()
            await asyncio.sleep(0)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    @contextlib.contextmanager
    def announce(self, session: str, peer: str) -> Iterator[None]:
        """Let a node that opens this session before it is expected wait for it, for as long as the block runs."""
        self._announced.add((session, peer))
        try:
            yield
        finally:
            self._announced.discard((session, peer))

    @contextlib.contextmanager
    def expect(self, session: str, peer: str, options: ReceiveOptions) -> Iterator[ReceiveSession]:
        """Expect a session from a node, for as long as the block runs; yields it."""
        if session in self._expected:
            raise ValueError(f"session {session} is expected already")
        incoming = ReceiveSession(session, peer, options)
        self._expected[session] = incoming
        try:
            yield incoming
        finally:
            incoming.fail("the receiver gave up", ErrorCode.CANCELLED)
            incoming.close()
            del self._expected[session]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if len(self._tasks) > CONNECTIONS_MAX:
                return
            tls = writer.get_extra_info("ssl_object")
            connection = FrameConnection(reader, writer)
            if self._admittance is not None and not self._admittance.admits(tls, connection):
                return
            peer = self._name_of(tls)
            with self._counted(peer) as few:
                while few and await self._session(connection, peer):
                    pass
        except CONNECTION_LOST:
            pass  # the peer is gone; its session waits for it to come back
        finally:
            self._tasks.discard(task)
            writer.close()

    @contextlib.contextmanager
    def _counted(self, peer: str) -> Iterator[bool]:
        """Count a connection of a node's for as long as the block runs; yields whether it may have one more."""
        self._by_peer[peer] += 1
        try:
            yield self._by_peer[peer] <= CONNECTIONS_PER_PEER_MAX
        finally:
            self._by_peer[peer] -= 1
            if not self._by_peer[peer]:
                del self._by_peer[peer]

    async def _find(self, session: str, peer: str) -> ReceiveSession | None:
        """Return an expected session. Wait a moment for one that is not expected yet: both ends are asked to begin at
        the same time."""
        started = time.monotonic()
        while (expected := self._expected.get(session)) is None:
            limit_s = ANNOUNCED_S if (session, peer) in self._announced else GRACE_S
            if time.monotonic() > started + limit_s:
                return None
            await asyncio.sleep(LOOK_S)
        return expected

    async def _session(self, connection: FrameConnection, peer: str) -> bool:
        """Serve the next session of a connection; return whether it can carry another."""
        frame = await asyncio.wait_for(connection.read(), POOL_IDLE_S)
        try:
            if frame.type in (FrameType.PING, FrameType.ERROR):
                return True  # said before the peer knew that its last session was over
            if frame.type is FrameType.VITALS:
                connection.put(Frame(FrameType.VITALS, payload=self.vitals()))
                async with asyncio.timeout(SILENCE_S):
                    await connection.drain()
                return True
            if frame.type is not FrameType.HELLO:
                raise ProtocolError(f"expected HELLO, got {frame.type.name}")
            hello = msgspec.msgpack.decode(frame.payload, type=SessionHello)
            if hello.session not in self._expected and self.on_knock is not None:
                self.on_knock(hello.session, peer)
            incoming = await self._find(hello.session, peer)
            if incoming is None or incoming.peer != peer:
                text = f"no session {hello.session[:SESSION_SHOWN]!r} is expected from {peer}"
                raise ProtocolError(text, ErrorCode.NOT_EXPECTED)
            return await incoming.serve(hello, connection)
        except (ProtocolError, *MALFORMED) as error:
            connection.put(frames.error_frame(str(error), code_of(error)))
            async with asyncio.timeout(SILENCE_S):
                await connection.drain()
            return False
