"""Frames, compression and the page codec of DWCP."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from novacron.dwcp import compression, frames
from novacron.dwcp.compression import METHODS, Compressor, Decompressor
from novacron.dwcp.frames import BaseInfo, Frame, FrameType, ProtocolError
from novacron.dwcp.page_codec import BARE, OP, Op, PageHash, Run, check_of, zero_records
from novacron.dwcp.page_decoder import Decoder, Missing
from novacron.dwcp.page_encoder import Encoder
from novacron.dwcp.page_ring import PAGE, EncryptedRing, PageRing
from novacron.dwcp.page_store import PageStore, ScatteredBase, read_index
from novacron.dwcp.receiver_index import PageDamaged, ReceiverIndex

HASH = PageHash(b"k" * 32)
GOLDEN = Path(__file__).parent / "golden"


# compression


@given(st.lists(st.binary(min_size=1, max_size=5000), max_size=20), st.integers(0, len(METHODS) - 1))
def test_compressed_pieces_round_trip_whatever_they_contain(pieces: list[bytes], method: int) -> None:
    compressor, decompressor = Compressor(method, fixed=True), Decompressor()
    for piece in pieces:
        used, fresh, data = compressor.compress(piece)
        assert decompressor.decompress(used, fresh, data, len(piece)) == piece


def test_nothing_of_a_piece_waits_for_the_next_one() -> None:
    compressor, decompressor = Compressor(), Decompressor()
    for piece in (b"a", os.urandom(100_000), b"x" * 1_000_000, b"b"):
        assert decompressor.decompress(*compressor.compress(piece), len(piece)) == piece


def test_each_change_of_the_method_begins_a_stream_that_the_peer_can_read() -> None:
    compressor, decompressor = Compressor(), Decompressor()
    for method in (4, 3, 3, 1, 0, 0, 1, 2):
        compressor.switch(method)
        sent = compressor.compress(b"piece" * 9)
        assert sent[0] == method and decompressor.decompress(*sent, 45) == b"piece" * 9


def test_a_decompression_bomb_is_refused() -> None:
    bomb = Compressor(3, fixed=True).compress(bytes(500_000_000))
    assert len(bomb[2]) < 100_000
    with pytest.raises(ProtocolError, match="longer than"):
        Decompressor().decompress(*bomb, 1000)


def test_data_that_is_no_stream_is_refused() -> None:
    with pytest.raises(ProtocolError, match="can't be decompressed"):
        Decompressor().decompress(1, True, b"this is not zstd", 5)
    with pytest.raises(ProtocolError, match="before its stream"):
        Decompressor().decompress(1, False, b"x", 5)
    with pytest.raises(ProtocolError, match="not the 5"):
        Decompressor().decompress(compression.LIGHT, True, b"abc", 5)


# pages


def records(pages: list[bytes], header: int = 0x28) -> tuple[bytes, list[Run]]:
    """Return page records in a row, and the run that they are."""
    data = b"".join((header + n * PAGE).to_bytes(8, "big") + page for n, page in enumerate(pages))
    return data, [(2, 0, len(pages), header, 0, False)]


def make_codec(tmp_path: Path, *bases: ScatteredBase, slots: int = 20_000) -> tuple[Encoder, Decoder]:
    encoder = Encoder(HASH, PageRing(tmp_path, slots))
    for number, base in enumerate(bases):
        encoder.add_base(number, base.kind, 0, base.digests)
    return encoder, Decoder(HASH, PageRing(tmp_path, slots), bases)


def carry(encoder: Encoder, decoder: Decoder, data: bytes, runs: list[Run]) -> int:
    """Encode and decode; return how many bytes were between."""
    piece = encoder.encode(data, runs)
    sent = piece.finish(*Compressor(compression.LIGHT).compress(piece.body))
    assert decoder.decode(sent) == data
    return len(sent)


def base_of(pages: list[bytes], kind: str = "checkpoint", *, sealed: bool = True) -> ScatteredBase:
    held = b"".join(pages)
    places = [(at, PAGE) for at in range(0, len(held), PAGE)]
    return ScatteredBase(
        kind, kind, lambda at, n: held[at : at + n], places, [HASH.digest(page) for page in pages], sealed=sealed
    )


RNG = random.Random(1)
TEXT = (b"some text that a guest has in memory, number %d; " * 200) % tuple(range(200))


def page(seed: int) -> bytes:
    return random.Random(seed).randbytes(PAGE)


def text(seed: int) -> bytes:
    return bytes(random.Random(seed).choice(b"abcdefgh \n") for _ in range(PAGE))


def test_each_kind_of_page_uses_its_encoding(tmp_path: Path) -> None:
    encoder, decoder = make_codec(tmp_path, base_of([page(1), page(2)]), base_of([page(3)], "image"))
    changed = text(4)[:-100] + bytes(100)
    carry(encoder, decoder, *records([page(1), page(2), page(3), text(4), page(5), text(4), page(5)]))
    carry(encoder, decoder, *records([page(1), page(2), page(3), changed, page(6)]))
    zeros = b"".join((0x22 + n * PAGE).to_bytes(8, "big") + b"\0" for n in range(9))
    carry(encoder, decoder, zeros, [(1, 0, 9, 0x22, 0, False)])
    saved = encoder.savings
    assert (saved.checkpoint, saved.image, saved.literal, saved.incompressible) == (4, 2, 1, 2)
    assert (saved.session, saved.difference, saved.zero) == (2, 1, 9)


@pytest.mark.parametrize("header", [0x22, 5 * PAGE | 0x22, 2**40 - 9 * PAGE | 0x22, 2**64 - 700 * PAGE | 0x22])
def test_records_of_zero_pages_count_their_headers_up(header: int) -> None:
    for count in (0, 1, 255, 256, 257, 600):
        records_ = b"".join((header + n * PAGE).to_bytes(8, "big") + b"\0" for n in range(count))
        assert zero_records(header, count) == records_


def test_pages_in_a_row_are_read_from_slots_at_once_where_the_ring_begins_anew_too(tmp_path: Path) -> None:
    for ring in (PageRing(tmp_path, 9000), EncryptedRing(tmp_path, 9000)):
        pages = [number.to_bytes(4, "big") * (PAGE // 4) for number in range(9100)]
        ring.append(pages)
        assert ring.read(8990, 20) == b"".join(pages[8990:9010]), "slots 9000 and later lie at the file's start"
        assert ring.read(9099) == pages[9099]
        for slot, count in ((9090, 11), (ring.oldest - 1, 1), (ring.oldest - 1, 5)):
            with pytest.raises(KeyError):
                ring.read(slot, count)
        ring.close()


def test_slots_of_this_piece_follow_those_of_earlier_ones(tmp_path: Path) -> None:
    encoder, decoder = make_codec(tmp_path)
    carry(encoder, decoder, *records([page(1), page(2)]))
    data, runs = records([page(3), page(1), page(2), page(3)])
    carry(encoder, decoder, data, runs)
    assert encoder.savings.session == 3


def test_a_page_sent_by_reference_costs_almost_nothing(tmp_path: Path) -> None:
    pages = [page(n) for n in range(1000)]
    encoder, decoder = make_codec(tmp_path, base_of(pages))
    assert carry(encoder, decoder, *records(pages)) < 100
    encoder, decoder = make_codec(tmp_path)
    assert carry(encoder, decoder, *records(pages)) > 1000 * PAGE
    assert carry(encoder, decoder, *records(pages)) < 100


def test_slots_that_the_ring_has_overwritten_are_not_referenced(tmp_path: Path) -> None:
    encoder, decoder = make_codec(tmp_path, slots=8192 + 64)
    for _ in range(3):
        for start in range(0, 20_000, 1000):
            carry(encoder, decoder, *records([n.to_bytes(4, "big") * 1024 for n in range(start, start + 1000)]))
    assert encoder.savings.session == 0 and len(encoder._held) <= 8192 + 64
    carry(encoder, decoder, *records([n.to_bytes(4, "big") * 1024 for n in range(19_990, 20_000)]))
    assert encoder.savings.session == 10


@settings(max_examples=60)
@given(st.data())
def test_every_stream_decodes_to_what_was_encoded(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    base = [page(n) for n in range(6)]
    encoder, decoder = make_codec(tmp_path_factory.getbasetemp(), base_of(base), slots=8192 + 40)
    choices = st.one_of(
        st.sampled_from(base), st.integers(10, 14).map(page), st.integers(20, 24).map(text),
        st.binary(min_size=20, max_size=20).map(lambda start: start + text(20)[20:]),
    )  # fmt: skip
    for _ in range(data.draw(st.integers(1, 6))):
        parts, runs, at = [], [], 0
        for kind in data.draw(st.lists(st.sampled_from(["opaque", "zero", "pages", "bare"]), min_size=1, max_size=5)):
            header = data.draw(st.integers(0, 5)) * PAGE | 0x28
            if kind == "opaque":
                part = data.draw(st.binary(min_size=1, max_size=50))
                runs.append((0, at, len(part), 0, 0, False))
            elif kind == "zero":
                count = data.draw(st.integers(1, 5))
                part = b"".join((header + n * PAGE).to_bytes(8, "big") + b"\0" for n in range(count))
                runs.append((1, at, count, header, 0, False))
            elif kind == "bare":
                part = data.draw(choices)
                runs.append((2, at, 1, header, 1, True))
            else:
                part, _ = records(data.draw(st.lists(choices, min_size=1, max_size=6)), header)
                runs.append((2, at, len(part) // (PAGE + 8), header, 0, False))
            parts.append(part)
            at += len(part)
        carry(encoder, decoder, b"".join(parts), runs)


@pytest.mark.parametrize("sealed", [True, False])
def test_damaged_pages_are_requested_and_repaired(tmp_path: Path, sealed: bool) -> None:
    good = [page(n) for n in range(5)]
    encoder, decoder = make_codec(tmp_path, base_of(good))
    digests = [HASH.digest(p) for p in good]
    decoder._bases = [ScatteredBase("x", "x", lambda at, n: b"\0" * n, [(0, PAGE)] * 5, digests, sealed=sealed)]
    data, runs = records([good[3], text(1), good[0]])
    piece = encoder.encode(data, runs)
    decoded = decoder.decode(piece.finish(*Compressor().compress(piece.body)))
    assert isinstance(decoded, Missing) and decoded.ordinals == [0, 1] and decoder.damaged == 2
    with pytest.raises(ProtocolError, match="2 pages were asked for"):
        decoder.repair(decoded, [good[3]])
    pages = [page for page in (piece.referenced[n] for n in decoded.ordinals) if isinstance(page, bytes)]
    assert decoder.repair(decoded, pages) == data


def make_piece(ops: list[tuple[int, int, int, int]], opaque: bytes = b"", raw_bytes: int | None = None) -> bytes:
    """Return a piece of these ops, as a peer that lies would make it."""
    from novacron.dwcp.page_codec import HEADER

    body = b"".join(OP.pack(*op) for op in ops) + opaque
    header = HEADER.pack(0, 1, 0, len(ops), len(opaque), 0, 0, PAGE if raw_bytes is None else raw_bytes, 0)
    return header + len(body).to_bytes(4, "big") + body


@pytest.mark.parametrize(
    ("piece", "why"),
    [
        (b"short", "shorter than its header"),
        (make_piece([(9, 1, 0, 0)]), "not known"),
        (make_piece([(Op.ZERO, 0, 0, 0)]), "count 0"),
        (make_piece([(Op.ZERO | BARE, 2, 0, 0)]), "not known"),
        (make_piece([(Op.ZERO, 2**31, 0, 0)]), "more than it says"),
        (make_piece([(Op.OPAQUE, PAGE, 0, 0)], b"too little"), "need more than it holds"),
        (make_piece([(Op.LITERAL | BARE, 1, 0, 0)]), "need more than it holds"),
        (make_piece([(Op.SLOT | BARE, 1, 0, 0)]), "slot 0 is not held"),
        (make_piece([(Op.SLOT | BARE, 1, 0, 2**40)]), "is not held"),
        (make_piece([(Op.BASE | BARE, 1, 0, 0)]), "base 0 has no pages"),
        (make_piece([(Op.ZERO, 1, 0, 0)]), "do not make what it says"),
        (make_piece([(Op.ZERO, 400, 2**64 - 1, 0)]), "more than it says"),
        (make_piece([(Op.OPAQUE, 3, 0, 0)], b"abc", 3), "checksum"),
        (make_piece([], b"", 2**31), "over the limits"),
    ],
)
def test_the_error_names_what_is_wrong_with_a_piece(tmp_path: Path, piece: bytes, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        Decoder(HASH, PageRing(tmp_path, 9000), ()).decode(piece)


@settings(max_examples=150)
@given(st.data())
def test_the_decoder_survives_any_input(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A piece that was changed at random is refused, or it decodes to what its checksum says; nothing else happens."""
    encoder, decoder = make_codec(tmp_path_factory.getbasetemp(), base_of([page(1), page(2)]), slots=9000)
    raw, runs = records([page(1), text(1), page(9), text(1), page(2)])
    piece = encoder.encode(raw, runs)
    sent = bytearray(piece.finish(*Compressor(data.draw(st.integers(0, 2))).compress(piece.body)))
    for _ in range(data.draw(st.integers(1, 4))):
        sent[data.draw(st.integers(0, len(sent) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(sent)), st.integers(0, len(sent))))
    with contextlib.suppress(ProtocolError):
        decoded = decoder.decode(bytes(sent[:cut]))
        assert isinstance(decoded, Missing) or decoded == raw


