"""How a session's stream becomes pieces: one thread reads and looks pages up, another compresses."""

from __future__ import annotations

import asyncio
import threading
import time
import zlib
from collections.abc import Callable, Coroutine
from typing import Protocol

import msgspec

from novacron.dwcp.compression import FIRST, LIGHT, Compressor, MethodChooser, StageClocks
from novacron.dwcp.frames import End
from novacron.dwcp.page_codec import CHECK_BYTES, Op, Piece, Run
from novacron.dwcp.page_encoder import Encoder
from novacron.dwcp.pipes import Handover, Stages, StreamSource
from novacron.dwcp.receiver_index import ReceiverIndex
from novacron.dwcp.stage_times import StageTimes, idle_processor_s

PATIENCE_S = 3.0
"""How long pages may wait for digests that are still being told."""
LOOK_AGAIN_S = 0.002


class StreamSplitter(Protocol):
    """Cuts a stream into runs."""

    def split(self, data: bytes) -> tuple[bytes, list[Run]]:
        """Take the next bytes; return what can be told by now, and its runs."""
        ...

    def finish(self) -> tuple[bytes, list[Run]]:
        """Return the remaining bytes at the stream's end."""
        ...


class Counters(msgspec.Struct):
    """What a session has carried so far."""

    raw_bytes: int = 0
    wire_bytes: int = 0
    delivered_bytes: int = 0
    """What the peer has confirmed."""
    streams: int = 0
    resumed: int = 0
    """Connections that were opened in place of lost ones."""
    repaired_pages: int = 0
    retransmits: int = 0
    rtt_ms: float = 0.0
    method: int = FIRST
    blocked_s: float = 0.0
    """Time in which what was ready waited for the link."""
    starved_s: float = 0.0
    """Time in which connections waited for something to send, of all of them together."""
    times: StageTimes = msgspec.field(default_factory=StageTimes)


class SendPipeline:
    """Encodes one stream. ``queue`` takes each piece and the bytes to send for it, and waits until there is room."""

    def __init__(
        self,
        encoder: Encoder,
        receiver_index: ReceiverIndex,
        counters: Counters,
        queue: Callable[[Piece, bytes], Coroutine[object, None, None]],
        *,
        fixed: bool,
    ) -> None:
        self._encoder, self._receiver_index, self._counters, self._queue = encoder, receiver_index, counters, queue
        self._compressor = Compressor(counters.method, fixed=fixed)
        self._looking_up_s = 0.0
        self._stop = threading.Event()

    async def run(self, source: StreamSource, splitter: StreamSplitter, over: Callable[[], None]) -> End:
        """Encode all that ``source`` has; return what the receiver can check it against. Calls ``over`` when nothing
        more will be queued, whatever the reason. Raises OSError, and what ``queue`` raises."""
        pieces: Handover[Piece | None] = Handover(2, self._stop)
        stages = Stages(2, "dwcp-send")
        self._end = End(0, 0, 0)
        running = [
            stages.start(self._look_up, source, splitter, pieces),
            stages.start(self._compress, pieces, asyncio.get_running_loop()),
        ]
        try:
            for stage in asyncio.as_completed(running):
                await stage
            return self._end
        finally:
            self._stop.set()
            over()
            source.abort()
            await stages.end()

    def _look_up(self, source: StreamSource, splitter: StreamSplitter, pieces: Handover[Piece | None]) -> None:
        index, timed = self._receiver_index, self._counters.times.run
        pages, patient_until = 0, time.monotonic() + PATIENCE_S
        while True:
            data = timed("read", source.read)
            started = time.monotonic()
            part, runs = timed("split", splitter.split, data) if data else splitter.finish()
            self._encoder.light = self._compressor.method == LIGHT
            pages += sum(count for kind, _, count, *_ in runs if kind == Op.LITERAL)
            while not index.covers(pages) and time.monotonic() < patient_until and not self._stop.is_set():
                time.sleep(LOOK_AGAIN_S)
            piece = timed("look_up", self._encoder.encode, part, runs) if part else None
            self._looking_up_s += time.monotonic() - started
            if piece is not None:
                pieces.put(piece)
            if not data:
                pieces.put(None)
                return

    def _compress(self, pieces: Handover[Piece | None], loop: asyncio.AbstractEventLoop) -> None:
        compressor, savings = self._compressor, self._encoder.savings
        crc = count = raw_bytes = 0
        chooser = MethodChooser(self._marks(), idle_processor_s)
        while (piece := pieces.get()) is not None:
            chosen = self._counters.times.run("compress", compressor.compress, piece.body)
            savings.before_compression += len(piece.body)
            savings.after_compression += len(chosen[2])
            crc = zlib.crc32(piece.check.to_bytes(CHECK_BYTES, "big"), crc)
            raw_bytes += piece.raw_bytes
            count += 1
            asyncio.run_coroutine_threadsafe(self._queue(piece, piece.finish(*chosen)), loop).result()
            compressor.switch(chooser.choose(self._marks(), compressor.method))
            self._counters.method = compressor.method
        self._end = End(raw_bytes, count, crc)

    def _marks(self) -> StageClocks:
        counters, compressor = self._counters, self._compressor
        return StageClocks(
            time.monotonic(), self._looking_up_s, compressor.busy_s, compressor.cpu_s, counters.blocked_s,
            counters.starved_s, counters.delivered_bytes,
        )  # fmt: skip
