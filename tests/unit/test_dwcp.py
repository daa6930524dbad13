"""The codec and the frames of DWCP."""

from __future__ import annotations

import asyncio
import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.dwcp import frames
from novacron.dwcp.codec import Decoder, Encoder
from novacron.dwcp.frames import Frame, FrameType, ProtocolError


@given(st.lists(st.binary(min_size=1, max_size=5000), max_size=20), st.integers(1, 700))
def test_a_stream_comes_back_whatever_its_pieces_and_cuts(pieces: list[bytes], cut: int) -> None:
    encoder, decoder = Encoder(), Decoder()
    back = b""
    for piece in pieces:
        data = encoder.encode(piece)
        for start in range(0, len(data), cut):
            back += decoder.decode(data[start : start + cut])
    assert back == b"".join(pieces)


def test_nothing_of_a_piece_waits_for_the_next_one() -> None:
    encoder, decoder = Encoder(), Decoder()
    for piece in (b"a", os.urandom(100_000), b"x" * 1_000_000, b"b"):
        assert decoder.decode(encoder.encode(piece)) == piece


def test_a_page_that_comes_again_far_away_costs_little() -> None:
    encoder, page, filler = Encoder(), random.Random(1).randbytes(64 * 1024), random.Random(2).randbytes(32 << 20)
    encoder.encode(page)
    encoder.encode(filler)
    assert len(encoder.encode(page)) < len(page) / 20


def test_what_is_no_stream_is_refused() -> None:
    with pytest.raises(ProtocolError, match="can't be decompressed"):
        Decoder().decode(b"this is not zstd")


def parse(raw: bytes) -> Frame:
    async def read() -> Frame:
        reader = asyncio.StreamReader()
        reader.feed_data(raw)
        reader.feed_eof()
        return await frames.read(reader)

    return asyncio.run(read())


@given(st.sampled_from(FrameType), st.integers(0, 2**64 - 1), st.binary(max_size=2000))
def test_frames_come_back(type_: FrameType, sequence: int, payload: bytes) -> None:
    frame = Frame(type_, sequence, payload)
    assert parse(b"".join(frames.encode(frame))) == frame


@given(st.data())
def test_a_flipped_bit_is_never_taken_for_data(data: st.DataObject) -> None:
    raw = bytearray(b"".join(frames.encode(Frame(FrameType.DATA, 7, b"some payload of a frame"))))
    payload_bit = data.draw(st.integers(frames.HEADER.size * 8, len(raw) * 8 - 1))
    raw[payload_bit // 8] ^= 1 << payload_bit % 8
    with pytest.raises(ProtocolError, match="checksum"):
        parse(bytes(raw))


@pytest.mark.parametrize(
    ("header", "what"),
    [
        ((9, FrameType.DATA, 0, 0, 0, 0), "version 9"),
        ((frames.VERSION, 99, 0, 0, 0, 0), "unknown frame type 99"),
        ((frames.VERSION, FrameType.DATA, 0, frames.PAYLOAD_BYTES_MAX + 1, 0, 0), "at most"),
        ((frames.VERSION, FrameType.HELLO, 0, frames.CONTROL_BYTES_MAX + 1, 0, 0), "at most"),
    ],
)
def test_frames_that_are_not_allowed_are_named(header: tuple[int, ...], what: str) -> None:
    with pytest.raises(ProtocolError, match=what):
        parse(frames.HEADER.pack(*header))


def test_a_connection_that_ends_within_a_frame_is_an_error() -> None:
    raw = b"".join(frames.encode(Frame(FrameType.DATA, 0, b"abc")))
    with pytest.raises(asyncio.IncompleteReadError):
        parse(raw[:-1])
