"""The sending end of a session."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from novacron.dwcp import frames, sockets
from novacron.dwcp.backoff import Backoff
from novacron.dwcp.compression import FIRST
from novacron.dwcp.connection import PING, Connection, Endpoint, Pool
from novacron.dwcp.connection_count import STREAMS_MAX, StreamCount
from novacron.dwcp.encoder import Counters, Encoding, Splitter
from novacron.dwcp.frames import (
    ErrorCode,
    Frame,
    FrameType,
    Hello,
    MissingPages,
    ProtocolError,
    RepairedPages,
    Welcome,
)
from novacron.dwcp.page_codec import Base, PageHash, Piece, Savings
from novacron.dwcp.page_encoder import Encoder
from novacron.dwcp.page_ring import PAGE, SLOTS, Ring
from novacron.dwcp.pipes import PIECE_SHALLOW_BYTES, PIECE_URGENT_BYTES, Source, Stopped
from novacron.dwcp.receiver_index import Damaged, Theirs
from novacron.dwcp.return_channel import BackReceiver
from novacron.telemetry import logs, traces
from novacron.telemetry.values import counter

log = logs.get(__name__)

WINDOW_FRAMES = 512
"""Frames that may be on their way: 32 MiB."""
RETAINED_BYTES_MAX = 96 * 1024 * 1024
"""Pages told by reference that are kept until the peer has found them all."""
UNSENT_FRAMES_DEEP = 192
"""What may wait for a connection while no one waits for the stream's end: 12 MiB, so that the link is busy while there
is much to look at and little to send."""
UNSENT_FRAMES_SHALLOW = 2
"""What may wait otherwise: all of it is added to the downtime when the guest stops."""
RAW_AHEAD_BYTES = 24 * 1024 * 1024
"""How much of the stream the receiver may have to decode yet when its end may come soon: that is downtime, too. It may
be more where the receiver is fast and the round trip long."""
RAW_AHEAD_S = 0.06
RATE_GUESS_BYTES_PER_S = 12_500_000.0
SHALLOW_SHARE = 0.9
"""Share of what a path can deliver that is used when nothing may wait in it."""
KNOWN_AFTER_BYTES = 4 * 1024 * 1024
"""What a path can deliver is not known before so much was: pacing to less would keep it from ever being seen."""
ANSWER_TIMEOUT_S = 5.0
OPEN_TIMEOUT_S = 10.0
LEAVE_TIMEOUT_S = 1.0
BASES_TIMEOUT_S = 3.0
PING_INTERVAL_S = 1.0
SILENCE_S = 5.0
"""A connection on which nothing came back for so long is given up."""
LOOK_INTERVAL_S = 0.2
"""How often connections are looked after."""
RECONNECT_PAUSE_S, RECONNECT_PAUSE_S_MAX = 0.2, 1.0
"""Between attempts to open a connection. It adds to an outage, so it stays short."""
OUTAGE_S = 60.0
STUCK_S = 120.0
"""A peer that answers and takes nothing for so long is given up."""
REPAIR_PAGES = 15
REPAIR_WAITING_BYTES_MAX = 2 * 1024 * 1024
"""While so much waits for a connection, requests for pages are passed over: the peer repeats them."""
TOLD = ("raw_bytes", "wire_bytes", "retransmits", "resumed", "repaired_pages", "streams")
"""What traces and the log tell of a session."""
SESSIONS = counter("novacron_dwcp_sessions_total")

CONNECTION_LOST = (OSError, EOFError, TimeoutError, ProtocolError, ssl.SSLError)


class Options(msgspec.Struct, frozen=True):
    """How a session is to be carried. Both ends must have the same ``key``."""

    key: bytes
    ring_dir: Path
    bases: Sequence[Base] = ()
    """Pages that this end can compute the digests of by itself, such as images."""
    outage_s: float = OUTAGE_S
    """How long the link may be dead."""
    streams: int | None = None
    """Connections, 1 to 16; None lets the number follow what the path does."""
    rate_bytes_per_s: int | None = None
    method: int | None = None
    """Compression method; None lets it follow what is scarce."""
    known: Mapping[str, Sequence[bytes]] = {}
    """Digests of bases, by name, that the peer may have and this end can't read."""


class _Taken(NamedTuple):
    """How much of the stream the receiver had taken at one moment."""

    at: float
    raw_bytes: int


