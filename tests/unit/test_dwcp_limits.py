"""What a hostile peer sends takes no more memory than the protocol allows."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest

from novacron.dwcp import connection as connection_module
from novacron.dwcp import receiver_index, sockets
from novacron.dwcp.connection import FrameConnection
from novacron.dwcp.frames import (
    MISSING_MAX,
    BaseInfo,
    ErrorCode,
    Frame,
    FrameType,
    MissingPages,
    ProtocolError,
    RepairedPages,
    Welcome,
    error_frame,
    read_error,
)
from novacron.dwcp.page_codec import DIGEST_BYTES, PageHash
from novacron.dwcp.page_encoder import Encoder
from novacron.dwcp.page_ring import PAGE, PageRing
from novacron.dwcp.receiver import ReceiveOptions, ReceiveSession
from novacron.dwcp.receiver_index import ReceiverIndex

HASH = PageHash(b"k" * 32)


def index(*infos: BaseInfo) -> tuple[ReceiverIndex, Encoder]:
    encoder, receiver = Encoder(HASH, None), ReceiverIndex(HASH, (), {})
    receiver.meet(infos, encoder)
    return receiver, encoder


def base_frame(first: int, count: int, number: int = 0) -> Frame:
    digests = b"".join((number << 60 | at).to_bytes(DIGEST_BYTES, "big") for at in range(first, first + count))
    return Frame(FrameType.BASE, number << 40 | first, digests)


@pytest.mark.parametrize(("first", "count"), [(0, 11), (5, 6), (2**39, 1)])
def test_more_digests_than_a_base_announced_end_the_session(first: int, count: int) -> None:
    receiver, encoder = index(BaseInfo("sibling", "s", 10, 10))
    with pytest.raises(ProtocolError, match="more digests than the 10 announced"):
        receiver.take(base_frame(first, count))
    assert not encoder._bases


def test_digests_that_are_sent_twice_end_the_session() -> None:
    receiver, encoder = index(BaseInfo("sibling", "s", 10, 10))
    receiver.take(base_frame(0, 10))
    with pytest.raises(ProtocolError, match="more digests"):
        receiver.take(base_frame(0, 1))
    assert len(encoder._bases) == 10


def test_digests_beyond_the_limit_are_counted_and_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver_index, "DIGESTS_MAX", 1500)
    receiver, encoder = index(BaseInfo("checkpoint", "a", 1000, 1000), BaseInfo("sibling", "b", 1000, 1000))
    receiver.take(base_frame(0, 1000))
    receiver.take(base_frame(0, 1000, 1))
    assert len(encoder._bases) == 1500
    assert receiver.can_begin() and receiver.covers(10**9), "an honest peer with more pages is not waited for"


def test_a_kind_of_base_from_the_wire_names_no_attribute() -> None:
    for kind in ("after_compression", "__class__", "of a newer version"):
        encoder = Encoder(HASH, None)
        page = random.Random(1).randbytes(PAGE)
        encoder.add_base(0, kind, 0, [HASH.digest(page)])
        encoder.encode(bytes(8) + page, [(2, 0, 1, 0, 0, False)])
        assert encoder.savings.sibling == 1 and encoder.savings.after_compression == 0


def test_a_ring_smaller_than_its_margin_offers_no_slots(tmp_path: Path) -> None:
    encoder = Encoder(HASH, PageRing(tmp_path, 1))
    page = random.Random(1).randbytes(PAGE)
    for _ in range(3):
        encoder.encode(bytes(8) + page, [(2, 0, 1, 0, 0, False)])
    assert encoder.savings.session == 0 and not encoder._held


@pytest.mark.parametrize(
    "payload",
    [
        {"next": -1, "held": (), "bases": (), "slots": 0},
        {"next": 0, "held": (-1,), "bases": (), "slots": 0},
        {"next": 0, "held": (), "bases": (), "slots": -1},
        {"next": 0, "held": (), "bases": ({"kind": "x", "name": "x", "count": -1, "told": 0},), "slots": 0},
    ],
)
def test_a_welcome_with_negative_numbers_is_refused(payload: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(payload), type=Welcome)


@pytest.mark.parametrize("ordinals", [(0,) * (MISSING_MAX + 1), (-1,)])
def test_a_request_for_too_many_pages_or_none_that_is_there_is_refused(ordinals: tuple[int, ...]) -> None:
    raw = msgspec.msgpack.encode({"piece": 0, "ordinals": ordinals})
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(raw, type=MissingPages)


def repairing(tmp_path: Path, *ordinals: int) -> ReceiveSession:
    incoming = ReceiveSession("s", "a", ReceiveOptions(b"k" * 32, tmp_path, slots=1))
    incoming._repairing, incoming._requested = 3, frozenset(ordinals)
    return incoming


def test_unrequested_pages_are_not_stored(tmp_path: Path) -> None:
    incoming = repairing(tmp_path, 1, 7)
    for first in range(0, 150, 15):
        ordinals = tuple(range(first, first + 15))
        incoming._take_repair(RepairedPages(3, ordinals, b"x" * PAGE * 15))
    incoming._take_repair(RepairedPages(4, (1,), b"y" * PAGE))
    assert incoming._repaired == {1: b"x" * PAGE, 7: b"x" * PAGE} and incoming._failure is None


@pytest.mark.parametrize(("ordinals", "size"), [((1, 7), PAGE), ((1,), 60_000), ((), PAGE), ((1,), 0)])
def test_pages_of_another_size_end_the_session(tmp_path: Path, ordinals: tuple[int, ...], size: int) -> None:
    incoming = repairing(tmp_path, 1, 7)
    incoming._take_repair(RepairedPages(3, ordinals, b"x" * size))
    assert not incoming._repaired
    assert incoming._failure is not None and incoming._failure[1] is ErrorCode.PROTOCOL


class Transport:
    """A peer that reads nothing."""

    def __init__(self) -> None:
        self.waiting = 0
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True


def test_a_peer_that_keeps_asking_and_never_reads_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "tune", lambda _: None)
    transport = Transport()

    def write(parts: tuple[bytes, ...]) -> None:
        transport.waiting += sum(map(len, parts))

    writer = SimpleNamespace(
        transport=transport, writelines=write, is_closing=lambda: transport.aborted, get_extra_info=lambda _: None
    )
    link = FrameConnection(cast("object", None), cast("object", writer))  # type: ignore[arg-type]  # a stand-in
    with pytest.raises(ConnectionResetError, match="does not read"):
        for _ in range(2_000_000):
            link.put(Frame(FrameType.ACK, payload=b"x" * 1000))
    assert transport.aborted and transport.waiting < connection_module.UNREAD_BYTES_MAX + 5000


# errors


@pytest.mark.parametrize("code", ErrorCode)
def test_the_code_of_an_error_arrives_with_its_text(code: ErrorCode) -> None:
    assert read_error(error_frame("why", code)) == (code, "why")


@pytest.mark.parametrize("number", [99, 2**64 - 1])
def test_an_unknown_error_code_is_read_as_unspecified(number: int) -> None:
    assert read_error(Frame(FrameType.ERROR, number, b"new")) == (ErrorCode.UNSPECIFIED, "new")


def test_an_error_of_a_peer_without_codes_is_unspecified_whatever_its_text_says() -> None:
    frame = Frame(FrameType.ERROR, 0, b"no session 'x.rest' is expected from a")
    assert read_error(frame)[0] is ErrorCode.UNSPECIFIED


def test_an_error_text_is_truncated_and_may_be_invalid_utf_8() -> None:
    assert len(error_frame("é" * 5000, ErrorCode.PROTOCOL).payload) <= 1000
    code, text = read_error(Frame(FrameType.ERROR, 1, b"\xff" * 60_000))
    assert code is ErrorCode.PROTOCOL and len(text) <= 1000
