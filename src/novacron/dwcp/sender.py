"""The sending end of a session."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from novacron.dwcp import frames, sockets
from novacron.dwcp.backoff import Backoff
from novacron.dwcp.compression import FIRST
from novacron.dwcp.connection import PING, ConnectionPool, Endpoint, FrameConnection
from novacron.dwcp.connection_count import STREAMS_MAX, StreamCount
from novacron.dwcp.frames import (
    ErrorCode,
    Frame,
    FrameType,
    MissingPages,
    ProtocolError,
    RepairedPages,
    SessionHello,
    Welcome,
)
from novacron.dwcp.page_codec import Base, PageHash, PageSavings, Piece
from novacron.dwcp.page_encoder import Encoder
from novacron.dwcp.page_ring import SLOTS, PageRing, open_ring
from novacron.dwcp.pipes import PIECE_SHALLOW_BYTES, PIECE_URGENT_BYTES, PipelineStopped, StreamSource
from novacron.dwcp.receiver_index import PageDamaged, ReceiverIndex
from novacron.dwcp.return_channel import ReturnReceiver
from novacron.dwcp.send_paths import SendPath, SendPaths
from novacron.dwcp.send_pipeline import Counters, SendPipeline, StreamSplitter
from novacron.dwcp.send_window import SendWindow
from novacron.model.errors import MALFORMED
from novacron.telemetry import logs, traces
from novacron.telemetry.values import counter

log = logs.get(__name__)

UNSENT_FRAMES_DEEP = 192
"""What may wait for a connection while no one waits for the stream's end: 12 MiB, so that the link is busy while there
is much to look at and little to send."""
UNSENT_FRAMES_SHALLOW = 2
"""What may wait otherwise: all of it is added to the downtime when the guest stops."""
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


class SendOptions(msgspec.Struct, frozen=True):
    """How a session is carried. Both ends have the same ``key``; ``encrypted``: files hold no page in the clear."""

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
    """Compression method; None adapts it to the bottleneck."""
    checkpoint_digests: Mapping[str, Sequence[bytes]] = {}
    """Digests of bases, by name, that the peer may have and this end can't read."""
    encrypted: bool = False


class SendFailed(Exception):
    """The session broke: says where, and what was found. ``code`` is what the peer said; None if it said nothing."""

    def __init__(self, text: str, code: ErrorCode | None = None) -> None:
        super().__init__(text)
        self.code = code


