"""DWCP sessions over real sockets and TLS."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from novacron import pki
from novacron.dwcp import codec, frames
from novacron.dwcp.frames import Frame, FrameType, Hello
from novacron.dwcp.receiver import Listener, ReceiveFailed
from novacron.dwcp.sender import Sender, SendFailed

SIZE = 3_000_000


class Ends:
    """Certificates of two nodes and of a stranger, and a listener of node b."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        authority = pki.Authority.open(directory / "ca")
        for name in ("a", "b", "c"):
            self._issue(authority, name)
        self._issue(pki.Authority.open(directory / "other"), "stranger")

    def _issue(self, authority: pki.Authority, name: str) -> None:
        key = pki.new_key()
        pki.write_secret(self.directory / f"{name}.key", pki.key_pem(key))
        certificate = authority.issue_node(pki.certificate_request(key, name), name)
        pki.write_secret(self.directory / f"{name}.crt", certificate)

    def tls(self, name: str, *, server: bool) -> ssl.SSLContext:
        return pki.mutual_tls(
            self.directory / "ca" / "ca.crt", self.directory / f"{name}.crt", self.directory / f"{name}.key",
            server=server,
        )  # fmt: skip

    def sender(self, port: int, name: str = "a", session: str = "s", streams: int = 1, peer: str = "b") -> Sender:
        return Sender(("127.0.0.1", port), self.tls(name, server=False), pki.node_host(peer), session, streams)


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Ends:
    return Ends(tmp_path_factory.mktemp("ends"))


@pytest.fixture
async def listening(ends: Ends) -> AsyncIterator[tuple[Listener, int]]:
    listener = Listener(ends.tls("b", server=True), pki.peer_name)
    async with listener.listen("127.0.0.1", 0) as port:
        yield listener, port


def source(data: bytes, piece: int = 200_000) -> Callable[[], Awaitable[bytes]]:
    pieces = iter([data[start : start + piece] for start in range(0, len(data), piece)])

    async def read() -> bytes:
        return next(pieces, b"")

    return read


async def receive(listener: Listener, peer: str = "a") -> bytes:
    received = bytearray()

    async def write(raw: bytes) -> None:
        received.extend(raw)

    with listener.expect("s", peer) as incoming:
        await incoming.receive(write)
    return bytes(received)


