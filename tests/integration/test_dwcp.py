"""DWCP sessions over real sockets and TLS."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import ssl
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import uvloop

from novacron import pki
from novacron.dwcp import sender as sender_module
from novacron.dwcp import sockets
from novacron.dwcp.connection import ConnectionPool
from novacron.dwcp.listener import Listener
from novacron.dwcp.page_codec import Base, PageHash, Run
from novacron.dwcp.page_ring import PAGE
from novacron.dwcp.receiver import ReceiveFailed, ReceiveOptions
from novacron.dwcp.sender import Sender, SendFailed, SendOptions
from tests.waiting import pause_async

SIZE = 3_000_000
KEY = b"k" * 32
OUTAGE_S = 6.0


class Plain:
    """Splits a stream of nothing but pages without headers, each 4096 bytes."""

    def __init__(self) -> None:
        self._rest = b""

    def split(self, data: bytes) -> tuple[bytes, list[Run]]:
        data = self._rest + data
        whole = len(data) // PAGE * PAGE
        self._rest = data[whole:]
        return data[:whole], [(2, at, 1, at, 0, True) for at in range(0, whole, PAGE)]

    def finish(self) -> tuple[bytes, list[Run]]:
        return self._rest, [(0, 0, len(self._rest), 0, 0, False)] if self._rest else []


class Held:
    """A base in memory."""

    kind: str = "sibling"

    def __init__(self, name: str, pages: list[bytes], *, sealed: bool = False) -> None:
        self.name = name
        self.sealed = sealed
        self.pages = pages
        self.digests: Sequence[bytes] = [PageHash(KEY).digest(page) for page in pages]

    def read(self, index: int, count: int) -> bytes:
        return b"".join(self.pages[index : index + count])


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

    def pool(self, name: str = "a") -> ConnectionPool:
        return ConnectionPool(lambda: self.tls(name, server=False))

    def sender(
        self, port: int, name: str = "a", session: str = "s", streams: int | None = 1, peer: str = "b",
        pool: ConnectionPool | None = None, bases: tuple[Base, ...] = (), method: int | None = None,
    ) -> Sender:  # fmt: skip
        options = SendOptions(KEY, self.directory / "rings", bases, OUTAGE_S, streams, None, method)
        return Sender(
            ("127.0.0.1", port), pki.node_host(peer), session, self.pool(name) if pool is None else pool, options
        )

    def terms(self, bases: tuple[Base, ...] = ()) -> ReceiveOptions:
        return ReceiveOptions(KEY, self.directory / "rings", bases, OUTAGE_S)


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Ends:
    return Ends(tmp_path_factory.mktemp("ends"))


@pytest.fixture
async def listening(ends: Ends) -> AsyncIterator[tuple[Listener, int]]:
    listener = Listener(ends.tls("b", server=True), pki.peer_name)
    async with listener.listen("127.0.0.1", 0) as port:
        yield listener, port


class source:
    """A stream of ``data``."""

    def __init__(self, data: bytes, piece: int = 200_000) -> None:
        self.piece_bytes = piece
        self._pieces = iter([data[start : start + piece] for start in range(0, len(data), piece)])

    def read(self) -> bytes:
        return next(self._pieces, b"")

    def abort(self) -> None:
        self._pieces = iter(())


class Kept:
    """A sink in memory."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> None:
        self.data += data

    def finish(self) -> None:
        pass

    def abort(self) -> None:
        pass


async def receive(listener: Listener, terms: ReceiveOptions, session: str = "s") -> bytes:
    kept = Kept()
    with listener.expect(session, "a", terms) as incoming:
        await incoming.receive(kept)
    return bytes(kept.data)


async def carry(
    ends: Ends, listener: Listener, port: int, data: bytes, *, bases: tuple[Base, ...] = (),
    pool: ConnectionPool | None = None, session: str = "s", streams: int | None = 1, own: tuple[Base, ...] = (),
    method: int | None = 1,
) -> Sender:  # fmt: skip
    """Carry ``data`` over a session and see that it arrives; return the sender with its counters."""
    receiving = asyncio.create_task(receive(listener, ends.terms(bases), session))
    await asyncio.sleep(0)
    try:
        async with ends.sender(port, session=session, streams=streams, pool=pool, bases=own, method=method) as sender:
            await asyncio.wait_for(sender.send(source(data), Plain()), 60)
    except SendFailed:
        await asyncio.gather(receiving, return_exceptions=True)  # it failed too, and says why
        raise
    assert hashlib.sha256(await receiving).digest() == hashlib.sha256(data).digest()
    return sender