class Sender:
    """Sends one stream of bytes to a peer's listener, which must expect ``session`` from this node.

    ``peer_host`` is the name that the peer's certificate must carry.
    """

    def __init__(
        self, endpoint: Endpoint, peer_host: str, session: str, pool: ConnectionPool, options: SendOptions
    ) -> None:
        if options.streams is not None and not 1 <= options.streams <= STREAMS_MAX:
            raise ValueError(f"streams: {options.streams} is not between 1 and {STREAMS_MAX}")
        self.counters = Counters(method=FIRST if options.method is None else options.method)
        self._endpoint, self._peer_host, self._pool, self._options = endpoint, peer_host, pool, options
        self._hash = PageHash(options.key)
        check = self._hash.digest(b"key check")
        self._receiver_index = ReceiverIndex(self._hash, options.bases, options.checkpoint_digests)
        names = self._receiver_index.names
        self._hello = msgspec.msgpack.encode(SessionHello(frames.VERSION, session, os.urandom(16), check, names))
        self._encoder: Encoder | None = None
        self._ring: PageRing | None = None
        self._paths = SendPaths(self.counters, options.streams or sockets.streams_default(), options.rate_bytes_per_s)
        self._window = SendWindow(self.counters)
        self._tick = asyncio.Event()
        self._done = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._heard_at = time.monotonic()
        self._unsent_max = UNSENT_FRAMES_DEEP
        self._stopped = False
        self._source: StreamSource | None = None
        self._piece_bytes: int | None = None
        self._back = ReturnReceiver()
        self.on_back: Callable[[bytes], None] | None = None
        """Called with data from the return channel. May raise OSError, which ends the session."""

    @property
    def rate_bytes_per_s(self) -> float:
        """What the path delivers at its best, as far as it was seen and may be used; a guess before anything was."""
        return self._paths.rate_bytes_per_s

    @property
    def backlog_bytes(self) -> float:
        """Bytes that wait, here or in the path, beyond those that are on their way anyhow."""
        return max(0.0, self._window.bytes_waiting() - self.rate_bytes_per_s * self.path_s[1])

    def limit(self, rate_bytes_per_s: int | None) -> None:
        """Use so much of the path from now on, or all there is."""
        if rate_bytes_per_s != self._paths.rate_max:
            self._paths.limit(rate_bytes_per_s)

    def narrow(self, left_s: float) -> None:
        """The stream may end in ``left_s`` seconds, not sooner: let no more wait here than can be sent by then."""
        if self._paths.rate_is_known and not self._paths.shallow:
            frames_ = int(left_s * self.rate_bytes_per_s / frames.PAYLOAD_BYTES_MAX)
            self._unsent_max = max(UNSENT_FRAMES_SHALLOW + 1, min(UNSENT_FRAMES_DEEP, frames_))

    def shallow(self, *, urgent: bool = False) -> None:
        """The stream's end may come soon, or somebody waits for every page (``urgent``): let little wait from now on,
        here and in the path."""
        if not self._paths.shallow:
            self._paths.shallow = True
            self._unsent_max = UNSENT_FRAMES_SHALLOW
            self._piece_bytes = PIECE_URGENT_BYTES if urgent else PIECE_SHALLOW_BYTES
            if self._source is not None:
                self._source.piece_bytes = self._piece_bytes
            self._paths.pace()

    @property
    def savings(self) -> PageSavings:
        return self._encoder.savings if self._encoder is not None else PageSavings()

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
                    self._paths.live.append(await self._join())
                    return
                except CONNECTION_LOST as error:
                    if isinstance(error, ssl.SSLCertVerificationError) or time.monotonic() > deadline:
                        raise SendFailed(
                            f"can't open a session to {host}:{port}: {error or type(error).__name__}"
                        ) from error
                await asyncio.sleep(backoff.next_s())
        except BaseException:  # until then the encoder goes on with its ring, on whichever connection
            self._close_ring()
            raise

    async def __aexit__(self, kind: object, *_: object) -> None:
        self._close_ring()
        if kind is not None:
            await asyncio.gather(
                *(self._take_leave(path.connection) for path in self._paths.live), return_exceptions=True
            )
        for path in self._paths.live:
            if path.done and kind is None:
                self._pool.give(self._endpoint, self._peer_host, path.connection)
            else:
                path.connection.close()

    async def _take_leave(self, connection: FrameConnection) -> None:
        """Tell the peer that no more comes, and wait a moment until it has heard."""
        async with asyncio.timeout(LEAVE_TIMEOUT_S):
            connection.put(frames.error_frame("the sender gave up", ErrorCode.CANCELLED))
            while (await connection.read()).type not in (FrameType.ERROR, FrameType.DONE):
                pass

    def _close_ring(self) -> None:
        if self._ring is not None:
            self._ring.close()
            self._ring = None

    async def _join(self) -> SendPath:
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
                self._acknowledge(welcome.next, welcome.held)
            self._heard_at = time.monotonic()
            return SendPath(connection)
        except MALFORMED as error:
            connection.abort()
            raise ProtocolError(f"a WELCOME that can't be read: {error}") from error
        except BaseException:
            connection.abort()
            raise

    async def _learn(self, connection: FrameConnection, welcome: Welcome) -> None:
        """Take what the receiver has: digests that this end has too, and those that it tells."""
        if welcome.slots:
            with contextlib.suppress(OSError):  # a full disk: pages can't be told by their slots then
                slots, options = min(welcome.slots, SLOTS), self._options
                self._ring = await asyncio.to_thread(open_ring, options.ring_dir, slots, options.encrypted)
        self._encoder = Encoder(self._hash, self._ring)
        self._receiver_index.meet(welcome.bases, self._encoder)
        with contextlib.suppress(TimeoutError):  # later data counts from then on
            async with asyncio.timeout(BASES_TIMEOUT_S):
                while not self._receiver_index.can_begin():
                    self._receiver_index.take(await connection.read())

    async def _serve(self, path: SendPath) -> None:
        """Give frames to a connection and hear it until it is lost or done. Raises SendFailed if the peer gives up."""
        writing = asyncio.create_task(self._write(path))
        try:
            await self._read(path)
        except CONNECTION_LOST:
            self._paths.remove(path)
            self._window.give_back(path.unacknowledged)
            self._tick.set()
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _write(self, path: SendPath) -> None:
        with contextlib.suppress(*CONNECTION_LOST):  # `_read` sees it too
            while True:
                await self._until(lambda: not path.idle)
                waited_from = time.monotonic()
                await self._until(lambda: bool(self._window.unsent) and not path.idle)
                self.counters.starved_s += (time.monotonic() - waited_from) / max(1, self.counters.streams)
                frame = self._window.take_unsent()
                if frame is None:
                    continue
                path.forget_acknowledged(self._window)
                path.unacknowledged.append(frame.sequence)
                self.counters.wire_bytes += path.connection.put(frame)
                self._tick.set()
                await path.connection.drain()

    async def _read(self, path: SendPath) -> None:
        while True:
            frame = await path.connection.read()
            self._heard_at = path.connection.heard_at
            match frame.type:
                case FrameType.ACK:
                    self._acknowledge(frame.sequence)
                    path.forget_acknowledged(self._window)
                case FrameType.DONE:
                    path.done = True
                    self._done.set()
                    return
                case FrameType.MISSING:
                    self._repair(path.connection, msgspec.msgpack.decode(frame.payload, type=MissingPages))
                case FrameType.BASE:
                    self._receiver_index.take(frame)
                case FrameType.BACK if self.on_back is not None:
                    data = self._back.take(frame)
                    if data:
                        self.on_back(data)
                    path.connection.put(Frame(FrameType.BACK_TAKEN, self._back.next))
                case FrameType.ERROR:
                    code, why = frames.read_error(frame)
                    raise SendFailed(f"the peer gave up: {why}", code)
                case _:
                    raise ProtocolError(f"unexpected {frame.type.name} frame")

    def _acknowledge(self, number: int, held: Sequence[int] = ()) -> None:
        """The peer has taken every frame before ``number``."""
        if self._window.acknowledge(number, held):
            self._tick.set()

    def _repair(self, connection: FrameConnection, missing: MissingPages) -> None:
        """Send pages that a base has no more as they were: it is damaged, or the memory of a guest that runs."""
        pages = self._window.pages_of(missing.piece)
        if pages is None or connection.unsent_bytes > REPAIR_WAITING_BYTES_MAX:
            return
        if any(ordinal >= len(pages) for ordinal in missing.ordinals):
            raise SendFailed(f"the peer asks for pages that piece {missing.piece} does not have")
        for start in range(0, len(missing.ordinals), REPAIR_PAGES):
            part = missing.ordinals[start : start + REPAIR_PAGES]
            data = b"".join(self._receiver_index.page(pages[ordinal]) for ordinal in part)
            payload = msgspec.msgpack.encode(RepairedPages(missing.piece, part, data))
            self.counters.wire_bytes += connection.put(Frame(FrameType.REPAIR, payload=payload))
        changed = sum(self._receiver_index.may_change(pages[ordinal]) for ordinal in missing.ordinals)
        damaged = len(missing.ordinals) - changed
        self.counters.repaired_pages += damaged
        if damaged:
            log.warning("pages are sent again: the peer's were damaged", peer=self._peer_host, pages=damaged)
        if changed:
            log.info("pages are sent again: a guest there has changed its own", peer=self._peer_host, pages=changed)
        traces.note("dwcp repaired", pages=damaged, changed=changed)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._tick.clear()
            await self._tick.wait()

    async def send(self, source: StreamSource, splitter: StreamSplitter) -> None:
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
                carried = {name: getattr(self.counters, name) for name in TOLD} | self.counters.times.as_log_fields()
                span.set_attributes({f"dwcp.{name}": value for name, value in carried.items()})
                took_s = round(time.monotonic() - began, 3)
                log.info("a session was sent", outcome=outcome, peer=self._peer_host, took_s=took_s, **carried)

    async def _send(self, source: StreamSource, splitter: StreamSplitter) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self._heard_at = self._window.moved_at = time.monotonic()
                self._paths.pace()
                for path in self._paths.live:
                    path.connection.heard_at = self._heard_at
                    path.task = group.create_task(self._serve(path))
                supervisor = group.create_task(self._supervise())
                await self._encode(source, splitter)
                await self._done.wait()
                supervisor.cancel()
                tasks = [path.task for path in self._paths.live if path.task is not None]
                await asyncio.wait(tasks, timeout=PING_INTERVAL_S)
                for task in tasks:
                    task.cancel()
        except ExceptionGroup as group_error:
            first = group_error.exceptions[0]
            if isinstance(first, SendFailed):
                raise first from first.__cause__
            if isinstance(first, (OSError, ProtocolError, PageDamaged, *MALFORMED)):
                raise SendFailed(f"the session broke: {first or type(first).__name__}") from first
            # A defect of ours ends this session as a failed link would, so that retries back off as usual.
            log.error("a session met an unforeseen error", peer=self._peer_host, exc_info=first)
            raise SendFailed(f"the session met an unforeseen error: {first!r}") from group_error

    async def _encode(self, source: StreamSource, splitter: StreamSplitter) -> None:
        """Encode the stream, and queue its end."""
        assert self._encoder is not None
        self._source = source
        if self._piece_bytes is not None:
            source.piece_bytes = self._piece_bytes
        fixed = self._options.method is not None
        encoding = SendPipeline(self._encoder, self._receiver_index, self.counters, self._queue, fixed=fixed)
        end = await encoding.run(source, splitter, self._stop)
        self._window.add(FrameType.END, msgspec.msgpack.encode(end))
        self._tick.set()

    def _stop(self) -> None:
        """Nothing more is queued: waiting writers give up."""
        self._stopped = True
        self._tick.set()

    async def _queue(self, piece: Piece, data: bytes) -> None:
        for start in range(0, len(data), frames.PAYLOAD_BYTES_MAX):
            started = time.monotonic()
            await self._until(lambda: self._stopped or self._has_room())
            if self._stopped:
                raise PipelineStopped
            self.counters.blocked_s += time.monotonic() - started
            part = data[start : start + frames.PAYLOAD_BYTES_MAX]
            more = start + len(part) < len(data)
            self._window.add(FrameType.DATA, part, frames.MORE if more else 0)
            self._tick.set()
        self._window.add_piece(piece)
        self.counters.raw_bytes += piece.raw_bytes

    def _has_room(self) -> bool:
        window = self._window
        return (
            window.unsent < self._unsent_max
            and window.has_room()
            and (not self._paths.shallow or window.raw_bytes < self._paths.raw_ahead_bytes)
        )

    async def _supervise(self) -> None:
        """Keep connections open, as many as the path wants, until the link was dead for too long. Raises SendFailed."""
        paths = self._paths
        lost = False
        backoff, join_at, acknowledged = Backoff(RECONNECT_PAUSE_S, RECONNECT_PAUSE_S_MAX), 0.0, 0
        count = StreamCount(paths.count, fixed=self._options.streams is not None)
        while True:
            now = time.monotonic()
            self._check_peer(now)
            self._ping(now)
            lost = lost or not paths.live
            paths.measure(self.counters.raw_bytes - self._window.raw_bytes)
            if paths.shallow:
                paths.pace()
            else:
                paths.count = count.step(now, self.counters.blocked_s, paths.measured())
            for number, path in enumerate(paths.live):
                path.idle = number >= paths.count
            self._tick.set()
            if self._window.acknowledged != acknowledged:
                acknowledged = self._window.acknowledged
                backoff.reset()
            if len(paths.live) < paths.count and now >= join_at:
                lost = not await self._join_more(paths.count - len(paths.live), resumes=lost) and lost
                join_at = time.monotonic() + backoff.next_s()
            await asyncio.sleep(LOOK_INTERVAL_S)

    def _check_peer(self, now: float) -> None:
        """Raises SendFailed when the peer was silent, or took nothing, for too long."""
        outage_s, moved_at = self._options.outage_s, self._window.moved_at
        if now - self._heard_at > outage_s:
            raise SendFailed(f"nothing was heard from the peer for {outage_s:.0f} s")
        if not self._window.is_empty and now - max(moved_at, self._heard_at - STUCK_S) > STUCK_S + outage_s:
            raise SendFailed(f"the peer took nothing for {now - moved_at:.0f} s")

    def _ping(self, now: float) -> None:
        """Ask each connection for a sign of life, and drop those that gave none for long."""
        for path in self._paths.live:
            if now - path.connection.heard_at > SILENCE_S:
                path.connection.abort()
            elif now - path.pinged_at > PING_INTERVAL_S:
                path.pinged_at = now
                with contextlib.suppress(OSError):
                    path.connection.put(PING)

    async def _join_more(self, count: int, *, resumes: bool) -> bool:
        """Open ``count`` connections more; say whether any could be. ``resumes`` says that none is left."""
        assert self._group is not None
        joined = False
        for path in await asyncio.gather(*(self._join() for _ in range(count)), return_exceptions=True):
            if isinstance(path, SendPath):
                if resumes and not joined:
                    self.counters.resumed += 1
                    log.warning("a session goes on: all its connections had been lost", peer=self._peer_host)
                    traces.note("dwcp resumed")
                joined = True
                self._paths.live.append(path)
                path.task = self._group.create_task(self._serve(path))
            elif not isinstance(path, CONNECTION_LOST):
                raise path
        self._paths.pace()
        return joined

    @property
    def path_s(self) -> tuple[float, float]:
        """Return the round trip now and at its best, in seconds."""
        return self._paths.round_trip_s