def test_a_digest_needs_the_project_s_key() -> None:
    assert HASH.digest(page(1)) != PageHash(b"o" * 32).digest(page(1))
    with pytest.raises(ValueError, match="32 bytes"):
        PageHash(b"short")


def test_golden_vectors() -> None:
    """What is on the wire must not change unnoticed; docs/dwcp.md explains these bytes."""
    assert HASH.digest(bytes(PAGE)).hex() == (GOLDEN / "digest.hex").read_text().strip()
    hello = frames.SessionHello(
        frames.VERSION, "mig-golden", b"0123456789abcdef", HASH.digest(b"key check"), ("image:1",)
    )
    import msgspec

    frame = b"".join(frames.encode(Frame(FrameType.HELLO, payload=msgspec.msgpack.encode(hello))))
    assert frame.hex() == (GOLDEN / "hello.hex").read_text().strip()
    encoder = Encoder(HASH, None)
    encoder.add_base(0, "image", 0, [HASH.digest(page(1)), HASH.digest(page(2))])
    raw, runs = records([page(1), page(2), b"golden  " * 512])
    data, all_runs = b"opaque" + raw, [(0, 0, 6, 0, 0, False), *((o, 6 + at, n, h, s, b) for o, at, n, h, s, b in runs)]
    piece = encoder.encode(data, all_runs)
    sent = piece.finish(*Compressor(compression.LIGHT).compress(piece.body))
    assert sent.hex() == (GOLDEN / "piece.hex").read_text().strip()
    assert Decoder(HASH, None, (base_of([page(1), page(2)]),)).decode(bytes.fromhex(sent.hex())) == data