def sample() -> bytes:
    rng = random.Random(5)
    return b"".join(rng.choice((bytes(4096), rng.randbytes(4096), b"text " * 819)) for _ in range(SIZE // 4096))


@pytest.mark.parametrize("streams", [1, 4, 16])
async def test_every_byte_arrives_in_order(ends: Ends, listening: tuple[Listener, int], streams: int) -> None:
    listener, port = listening
    data = sample()
    sender = await carry(ends, listener, port, data, streams=streams)
    assert sender.counters.raw_bytes == len(data)
    assert sender.counters.wire_bytes < len(data) / 2


async def test_a_node_other_than_the_expected_one_is_refused(ends: Ends, listening: tuple[Listener, int]) -> None:
    listener, port = listening
    with listener.expect("s", "a", ends.terms()), pytest.raises(SendFailed, match="no session 's' is expected from c"):
        async with ends.sender(port, name="c"):
            pass


async def test_a_session_that_nobody_expects_is_refused(ends: Ends, listening: tuple[Listener, int]) -> None:
    with pytest.raises(SendFailed, match="no session"):
        async with ends.sender(listening[1], session="guess"):
            pass


async def test_a_certificate_of_another_authority_opens_nothing(
    ends: Ends, listening: tuple[Listener, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "OPEN_TIMEOUT_S", 1.0)
    listener, port = listening
    with listener.expect("s", "stranger", ends.terms()), pytest.raises(SendFailed):
        async with ends.sender(port, name="stranger"):
            pass


async def test_a_receiver_that_is_not_the_named_node_gets_nothing(ends: Ends, listening: tuple[Listener, int]) -> None:
    with pytest.raises(SendFailed, match=r"(?i)certificate"):
        async with ends.sender(listening[1], peer="c"):
            pass


async def test_a_tls_context_below_1_3_or_without_client_certificates_is_rejected(ends: Ends) -> None:
    context = ends.tls("a", server=False)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ValueError, match=r"TLS 1\.3"):
        await ConnectionPool(lambda: context).take(("127.0.0.1", 1), "x")


async def test_the_sender_learns_why_the_receiver_gave_up(ends: Ends, listening: tuple[Listener, int]) -> None:
    listener, port = listening

    class Full(Kept):
        def write(self, data: bytes) -> None:
            raise OSError("no space left")

    async def receive_into_full() -> None:
        with listener.expect("s", "a", ends.terms()) as incoming:
            await incoming.receive(Full())

    receiving = asyncio.create_task(receive_into_full())
    await asyncio.sleep(0)
    with pytest.raises(SendFailed, match="no space left"):
        async with ends.sender(port) as sender:
            await asyncio.wait_for(sender.send(source(os.urandom(8_000_000)), Plain()), 20)
    with pytest.raises(ReceiveFailed, match="no space left"):
        await receiving


async def test_a_slow_receiver_holds_the_sender_back(ends: Ends, listening: tuple[Listener, int]) -> None:
    """What the sender has read ahead is bounded: it is what becomes downtime when the guest stops."""
    listener, port = listening
    gate = threading.Event()

    class Slow(Kept):
        def write(self, data: bytes) -> None:
            gate.wait(60)

    async def receive_slowly() -> None:
        with listener.expect("s", "a", ends.terms()) as incoming:
            await incoming.receive(Slow())

    receiving = asyncio.create_task(receive_slowly())
    await asyncio.sleep(0)
    async with ends.sender(port, streams=4) as sender:
        sending = asyncio.create_task(sender.send(source(os.urandom(80_000_000)), Plain()))
        last = -1
        while sender.counters.raw_bytes != last:
            last = sender.counters.raw_bytes
            await pause_async(0.5)
        assert last < 50_000_000
        gate.set()
        await asyncio.wait_for(sending, 30)
    await receiving


def test_a_connection_that_was_dropped_a_moment_ago_can_still_be_asked() -> None:
    """In uvloop, as in the agent: found by a link that died late in a migration, which ended it."""

    async def drop() -> None:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        async with server:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            sock = writer.get_extra_info("socket")
            assert sockets.measured(sock) is not None
            writer.transport.abort()
            await pause_async(0.1)
            assert sockets.measured(sock) is None
            sockets.pace(sock, 1_000_000)

    uvloop.run(drop())
