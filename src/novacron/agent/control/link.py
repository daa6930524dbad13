"""The agent's end of the link: dials out, for ever; everything that is said can be said again."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress

import msgspec
import websockets
from websockets.asyncio.client import ClientConnection, connect

from novacron import pki
from novacron.agent import identity as identities
from novacron.agent.control.link_errors import advise, explain
from novacron.agent.identity import Identity
from novacron.model import limits
from novacron.supervise import BackoffPolicy, Rarely, supervise, until_one_ends
from novacron.telemetry import logs, traces
from novacron.telemetry.values import counter
from novacron.wire import codec
from novacron.wire import messages as wire
from novacron.wire.base import REFUSED

log = logs.get(__name__)

CONNECTIONS = counter("novacron_agent_link_connections_total")
SKIPPED = counter("novacron_agent_skipped_messages_total")

BULK_MAX = 64
"""Messages in the queue beyond which those of consoles wait."""
RETRY = BackoffPolicy(first_s=0.2, most_s=5.0, steady_s=10.0)
AFTER_REFUSAL = BackoffPolicy(first_s=5.0, most_s=300.0, steady_s=600.0)
"""A server that has refused this node does so again until somebody changes that."""
AFTER_DEFECT = BackoffPolicy(first_s=5.0, most_s=300.0, steady_s=600.0)
"""After a message met a defect everything is asked for again: by a new connection, no sooner than this."""
RENEWAL_CHECK_S = 3600.0
CERTIFICATES_MAX = 8


_Certifying = wire.CertificateIssued | wire.Authorities | wire.Rename
"""What is about this node's certificate, or those of others."""


def _refusal(error: Exception) -> str | None:
    """Return why the server refuses this node, None if the connection was lost in another way."""
    closed = error.rcvd if isinstance(error, websockets.ConnectionClosed) else None
    return closed.reason if closed is not None and closed.code == REFUSED else None


class Renamed(Exception):
    """This node has another name, and a certificate that says so: its agent has to begin anew."""


