"""DWCP sessions whose link, peer or page stores misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
import zlib
from collections.abc import Iterator

import msgspec
import pytest
from structlog.testing import capture_logs

from novacron import pki
from novacron.dwcp import frames
from novacron.dwcp.compression import METHODS, Compressor
from novacron.dwcp.frames import End, Frame, FrameType
from novacron.dwcp.listener import Listener
from novacron.dwcp.page_codec import PageHash
from novacron.dwcp.page_encoder import Encoder
from novacron.dwcp.page_ring import PAGE
from novacron.dwcp.receiver import ReceiveFailed
from novacron.dwcp.sender import Sender, SendFailed
from novacron.telemetry import traces
from tests.support.dwcp import (
    KEY,
    OUTAGE_S,
    Ends,
    FaultyRelay,
    MemoryBase,
    MemorySink,
    PieceSource,
    PlainPages,
    carry,
    connect_as_node_a,
    receive,
    sample_stream,
)
from tests.support.recorded_spans import record_spans
from tests.waiting import eventually, pause_async


async def start_session(
    ends: Ends, listener: Listener, middle: FaultyRelay, data: bytes, streams: int = 1
) -> tuple[asyncio.Task[None], Sender, asyncio.Task[bytes]]:
    """Start a session through the middle; return its sender's task, the sender, and the receiver's task."""
    receiving = asyncio.create_task(receive(listener, ends.terms()))
    await asyncio.sleep(0)
    sender = ends.sender(middle.port, streams=streams)

    async def send() -> None:
        async with sender:
            await sender.send(PieceSource(data), PlainPages())

    return asyncio.create_task(send()), sender, receiving


@contextlib.contextmanager
def logged_and_traced(event: str, note: str) -> Iterator[None]:
    """Fail unless what happens meanwhile is in the log and in a trace."""
    exporter = record_spans(0.0)
    with capture_logs() as logged, traces.span("move", parent="", always=True):
        yield
    assert event in [entry["event"] for entry in logged]
    assert note in [entry.name for span in exporter.get_finished_spans() for entry in span.events]


DATA = random.Random(3).randbytes(6_000_000)


@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize("at", [60_000, 2_000_000, 5_000_000])
async def test_a_reset_of_every_connection_costs_a_moment(
    ends: Ends, listening: tuple[Listener, int], at: int, streams: int
) -> None:
    listener, port = listening
    async with FaultyRelay(port).run() as middle:
        with logged_and_traced("a session goes on: all its connections had been lost", "dwcp resumed"):
            sending, sender, receiving = await start_session(ends, listener, middle, DATA, streams)
            await eventually(lambda: middle.passed > at)
            middle.cut()
            await asyncio.wait_for(sending, 30)
        assert await receiving == DATA
    assert sender.counters.resumed == 1


async def test_one_connection_of_several_is_cut(ends: Ends, listening: tuple[Listener, int]) -> None:
    listener, port = listening
    async with FaultyRelay(port).run() as middle:
        sending, sender, receiving = await start_session(ends, listener, middle, DATA, 4)
        await eventually(lambda: middle.connections == 4 and middle.passed > 1_000_000)
        middle.cut(1)
        await asyncio.wait_for(sending, 30)
        assert await receiving == DATA
    assert sender.counters.resumed == 0, "the session itself was never away"
    assert middle.connections >= 5, "another connection took its place"


@pytest.mark.parametrize("harm", ["flip", "repeat", "truncate"])
async def test_bytes_corrupted_in_transit_cost_one_connection(
    ends: Ends, listening: tuple[Listener, int], harm: str
) -> None:
    listener, port = listening
    async with FaultyRelay(port).run() as middle:
        setattr(middle, harm, True)
        sending, sender, receiving = await start_session(ends, listener, middle, DATA)
        await asyncio.wait_for(sending, 40)
        assert await receiving == DATA
        assert getattr(middle, harm) is False
    assert sender.counters.resumed >= 1


async def test_a_dead_link_costs_the_outage(ends: Ends, listening: tuple[Listener, int]) -> None:
    listener, port = listening
    async with FaultyRelay(port).run() as middle:
        sending, sender, receiving = await start_session(ends, listener, middle, DATA)
        await eventually(lambda: middle.passed > 2_000_000)
        middle.dead = True
        await pause_async(OUTAGE_S * 0.4)
        middle.dead = False
        await asyncio.wait_for(sending, 30)
        assert await receiving == DATA
    assert sender.counters.raw_bytes == len(DATA)


async def test_a_link_that_stays_dead_ends_the_session_at_both_ends(
    ends: Ends, listening: tuple[Listener, int]
) -> None:
    listener, port = listening
    async with FaultyRelay(port).run() as middle:
        sending, _, receiving = await start_session(ends, listener, middle, DATA)
        await eventually(lambda: middle.passed > 1_000_000)
        middle.dead = True
        with pytest.raises(SendFailed, match="nothing was heard from the peer for 6 s"):
            await asyncio.wait_for(sending, OUTAGE_S + 10)
        with pytest.raises(ReceiveFailed, match=r"nothing was heard|gave up"):
            await asyncio.wait_for(receiving, OUTAGE_S + 10)


async def test_a_sender_that_gives_up_tells_the_receiver_at_once(ends: Ends, listening: tuple[Listener, int]) -> None:
    listener, port = listening
    async with FaultyRelay(port).run() as middle:
        sending, _, receiving = await start_session(ends, listener, middle, DATA)
        await eventually(lambda: middle.passed > 1_000_000)
        sending.cancel()
        with pytest.raises(ReceiveFailed, match="the sender gave up"):
            await asyncio.wait_for(receiving, OUTAGE_S - 1)
        await asyncio.gather(sending, return_exceptions=True)


async def test_a_session_that_is_cancelled_repeatedly_ends_and_blocks_nothing(
    ends: Ends, listening: tuple[Listener, int]
) -> None:
    """Its threads wait for the event loop: that must never wait for them in return."""
    listener, port = listening
    gate = threading.Event()

    class Stuck(MemorySink):
        def write(self, data: bytes) -> None:
            gate.wait(60)

        def abort(self) -> None:
            gate.set()

    async def receive_nothing() -> None:
        with listener.expect("s", "a", ends.terms()) as incoming:
            await incoming.receive(Stuck())

    receiving = asyncio.create_task(receive_nothing())
    await asyncio.sleep(0)
    sender = ends.sender(port)

    async def send() -> None:
        async with sender:
            await sender.send(PieceSource(os.urandom(80_000_000)), PlainPages())

    sending = asyncio.create_task(send())
    await eventually(lambda: sender.counters.blocked_s > 0 or sender._window.next - sender._window.acknowledged > 400)
    await pause_async(0.5)
    for _ in range(5):
        sending.cancel()
        receiving.cancel()
        await pause_async(0.01)
    done, _ = await asyncio.wait({sending, receiving}, timeout=20)
    assert len(done) == 2
    await asyncio.gather(*done, return_exceptions=True)


async def test_another_sender_cannot_resume_a_session(ends: Ends, listening: tuple[Listener, int]) -> None:
    listener, port = listening
    receiving = asyncio.create_task(receive(listener, ends.terms()))
    await asyncio.sleep(0)
    async with ends.sender(port):
        with pytest.raises(SendFailed, match="another sender has begun"):
            async with ends.sender(port):
                pass
    receiving.cancel()
    await asyncio.gather(receiving, return_exceptions=True)


# what the receiver has


def pages(seed: int, count: int) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(PAGE) for _ in range(count)]


async def test_pages_that_the_receiver_has_are_sent_as_references(ends: Ends, listening: tuple[Listener, int]) -> None:
    listener, port = listening
    base, other = pages(1, 9000), pages(2, 20)
    sender = await carry(ends, listener, port, b"".join(base + other + base), bases=(MemoryBase("x", base),))
    savings = sender.savings
    assert savings.sibling == 18_000 and savings.incompressible + savings.literal == 20
    assert savings.incompressible > 10
    assert sender.counters.wire_bytes < 20 * PAGE * 2


async def test_digests_that_both_ends_can_compute_are_not_sent(ends: Ends, listening: tuple[Listener, int]) -> None:
    listener, port = listening
    image = MemoryBase("image:1", pages(1, 9000))
    sender = await carry(ends, listener, port, b"".join(image.pages), bases=(image,), own=(image,))
    assert sender.savings.sibling == 9000


async def test_digests_that_were_sent_in_advance_are_not_sent_again(
    ends: Ends, listening: tuple[Listener, int]
) -> None:
    listener, port = listening
    base = MemoryBase("checkpoint:1", pages(1, 3000), sealed=True)
    for number in (5, 6, 2000):
        base.pages[number] = bytes(PAGE)  # damaged since: the sender still has what it told
    data = b"".join(pages(1, 3000))
    receiving = asyncio.create_task(receive(listener, ends.terms((base,))))
    await asyncio.sleep(0)
    options = msgspec.structs.replace(ends.sender(port)._options, checkpoint_digests={"checkpoint:1": base.digests})
    sender = Sender(("127.0.0.1", port), pki.node_host("b"), "s", ends.pool(), options)
    async with sender:
        assert sender._receiver_index.covers(1_000_000)
        await sender.send(PieceSource(data), PlainPages())
    assert await receiving == data
    assert sender.savings.sibling == 3000 and sender.counters.repaired_pages == 3


async def test_a_stream_can_begin_while_digests_are_sent(ends: Ends, listening: tuple[Listener, int]) -> None:
    listener, port = listening
    base = MemoryBase("checkpoint:1", pages(1, 20_000))
    base.kind = "checkpoint"
    sender = await carry(ends, listener, port, b"".join(base.pages), bases=(base,))
    assert sender.savings.checkpoint == 20_000 and sender.counters.wire_bytes < 2_000_000


async def test_an_announced_session_waits_until_the_receiver_expects_it(
    ends: Ends, listening: tuple[Listener, int]
) -> None:
    listener, port = listening
    with listener.announce("s", "a"):
        opening = asyncio.create_task(ends.sender(port).__aenter__())
        await pause_async(0.5)
        assert not opening.done()
        receiving = asyncio.create_task(receive(listener, ends.terms()))
        async with asyncio.timeout(20):
            sender = await opening
            await sender.send(PieceSource(b"x" * 3_000_000), PlainPages())
            await sender.__aexit__(None)
    assert await receiving == b"x" * 3_000_000


async def test_a_base_with_the_same_name_and_other_pages_is_detected(
    ends: Ends, listening: tuple[Listener, int]
) -> None:
    """The two ends disagree about an image: wrong pages are detected and sent again."""
    listener, port = listening
    here, there = MemoryBase("image:1", pages(1, 900)), MemoryBase("image:1", pages(1, 450) + pages(2, 450))
    with pytest.raises((SendFailed, ReceiveFailed), match="checksum"):
        await carry(ends, listener, port, b"".join(here.pages), bases=(there,), own=(here,))


@pytest.mark.parametrize(("damaged", "sealed"), [(1, False), (40, True), (40, False), (3000, True)])
async def test_damaged_pages_of_a_base_are_sent_again(
    ends: Ends, listening: tuple[Listener, int], damaged: int, sealed: bool
) -> None:
    listener, port = listening
    base = MemoryBase("x", pages(1, 4000), sealed=sealed)
    for number in random.Random(9).sample(range(4000), damaged):
        base.pages[number] = b"\0" * PAGE
    data = b"".join(pages(1, 4000))
    with logged_and_traced("pages are sent again: the peer's were damaged", "dwcp repaired"):
        sender = await carry(ends, listener, port, data, bases=(base,))
    assert sender.counters.repaired_pages == damaged and sender.savings.sibling == 4000


async def test_pages_that_a_running_guest_has_changed_count_as_no_damage(
    ends: Ends, listening: tuple[Listener, int]
) -> None:
    """They were found when its memory was read, which may be minutes ago: an alert of damage would be a false one."""
    listener, port = listening
    guest, kept = MemoryBase("sibling:vm-2", pages(1, 2000)), MemoryBase("checkpoint:vm-1", pages(2, 2000), sealed=True)
    for number in (3, 4, 1999):
        guest.pages[number] = b"\1" * PAGE
    kept.pages[7] = b"\1" * PAGE
    data = b"".join(pages(1, 2000) + pages(2, 2000))
    with capture_logs() as said:
        sender = await carry(ends, listener, port, data, bases=(guest, kept))
    assert sender.counters.repaired_pages == 1
    again = [
        (entry["log_level"], entry["pages"]) for entry in said if entry["event"].startswith("pages are sent again")
    ]
    assert sum(count for level, count in again if level == "warning") == 1
    assert sum(count for level, count in again if level == "info") == 3


async def test_a_missing_base_costs_savings_only(ends: Ends, listening: tuple[Listener, int]) -> None:
    listener, port = listening
    base = MemoryBase("x", pages(1, 500))

    def gone(index: int, count: int) -> bytes:
        raise OSError("input/output error")

    base.read = gone  # type: ignore[method-assign]
    assert (await carry(ends, listener, port, b"".join(pages(1, 500)), bases=(base,))).counters.repaired_pages == 500


async def test_another_project_s_key_finds_nothing(ends: Ends, listening: tuple[Listener, int]) -> None:
    listener, port = listening
    base = pages(1, 500)
    receiving = asyncio.create_task(receive(listener, ends.terms((MemoryBase("x", base),))))
    await asyncio.sleep(0)
    sender = ends.sender(port)
    options = msgspec.structs.replace(sender._options, key=b"other" + bytes(27))
    sender = Sender(("127.0.0.1", port), pki.node_host("b"), "s", ends.pool(), options)
    async with sender:
        await sender.send(PieceSource(b"".join(base)), PlainPages())
    assert await receiving == b"".join(base)
    assert sender.savings.sibling == 0 and sender.counters.wire_bytes > 490 * PAGE


@pytest.mark.parametrize("method", range(len(METHODS)))
async def test_every_method_carries_every_kind_of_page(
    ends: Ends, listening: tuple[Listener, int], method: int
) -> None:
    listener, port = listening
    await carry(ends, listener, port, sample_stream() * 2 + b"tail", method=method)


# connections that wait


async def test_a_connection_carries_one_session_after_another(ends: Ends, listening: tuple[Listener, int]) -> None:
    listener, port = listening
    pool = ends.pool()
    for number in range(5):
        await carry(ends, listener, port, sample_stream(), pool=pool, session=f"s{number}", streams=2)
        assert pool.idle == 2
    assert pool.taken >= 8
    pool.close()


async def test_a_warm_connection_that_died_is_replaced(ends: Ends, listening: tuple[Listener, int]) -> None:
    listener, port = listening
    async with FaultyRelay(port).run() as middle:
        pool = ends.pool()
        pool.warm(("127.0.0.1", middle.port), pki.node_host("b"), 2)
        await eventually(lambda: pool.idle == 2)
        middle.cut()
        await carry(ends, listener, middle.port, sample_stream(), pool=pool)
        pool.close()


# peers that lie


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (Frame(FrameType.DATA, 0, b"no piece"), "shorter than its header"),
        (Frame(FrameType.DATA, 0, os.urandom(64)), "limits|piece|op"),
        (Frame(FrameType.DATA, 10**12, b"x"), "too far ahead"),
        (Frame(FrameType.WELCOME), "unexpected WELCOME"),
        (Frame(FrameType.END, 0, b"\xc1"), "."),
        (Frame(FrameType.ERROR, 0, b"out of order"), "out of order"),
    ],
)
async def test_a_peer_that_lies_ends_the_session(
    ends: Ends, listening: tuple[Listener, int], frame: Frame, why: str
) -> None:
    listener, port = listening
    receiving = asyncio.create_task(receive(listener, ends.terms()))
    await asyncio.sleep(0)
    reader, writer = await connect_as_node_a(ends, port)
    writer.writelines(frames.encode(frame))
    with pytest.raises(ReceiveFailed, match=why):
        await asyncio.wait_for(receiving, 10)
    answer = await asyncio.wait_for(frames.read(reader), 10)
    assert answer.type is FrameType.ERROR and answer.payload
    writer.close()


async def test_duplicate_frames_are_processed_once(ends: Ends, listening: tuple[Listener, int]) -> None:
    listener, port = listening
    receiving = asyncio.create_task(receive(listener, ends.terms()))
    await asyncio.sleep(0)
    _, writer = await connect_as_node_a(ends, port)
    encoder, compressor = Encoder(PageHash(KEY), None), Compressor()
    sent, crc = [], 0
    for number, word in enumerate((b"one", b"two", b"three")):
        piece = encoder.encode(word, [(0, 0, len(word), 0, 0, False)])
        crc = zlib.crc32(piece.check.to_bytes(8, "big"), crc)
        sent.append(Frame(FrameType.DATA, number, piece.finish(*compressor.compress(piece.body))))
    end = Frame(FrameType.END, 3, msgspec.msgpack.encode(End(11, 3, crc)))
    for frame in (sent[1], sent[0], sent[0], sent[1], sent[2], end, sent[2]):
        writer.writelines(frames.encode(frame))
    assert await asyncio.wait_for(receiving, 10) == b"onetwothree"
    writer.close()
