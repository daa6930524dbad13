"""The sending end of a session."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import zlib
from collections.abc import Awaitable, Callable

import msgspec

from novacron.dwcp import codec, frames, sockets
from novacron.dwcp.frames import End, Frame, FrameType, Hello, ProtocolError

STREAMS_MAX = 16
CONNECT_TIMEOUT_S = 10.0
DONE_TIMEOUT_S = 60.0
WRITE_BUFFER_BYTES = 64 * 1024
FRAME_BYTES = 64 * 1024
"""Frames are small, so that the streams share the work evenly to the end."""

Read = Callable[[], Awaitable[bytes]]


class Counters(msgspec.Struct):
    """What a session has carried so far."""

    raw_bytes: int = 0
    wire_bytes: int = 0
    streams: int = 0


class SendFailed(Exception):
    """The session broke: says where, and what was found."""


class Sender:
    """Sends one stream of bytes to a peer's listener.

    ``session`` names it; the listener must expect it from this node. ``peer_host`` is the name that the peer's
    certificate must carry. ``streams`` None leaves the number of connections to what the kernel can do.
    """

    def __init__(
        self,
        endpoint: tuple[str, int],
        context: ssl.SSLContext,
        peer_host: str,
        session: str,
        streams: int | None = None,
    ) -> None:
        streams = sockets.streams_default() if streams is None else streams
        if not 1 <= streams <= STREAMS_MAX:
            raise ValueError(f"streams: {streams} is not between 1 and {STREAMS_MAX}")
        self.counters = Counters(streams=streams)
        self._endpoint = endpoint
        self._context = sockets.require_tls13(context)
        self._peer_host = peer_host
        self._session = session
        self._streams = streams
        self._queue: asyncio.Queue[Frame | None] = asyncio.Queue(streams)
        self._connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._sequence = 0

    async def __aenter__(self) -> Sender:
        """Open all connections. Raises SendFailed."""
        opening = [asyncio.create_task(self._open(stream)) for stream in range(self._streams)]
        try:
            self._connections = list(await asyncio.gather(*opening))
        except (OSError, TimeoutError, ProtocolError, asyncio.IncompleteReadError) as error:
            for task in opening:
                task.cancel()
            for result in await asyncio.gather(*opening, return_exceptions=True):
                if not isinstance(result, BaseException):
                    result[1].close()
            host, port = self._endpoint
            raise SendFailed(f"can't open a session to {host}:{port}: {error or type(error).__name__}") from error
        return self

    async def __aexit__(self, *_: object) -> None:
        writers = [writer for _, writer in self._connections]
        for writer in writers:
            writer.close()
        for writer in writers:
            with contextlib.suppress(OSError, TimeoutError):  # the peer may have gone first
                await asyncio.wait_for(writer.wait_closed(), 2)

    async def _open(self, stream: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self._endpoint
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(
                host, port, ssl=self._context, server_hostname=self._peer_host, limit=frames.CONTROL_BYTES_MAX
            )
            try:
                sockets.tune(writer.get_extra_info("socket"))
                writer.transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)
                hello = Hello(frames.VERSION, self._session, stream, self._streams, codec.NAME)
                writer.writelines(frames.encode(Frame(FrameType.HELLO, payload=msgspec.msgpack.encode(hello))))
                answer = await frames.read(reader)
                if answer.type is not FrameType.WELCOME:
                    raise ProtocolError(f"refused: {answer.payload.decode(errors='replace')}")
            except BaseException:
                writer.close()
                raise
        return reader, writer

    async def send(self, read: Read) -> None:
        """Send what ``read`` returns until it returns nothing, and wait until the peer has it all.

        Raises SendFailed; the caller must then treat the whole stream as lost.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for _, writer in self._connections:
                    group.create_task(self._drain(writer))
                watch = group.create_task(self._watch())
                await self._encode(read)
                for _ in self._connections:
                    await self._queue.put(None)
                await asyncio.wait_for(asyncio.shield(watch), DONE_TIMEOUT_S)
        except ExceptionGroup as group_error:
            first = group_error.exceptions[0]
            if not isinstance(first, OSError | ProtocolError | EOFError):
                raise
            raise SendFailed(f"the session broke: {first or type(first).__name__}") from first

    async def _encode(self, read: Read) -> None:
        encoder, crc = codec.Encoder(), 0
        while raw := await read():
            crc = zlib.crc32(raw, crc)
            data = await asyncio.to_thread(encoder.encode, raw)
            self.counters.raw_bytes += len(raw)
            for start in range(0, len(data), FRAME_BYTES):
                await self._put(FrameType.DATA, data[start : start + FRAME_BYTES])
        await self._put(FrameType.END, msgspec.msgpack.encode(End(self.counters.raw_bytes, crc)))

    async def _put(self, type_: FrameType, payload: bytes) -> None:
        await self._queue.put(Frame(type_, self._sequence, payload))
        self._sequence += 1

    async def _drain(self, writer: asyncio.StreamWriter) -> None:
        while (frame := await self._queue.get()) is not None:
            header, payload = frames.encode(frame)
            writer.writelines((header, payload))
            self.counters.wire_bytes += len(header) + len(payload)
            await writer.drain()

    async def _watch(self) -> None:
        """Wait for DONE on the first connection; what else comes, on any of them, is an error."""
        answers = [asyncio.create_task(frames.read(reader)) for reader, _ in self._connections]
        try:
            done, _ = await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                frame = task.result()
                if frame.type is not FrameType.DONE:
                    raise ProtocolError(f"the peer gave up: {frame.payload.decode(errors='replace')}")
        finally:
            for task in answers:
                task.cancel()
            await asyncio.gather(*answers, return_exceptions=True)
