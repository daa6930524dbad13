"""The receiving end: a listener, and the sessions that it expects."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import zlib
from collections.abc import Awaitable, Callable

import msgspec

from novacron.dwcp import codec, frames, sockets
from novacron.dwcp.frames import End, Frame, FrameType, Hello, ProtocolError
from novacron.dwcp.sender import STREAMS_MAX

REORDER_FRAMES_MAX = 256
HELLO_TIMEOUT_S = 10.0
CONNECTIONS_MAX = 256

Write = Callable[[bytes], Awaitable[None]]


class ReceiveFailed(Exception):
    """The session broke before its end: says why. What was written so far must be thrown away."""


class Incoming:
    """One expected session: puts frames in order again and writes the raw bytes out."""

    def __init__(self, session: str, peer: str) -> None:
        self.session = session
        self.peer = peer
        self.raw_bytes = 0
        self._joined: dict[int, asyncio.StreamWriter] = {}
        self._next = 0
        self._frames: dict[int, Frame] = {}
        self._changed = asyncio.Condition()
        self._failure: str | None = None
        self._over = asyncio.Event()

    def fail(self, reason: str) -> None:
        """End the session: its reader and its connections learn why."""
        self._failure = self._failure or reason
        self._over.set()

    async def receive(self, write: Write) -> None:
        """Write the whole stream out, then confirm it to the peer. Raises ReceiveFailed."""
        try:
            await self._receive(write)
        except (ProtocolError, OSError, msgspec.DecodeError) as error:
            self.fail(str(error) or type(error).__name__)
            raise ReceiveFailed(self._failure) from error
        finally:
            self._over.set()

    async def _receive(self, write: Write) -> None:
        decoder, crc = codec.Decoder(), 0
        while True:
            frame = await self._take()
            if frame.type is FrameType.END:
                end = msgspec.msgpack.decode(frame.payload, type=End)
                if (end.raw_bytes, end.crc32) != (self.raw_bytes, crc):
                    raise ProtocolError(f"received {self.raw_bytes} bytes, the peer sent {end.raw_bytes} or others")
                break
            raw = await asyncio.to_thread(decoder.decode, frame.payload)
            crc = zlib.crc32(raw, crc)
            self.raw_bytes += len(raw)
            await write(raw)
        for writer in self._joined.values():
            writer.writelines(frames.encode(Frame(FrameType.DONE)))

    async def _take(self) -> Frame:
        over = asyncio.create_task(self._over.wait())
        try:
            async with self._changed:
                while self._next not in self._frames:
                    if self._failure is not None:
                        raise ProtocolError(self._failure)
                    waiter = asyncio.create_task(self._changed.wait())
                    await asyncio.wait({waiter, over}, return_when=asyncio.FIRST_COMPLETED)
                    if not waiter.done():
                        waiter.cancel()
                        await asyncio.gather(waiter, return_exceptions=True)
                frame = self._frames.pop(self._next)
                self._next += 1
                self._changed.notify_all()
                return frame
        finally:
            over.cancel()

    async def _accept(self, frame: Frame) -> None:
        """Keep a frame; a connection whose frame is far ahead waits, and the others catch up."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: frame.sequence < self._next + REORDER_FRAMES_MAX or self._failure is not None
            )
            if frame.sequence < self._next or frame.sequence in self._frames:
                raise ProtocolError(f"frame {frame.sequence} came twice")
            self._frames[frame.sequence] = frame
            self._changed.notify_all()

    async def serve(self, hello: Hello, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take frames from one connection until the session is over."""
        if hello.stream in self._joined or not hello.stream < hello.streams <= STREAMS_MAX:
            raise ProtocolError(f"stream {hello.stream} of {hello.streams} can't join")
        self._joined[hello.stream] = writer
        writer.writelines(frames.encode(Frame(FrameType.WELCOME)))
        taking = asyncio.create_task(self._take_from(reader))
        over = asyncio.create_task(self._over.wait())
        try:
            await asyncio.wait({taking, over}, return_when=asyncio.FIRST_COMPLETED)
            if taking.done() and (error := taking.exception()) is not None and not self._over.is_set():
                self.fail(f"a connection was lost: {error or type(error).__name__}")
            await over
            if self._failure is not None:
                payload = self._failure.encode()[: frames.CONTROL_BYTES_MAX]
                writer.writelines(frames.encode(Frame(FrameType.ERROR, payload=payload)))
            await writer.drain()
        finally:
            taking.cancel()
            over.cancel()
            await asyncio.gather(taking, over, return_exceptions=True)

    async def _take_from(self, reader: asyncio.StreamReader) -> None:
        while True:
            frame = await frames.read(reader)
            if frame.type not in (FrameType.DATA, FrameType.END):
                raise ProtocolError(f"unexpected {frame.type.name} frame")
            await self._accept(frame)


class Listener:
    """Accepts connections of expected sessions, each from the one node that may open it."""

    def __init__(self, context: ssl.SSLContext, name_of: Callable[[ssl.SSLObject], str]) -> None:
        self._context = sockets.require_tls13(context)
        self._name_of = name_of
        self._expected: dict[str, Incoming] = {}
        self._connections = 0

    @contextlib.asynccontextmanager
    async def listen(self, host: str, port: int):  # type: ignore[no-untyped-def]
        """Listen for as long as the block runs; yields the port."""
        server = await asyncio.start_server(self._serve, host, port, ssl=self._context, backlog=64)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            for incoming in list(self._expected.values()):
                incoming.fail("the receiving node is shutting down")
            server.close()

    @contextlib.contextmanager
    def expect(self, session: str, peer: str):  # type: ignore[no-untyped-def]
        """Expect a session from a node, for as long as the block runs; yields its ``Incoming``."""
        if session in self._expected:
            raise ValueError(f"session {session} is expected already")
        incoming = Incoming(session, peer)
        self._expected[session] = incoming
        try:
            yield incoming
        finally:
            incoming.fail("the receiver gave up")
            del self._expected[session]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections > CONNECTIONS_MAX:
                return
            sockets.tune(writer.get_extra_info("socket"))
            try:
                frame = await asyncio.wait_for(frames.read(reader), HELLO_TIMEOUT_S)
                if frame.type is not FrameType.HELLO:
                    raise ProtocolError(f"expected HELLO, got {frame.type.name}")
                hello = msgspec.msgpack.decode(frame.payload, type=Hello)
                incoming = self._expected.get(hello.session)
                peer = self._name_of(writer.get_extra_info("ssl_object"))
                if incoming is None or incoming.peer != peer:
                    raise ProtocolError(f"no session {hello.session!r} is expected from {peer}")
                if hello.codec != codec.NAME:
                    raise ProtocolError(f"codec {hello.codec!r} is not known here")
                await incoming.serve(hello, reader, writer)
            except (ProtocolError, msgspec.DecodeError, ssl.SSLError) as error:
                writer.writelines(frames.encode(Frame(FrameType.ERROR, payload=str(error).encode()[:1000])))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the peer is gone; its session, if it had one, was told by `serve`
        finally:
            self._connections -= 1
            writer.close()