# stores


def test_a_page_store_is_reopened_and_detects_damage(tmp_path: Path) -> None:
    store = PageStore(tmp_path, 1 << 30)
    pages = [page(1), bytes(PAGE), page(2), page(1)]
    assert store.save("p", "checkpoint", "vm-a", HASH, pages) == 2
    base = store.load("p", "checkpoint", "vm-a", HASH)
    assert base is not None and base.digests == [HASH.digest(page(1)), HASH.digest(page(2))]
    assert base.read(0, 2) == page(1) + page(2)
    assert store.load("other", "checkpoint", "vm-a", HASH) is None
    index = tmp_path / "p" / "checkpoint-vm-a" / "index"
    assert read_index(index, PageHash(b"o" * 32)) is None, "another project's key opens nothing"
    raw = bytearray(index.read_bytes())
    raw[40] ^= 1
    index.write_bytes(raw)
    assert store.load("p", "checkpoint", "vm-a", HASH) is None
    assert store.names("p", "checkpoint") == []


def test_pages_that_were_kept_with_the_key_before_are_known_with_the_new_one(tmp_path: Path) -> None:
    store, new, stranger = PageStore(tmp_path, 1 << 30), PageHash(b"n" * 32), PageHash(b"s" * 32)
    store.save("p", "checkpoint", "vm-a", HASH, [page(1), page(2)])
    for _ in range(2):  # the second time, it has its new index
        base = store.load("p", "checkpoint", "vm-a", new, [stranger, HASH])
        assert base is not None and base.digests == [new.digest(page(1)), new.digest(page(2))]
        assert base.read(0, 2) == page(1) + page(2)
    assert store.load("p", "checkpoint", "vm-a", new) is not None, "the key before is not needed any more"
    assert store.load("p", "checkpoint", "vm-a", HASH, [stranger]) is None, "of no use with unknown keys"


