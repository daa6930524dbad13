"""A disk that is only read, offered over NBD on a listening socket for as long as somebody may come back to it.

One client at a time has several requests in flight, each answered when it is done: what takes long holds up no other.
Source: the NBD protocol specification (nbd/doc/proto.md), as in ``nbd``.
"""

from __future__ import annotations

import contextlib
import errno
import queue
import socket
import threading
from typing import TypeAlias

from novacron.disk import nbd
from novacron.disk.nbd import REQUEST, REQUEST_HEAD, SIMPLE, SIMPLE_HEAD, NbdError, receive
from novacron.disk.nbd_source import Read

THREADS = nbd.IN_FLIGHT_MAX
"""Each may wait for a repository."""
NEGOTIATION_S_MAX = 10.0

_Request: TypeAlias = tuple["_Client", int, int, int]
"""Of whom, its handle, offset and length."""


class _Client:
    """A connection, to which several threads answer."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._sending = connection, threading.Lock()

    def answer(self, handle: int, error: int, data: bytes = b"") -> None:
        with self._sending, contextlib.suppress(OSError):  # it has gone, and asks again when it is back
            self._connection.sendall(SIMPLE_HEAD.pack(SIMPLE, error, handle) + data)


class NbdService:
    """One disk, offered to whoever may connect, in threads of its own. ``read`` may be called by several at once; what
    it raises is an error of that request alone."""

    def __init__(self, listening: socket.socket, size_bytes: int, read: Read) -> None:
        """The socket is closed with this. The size is a multiple of ``nbd.ALIGNMENT``."""
        self._listening, self._size, self._read = listening, size_bytes, read
        self._requests: queue.Queue[_Request | None] = queue.Queue(maxsize=4 * nbd.IN_FLIGHT_MAX)
        self._closed = threading.Event()
        self._connection: socket.socket | None = None
        self._listening.settimeout(nbd.ACCEPT_CHECK_S)
        for number in range(THREADS):
            threading.Thread(target=self._work, name=f"nbd-service-{number}", daemon=True).start()
        threading.Thread(target=self._serve, name="nbd-service", daemon=True).start()

    def close(self) -> None:
        """End it. A read that is under way ends by itself, and nobody hears of it."""
        self._closed.set()
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(queue.Empty):
            while True:
                self._requests.get_nowait()
        for _ in range(THREADS):
            self._requests.put(None)

    def _serve(self) -> None:
        with self._listening:
            while not self._closed.is_set():
                with contextlib.suppress(OSError):  # nobody came, or who came has gone
                    connection, _ = self._listening.accept()
                    with connection:
                        self._connection = connection
                        self._speak(connection)

    def _speak(self, connection: socket.socket) -> None:
        connection.settimeout(NEGOTIATION_S_MAX)
        if not nbd.negotiate(connection, self._size, nbd.HAS_FLAGS | nbd.READ_ONLY):
            return
        connection.settimeout(None)
        client = _Client(connection)
        while not self._closed.is_set():
            magic, _, kind, handle, offset, length = REQUEST_HEAD.unpack(receive(connection, REQUEST_HEAD.size))
            if magic != REQUEST:
                raise NbdError("the client's request is malformed")
            if kind == nbd.DISCONNECT:
                return
            error = self._refusal(kind, offset, length)
            if error is None:
                self._requests.put((client, handle, offset, length))
            else:
                client.answer(handle, error)

    def _refusal(self, kind: int, offset: int, length: int) -> int | None:
        """Return the error number of a request that is answered at once, 0 for none; None: something is to be read."""
        if kind == nbd.READ:
            return None if length <= nbd.REQUEST_BYTES_MAX and offset + length <= self._size else errno.EINVAL
        return 0 if kind == nbd.FLUSH else errno.EPERM

    def _work(self) -> None:
        while (request := self._requests.get()) is not None:
            client, handle, offset, length = request
            try:
                data = self._read(offset, length)
            except Exception:  # whatever it was: the guest must hear that it has no answer
                client.answer(handle, errno.EIO)
                continue
            client.answer(handle, 0 if len(data) == length else errno.EIO, data if len(data) == length else b"")