class LinkClient:
    """Keeps one connection to the server.

    ``hello`` makes the first message of each connection. ``receive`` takes the others; it must not wait, for there is
    one reader. ``send`` may be called from any thread.
    """

    def __init__(
        self,
        identity: Identity,
        hello: Callable[[], wire.Hello],
        receive: Callable[[wire.Message], None],
        lost: Callable[[], None],
        beat: Callable[[], wire.Heartbeat],
        renewed: Callable[[], None],
    ) -> None:
        self._identity = identity
        self._hello = hello
        self._receive = receive
        self._lost = lost
        self._beat_now = beat
        self._renewed = renewed
        self._queue: asyncio.Queue[wire.Message] | None = None
        self._room = asyncio.Event()
        """There is room in the queue for messages of consoles."""
        self._certificates: asyncio.Queue[_Certifying] = asyncio.Queue(CERTIFICATES_MAX)
        self._renewal_due = asyncio.Event()
        """It may be time to ask for another certificate."""
        self._socket: ClientConnection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._log_now = Rarely()
        self._defect_at = -AFTER_DEFECT.steady_s
        self._defect_pause_s = 0.0
        self._anew: asyncio.TimerHandle | None = None

    def send(self, message: wire.Message) -> None:
        """Queue a message; without a connection it is dropped, for the next one begins with everything."""
        trace = traces.carry()
        if trace and not message.trace:
            message = msgspec.structs.replace(message, trace=trace)
        if threading.get_ident() == self._thread:
            self._enqueue(message)
        elif self._loop is not None:
            with suppress(RuntimeError):  # the agent has ended meanwhile
                self._loop.call_soon_threadsafe(self._enqueue, message)

    def _enqueue(self, message: wire.Message) -> None:
        if self._queue is None:
            return
        try:
            self._queue.put_nowait(message)
        except asyncio.QueueFull:
            log.warning("the link can't keep up: reconnecting")
            self._queue = None
            self.restart()

    async def send_bulk(self, message: wire.Message) -> None:
        """Queue one of many messages, once there is room among those that matter more."""
        while self._queue is not None and self._queue.qsize() >= BULK_MAX:
            self._room.clear()
            await self._room.wait()
        self.send(message)

    @property
    def connected(self) -> bool:
        return self._queue is not None

    def restart(self) -> None:
        """Drop the connection, and with it all that was said on it; the next one begins with everything."""
        if self._socket is not None:
            self._socket.transport.abort()

    async def run(self) -> None:
        """Connect, and connect again, until cancelled. Raises Renamed."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        pause_s = refused_s = 0.0
        while True:
            began, refusal = time.monotonic(), None
            try:
                await self._connect()
                error = "it was closed"
            except (OSError, TimeoutError, websockets.WebSocketException) as lost:
                error, refusal = await explain(self._identity, lost), _refusal(lost)
            finally:
                self._queue = self._socket = None
                self._room.set()
                if self._anew is not None:
                    self._anew.cancel()
                    self._anew = None
                self._lost()
            if refusal is None:
                pause_s, refused_s = RETRY.after(pause_s, time.monotonic() - began), 0.0
                CONNECTIONS.add("lost")
                log.warning("the link is down", error=error, retry_s=round(pause_s, 1))
            else:
                pause_s = refused_s = AFTER_REFUSAL.after(refused_s, 0.0)
                CONNECTIONS.add("refused")
                hint = await advise(self._identity)
                log.error("the server refuses this node", reason=refusal, retry_s=round(pause_s, 1), hint=hint)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 (spreads the reconnects)

    async def _connect(self) -> None:
        """Serve one connection until it ends. Raises OSError, TimeoutError, WebSocketException, Renamed."""
        identity = await asyncio.to_thread(self._present)
        async with connect(
            identity.link_url.replace("https://", "wss://"),
            ssl=identity.tls(server=False),
            max_size=limits.LINK_MESSAGE_BYTES_MAX,
            compression=None,
            open_timeout=10,
            ping_interval=10,
            ping_timeout=20,
            close_timeout=2,
            proxy=None,
        ) as socket:
            log.info("connected", url=identity.link_url)
            CONNECTIONS.add("connected")
            queue = self._queue = asyncio.Queue(limits.LINK_QUEUE_MAX)
            self._socket = socket
            await socket.send(codec.encode(self._hello()))
            await until_one_ends(
                self._write(socket, queue),
                self._read(socket),
                self._beat(),
                supervise("certificate-renewal", self._renew),
                supervise("certificates", self._take_certificates, passes=(Renamed,)),
            )

    def _present(self) -> Identity:
        """Return this node's identity as its files say now: it may have joined again. Raises Renamed, OSError."""
        identity = identities.load(self._identity.directory) or self._identity
        if identity.name != self._identity.name:
            raise Renamed(identity.name)
        self._renewed()
        return identity

    async def _write(self, socket: ClientConnection, queue: asyncio.Queue[wire.Message]) -> None:
        while self._queue is queue:
            message = await queue.get()
            if queue.qsize() < BULK_MAX:
                self._room.set()
            await socket.send(codec.encode(message))

    async def _read(self, socket: ClientConnection) -> None:
        """Take messages; one that can't be taken is skipped, so that those after it are not lost."""
        async for raw in socket:
            try:
                message, left_out = codec.decode_from_server(raw if isinstance(raw, bytes) else raw.encode())
            except codec.Undecodable as error:
                self._skip("undecodable", error.kind, error)
                continue
            for part in left_out:
                self._skip("undecodable", part.kind, part)
            kind = type(message).__name__
            try:
                with traces.span(f"agent hears {kind}", parent=message.trace) if message.trace else nullcontext():
                    self._take(message)
            except Exception as error:  # a defect met with one message must not take the node's agent away
                self._skip("defect", kind, error)
                self._ask_anew()

    def _take(self, message: wire.Message) -> None:
        if isinstance(message, _Certifying):
            self._certificates.put_nowait(message)
        else:
            self._receive(message)

    def _skip(self, reason: str, kind: str, error: Exception) -> None:
        SKIPPED.add(reason)
        if self._log_now.due(f"{reason} {kind}"):
            log.error("a message of the server was skipped", kind=kind, reason=reason, error=str(error),
                      exc_info=error if reason == "defect" else None)  # fmt: skip

    def _ask_anew(self) -> None:
        """Let everything be said again after a while, for what was skipped is not."""
        if self._anew is not None:
            return
        now = time.monotonic()
        self._defect_pause_s = AFTER_DEFECT.after(self._defect_pause_s, now - self._defect_at)
        self._defect_at = now
        self._anew = asyncio.get_running_loop().call_later(self._defect_pause_s, self.restart)

    async def _take_certificates(self) -> None:
        """Keep certificates that come. Raises Renamed, OSError."""
        while True:
            message = await self._certificates.get()
            if isinstance(message, wire.Rename):
                self.send(wire.RenewCertificate(self._identity.request(message.name)))
                continue
            if isinstance(message, wire.Authorities):
                await self._trust(message.ca)
                continue
            name = await asyncio.to_thread(self._keep, message)
            if name != self._identity.name:
                raise Renamed(name)
            self._renewed()
            log.info("the node's certificate was renewed")

    async def _trust(self, ca: bytes) -> None:
        """Trust these CAs from now on, and say so. Raises OSError, ValueError."""
        before = await asyncio.to_thread(self._identity.authorities)
        await asyncio.to_thread(self._identity.trust, ca)
        self._renewed()
        authorities = await asyncio.to_thread(self._identity.authorities)
        self.send(wire.AuthoritiesTrusted(authorities))
        self._renewal_due.set()
        if authorities != before:
            log.info("other authorities are trusted", authorities=len(authorities))

    def _keep(self, issued: wire.CertificateIssued) -> str:
        """Store a certificate and return its name. Raises OSError, ValueError."""
        if issued.ca:
            self._identity.trust(issued.ca)
        name = pki.common_name(issued.certificate)
        pki.write_secret(self._identity.certificate, issued.certificate)
        return name

    async def _renew(self) -> None:
        """Ask for a new certificate in time."""
        while True:
            csr = await asyncio.to_thread(self._identity.renewal)
            if csr is not None:
                self.send(wire.RenewCertificate(csr))
            self._renewal_due.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._renewal_due.wait(), RENEWAL_CHECK_S)

    async def _beat(self) -> None:
        while True:
            self.send(self._beat_now())
            await asyncio.sleep(limits.HEARTBEAT_INTERVAL_S)
