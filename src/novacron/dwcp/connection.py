"""One connection between two nodes: TCP, TLS 1.3, frames; and those that wait for their next session."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable

from novacron.dwcp import frames, sockets
from novacron.dwcp.admittance import Admittance
from novacron.dwcp.frames import Frame, FrameType
from novacron.telemetry.values import counter

SENT, RECEIVED = counter("novacron_dwcp_sent_bytes_total").cell(), counter("novacron_dwcp_received_bytes_total").cell()
OPENED = counter("novacron_dwcp_connections_opened_total")
CONNECT_TIMEOUT_S = 3.0
WRITE_BUFFER_BYTES, WRITE_BUFFER_DEEP_BYTES = 64 * 1024, 1024 * 1024
"""What may wait in a connection, and what may where nobody waits for the last of it."""
READ_AHEAD_BYTES = 1024 * 1024
UNREAD_BYTES_MAX = 16 * 1024 * 1024
"""A peer that lets so much wait for it reads nothing, and asks on: the connection is dropped."""
POOL_MAX = 50
"""Connections that wait in one node's pool."""
POOL_IDLE_S = 720.0
"""The listener closes a connection that waited longer; the pool gives it up earlier."""
POOL_MARGIN_S = 30.0

Endpoint = tuple[str, int]


class FrameConnection:
    """Frames over one TLS connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self._writer = writer
        self._socket = writer.get_extra_info("socket")  # kept: the transport forgets it when it is closed
        self.heard_at = self.said_at = time.monotonic()
        sockets.tune(self._socket)
        writer.transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)

    async def read(self) -> Frame:
        """Return the next frame. Raises ProtocolError, OSError, or asyncio.IncompleteReadError at the end."""
        frame = await frames.read(self.reader)
        RECEIVED[0] += frames.HEADER.size + len(frame.payload)
        self.heard_at = time.monotonic()
        return frame

    def put(self, frame: Frame) -> int:
        """Queue a frame; return its bytes. Raises ConnectionResetError when the connection is lost, or drops it when
        the peer reads nothing."""
        if self._writer.is_closing():
            raise ConnectionResetError("the connection is lost")
        if self.unsent_bytes > UNREAD_BYTES_MAX:
            self.abort()
            raise ConnectionResetError(f"the peer does not read: more than {UNREAD_BYTES_MAX} bytes wait for it")
        header, payload = frames.encode(frame)
        SENT[0] += len(header) + len(payload)
        self._writer.writelines((header, payload))
        self.said_at = time.monotonic()
        return len(header) + len(payload)

    async def drain(self) -> None:
        """Wait until there is room for more. Raises OSError when the connection is lost."""
        await self._writer.drain()

    @property
    def unsent_bytes(self) -> int:
        """Bytes that wait in this process."""
        return self._writer.transport.get_write_buffer_size()

    def deepen(self, deep: bool) -> None:
        """Let much wait in this connection, or little."""
        if not self._writer.is_closing():
            self._writer.transport.set_write_buffer_limits(WRITE_BUFFER_DEEP_BYTES if deep else WRITE_BUFFER_BYTES)

    def pace(self, bytes_per_s: int | None) -> None:
        sockets.pace(self._socket, bytes_per_s)

    def measured(self) -> sockets.PathMetrics | None:
        return sockets.measured(self._socket)

    @property
    def lost(self) -> bool:
        return self._writer.is_closing() or self.reader.at_eof()

    def abort(self) -> None:
        """Drop the connection and what it has not sent yet."""
        self._writer.transport.abort()

    def close(self) -> None:
        """Close the connection when everything is sent."""
        self._writer.close()


async def connect(
    endpoint: Endpoint, context: ssl.SSLContext, peer_host: str, admittance: Admittance | None = None
) -> FrameConnection:
    """Open a connection. ``peer_host`` is the name that the peer's certificate must carry. Raises OSError."""
    OPENED.add()
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        reader, writer = await asyncio.open_connection(
            *endpoint, ssl=sockets.require_tls13(context), server_hostname=peer_host, limit=READ_AHEAD_BYTES
        )
    connection = FrameConnection(reader, writer)
    if admittance is not None and not admittance.admits(writer.get_extra_info("ssl_object"), connection):
        connection.abort()
        raise ConnectionRefusedError(
            f"the certificate of {peer_host} is not one of a node any more, or not yet,"
            " or the server has not said which keys are revoked"
        )
    return connection


class ConnectionPool:
    """Connections that are open and authenticated before they are needed, at most ``POOL_MAX``."""

    def __init__(self, context: Callable[[], ssl.SSLContext], admittance: Admittance | None = None) -> None:
        self._context, self._admittance = context, admittance
        self._idle: dict[tuple[Endpoint, str], list[FrameConnection]] = {}
        self._warming: set[asyncio.Task[None]] = set()
        self.taken = 0
        """Connections that did not have to be opened when they were needed."""

    @property
    def idle(self) -> int:
        """How many connections wait."""
        return sum(len(waiting) for waiting in self._idle.values())

    async def take(self, endpoint: Endpoint, peer_host: str) -> FrameConnection:
        """Return a connection: one that waits, or a new one. Raises OSError."""
        self.prune()
        waiting = self._idle.get((endpoint, peer_host))
        if waiting:
            self.taken += 1
            return waiting.pop()
        return await connect(endpoint, self._context(), peer_host, self._admittance)

    def give(self, endpoint: Endpoint, peer_host: str, connection: FrameConnection) -> None:
        """Let a connection whose session ended well wait for the next one."""
        self.prune()
        if connection.lost or self.idle >= POOL_MAX:
            connection.close()
            return
        connection.pace(None)
        connection.said_at = time.monotonic()
        self._idle.setdefault((endpoint, peer_host), []).append(connection)

    def warm(self, endpoint: Endpoint, peer_host: str, count: int) -> None:
        """Open connections that will be needed soon, in the background, so that ``count`` of them wait."""

        async def open_one() -> None:
            with contextlib.suppress(OSError, TimeoutError, ssl.SSLError):  # its user will see why
                self.give(endpoint, peer_host, await connect(endpoint, self._context(), peer_host, self._admittance))

        self.prune()
        for _ in range(count - len(self._idle.get((endpoint, peer_host), ()))):
            task = asyncio.create_task(open_one())
            self._warming.add(task)
            task.add_done_callback(self._warming.discard)

    def prune(self) -> None:
        """Close connections that are lost or have idled too long."""
        too_old = time.monotonic() - POOL_IDLE_S + POOL_MARGIN_S
        for key, waiting in list(self._idle.items()):
            kept = []
            for connection in waiting:
                if connection.lost or connection.said_at < too_old:
                    connection.close()
                else:
                    kept.append(connection)
            if kept:
                self._idle[key] = kept
            else:
                del self._idle[key]

    def close(self) -> None:
        for task in self._warming:
            task.cancel()
        for waiting in self._idle.values():
            for connection in waiting:
                connection.close()
        self._idle.clear()


PING = Frame(FrameType.PING)
