"""One connected agent, and the consoles that are open through it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Sequence

import msgspec
import websockets
from websockets.asyncio.server import ServerConnection

from novacron.byte_budget import ByteBudget
from novacron.flow_credit import SendCredit, Taken
from novacron.model import limits
from novacron.model.console import ConsoleLine
from novacron.model.errors import Unavailable
from novacron.model.lease import Beats, ClockSkew
from novacron.model.node import Capacity, Inventory
from novacron.server.node_statements import NodeBasis
from novacron.telemetry import traces
from novacron.wire import codec
from novacron.wire import messages as wire
from novacron.wire.base import REFUSED

REASON_BYTES_MAX = 123
"""Of a WebSocket's end (RFC 6455, section 5.5)."""
CLOSE_S_MAX = 5.0
"""How long a console's end waits for room on the link."""


class ConsoleChannel:
    """One open console, or port of a guest: bytes of the guest in order, until the agent or the viewer closes it.

    A port's bytes wait, on both ways, until the other end has taken what came before: it is not a guest's or a viewer's
    fault when many come at once.
    """

    def __init__(self, number: int, session: NodeSession, port: int = 0) -> None:
        self.number = number
        self._session = session
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(limits.LINK_QUEUE_MAX)
        self._budget = ByteBudget(limits.CONSOLE_QUEUE_BYTES_MAX)
        self._credit = SendCredit() if port else None
        self._taken = Taken() if port else None
        self._over = False
        self.reason = ""

    async def read(self) -> bytes | None:
        """Return the next bytes of the guest, or None at the end; then ``reason`` says why."""
        if self._over and self._queue.empty():
            return None
        data = await self._queue.get()
        self._budget.give_back(len(data or b""))
        if data and self._taken is not None and (due_bytes := self._taken.add(data)):
            await self._session.send(wire.ConsoleTaken(self.number, due_bytes))
        return data

    async def room(self) -> None:
        """Wait until there is room for bytes to the guest."""
        if self._credit is not None:
            await self._credit.wait()

    async def write(self, data: bytes) -> None:
        """Send bytes to the guest, once there is room for them. Raises Unavailable."""
        await self.room()
        if self._over:
            return
        if self._credit is not None:
            self._credit.spend(data)
        await self._session.send(wire.ConsoleInput(self.number, data))

    async def close(self) -> None:
        """Let go of the console; whoever still reads is told of the end."""
        self.end("closed")
        with contextlib.suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(CLOSE_S_MAX):
                await self._session.send(wire.ConsoleClose(self.number))

    def take(self, size_bytes: int) -> None:
        """The guest has taken so much of what was sent."""
        if self._credit is not None:
            self._credit.give_back(size_bytes)

    def feed(self, data: bytes) -> None:
        """Take bytes from the agent; a viewer that is too slow loses the connection, not the guest."""
        if self._over:
            return
        if self._queue.full() or not self._budget.take(len(data)):
            self.end("the viewer is too slow")
        else:
            self._queue.put_nowait(data)

    def end(self, reason: str) -> None:
        """Nothing more comes."""
        if self._over:
            return
        self._over, self.reason = True, reason
        if self._credit is not None:
            self._credit.end()
        self._session.channels.pop(self.number, None)
        if self._queue.full():
            self._budget.give_back(len(self._queue.get_nowait() or b""))
        self._queue.put_nowait(None)


class SentState:
    """What was sent to one node about VMs, and what has to be sent next."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self.begun = False
        self.anew = False
        """Everything has to be read again."""
        self.reads = 0
        """Counts when that begins, and when it ends: what was read of some VMs meanwhile may be older."""
        self.basis: NodeBasis | None = None
        """None before everything was read, and when it may be another."""
        self.look_anew_at: float | None = None
        """When everything has to be read again, on the loop's clock, if nothing happens before; None: never."""
        self.statements: list[wire.Statement] = []
        """To be told next."""
        self._digests: dict[str, bytes] = {}

    def look_anew(self) -> None:
        self.anew = True
        self.wake.set()

    async def wait(self) -> None:
        """Wait until there is something to send, or to read."""
        try:
            async with asyncio.timeout_at(self.look_anew_at):
                await self.wake.wait()
        except TimeoutError:
            self.anew, self.look_anew_at = True, None
        self.wake.clear()

    def begin_again(self) -> None:
        """Say everything again, as if nothing had been said."""
        self.begun = False
        self._digests = {}

    def differ(self, statements: Sequence[wire.Statement], *, whole: bool) -> tuple[wire.Statement, ...]:
        """Return those that differ from what was sent last, and count them as sent. ``whole``: these are all."""
        different, digests = [], {} if whole else self._digests
        for statement in statements:
            digest = hashlib.blake2b(codec.encode(statement), digest_size=16).digest()
            if self._digests.get(statement.vm) != digest:
                different.append(statement)
            digests[statement.vm] = digest
        self._digests = digests
        return tuple(different)

    def forget(self, vm: str) -> None:
        """Nothing of a VM is there any more."""
        self._digests.pop(vm, None)


