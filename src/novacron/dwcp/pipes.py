"""The two ends of a stream, and bounded queues between the threads that work on it."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import select
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

from novacron.dwcp.page_codec import Op, Run

T = TypeVar("T")

PIECE_BYTES = 512 * 1024
"""A source returns about so much at once where there is so much."""
PIECE_SHALLOW_BYTES, PIECE_URGENT_BYTES = 256 * 1024, 64 * 1024
"""... so much where little may wait on the way, and so much where somebody waits for every page. Smaller pieces cost
more of the processor."""
GATHER_MS = 1
"""How long a source waits for more before it returns less."""
CHECK_S = 0.2
JOIN_INTERVAL_S = 0.005


class StreamSource(Protocol):
    """Where a stream comes from."""

    piece_bytes: int
    """How much ``read`` returns at most, about."""

    def read(self) -> bytes:
        """Wait for the stream's next bytes; return nothing at its end. Raises OSError."""
        ...

    def abort(self) -> None:
        """Let ``read`` return or raise at once, in whichever thread it waits."""
        ...


class StreamSink(Protocol):
    """Where a stream goes."""

    def write(self, data: bytes) -> None:
        """Write all of ``data``. Raises OSError."""
        ...

    def finish(self) -> None:
        """The stream has ended: return when it is safe here and need not be sent again. Raises OSError."""
        ...

    def abort(self) -> None:
        """Let ``write`` return or raise at once, in whichever thread it waits."""
        ...


class BytesSource:
    """Bytes in memory, as a source."""

    def __init__(self, data: bytes) -> None:
        self.piece_bytes = PIECE_BYTES
        self._data = data
        self._at = 0

    def read(self) -> bytes:
        self._at += self.piece_bytes
        return self._data[self._at - self.piece_bytes : self._at]

    def abort(self) -> None:
        self._data = b""


class BytesSink:
    """A sink in memory, up to a limit."""

    def __init__(self, bytes_max: int) -> None:
        self.data = bytearray()
        self._bytes_max = bytes_max

    def write(self, data: bytes) -> None:
        if len(self.data) + len(data) > self._bytes_max:
            raise OSError(f"more than {self._bytes_max} bytes came")
        self.data += data

    def finish(self) -> None:
        pass

    def abort(self) -> None:
        pass


class OpaqueSplitter:
    """For a stream of unknown content: all of it is opaque, and only compressed."""

    def split(self, data: bytes) -> tuple[bytes, list[Run]]:
        return data, [(Op.OPAQUE, 0, len(data), 0, 0, False)]

    def finish(self) -> tuple[bytes, list[Run]]:
        return b"", []


class SocketPipe:
    """A connected socket as a source and a sink."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(True)
        self.piece_bytes = PIECE_BYTES
        """How much ``read`` returns at most."""
        self._socket = connection
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def read(self) -> bytes:
        bytes_max = self.piece_bytes  # it may change meanwhile
        data = self._socket.recv(bytes_max)
        if not data:
            return data
        parts, size = [data], len(data)
        while size < bytes_max and self._poll.poll(GATHER_MS):
            data = self._socket.recv(bytes_max - size)
            if not data:
                break  # the next read meets the end again
            parts.append(data)
            size += len(data)
        return b"".join(parts)

    def write(self, data: bytes) -> None:
        self._socket.sendall(data)

    def finish(self) -> None:
        """The reader says by itself when it has all."""

    def abort(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


class Stages:
    """The threads that work on one stream. The event loop never blocks on them, and never leaves one behind: what they
    use, files and rings, is closed by the task that waited for their end."""

    def __init__(self, count: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(count, name)
        self._running: list[Future[None]] = []

    def start(self, work: Callable[..., None], *arguments: object) -> asyncio.Future[None]:
        """Run ``work`` in a thread of its own; return what can be awaited for its result."""
        running = self._threads.submit(work, *arguments)
        self._running.append(running)
        future = asyncio.wrap_future(running)
        future.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # the first failure is enough
        return future

    async def end(self) -> None:
        """Wait until every thread has ended, also when this is cancelled meanwhile. They must have been told to end."""
        self._threads.shutdown(wait=False)
        cancelled = False
        while any(not running.done() for running in self._running):
            try:
                await asyncio.sleep(JOIN_INTERVAL_S)
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            raise asyncio.CancelledError


class PipelineStopped(Exception):
    """The other threads of a stream have ended, so this one stops too."""


class Handover(Generic[T]):
    """A bounded queue between two threads that both stop when ``stop`` is set."""

    def __init__(self, size: int, stop: threading.Event) -> None:
        self._queue: queue.Queue[T] = queue.Queue(size)
        self._stop = stop

    def put(self, item: T) -> None:
        """Wait for room and add an item. Raises PipelineStopped."""
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=CHECK_S)
                return
        raise PipelineStopped

    def get(self) -> T:
        """Wait for the next item. Raises PipelineStopped."""
        while not self._stop.is_set():
            with contextlib.suppress(queue.Empty):
                return self._queue.get(timeout=CHECK_S)
        raise PipelineStopped