class _OnItsWay(NamedTuple):
    """A piece that the receiver has not taken yet."""

    last_frame: int
    number: int
    raw_bytes: int
    retained_bytes: int
    referenced: list[bytes | int]


class SendFailed(Exception):
    """The session broke: says where, and what was found. ``code`` is what the peer said; None if it said nothing."""

    def __init__(self, text: str, code: ErrorCode | None = None) -> None:
        super().__init__(text)
        self.code = code


class _Link:
    """One connection of the session, and the frames that it was given and that are not acknowledged."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.given: deque[int] = deque()
        self.task: asyncio.Task[None] | None = None
        self.lost = False
        self.done = False
        self.pinged_at = 0.0
        self.retransmits = 0
        self.best_rate = 0
        """Bytes a second that the path delivered at its best."""
        self.idle = False
        """Frames are given to the others."""

    def forget_acknowledged(self, frames_: Mapping[int, Frame]) -> None:
        """Keep only numbers of frames that the peer has not taken."""
        while self.given and self.given[0] not in frames_:
            self.given.popleft()


class Sender:
    """Sends one stream of bytes to a peer's listener, which must expect ``session`` from this node.

    ``peer_host`` is the name that the peer's certificate must carry.
    """

    def __init__(self, endpoint: Endpoint, peer_host: str, session: str, pool: Pool, options: Options) -> None:
        if options.streams is not None and not 1 <= options.streams <= STREAMS_MAX:
            raise ValueError(f"streams: {options.streams} is not between 1 and {STREAMS_MAX}")
        self.counters = Counters(method=FIRST if options.method is None else options.method)
        self._endpoint, self._peer_host, self._pool, self._options = endpoint, peer_host, pool, options
        self._hash = PageHash(options.key)
        check = self._hash.digest(b"key check")
        self._theirs = Theirs(self._hash, options.bases, options.known)
        self._hello = msgspec.msgpack.encode(Hello(frames.VERSION, session, os.urandom(16), check, self._theirs.names))
        self._encoder: Encoder | None = None
        self._ring: Ring | None = None
        self._links: list[_Link] = []
        self._wanted = options.streams or sockets.streams_default()
        self._frames: dict[int, Frame] = {}
        self._unsent: deque[int] = deque()
        self._next = self._acked = 0
        self._on_way: deque[_OnItsWay] = deque()
        self._raw_on_way = self._retained_bytes = 0
        self._pieces = 0
        self._raw_rate = 0.0
        """Bytes of the stream a second that the receiver took at best."""
        self._raw_measured = _Taken(time.monotonic(), 0)
        self._tick = asyncio.Event()
        self._done = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._heard_at = self._moved_at = time.monotonic()
        self._retransmits_lost = 0
        self._unsent_max = UNSENT_FRAMES_DEEP
        self._rate_max = options.rate_bytes_per_s
        self._measured_from = 0
        self._stopped = False
        self._source: Source | None = None
        self._piece_bytes: int | None = None
        self._back = BackReceiver()
        self.on_back: Callable[[bytes], None] | None = None
        """Called with what comes the other way. May raise OSError, which ends the session."""

    @property
    def rate_bytes_per_s(self) -> float:
        """What the path delivers at its best, as far as it was seen and may be used; a guess before anything was."""
        seen = sum(link.best_rate for link in self._links) or RATE_GUESS_BYTES_PER_S
        return seen if self._rate_max is None else min(seen, self._rate_max)

    @property
    def backlog_bytes(self) -> float:
        """Bytes that wait, here or in the path, beyond those that are on their way anyhow."""
        waiting = sum(len(frame.payload) for frame in self._frames.values())
        return max(0.0, waiting - self.rate_bytes_per_s * self.path_s[1])

    def limit(self, rate_bytes_per_s: int | None) -> None:
        """Use so much of the path from now on, or all there is."""
        if rate_bytes_per_s != self._rate_max:
            self._rate_max = rate_bytes_per_s
            for link in self._links:
                link.best_rate = 0  # it was measured under the old limit: the path may carry more
            self._measured_from = self.counters.delivered_bytes
            self._pace()

    def narrow(self, left_s: float) -> None:
        """The stream may end in ``left_s`` seconds, not sooner: let no more wait here than can be sent by then."""
        known = self.counters.delivered_bytes - self._measured_from >= KNOWN_AFTER_BYTES
        if known and self._unsent_max != UNSENT_FRAMES_SHALLOW:
            frames_ = int(left_s * self.rate_bytes_per_s / frames.PAYLOAD_BYTES_MAX)
            self._unsent_max = max(UNSENT_FRAMES_SHALLOW + 1, min(UNSENT_FRAMES_DEEP, frames_))

    def shallow(self, *, urgent: bool = False) -> None:
        """The stream's end may come soon, or somebody waits for every page (``urgent``): let little wait from now on,
        here and in the path."""
        if self._unsent_max != UNSENT_FRAMES_SHALLOW:
            self._unsent_max = UNSENT_FRAMES_SHALLOW
            self._piece_bytes = PIECE_URGENT_BYTES if urgent else PIECE_SHALLOW_BYTES
            if self._source is not None:
                self._source.piece_bytes = self._piece_bytes
            self._pace()

    @property
    def savings(self) -> Savings:
        return self._encoder.savings if self._encoder is not None else Savings()

    async def __aenter__(self) -> Sender:
        """Open the session: the peer says what it has. Raises SendFailed."""
        with traces.span("dwcp open", peer=self._peer_host):
            await self._open()
        log.info("a session is open", peer=self._peer_host)
        return self

    async def _open(self) -> None:
        host, port = self._endpoint
        deadline = time.monotonic() + OPEN_TIMEOUT_S
        backoff = Backoff(RECONNECT_PAUSE_S, RECONNECT_PAUSE_S_MAX)
        try:
            while True:
                try:
                    self._links.append(await self._join())
                    return
                except CONNECTION_LOST as error:
                    if isinstance(error, ssl.SSLCertVerificationError) or time.monotonic() > deadline:
                        why = error or type(error).__name__
                        raise SendFailed(f"can't open a session to {host}:{port}: {why}") from error
                await asyncio.sleep(backoff.next_s())
        except BaseException:  # until then the encoder goes on with its ring, on whichever connection
            self._close_ring()
            raise

    async def __aexit__(self, kind: object, *_: object) -> None:
        self._close_ring()
        if kind is not None:
            await asyncio.gather(*(self._take_leave(link.connection) for link in self._links), return_exceptions=True)
        for link in self._links:
            if link.done and kind is None:
                self._pool.give(self._endpoint, self._peer_host, link.connection)
            else:
                link.connection.close()

    async def _take_leave(self, connection: Connection) -> None:
        """Tell the peer that no more comes, and wait a moment until it has heard."""
        async with asyncio.timeout(LEAVE_TIMEOUT_S):
            connection.put(frames.error_frame("the sender gave up", ErrorCode.CANCELLED))
            while (await connection.read()).type not in (FrameType.ERROR, FrameType.DONE):
                pass

    def _close_ring(self) -> None:
        if self._ring is not None:
            self._ring.close()
            self._ring = None

    # connections

    async def _join(self) -> _Link:
        connection = await self._pool.take(self._endpoint, self._peer_host)
        try:
            connection.put(Frame(FrameType.HELLO, payload=self._hello))
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                answer = await connection.read()
                while answer.type in (FrameType.ACK, FrameType.DONE):  # of the connection's last session
                    answer = await connection.read()
            if answer.type is FrameType.ERROR:
                code, why = frames.read_error(answer)
                raise SendFailed(f"refused: {why}", code)
            if answer.type is not FrameType.WELCOME:
                raise ProtocolError(f"expected WELCOME, got {answer.type.name}")
            welcome = msgspec.msgpack.decode(answer.payload, type=Welcome)
            if self._encoder is None:
                await self._learn(connection, welcome)
            else:
                self._acknowledge(welcome.next)
                for number in welcome.held:
                    self._frames.pop(number, None)
            self._heard_at = time.monotonic()
            return _Link(connection)
        except msgspec.DecodeError as error:
            connection.abort()
            raise ProtocolError(f"a WELCOME that can't be read: {error}") from error
        except BaseException:
            connection.abort()
            raise

    async def _learn(self, connection: Connection, welcome: Welcome) -> None:
        """Take what the receiver has: digests that this end has too, and those that it tells."""
        if welcome.slots:
            with contextlib.suppress(OSError):  # a full disk: pages can't be told by their slots then
                self._ring = Ring(self._options.ring_dir, min(welcome.slots, SLOTS))
        self._encoder = Encoder(self._hash, self._ring)
        self._theirs.meet(welcome.bases, self._encoder)
        with contextlib.suppress(TimeoutError):  # what comes later counts from then on
            async with asyncio.timeout(BASES_TIMEOUT_S):
                while not self._theirs.can_begin():
                    self._theirs.take(await connection.read())

    def _pace(self) -> None:
        """Limit each connection to its share of what this session may use, and to what leaves the path no queue."""
        rate = self._rate_max
        each = None if rate is None else max(1, rate // max(1, self._wanted))
        known = self.counters.delivered_bytes - self._measured_from >= KNOWN_AFTER_BYTES
        for link in self._links:
            wanted = each
            if self._unsent_max == UNSENT_FRAMES_SHALLOW and known and link.best_rate > 0:
                free = int(link.best_rate * SHALLOW_SHARE)
                wanted = free if each is None else min(each, free)
            link.connection.deepen(self._unsent_max != UNSENT_FRAMES_SHALLOW)
            link.connection.pace(wanted)

    async def _serve(self, link: _Link) -> None:
        """Give frames to a connection and hear it until it is lost or done. Raises SendFailed if the peer gives up."""
        writing = asyncio.create_task(self._write(link))
        try:
            await self._read(link)
        except CONNECTION_LOST:
            self._lose(link)
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    def _lose(self, link: _Link) -> None:
        link.lost = True
        link.connection.abort()
        if link in self._links:
            self._links.remove(link)
        self._retransmits_lost += link.retransmits
        again = [number for number in link.given if number in self._frames]
        self._unsent.extendleft(reversed(again))
        self._tick.set()

    async def _write(self, link: _Link) -> None:
        with contextlib.suppress(*CONNECTION_LOST):  # `_read` sees it too
            while True:
                await self._until(lambda: bool(self._unsent) and not link.idle)
                number = self._unsent.popleft()
                frame = self._frames.get(number)
                if frame is None:
                    continue
                link.forget_acknowledged(self._frames)
                link.given.append(number)
                self.counters.wire_bytes += link.connection.put(frame)
                self._tick.set()
                await link.connection.drain()

    async def _read(self, link: _Link) -> None:
        while True:
            frame = await link.connection.read()
            self._heard_at = link.connection.heard_at
            match frame.type:
                case FrameType.ACK:
                    self._acknowledge(frame.sequence)
                    link.forget_acknowledged(self._frames)
                case FrameType.DONE:
                    link.done = True
                    self._done.set()
                    return
                case FrameType.MISSING:
                    self._repair(link, msgspec.msgpack.decode(frame.payload, type=MissingPages))
                case FrameType.BASE:
                    self._theirs.take(frame)
                case FrameType.BACK if self.on_back is not None:
                    data = self._back.take(frame)
                    if data:
                        self.on_back(data)
                    link.connection.put(Frame(FrameType.BACK_TAKEN, self._back.next))
                case FrameType.ERROR:
                    code, why = frames.read_error(frame)
                    raise SendFailed(f"the peer gave up: {why}", code)
                case _:
                    raise ProtocolError(f"unexpected {frame.type.name} frame")

    def _acknowledge(self, number: int) -> None:
        """The peer has taken every frame before ``number``."""
        if number > self._next:
            raise ProtocolError(f"frame {number - 1} is acknowledged and was never sent")
        if number <= self._acked:
            return
        for taken in range(self._acked, number):
            frame = self._frames.pop(taken, None)
            self.counters.delivered_bytes += 0 if frame is None else len(frame.payload)
        self._acked = number
        self._moved_at = time.monotonic()
        while self._on_way and self._on_way[0].last_frame < number:
            piece = self._on_way.popleft()
            self._retained_bytes -= piece.retained_bytes
            self._raw_on_way -= piece.raw_bytes
        self._tick.set()

    def _repair(self, link: _Link, missing: MissingPages) -> None:
        """Send pages whose base turned out to be damaged."""
        pages = next((piece.referenced for piece in self._on_way if piece.number == missing.piece), None)
        if pages is None or link.connection.unsent_bytes > REPAIR_WAITING_BYTES_MAX:
            return
        if any(ordinal >= len(pages) for ordinal in missing.ordinals):
            raise SendFailed(f"the peer asks for pages that piece {missing.piece} does not have")
        for start in range(0, len(missing.ordinals), REPAIR_PAGES):
            part = missing.ordinals[start : start + REPAIR_PAGES]
            data = b"".join(self._theirs.page(pages[ordinal]) for ordinal in part)
            payload = msgspec.msgpack.encode(RepairedPages(missing.piece, part, data))
            self.counters.wire_bytes += link.connection.put(Frame(FrameType.REPAIR, payload=payload))
        count = len(missing.ordinals)
        self.counters.repaired_pages += count
        log.warning("pages are sent again: the peer's were damaged", peer=self._peer_host, pages=count)
        traces.note("dwcp repaired", pages=count)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._tick.clear()
            await self._tick.wait()

    # the stream

    async def send(self, source: Source, splitter: Splitter) -> None:
        """Send all that ``source`` has, and wait until the peer has it all.

        Raises SendFailed; the caller must then treat the whole stream as lost.
        """
        began, outcome = time.monotonic(), "failed"
        with traces.span("dwcp send", peer=self._peer_host) as span:
            try:
                await self._send(source, splitter)
                outcome = "done"
            except asyncio.CancelledError:
                outcome = "cancelled"
                raise
            finally:
                SESSIONS.add("sender", outcome)
                carried = {name: getattr(self.counters, name) for name in TOLD}
                span.set_attributes({f"dwcp.{name}": value for name, value in carried.items()})
                took_s = round(time.monotonic() - began, 3)
                log.info("a session was sent", outcome=outcome, peer=self._peer_host, took_s=took_s, **carried)

    async def _send(self, source: Source, splitter: Splitter) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self._heard_at = self._moved_at = time.monotonic()
                for link in self._links:
                    link.connection.heard_at = self._heard_at
                self._pace()
                for link in self._links:
                    link.task = group.create_task(self._serve(link))
                supervisor = group.create_task(self._supervise())
                await self._encode(source, splitter)
                await self._done.wait()
                supervisor.cancel()
                # The others have theirs on the way; one that has not is not worth keeping.
                tasks = [link.task for link in self._links if link.task is not None]
                await asyncio.wait(tasks, timeout=PING_INTERVAL_S)
                for task in tasks:
                    task.cancel()
        except ExceptionGroup as group_error:
            first = group_error.exceptions[0]
            if isinstance(first, SendFailed):
                raise first from first.__cause__
            if isinstance(first, OSError | ProtocolError | Damaged | msgspec.DecodeError):
                raise SendFailed(f"the session broke: {first or type(first).__name__}") from first
            # A defect of ours ends this session as a failed link would, so that whoever retries backs off as usual.
            log.error("a session met an unforeseen error", peer=self._peer_host, exc_info=first)
            raise SendFailed(f"the session met an unforeseen error: {first!r}") from group_error

    async def _encode(self, source: Source, splitter: Splitter) -> None:
        """Encode the stream, and queue its end."""
        assert self._encoder is not None
        self._source = source
        if self._piece_bytes is not None:
            source.piece_bytes = self._piece_bytes
        fixed = self._options.method is not None
        encoding = Encoding(self._encoder, self._theirs, self.counters, self._queue, fixed=fixed)
        end = await encoding.run(source, splitter, self._stop)
        self._put(Frame(FrameType.END, self._next, msgspec.msgpack.encode(end)))

    def _stop(self) -> None:
        """Nothing more is queued: who waits to do it gives up."""
        self._stopped = True
        self._tick.set()

    async def _queue(self, piece: Piece, data: bytes) -> None:
        for start in range(0, len(data), frames.PAYLOAD_BYTES_MAX):
            started = time.monotonic()
            await self._until(lambda: self._stopped or self._has_room())
            if self._stopped:
                raise Stopped
            self.counters.blocked_s += time.monotonic() - started
            part = data[start : start + frames.PAYLOAD_BYTES_MAX]
            more = start + len(part) < len(data)
            self._put(Frame(FrameType.DATA, self._next, part, frames.MORE if more else 0))
        size = sum(PAGE for page in piece.referenced if isinstance(page, bytes))
        self._on_way.append(_OnItsWay(self._next - 1, self._pieces, piece.raw_bytes, size, piece.referenced))
        self._retained_bytes += size
        self._raw_on_way += piece.raw_bytes
        self._pieces += 1
        self.counters.raw_bytes += piece.raw_bytes

    def _has_room(self) -> bool:
        return (
            len(self._unsent) < self._unsent_max
            and self._next - self._acked < WINDOW_FRAMES
            and self._retained_bytes < RETAINED_BYTES_MAX
            and (self._unsent_max != UNSENT_FRAMES_SHALLOW or self._raw_on_way < self._raw_ahead)
        )

    @property
    def _raw_ahead(self) -> float:
        return max(RAW_AHEAD_BYTES, self._raw_rate * (self.path_s[1] + RAW_AHEAD_S))

    def _put(self, frame: Frame) -> None:
        self._frames[self._next] = frame
        self._unsent.append(self._next)
        self._next += 1
        self._tick.set()

    # health

    async def _supervise(self) -> None:
        """Keep connections open, as many as the path wants, until the link was dead for too long. Raises SendFailed."""
        assert self._group is not None
        lost = False
        backoff, join_at, acked = Backoff(RECONNECT_PAUSE_S, RECONNECT_PAUSE_S_MAX), 0.0, self._acked
        count = StreamCount(self._wanted, fixed=self._options.streams is not None)
        while True:
            now = time.monotonic()
            if now - self._heard_at > self._options.outage_s:
                raise SendFailed(f"nothing was heard from the peer for {self._options.outage_s:.0f} s")
            if self._frames and now - max(self._moved_at, self._heard_at - STUCK_S) > STUCK_S + self._options.outage_s:
                raise SendFailed(f"the peer took nothing for {now - self._moved_at:.0f} s")
            for link in self._links:
                if now - link.connection.heard_at > SILENCE_S:
                    link.connection.abort()
                elif now - link.pinged_at > PING_INTERVAL_S:
                    link.pinged_at = now
                    with contextlib.suppress(OSError):
                        link.connection.put(PING)
            lost = lost or not self._links
            self._measure()
            if self._unsent_max == UNSENT_FRAMES_SHALLOW:
                self._pace()
            paths = [measured for link in self._links if (measured := link.connection.measured()) is not None]
            if self._unsent_max != UNSENT_FRAMES_SHALLOW:
                self._wanted = count.step(now, self.counters.blocked_s, paths)
            for number, link in enumerate(self._links):
                link.idle = number >= self._wanted
            self._tick.set()
            if self._acked != acked:
                acked = self._acked
                backoff.reset()
            joining = [self._join() for _ in range(self._wanted - len(self._links))] if now >= join_at else []
            for joined in await asyncio.gather(*joining, return_exceptions=True):
                if isinstance(joined, _Link):
                    if lost:
                        self.counters.resumed += 1
                        log.warning("a session goes on: all its connections had been lost", peer=self._peer_host)
                        traces.note("dwcp resumed")
                    lost = False
                    self._links.append(joined)
                    joined.task = self._group.create_task(self._serve(joined))
                elif not isinstance(joined, CONNECTION_LOST):
                    raise joined
            if joining:
                join_at = time.monotonic() + backoff.next_s()
                self._pace()
            await asyncio.sleep(LOOK_INTERVAL_S)

    @property
    def path_s(self) -> tuple[float, float]:
        """Return the round trip now and at its best, in seconds."""
        measured = [m for link in self._links if (m := link.connection.measured()) is not None]
        if not measured:
            return 0.0, 0.0
        return max(m.rtt_s for m in measured), min(m.rtt_min_s for m in measured)

    def _measure(self) -> None:
        taken = _Taken(time.monotonic(), self.counters.raw_bytes - self._raw_on_way)
        before, self._raw_measured = self._raw_measured, taken
        self._raw_rate = max(self._raw_rate, (taken.raw_bytes - before.raw_bytes) / (taken.at - before.at))
        self.counters.streams = sum(not link.idle for link in self._links)
        for link in self._links:
            measured = link.connection.measured()
            if measured is not None:
                link.retransmits = measured.retransmits
                link.best_rate = max(link.best_rate, measured.delivery_rate)
                self.counters.rtt_ms = round(measured.rtt_s * 1e3, 1)
        self.counters.retransmits = self._retransmits_lost + sum(link.retransmits for link in self._links)