class NodeSession:
    """One connected agent."""

    def __init__(self, node: str, socket: ServerConnection) -> None:
        self.node = node
        self.held: set[str] = set()
        self.channels: dict[int, ConsoleChannel] = {}
        self.sent_state = SentState()
        self.generation = 0
        """Of the node's lease, when it connected."""
        self.certificate_ends_at_s = 0.0
        self.certificate_authority = ""
        """Which CA has issued it."""
        self.clock = ClockSkew(0.0)
        self.beats = Beats()
        self.knows_unreadable = False
        """Its agent leaves alone what messages name as unreadable."""
        self.networks: frozenset[str] = frozenset()
        """Those that were sent to it."""
        self.observed: asyncio.Future[None] | None = None
        """When what it reported last of a VM is stored."""
        self.unstored: BaseException | None = None
        """Why something that it reported was not stored: it has to say everything again."""
        self.inventory: Inventory | None = None
        """What the node reported last, whether or not it counts."""
        self.accepted: tuple[bool, Capacity | None] = (True, None)
        """Whether the node was accepted, and with what, when that was counted last."""
        self.peers: wire.Peers | None = None
        """What was sent to it last about other nodes."""
        self.revoked: wire.Revoked | None = None
        self.authorities: wire.Authorities | None = None
        """Which CAs it was told to trust."""
        self.key_hash = ""
        """Of the key in the certificate that it shows."""
        self._socket = socket
        self._next_channel = 1

    @property
    def watched(self) -> set[str]:
        """Return the nodes that this one was told to watch: what it says of others counts for nothing."""
        return set() if self.peers is None else {peer.name for peer in self.peers.watched}

    def watch(self, observed: asyncio.Future[None]) -> None:
        """Remember a report that is being stored, and whether that fails, whatever else is reported meanwhile."""

        def done(future: asyncio.Future[None]) -> None:
            if not future.cancelled() and future.exception() is not None:
                self.unstored = future.exception()

        observed.add_done_callback(done)
        self.observed = observed

    def look_anew(self) -> None:
        """Something that concerns this node has changed: read all that it is to be told."""
        self.sent_state.look_anew()

    async def send(self, message: wire.Message) -> None:
        trace = traces.carry()
        if trace and not message.trace:
            message = msgspec.structs.replace(message, trace=trace)
        try:
            await self._socket.send(codec.encode(message))
        except websockets.ConnectionClosed:
            raise Unavailable(f"node {self.node} is not connected", hint="try again when it is connected") from None

    async def open_console(self, vm: str, kind: ConsoleLine, port: int = 0) -> ConsoleChannel:
        if len(self.channels) >= limits.CONSOLE_CHANNELS_PER_NODE_MAX:
            raise Unavailable(f"node {self.node} has too many consoles open", hint="close one")
        channel = ConsoleChannel(self._next_channel, self, port)
        self._next_channel += 1
        self.channels[channel.number] = channel
        try:
            await self.send(wire.ConsoleOpen(channel.number, vm, kind, port))
        except BaseException:  # also when its viewer goes meanwhile: the agent may have been told already
            await channel.close()
            raise
        return channel

    async def close(self, reason: str) -> None:
        await self._socket.close(code=1008, reason=reason)

    async def refuse(self, reason: str) -> None:
        """End a connection that would be refused again: the agent takes its time before it tries again."""
        await self._socket.close(code=REFUSED, reason=reason.encode()[:REASON_BYTES_MAX].decode(errors="ignore"))

    def abort(self) -> None:
        """Cut the connection off without a word."""
        self._socket.transport.abort()