def test_an_index_of_another_node_s_store_names_the_same_base(tmp_path: Path) -> None:
    there, here = PageStore(tmp_path / "there", 1 << 30), PageStore(tmp_path / "here", 1 << 30)
    there.save("p", "checkpoint", "vm-a", HASH, [page(1), page(2)])
    base, raw = there.load("p", "checkpoint", "vm-a", HASH), there.raw_index("p", "checkpoint", "vm-a")
    assert base is not None and raw is not None
    here.save_index("p", "left", "vm-a", HASH, raw)
    assert here.load_index("p", "left", "vm-a", "checkpoint", HASH) == {base.name: base.digests}
    there.save("p", "checkpoint", "vm-a", HASH, [page(1), page(3)])
    other = there.load("p", "checkpoint", "vm-a", HASH)
    assert other is not None and other.name != base.name, "a store with other pages has another name"
    for damaged in (b"", raw[:-1], raw[:50] + b"x" + raw[51:]):
        with pytest.raises(ValueError, match="no index"):
            here.save_index("p", "left", "vm-b", HASH, damaged)
    assert here.load_index("p", "left", "vm-b", "checkpoint", HASH) == {}
    assert there.raw_index("p", "checkpoint", "vm-b") is None
    here.drop("p", "left", "vm-a")
    assert here.used_bytes() == 0


