"""Both ends of DWCP sessions: certificates, listener, streams and sinks."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import ssl
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec

from novacron import pki
from novacron.dwcp import frames
from novacron.dwcp.connection import ConnectionPool
from novacron.dwcp.frames import Frame, FrameType, SessionHello, Welcome
from novacron.dwcp.listener import Listener
from novacron.dwcp.page_codec import Base, PageHash, Run
from novacron.dwcp.page_ring import PAGE
from novacron.dwcp.receiver import ReceiveOptions
from novacron.dwcp.sender import Sender, SendFailed, SendOptions
from tests.waiting import pause_async

SIZE = 3_000_000
KEY = b"k" * 32
OUTAGE_S = 6.0


class PlainPages:
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


class MemoryBase:
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


class PieceSource:
    """A stream of ``data``."""

    def __init__(self, data: bytes, piece: int = 200_000) -> None:
        self.piece_bytes = piece
        self._pieces = iter([data[start : start + piece] for start in range(0, len(data), piece)])

    def read(self) -> bytes:
        return next(self._pieces, b"")

    def abort(self) -> None:
        self._pieces = iter(())


class MemorySink:
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
    kept = MemorySink()
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
            await asyncio.wait_for(sender.send(PieceSource(data), PlainPages()), 60)
    except SendFailed:
        await asyncio.gather(receiving, return_exceptions=True)  # it failed too, and says why
        raise
    assert hashlib.sha256(await receiving).digest() == hashlib.sha256(data).digest()
    return sender


def sample_stream() -> bytes:
    rng = random.Random(5)
    return b"".join(rng.choice((bytes(4096), rng.randbytes(4096), b"text " * 819)) for _ in range(SIZE // 4096))


class FaultyRelay:
    """A relay between two nodes that can do what a bad path does."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.port = 0
        self.dead = False
        """Nothing goes through, and nobody is told."""
        self.flip = False
        """Change a byte of the next data towards the receiver."""
        self.repeat = False
        self.truncate = False
        self.passed = 0
        self._writers: list[asyncio.StreamWriter] = []
        self.connections = 0

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[FaultyRelay]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self.cut()
            server.close()

    def cut(self, count: int | None = None) -> None:
        """Reset connections: all, or the first ``count``."""
        for writer in self._writers[: None if count is None else 2 * count]:
            writer.transport.abort()
        self._writers = [writer for writer in self._writers if not writer.is_closing()]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.dead:
            await pause_async(30)  # a SYN that nobody answers
            return
        self.connections += 1
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._to)
        self._writers += [writer, to_writer]
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, to_writer, outward=True))
                group.create_task(self._pump(to_reader, writer, outward=False))
        except* OSError:
            pass
        finally:
            for each in (writer, to_writer):
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, outward: bool) -> None:
        while data := await reader.read(16 * 1024):
            while self.dead:
                await pause_async(0.05)
                if writer.is_closing():
                    return
            if outward and self.passed > 50_000:
                if self.flip:
                    self.flip, data = False, data[:-1] + bytes([data[-1] ^ 1])
                elif self.repeat:
                    self.repeat, data = False, data + data
                elif self.truncate:
                    self.truncate, data = False, data[: len(data) // 2]
            self.passed += len(data)
            writer.write(data)
            await writer.drain()
            await pause_async(0.002)
        writer.close()


async def connect_as_node_a(ends: Ends, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection by hand and say HELLO as node a."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=ends.tls("a", server=False), server_hostname=pki.node_host("b")
    )
    check = PageHash(KEY).digest(b"key check")
    hello = msgspec.msgpack.encode(SessionHello(frames.VERSION, "s", b"i" * 16, check))
    writer.writelines(frames.encode(Frame(FrameType.HELLO, payload=hello)))
    answer = await frames.read(reader)
    assert answer.type is FrameType.WELCOME
    msgspec.msgpack.decode(answer.payload, type=Welcome)
    return reader, writer
