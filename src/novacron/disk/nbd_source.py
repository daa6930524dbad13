"""A disk that is only read, handed over NBD to one client that this process has started.

Source: the NBD protocol specification (nbd/doc/proto.md), as in ``nbd``.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Callable

from novacron.disk import nbd
from novacron.disk.nbd import REQUEST, REQUEST_HEAD, SIMPLE, SIMPLE_HEAD, NbdError, receive

Read = Callable[[int, int], bytes]
"""Returns so many bytes from an offset on. Raises OSError."""


class NbdSource:
    """One disk, offered on a connection, in a thread of its own. What can't be read is an error of that request
    alone."""

    def __init__(self, connection: socket.socket, size_bytes: int, read: Read) -> None:
        """The connection is closed with this. The size is a multiple of ``nbd.ALIGNMENT``."""
        self.error: OSError | None = None
        """The first read that failed."""
        self._size, self._read, self._connection = size_bytes, read, connection
        self._thread = threading.Thread(target=self._serve, name="nbd-source", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it. A read that is under way ends by itself."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        with self._connection as connection, contextlib.suppress(OSError):  # the client is gone, or we are closed
            if nbd.negotiate(connection, self._size, nbd.HAS_FLAGS | nbd.READ_ONLY):
                self._transmit(connection)

    def _transmit(self, connection: socket.socket) -> None:
        while True:
            magic, _, kind, handle, offset, length = REQUEST_HEAD.unpack(receive(connection, REQUEST_HEAD.size))
            if magic != REQUEST:
                raise NbdError("the client's request is malformed")
            if kind == nbd.DISCONNECT:
                return
            error, data = errno.EPERM, b""
            if kind == nbd.READ:
                error, data = self._answer(offset, length)
            elif kind == nbd.FLUSH:
                error = 0
            connection.sendall(SIMPLE_HEAD.pack(SIMPLE, error, handle) + data)

    def _answer(self, offset: int, length: int) -> tuple[int, bytes]:
        """Return an error number, and what was read."""
        if length > nbd.REQUEST_BYTES_MAX or offset + length > self._size:
            return errno.EINVAL, b""
        try:
            data = self._read(offset, length)
        except OSError as error:
            self.error = self.error or error
            return errno.EIO, b""
        return (0, data) if len(data) == length else (errno.EIO, b"")
