"""The receiving end of a session."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from novacron.dwcp import frames
from novacron.dwcp.connection import FrameConnection
from novacron.dwcp.connection_count import STREAMS_MAX
from novacron.dwcp.frames import (
    MISSING_MAX,
    BaseInfo,
    End,
    ErrorCode,
    Frame,
    FrameType,
    MissingPages,
    ProtocolError,
    RepairedPages,
    SessionHello,
    Welcome,
)
from novacron.dwcp.page_codec import CHECK_BYTES, PIECE_BYTES_MAX, Base, PageHash
from novacron.dwcp.page_decoder import Decoder, Missing
from novacron.dwcp.page_ring import PAGE, SLOTS, PageRing, open_ring
from novacron.dwcp.pipes import Handover, PipelineStopped, Stages, StreamSink
from novacron.dwcp.return_channel import ReturnSender
from novacron.dwcp.send_window import WINDOW_FRAMES
from novacron.dwcp.sender import OUTAGE_S
from novacron.dwcp.stage_times import StageTimes
from novacron.model.errors import MALFORMED
from novacron.telemetry import logs, traces
from novacron.telemetry.values import counter

log = logs.get(__name__)

SESSIONS = counter("novacron_dwcp_sessions_total")
WAITING_BYTES_MAX = 8 * 1024 * 1024
"""A connection on which so much waits is passed over for what is repeated anyhow."""
ACK_INTERVAL_S = 0.01
REPAIR_AGAIN_S = 2.0
SILENCE_S = 20.0
"""A connection of a session on which nothing came for so long is closed: its sender pings every second."""
BASE_DIGESTS = 512
"""Digests in one BASE frame: the first ones arrive with the first packets of a connection."""
PIECE_FRAMES_MAX = 2 * PIECE_BYTES_MAX // frames.PAYLOAD_BYTES_MAX + 8
FAILURES = (ProtocolError, OSError, *MALFORMED, PipelineStopped)


class ReceiveFailed(Exception):
    """The session broke before its end: says why, in words and as a ``code``. What was written so far must be thrown
    away."""

    def __init__(self, text: str, code: ErrorCode = ErrorCode.UNSPECIFIED) -> None:
        super().__init__(text)
        self.code = code


class ReceiveOptions(msgspec.Struct, frozen=True):
    """What the receiving end brings to a session. Both ends must have the same ``key``."""

    key: bytes
    ring_dir: Path
    bases: tuple[Base, ...] = ()
    outage_s: float = OUTAGE_S
    slots: int = SLOTS
    replaceable: bool = False
    """A sender that begins anew ends the session at once, and finds the next one: its peer starts over, too."""
    encrypted: bool = False
    """Pages are in this host's files only encrypted."""


