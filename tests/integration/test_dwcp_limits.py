"""Hostile, old and unlucky peers over real sockets: the limits on them, and the errors they get."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest

from novacron import pki
from novacron.dwcp import frames
from novacron.dwcp import listener as listener_module
from novacron.dwcp.frames import BaseInfo, ErrorCode, Frame, FrameType, SessionHello, Welcome
from novacron.dwcp.listener import Listener
from novacron.dwcp.page_codec import DIGEST_BYTES
from novacron.dwcp.page_ring import SLOTS
from novacron.dwcp.receiver import ReceiveFailed
from novacron.dwcp.sender import SendFailed
from tests.support.dwcp import Ends, MemorySink, PieceSource, PlainPages, connect_as_node_a, receive
from tests.waiting import eventually

Answer = Callable[[SessionHello, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def peer(ends: Ends, answer: Answer) -> AsyncIterator[int]:
    """Listen as node b does, and answer each HELLO by hand; yields the port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            frame = await frames.read(reader)
            await answer(msgspec.msgpack.decode(frame.payload, type=SessionHello), reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=ends.tls("b", server=True))
    async with server:
        yield server.sockets[0].getsockname()[1]


def welcome(*bases: BaseInfo, slots: int = 0) -> tuple[bytes, bytes]:
    return frames.encode(Frame(FrameType.WELCOME, payload=msgspec.msgpack.encode(Welcome(0, (), bases, slots))))


