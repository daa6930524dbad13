"""The agent's end of the link: dials out, for ever; everything that is said can be said again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import msgspec
import websockets
from websockets.asyncio.client import ClientConnection, connect

from novacron import pki
from novacron.agent.identity import Identity
from novacron.model import limits
from novacron.telemetry import logs, traces
from novacron.telemetry.values import counter
from novacron.wire import messages as wire

log = logs.get(__name__)

CONNECTIONS = counter("novacron_agent_link_connections_total")

BULK_MAX, BULK_LOOK_S = 64, 0.005
RETRY_S_MIN = 0.2
RETRY_S_MAX = 5.0
RENEWAL_CHECK_S = 3600.0


class Renamed(Exception):
    """This node has another name, and a certificate that says so: its agent has to begin anew."""


class Link:
    """Keeps one connection to the server. ``hello`` makes the first message of each, ``receive`` takes the others."""

    def __init__(
        self,
        identity: Identity,
        hello: Callable[[], wire.Hello],
        receive: Callable[[wire.Message], Awaitable[None]],
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
        self._socket: ClientConnection | None = None

    def send(self, message: wire.Message) -> None:
        """Queue a message; without a connection it is dropped, for the next one begins with everything."""
        if self._queue is None:
            return
        trace = traces.carry()
        if trace and not message.trace:
            message = msgspec.structs.replace(message, trace=trace)
        try:
            self._queue.put_nowait(message)
        except asyncio.QueueFull:
            log.warning("the link can't keep up: it starts anew")
            self._queue = None

    async def send_bulk(self, message: wire.Message) -> None:
        """Queue one of many messages, once there is room among those that matter more."""
        while self._queue is not None and self._queue.qsize() >= BULK_MAX:  # noqa: ASYNC110 (no event tells)
            await asyncio.sleep(BULK_LOOK_S)
        self.send(message)

    @property
    def connected(self) -> bool:
        return self._queue is not None

    def restart(self) -> None:
        """Drop the connection, and with it all that was said on it; the next one begins with everything."""
        if self._socket is not None:
            self._socket.transport.abort()

    async def run(self) -> None:
        """Connect, and connect again, until cancelled."""
        pause_s = RETRY_S_MIN
        while True:
            try:
                async with connect(
                    self._identity.link_url.replace("https://", "wss://"),
                    ssl=self._identity.tls(server=False),
                    max_size=limits.LINK_MESSAGE_BYTES_MAX,
                    compression=None,
                    open_timeout=10,
                    ping_interval=10,
                    ping_timeout=20,
                    close_timeout=2,
                    proxy=None,
                ) as socket:
                    log.info("connected", url=self._identity.link_url)
                    CONNECTIONS.add("connected")
                    pause_s = RETRY_S_MIN
                    await self._serve(socket)
            except (OSError, TimeoutError, websockets.WebSocketException) as error:
                CONNECTIONS.add("lost")
                log.warning("the link is down", error=str(error) or type(error).__name__, retry_s=round(pause_s, 1))
            self._queue = self._socket = None
            self._lost()
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 (spreads the reconnects)
            pause_s = min(pause_s * 2, RETRY_S_MAX)

    async def _serve(self, socket: ClientConnection) -> None:
        queue = self._queue = asyncio.Queue(limits.LINK_QUEUE_MAX)
        self._socket = socket
        await socket.send(wire.encoder.encode(self._hello()))
        tasks = [
            asyncio.create_task(self._write(socket, queue)),
            asyncio.create_task(self._read(socket)),
            asyncio.create_task(self._beat()),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self, socket: ClientConnection, queue: asyncio.Queue[wire.Message]) -> None:
        while self._queue is queue:
            await socket.send(wire.encoder.encode(await queue.get()))

    async def _read(self, socket: ClientConnection) -> None:
        async for raw in socket:
            message = wire.from_server.decode(raw if isinstance(raw, bytes) else raw.encode())
            if isinstance(message, wire.CertificateIssued):
                pki.write_secret(self._identity.certificate, message.certificate)
                name = pki.common_name(message.certificate)
                if name != self._identity.name:
                    raise Renamed(name)
                self._renewed()
                log.info("the node's certificate was renewed")
            elif isinstance(message, wire.Rename):
                self.send(wire.RenewCertificate(self._identity.request(message.name)))
            else:
                try:
                    if message.trace:
                        with traces.span(f"agent hears {type(message).__name__}", parent=message.trace):
                            await self._receive(message)
                    else:
                        await self._receive(message)
                except Exception:  # a defect met with one message must not take the node's agent away
                    log.exception("defect while a message was taken", message=type(message).__name__)
                    self.restart()

    async def _beat(self) -> None:
        beats = 0
        while True:
            if beats % int(RENEWAL_CHECK_S / limits.HEARTBEAT_INTERVAL_S) == 0:
                csr = self._identity.renewal()
                if csr is not None:
                    self.send(wire.RenewCertificate(csr))
            beats += 1
            self.send(self._beat_now())
            await asyncio.sleep(limits.HEARTBEAT_INTERVAL_S)