class ReceiveSession:
    """One expected session: puts frames in order again, decodes them, and writes the stream out."""

    def __init__(self, session: str, peer: str, terms: ReceiveOptions) -> None:
        self.session = session
        self.peer = peer
        self.raw_bytes = 0
        self.times = StageTimes()
        self._terms = terms
        self._hash = PageHash(terms.key)
        self._ring: PageRing | None = None
        with contextlib.suppress(OSError):  # a full disk: the sender then has to send every page anew
            self._ring = open_ring(terms.ring_dir, terms.slots, terms.encrypted)
        self._instance: bytes | None = None
        self._connections: list[FrameConnection] = []
        """Those that have received their first frames and can carry more."""
        self._serving = 0
        self._next = 0
        """The first frame that the decoder has not been given."""
        self._taken = 0
        """The first frame of the first piece that was not written out yet."""
        self._frames: dict[int, Frame] = {}
        self._arrived = asyncio.Event()
        self._repaired: dict[int, bytes] = {}
        self._repairing: int | None = None
        """The piece that waits for pages."""
        self._requested: frozenset[int] = frozenset()
        """Their ordinals: no others are taken."""
        self._failure: tuple[str, ErrorCode] | None = None
        self._over = asyncio.Event()
        self.back = ReturnSender(self._say)
        """Carries bytes the other way, if the peer takes them."""
        self._done = False
        self._begin_by: float | None = None
        self._heard_at = time.monotonic()

    @property
    def has_failed(self) -> bool:
        """Say whether the session can't go on: nobody hears what is said over it."""
        return self._failure is not None

    def fail(self, reason: str, code: ErrorCode = ErrorCode.UNSPECIFIED) -> None:
        """End the session: its reader and its connections learn why."""
        self._failure = self._failure or (reason, code)
        self._over.set()
        self._arrived.set()

    def close(self) -> None:
        if self._ring is not None:
            self._ring.close()
            self._ring = None

    async def receive(self, sink: StreamSink, begin_s: float | None = None) -> None:
        """Write the whole stream out, then confirm it to the peer. Raises ReceiveFailed.

        The sender may begin when it likes, but for ``begin_s`` at most if that is given.
        """
        self._begin_by = None if begin_s is None else time.monotonic() + begin_s
        began, outcome = time.monotonic(), "failed"
        with traces.span("dwcp receive", peer=self.peer) as span:
            try:
                await self._receive(sink)
                outcome = "done"
            except asyncio.CancelledError:
                outcome = "cancelled"
                raise
            except Exception as error:
                if not isinstance(error, FAILURES):
                    # A defect of ours ends this session as a failed link would, so that retries back off.
                    log.error("a session met an unforeseen error", peer=self.peer, exc_info=error)
                raise ReceiveFailed(*(self._failure or (repr(error), ErrorCode.LOCAL_FAILURE))) from error
            finally:
                self._over.set()
                SESSIONS.add("receiver", outcome)
                span.set_attribute("dwcp.raw_bytes", self.raw_bytes)
                took_s = round(time.monotonic() - began, 3)
                measured = {"took_s": took_s, "raw_bytes": self.raw_bytes} | self.times.as_log_fields()
                log.info("a session was received", outcome=outcome, peer=self.peer, **measured)

    async def _receive(self, sink: StreamSink) -> None:
        """Put frames in order here, decode pieces in one thread, write them out in another."""
        loop = asyncio.get_running_loop()
        stop = threading.Event()
        frames_: Handover[Frame] = Handover(WINDOW_FRAMES, stop)
        written: Handover[tuple[bytes, int] | None] = Handover(2, stop)
        stages = Stages(2, "dwcp-receive")
        running = [stages.start(self._decode, frames_, written, loop), stages.start(self._write, written, sink)]
        taking = asyncio.create_task(self._order(frames_))
        taking.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # the first failure is enough
        acknowledging = asyncio.create_task(self._acknowledge())
        try:
            for stage in asyncio.as_completed([taking, *running]):
                await stage
            self._done = True
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.put(Frame(FrameType.DONE))
        except Exception as error:
            self.fail(str(error) or type(error).__name__, code_of(error))
            raise
        finally:
            stop.set()
            acknowledging.cancel()
            taking.cancel()
            sink.abort()
            if not self._done:
                self.fail("the receiver gave up", ErrorCode.CANCELLED)
            await stages.end()

    async def _order(self, frames_: Handover[Frame]) -> None:
        """Hand frames on in order. Raises ProtocolError when the session failed, or nothing came for too long."""
        while True:
            frame = await self._take()
            frames_.put(frame)  # it has room for all that the sender may send
            if frame.type is FrameType.END:
                return

    async def _take(self) -> Frame:
        """Return the next frame in order."""
        while (frame := self._frames.pop(self._next, None)) is None:
            self._arrived.clear()
            if self._failure is not None:
                raise ProtocolError(*self._failure)
            now, left_s = time.monotonic(), SILENCE_S
            if self._instance is not None:
                left_s = self._heard_at + self._terms.outage_s - now
                if left_s <= 0:
                    silent_s = self._terms.outage_s
                    raise ProtocolError(f"nothing was heard from the peer for {silent_s:.0f} s", ErrorCode.TIMED_OUT)
            elif self._begin_by is not None:
                left_s = self._begin_by - now
                if left_s <= 0:
                    raise ProtocolError("the peer did not begin", ErrorCode.TIMED_OUT)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._arrived.wait()
        self._next += 1
        return frame

    def _decode(
        self,
        frames_: Handover[Frame],
        written: Handover[tuple[bytes, int] | None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        decoder = Decoder(self._hash, self._ring, self._terms.bases)
        parts: list[bytes] = []
        pieces = crc = raw_bytes = 0
        while True:
            frame = frames_.get()
            if frame.type is FrameType.END:
                end = msgspec.msgpack.decode(frame.payload, type=End)
                if parts or (end.raw_bytes, end.pieces, end.crc32) != (raw_bytes, pieces, crc):
                    raise ProtocolError(f"received {raw_bytes} bytes, the peer sent {end.raw_bytes} or others")
                written.put(None)
                return
            parts.append(frame.payload)
            if len(parts) > PIECE_FRAMES_MAX:
                raise ProtocolError(f"a piece of more than {PIECE_FRAMES_MAX} frames")
            if frame.flags & frames.MORE:
                continue
            raw = self.times.run("decode", decoder.decode, b"".join(parts))
            parts = []
            if isinstance(raw, Missing):
                asking = asyncio.run_coroutine_threadsafe(self._repair(pieces, raw.ordinals), loop)
                raw = decoder.repair(raw, asking.result())
            crc = zlib.crc32(decoder.check.to_bytes(CHECK_BYTES, "big"), crc)
            pieces += 1
            raw_bytes += len(raw)
            written.put((raw, frame.sequence + 1))

    def _write(self, written: Handover[tuple[bytes, int] | None], sink: StreamSink) -> None:
        while (piece := written.get()) is not None:
            raw, following = piece
            self.times.run("write", sink.write, raw)
            self.raw_bytes += len(raw)
            self._taken = following
        sink.finish()

    async def _acknowledge(self) -> None:
        """Say what was taken, a hundred times a second at most."""
        said = 0
        while True:
            await asyncio.sleep(ACK_INTERVAL_S)
            self.back.repeat()
            if said != self._taken and self._say(Frame(FrameType.ACK, self._taken)):
                said = self._taken

    def _say(self, frame: Frame) -> bool:
        """Send a frame on the connection that was heard last; say whether there is one."""
        for connection in sorted(self._connections, key=lambda connection: -connection.heard_at):
            if connection.unsent_bytes > WAITING_BYTES_MAX:
                continue
            with contextlib.suppress(OSError):
                connection.put(frame)
                return True
        return False

    async def _repair(self, piece: int, ordinals: list[int]) -> list[bytes]:
        """Ask for pages that a base turned out not to have, until they have come."""
        self._repairing, self._repaired, self._requested = piece, {}, frozenset(ordinals)
        asked_at = 0.0
        while missing := [ordinal for ordinal in ordinals if ordinal not in self._repaired]:
            now = time.monotonic()
            if self._failure is not None:
                raise ProtocolError(*self._failure)
            if now - self._heard_at > self._terms.outage_s:
                raise ProtocolError("the peer does not send pages that are damaged here", ErrorCode.TIMED_OUT)
            if now - asked_at > REPAIR_AGAIN_S:
                asked = MissingPages(piece, tuple(missing[:MISSING_MAX]))
                if self._say(Frame(FrameType.MISSING, payload=msgspec.msgpack.encode(asked))):
                    asked_at = now
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), REPAIR_AGAIN_S)
            if len(missing) > MISSING_MAX and all(ordinal in self._repaired for ordinal in missing[:MISSING_MAX]):
                asked_at = 0.0
        pages = [self._repaired[ordinal] for ordinal in ordinals]
        self._repairing, self._repaired, self._requested = None, {}, frozenset()
        return pages

    def _welcome(self, hello: SessionHello) -> tuple[Welcome, list[int]]:
        """Return the answer to a HELLO, and on the first one the numbers of the bases whose digests are to be told."""
        first = self._instance is None
        if first:
            self._instance = hello.instance
        elif self._instance != hello.instance:
            if self._terms.replaceable:
                self.fail("its sender begins anew", ErrorCode.REPLACED)
            raise ProtocolError("another sender has begun this session", ErrorCode.REPLACED)
        infos, untold = [], []
        same_key = hello.key_check == self._hash.digest(b"key check")
        for number, base in enumerate(self._terms.bases if first and same_key else ()):
            digests = base.digests
            is_shared = base.name in hello.bases
            infos.append(BaseInfo(base.kind, base.name, len(digests), 0 if is_shared else len(digests)))
            if not is_shared:
                untold.append(number)
        slots = self._terms.slots if self._ring is not None else 0
        held = (*range(self._taken, self._next), *sorted(self._frames))
        return Welcome(self._taken, held, tuple(infos), slots), untold

    def _digests(self, numbers: list[int]) -> Iterator[Frame]:
        """Return what tells the digests of these bases."""
        for number in numbers:
            digests = self._terms.bases[number].digests
            for start in range(0, len(digests), BASE_DIGESTS):
                payload = b"".join(digests[start : start + BASE_DIGESTS])
                yield Frame(FrameType.BASE, number << 40 | start, payload)

    async def serve(self, hello: SessionHello, connection: FrameConnection) -> bool:
        """Take frames from one connection until the session is over or the connection is lost.

        Returns whether the connection can carry another session.
        """
        if self._failure is not None:
            raise ProtocolError(*self._failure)
        if self._serving >= STREAMS_MAX:
            raise ProtocolError(f"a session has at most {STREAMS_MAX} connections", ErrorCode.TOO_MANY_CONNECTIONS)
        welcome, untold = self._welcome(hello)
        connection.put(Frame(FrameType.WELCOME, payload=msgspec.msgpack.encode(welcome)))
        self._serving += 1
        taking = asyncio.create_task(self._take_after_telling(connection, untold))
        over = asyncio.create_task(self._over.wait())
        try:
            await asyncio.wait({taking, over}, return_when=asyncio.FIRST_COMPLETED)
            if self._done:
                return not taking.done()
            if self._failure is not None:
                connection.put(frames.error_frame(*self._failure))
                async with asyncio.timeout(SILENCE_S):
                    await connection.drain()
            return False
        finally:
            taking.cancel()
            over.cancel()
            await asyncio.gather(taking, over, return_exceptions=True)
            self._serving -= 1
            if connection in self._connections:
                self._connections.remove(connection)

    async def _take_after_telling(self, connection: FrameConnection, untold: list[int]) -> None:
        """Tell the digests of bases, then take frames until the connection is lost."""
        for frame in self._digests(untold):
            connection.put(frame)
            await connection.drain()
        self._connections.append(connection)
        self.back.repeat(at_once=True)
        if self._done:
            connection.put(Frame(FrameType.DONE))
        await self._take_from(connection)

    async def _take_from(self, connection: FrameConnection) -> None:
        while True:
            async with asyncio.timeout(SILENCE_S):
                frame = await connection.read()
            self._heard_at = connection.heard_at
            match frame.type:
                case FrameType.DATA | FrameType.END:
                    self._accept(frame)
                case FrameType.PING:
                    connection.put(Frame(FrameType.ACK, self._taken))
                case FrameType.REPAIR:
                    self._take_repair(msgspec.msgpack.decode(frame.payload, type=RepairedPages))
                case FrameType.BACK_TAKEN:
                    self.back.taken(frame.sequence)
                case FrameType.ERROR:
                    code, why = frames.read_error(frame)
                    self.fail(why, code)
                    return
                case _:
                    self.fail(f"unexpected {frame.type.name} frame", ErrorCode.PROTOCOL)
                    return

    def _accept(self, frame: Frame) -> None:
        """Keep a frame; one that came before is dropped."""
        if frame.sequence >= self._taken + WINDOW_FRAMES:
            self.fail(f"frame {frame.sequence} is too far ahead of {self._taken}", ErrorCode.PROTOCOL)
        elif frame.sequence >= self._next:
            self._frames.setdefault(frame.sequence, frame)
            if frame.sequence == self._next:
                self._arrived.set()

    def _take_repair(self, repaired: RepairedPages) -> None:
        """Keep pages that were asked for, and no others."""
        if repaired.piece != self._repairing:
            return
        if len(repaired.pages) != len(repaired.ordinals) * PAGE:
            self.fail(f"{len(repaired.ordinals)} pages came in {len(repaired.pages)} bytes", ErrorCode.PROTOCOL)
            return
        for number, ordinal in enumerate(repaired.ordinals):
            if ordinal in self._requested:
                self._repaired[ordinal] = repaired.pages[number * PAGE : (number + 1) * PAGE]
        self._arrived.set()


def code_of(error: Exception) -> ErrorCode:
    """Return the text of an error for the peer."""
    if isinstance(error, ProtocolError):
        return error.code
    return ErrorCode.PROTOCOL if isinstance(error, MALFORMED) else ErrorCode.LOCAL_FAILURE