async def test_a_sender_leaves_a_receiver_that_sends_more_digests_than_announced(ends: Ends) -> None:
    hellos = 0

    async def answer(_: SessionHello, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal hellos
        hellos += 1
        writer.writelines(welcome(BaseInfo("sibling", "s", 10, 10), BaseInfo("sibling", "other", 5, 5)))
        for first in range(0, 102_400, 4096):
            digests = b"".join(at.to_bytes(DIGEST_BYTES, "big") for at in range(first, first + 4096))
            writer.writelines(frames.encode(Frame(FrameType.BASE, first, digests)))
            await writer.drain()

    async with peer(ends, answer) as port, ends.sender(port) as sender:  # on another connection, without bases
        pass
    assert hellos == 2
    assert sender._encoder is not None and len(sender._encoder._bases) <= 10


async def test_a_receiver_cannot_fill_the_senders_disk(ends: Ends) -> None:
    async def answer(_: SessionHello, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.writelines(welcome(slots=2**40))
        await reader.read()

    async with peer(ends, answer) as port:
        sender = ends.sender(port)
        async with sender:
            assert sender._ring is not None and sender._ring._slots == SLOTS


@pytest.mark.parametrize(
    ("number", "code"),
    [(ErrorCode.NOT_EXPECTED, ErrorCode.NOT_EXPECTED), (0, ErrorCode.UNSPECIFIED), (4711, ErrorCode.UNSPECIFIED)],
)
async def test_a_sender_acts_on_a_refusals_code_and_not_on_its_text(ends: Ends, number: int, code: ErrorCode) -> None:
    async def answer(_: SessionHello, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.writelines(frames.encode(Frame(FrameType.ERROR, number, b"no session 's' is expected from a")))
        await reader.read()

    async with peer(ends, answer) as port:
        with pytest.raises(SendFailed, match="is expected from") as failed:
            await ends.sender(port).__aenter__()
    assert failed.value.code is code


async def test_an_unexpected_sender_gets_a_refusal_with_a_code(ends: Ends, listening: tuple[Listener, int]) -> None:
    with pytest.raises(SendFailed) as failed:
        await ends.sender(listening[1], session="x" * 5000).__aenter__()
    assert failed.value.code is ErrorCode.NOT_EXPECTED and len(str(failed.value)) < 500


@pytest.mark.parametrize("number", [ErrorCode.CANCELLED, 0, 4711])
async def test_a_receiver_learns_why_the_sender_gave_up_whatever_code_it_uses(
    ends: Ends, listening: tuple[Listener, int], number: int
) -> None:
    listener, port = listening
    receiving = asyncio.create_task(receive(listener, ends.terms()))
    await asyncio.sleep(0)
    _, writer = await connect_as_node_a(ends, port)
    writer.writelines(frames.encode(Frame(FrameType.ERROR, number, b"the sender gave up")))
    with pytest.raises(ReceiveFailed, match="the sender gave up") as failed:
        await asyncio.wait_for(receiving, 10)
    assert failed.value.code is ErrorCode(number)
    writer.close()


async def test_an_unforeseen_error_ends_the_session_at_both_ends_as_any_other(
    ends: Ends, listening: tuple[Listener, int]
) -> None:
    listener, port = listening

    class Broken(MemorySink):
        def write(self, data: bytes) -> None:
            raise LookupError("a defect")

    async def receive_into_broken() -> None:
        with listener.expect("s", "a", ends.terms()) as incoming:
            await incoming.receive(Broken())

    receiving = asyncio.create_task(receive_into_broken())
    await asyncio.sleep(0)
    with pytest.raises(SendFailed, match="a defect") as failed:
        async with ends.sender(port) as sender:
            await asyncio.wait_for(sender.send(PieceSource(b"x" * 1_000_000), PlainPages()), 20)
    assert failed.value.code is ErrorCode.LOCAL_FAILURE
    with pytest.raises(ReceiveFailed, match="a defect"):
        await receiving


async def test_an_unforeseen_error_of_the_sender_is_a_failed_session(
    ends: Ends, listening: tuple[Listener, int]
) -> None:
    listener, port = listening

    class Broken(PlainPages):
        def split(self, data: bytes):  # type: ignore[no-untyped-def]  # it returns nothing
            raise LookupError("a defect")

    receiving = asyncio.create_task(receive(listener, ends.terms()))
    await asyncio.sleep(0)
    with pytest.raises(SendFailed, match="a defect"):
        async with ends.sender(port) as sender:
            await asyncio.wait_for(sender.send(PieceSource(b"x" * 1_000_000), Broken()), 20)
    with pytest.raises(ReceiveFailed, match="gave up") as failed:
        await receiving
    assert failed.value.code is ErrorCode.CANCELLED


async def test_a_connection_lost_while_digests_are_sent_costs_only_their_savings(ends: Ends) -> None:
    """The encoder went on with a ring that was closed."""
    hellos = 0

    async def answer(_: SessionHello, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal hellos
        hellos += 1
        if hellos == 1:
            writer.writelines(welcome(BaseInfo("sibling", "s", 10, 10), slots=10_000))
            await writer.drain()
            return
        writer.writelines(welcome(slots=10_000))
        await reader.read()

    async with peer(ends, answer) as port, ends.sender(port) as sender:
        assert hellos == 2 and sender._ring is not None and sender._encoder is not None
        sender._encoder.encode(bytes(8) + b"page" * 1024, [(2, 0, 1, 0, 0, False)])


async def test_connections_of_one_node_are_limited_and_others_still_connect(
    ends: Ends, listening: tuple[Listener, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "CONNECTIONS_PER_PEER_MAX", 3)
    listener, port = listening
    writers = []

    async def connect(name: str) -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=ends.tls(name, server=False), server_hostname=pki.node_host("b")
        )
        writers.append(writer)
        writer.writelines(frames.encode(Frame(FrameType.VITALS)))
        return reader

    for _ in range(3):
        assert (await frames.read(await connect("a"))).type is FrameType.VITALS
    with pytest.raises((asyncio.IncompleteReadError, OSError)):
        await frames.read(await connect("a"))
    assert (await frames.read(await connect("c"))).type is FrameType.VITALS
    for writer in writers:
        writer.close()
    await eventually(lambda: not listener._by_peer, "the connections are forgotten")