def sample() -> bytes:
    rng = random.Random(5)
    return b"".join(rng.choice((bytes(4096), rng.randbytes(4096), b"text " * 819)) for _ in range(SIZE // 4096))


@pytest.mark.parametrize("streams", [1, 4, 16])
async def test_every_byte_arrives_in_order(ends: Ends, listening: tuple[Listener, int], streams: int) -> None:
    listener, port = listening
    data = sample()
    receiving = asyncio.create_task(receive(listener))
    await asyncio.sleep(0)
    async with ends.sender(port, streams=streams) as sender:
        await sender.send(source(data))
    assert hashlib.sha256(await receiving).digest() == hashlib.sha256(data).digest()
    assert sender.counters.raw_bytes == len(data)
    assert sender.counters.wire_bytes < len(data) / 2


async def test_a_node_other_than_the_expected_one_is_refused(ends: Ends, listening: tuple[Listener, int]) -> None:
    listener, port = listening
    with listener.expect("s", "a"), pytest.raises(SendFailed, match="no session 's' is expected from c"):
        async with ends.sender(port, name="c"):
            pass


async def test_a_session_that_nobody_expects_is_refused(ends: Ends, listening: tuple[Listener, int]) -> None:
    with pytest.raises(SendFailed, match="no session"):
        async with ends.sender(listening[1], session="guess"):
            pass


async def test_a_certificate_of_another_authority_opens_nothing(ends: Ends, listening: tuple[Listener, int]) -> None:
    listener, port = listening
    with listener.expect("s", "stranger"), pytest.raises(SendFailed):
        async with ends.sender(port, name="stranger"):
            pass


async def test_a_receiver_that_is_not_the_named_node_gets_nothing(ends: Ends, listening: tuple[Listener, int]) -> None:
    with pytest.raises(SendFailed, match=r"(?i)certificate"):
        async with ends.sender(listening[1], peer="c"):
            pass


async def test_a_context_below_tls_13_or_without_proof_is_not_taken(ends: Ends) -> None:
    context = ends.tls("a", server=False)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ValueError, match=r"TLS 1\.3"):
        Sender(("127.0.0.1", 1), context, "x", "s")


async def raw_connection(ends: Ends, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection by hand and say HELLO as node a."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=ends.tls("a", server=False), server_hostname=pki.node_host("b")
    )
    hello = msgspec.msgpack.encode(Hello(frames.VERSION, "s", 0, 1, codec.NAME))
    writer.writelines(frames.encode(Frame(FrameType.HELLO, payload=hello)))
    assert (await frames.read(reader)).type is FrameType.WELCOME
    return reader, writer


def frame_of(raw: bytes, sequence: int, *, damage: bool = False) -> bytes:
    encoded = bytearray(b"".join(frames.encode(Frame(FrameType.DATA, sequence, codec.Encoder().encode(raw)))))
    if damage:
        encoded[-1] ^= 1
    return bytes(encoded)


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        ([frame_of(b"abc", 0, damage=True)], "checksum"),
        ([frame_of(b"abc", 0), frame_of(b"abc", 0)], "came twice|can't be decompressed"),
        ([b"".join(frames.encode(Frame(FrameType.DATA, 0, b"not zstd")))], "can't be decompressed"),
        ([b"".join(frames.encode(Frame(FrameType.WELCOME)))], "unexpected WELCOME"),
        ([b"".join(frames.encode(Frame(FrameType.END, 0, b"\xc1")))], "."),
        ([os.urandom(64)], "."),
    ],
)
async def test_a_damaged_or_lying_stream_ends_the_session(
    ends: Ends, listening: tuple[Listener, int], sent: list[bytes], why: str
) -> None:
    listener, port = listening
    receiving = asyncio.create_task(receive(listener))
    await asyncio.sleep(0)
    reader, writer = await raw_connection(ends, port)
    writer.writelines(sent)
    with pytest.raises(ReceiveFailed, match=why):
        await asyncio.wait_for(receiving, 10)
    answer = await asyncio.wait_for(frames.read(reader), 10)
    assert answer.type is FrameType.ERROR and answer.payload
    writer.close()


async def test_a_stream_cut_short_is_never_taken_for_whole(ends: Ends, listening: tuple[Listener, int]) -> None:
    listener, port = listening
    receiving = asyncio.create_task(receive(listener))
    await asyncio.sleep(0)
    _, writer = await raw_connection(ends, port)
    writer.write(frame_of(b"abc", 0))
    await writer.drain()
    writer.transport.abort()
    with pytest.raises(ReceiveFailed, match="a connection was lost"):
        await asyncio.wait_for(receiving, 10)


async def test_the_sender_learns_why_the_receiver_gave_up(ends: Ends, listening: tuple[Listener, int]) -> None:
    listener, port = listening

    async def full(_: bytes) -> None:
        raise OSError("no space left")

    async def receive_into_full() -> None:
        with listener.expect("s", "a") as incoming:
            await incoming.receive(full)

    receiving = asyncio.create_task(receive_into_full())
    await asyncio.sleep(0)
    with pytest.raises(SendFailed, match="no space left"):
        async with ends.sender(port) as sender:
            await asyncio.wait_for(sender.send(source(os.urandom(8_000_000))), 20)
    with pytest.raises(ReceiveFailed, match="no space left"):
        await receiving


async def test_a_slow_receiver_holds_the_sender_back(ends: Ends, listening: tuple[Listener, int]) -> None:
    """What the sender has read ahead is bounded: it is what becomes downtime when the guest stops."""
    listener, port = listening
    gate = asyncio.Event()

    async def write(_: bytes) -> None:
        await gate.wait()

    async def receive_slowly() -> None:
        with listener.expect("s", "a") as incoming:
            await incoming.receive(write)

    receiving = asyncio.create_task(receive_slowly())
    await asyncio.sleep(0)
    async with ends.sender(port, streams=4) as sender:
        sending = asyncio.create_task(sender.send(source(os.urandom(64_000_000))))
        last = -1
        while sender.counters.raw_bytes != last:
            last = sender.counters.raw_bytes
            await asyncio.sleep(0.5)
        assert last < 40_000_000
        gate.set()
        await asyncio.wait_for(sending, 30)
    await receiving