def test_a_stream_begins_before_all_digests_only_if_they_come_in_its_order() -> None:
    encoder, digests = Encoder(HASH, None), [HASH.digest(page(n)) for n in range(10_000)]

    def frame(number: int, first: int, count: int) -> Frame:
        return Frame(FrameType.BASE, number << 40 | first, b"".join(digests[first : first + count]))

    receiver = ReceiverIndex(HASH, (base_of([page(1)]),), {})
    infos = [BaseInfo("sibling", "s", 20, 20), BaseInfo("checkpoint", "c", 10_000, 10_000)]
    receiver.meet(infos, encoder)
    assert not receiver.can_begin()
    receiver.take(frame(0, 0, 20))
    assert receiver.can_begin() and not receiver.covers(1)
    receiver.take(frame(1, 0, 5000))
    assert receiver.covers(500) and not receiver.covers(2000)
    receiver.take(frame(1, 5000, 5000))
    assert receiver.covers(1_000_000), "there is nothing more to wait for"
    for strange in (frame(2, 0, 1), Frame(FrameType.BASE, 0, b"short"), Frame(FrameType.DATA, 0, b"")):
        with pytest.raises(ProtocolError, match="expected BASE"):
            receiver.take(strange)


def test_a_page_damaged_on_both_nodes_is_reported() -> None:
    base = base_of([page(1), page(2)])
    receiver = ReceiverIndex(HASH, (base,), {})
    receiver.meet([BaseInfo(base.kind, base.name, 2, 0)], Encoder(HASH, None))
    assert receiver.page(page(7)) == page(7) and receiver.page(1) == page(2)
    base.digests = [HASH.digest(page(1)), HASH.digest(page(3))]
    with pytest.raises(PageDamaged, match="page 1 of"):
        receiver.page(1)


