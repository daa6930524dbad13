"""DWCP's data path alone: a recorded stream of a guest through the codec, and between two processes over loopback."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import threading
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection as Channel
from pathlib import Path
from typing import NamedTuple

from lab.hosts import Host
from novacron import pki
from novacron.dwcp.compression import FIRST, Compressor
from novacron.dwcp.connection import ConnectionPool
from novacron.dwcp.listener import Listener
from novacron.dwcp.page_codec import PageHash
from novacron.dwcp.page_encoder import Encoder
from novacron.dwcp.page_ring import PageRing
from novacron.dwcp.receiver import ReceiveOptions
from novacron.dwcp.sender import Sender, SendOptions
from novacron.qemu.stream import RamSplitter

KEY = b"k" * 32
PIECE_BYTES = 512 * 1024


class Recorded:
    """A recorded stream as a source."""

    def __init__(self, path: Path) -> None:
        self.piece_bytes = PIECE_BYTES
        self._file = path.open("rb")

    def read(self) -> bytes:
        return self._file.read(self.piece_bytes)

    def abort(self) -> None:
        pass


class Nowhere:
    """A sink that only counts."""

    def __init__(self) -> None:
        self.size = 0

    def write(self, data: bytes) -> None:
        self.size += len(data)

    def finish(self) -> None:
        pass

    def abort(self) -> None:
        pass


def codec(stream: Path, directory: Path, method: int = FIRST) -> tuple[float, int]:
    """Encode and compress a stream in one thread; return the seconds that took, and the bytes that came out."""
    encoder, compressor, splitter = (
        Encoder(PageHash(KEY), PageRing(directory)),
        Compressor(method, fixed=True),
        RamSplitter(),
    )
    source, sent = Recorded(stream), 0
    started = time.monotonic()
    while True:
        data = source.read()
        part, runs = splitter.split(data) if data else splitter.finish()
        if part:
            piece = encoder.encode(part, runs)
            sent += len(piece.finish(*compressor.compress(piece.body)))
        if not data:
            return time.monotonic() - started, sent


def issue(directory: Path) -> None:
    """Make a CA and the certificates of nodes a and b."""
    authority = pki.Authority.open(directory / "ca")
    for name in ("a", "b"):
        key = pki.new_key()
        pki.write_secret(directory / f"{name}.key", pki.key_pem(key))
        pki.write_secret(directory / f"{name}.crt", authority.issue_node(pki.certificate_request(key, name), name))


def _listener(directory: Path) -> Listener:
    files = (directory / "ca" / "ca.crt", directory / "b.crt", directory / "b.key")
    return Listener(pki.mutual_tls(*files, server=True), pki.peer_name)


def _pool(directory: Path) -> ConnectionPool:
    files = (directory / "ca" / "ca.crt", directory / "a.crt", directory / "a.key")
    return ConnectionPool(lambda: pki.mutual_tls(*files, server=False))


class Carried(NamedTuple):
    """How a stream was carried: seconds from its first byte to its last, and processor seconds of each end."""

    took_s: float
    sender_s: float
    receiver_s: float


def _receive(directory: Path, channel: Channel, host: Host) -> None:
    async def serve() -> None:
        listener = _listener(directory)
        async with listener.listen("127.0.0.1" if host.netns is None else host.address, 0) as port:
            with listener.expect("s", "a", ReceiveOptions(KEY, directory / "rings")) as incoming:
                channel.send(port)
                sink, began = Nowhere(), time.process_time()
                await incoming.receive(sink)
                channel.send((sink.size, time.process_time() - began))
                await asyncio.sleep(1)

    host.within(lambda: _run(serve))


def _run(work: Callable[[], Awaitable[None]]) -> None:
    import uvloop

    async def whole() -> None:
        await work()

    uvloop.run(whole())


HERE = Host("here", None, 1)


def carry(stream: Path, directory: Path, source: Host = HERE, target: Host = HERE) -> Carried:
    """Send a stream from this process to another over TLS, each on its host."""
    issue(directory)
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    receiver = context.Process(target=_receive, args=(directory, there, target))
    receiver.start()
    port = here.recv()
    took_s = sender_s = 0.0

    async def send() -> None:
        nonlocal took_s, sender_s
        options = SendOptions(KEY, directory / "rings")
        async with Sender((target.address, port), pki.node_host("b"), "s", _pool(directory), options) as sender:
            started, began = time.monotonic(), time.process_time()
            await sender.send(Recorded(stream), RamSplitter())
            took_s, sender_s = time.monotonic() - started, time.process_time() - began

    try:
        source.within(lambda: _run(send))
        size, receiver_s = here.recv()
        if size != stream.stat().st_size:
            raise RuntimeError("not all of the stream arrived")
    finally:
        receiver.join(10)
        receiver.kill()
    return Carried(took_s, sender_s, receiver_s)


def handshakes(hosts: list[Host], directory: Path, rounds: int) -> tuple[list[float], list[float]]:
    """Open sessions over the WAN, each on a new connection, then on one that waits; return the milliseconds of each."""
    issue(directory)
    port, stop = 17445, threading.Event()
    ready = threading.Event()

    async def serve() -> None:
        listener = _listener(directory)
        async with listener.listen("0.0.0.0", port):
            with contextlib.ExitStack() as expected:
                for number in range(2 * rounds):
                    expected.enter_context(
                        listener.expect(f"s{number}", "a", ReceiveOptions(KEY, directory / "rings", slots=1))
                    )
                ready.set()
                while not stop.is_set():  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

    cold: list[float] = []
    warm: list[float] = []

    async def measure() -> None:
        pool = _pool(directory)
        endpoint, peer = (hosts[1].address, port), pki.node_host("b")
        options = SendOptions(KEY, directory / "rings")
        for number in range(2 * rounds):
            if number % 2:
                pool.warm(endpoint, peer, 1)
                while pool.idle < 1:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            started = time.monotonic()
            sender = Sender(endpoint, peer, f"s{number}", pool, options)
            await sender.__aenter__()
            (warm if number % 2 else cold).append((time.monotonic() - started) * 1e3)
            await sender.__aexit__(RuntimeError)
        pool.close()

    thread = threading.Thread(target=lambda: hosts[1].within(lambda: _run(serve)), daemon=True)
    thread.start()
    ready.wait(10)
    try:
        hosts[0].within(lambda: _run(measure))
    finally:
        stop.set()
        thread.join(10)
    return cold, warm