def test_stores_stay_within_their_limit_and_the_oldest_goes(tmp_path: Path) -> None:
    store = PageStore(tmp_path, 100 * (PAGE + 40))
    for number in range(5):
        store.save("p", "checkpoint", f"vm-{number}", HASH, [page(number * 100 + n) for n in range(40)])
        os.utime(tmp_path / "p" / f"checkpoint-vm-{number}", (number, number))
    assert store.names("p", "checkpoint") == ["vm-4", "vm-3"]
    assert store.used_bytes() <= 100 * (PAGE + 40)
    store.save("p", "checkpoint", "vm-big", HASH, [page(n) for n in range(300)])
    assert store.names("p", "checkpoint") == ["vm-big"] and store.used_bytes() <= 101 * (PAGE + 40)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "x" * 200])
def test_a_name_cannot_lead_out_of_the_page_store(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="can't name"):
        PageStore(tmp_path, 1000).save(name, "checkpoint", "vm", HASH, [])


# frames


def parse(raw: bytes) -> Frame:
    async def read() -> Frame:
        reader = asyncio.StreamReader()
        reader.feed_data(raw)
        reader.feed_eof()
        return await frames.read(reader)

    return asyncio.run(read())


@given(
    st.sampled_from(FrameType), st.integers(0, 2**64 - 1), st.binary(max_size=2000), st.sampled_from([0, frames.MORE])
)
def test_frames_round_trip(type_: FrameType, sequence: int, payload: bytes, flags: int) -> None:
    frame = Frame(type_, sequence, payload, flags)
    assert parse(b"".join(frames.encode(frame))) == frame


@given(st.data())
def test_a_flipped_bit_is_never_taken_for_data(data: st.DataObject) -> None:
    raw = bytearray(b"".join(frames.encode(Frame(FrameType.DATA, 7, b"some payload of a frame"))))
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises((ProtocolError, asyncio.IncompleteReadError)):
        parse(bytes(raw))


@pytest.mark.parametrize(
    ("header", "what"),
    [
        ((9, FrameType.DATA, 0, 0, 0, 0), "version 9"),
        ((frames.VERSION, 99, 0, 0, 0, 0), "unknown frame type 99"),
        ((frames.VERSION, FrameType.DATA, 0, frames.PAYLOAD_BYTES_MAX + 1, 0, 0), "at most"),
        ((frames.VERSION, FrameType.DATA, 8, 0, 0, 0), "version"),
    ],
)
def test_the_error_names_what_is_wrong_with_a_frame(header: tuple[int, ...], what: str) -> None:
    with pytest.raises(ProtocolError, match=what):
        parse(frames.HEADER.pack(*header))


def test_a_connection_that_ends_within_a_frame_is_an_error() -> None:
    raw = b"".join(frames.encode(Frame(FrameType.DATA, 0, b"abc")))
    with pytest.raises(asyncio.IncompleteReadError):
        parse(raw[:-1])


def test_the_page_hash_matches_the_wire_format() -> None:
    """BLAKE3's own test vectors, without a key and with one."""
    published = PageHash(b"whats the Elvish word for friend")
    assert published.digest(b"").hex() == "92b2b75604ed3c761f9d6f62392c8a92"
    assert check_of(b"") == 0xAF1349B9F5F9A1A6
