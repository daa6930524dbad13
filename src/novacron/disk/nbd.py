"""NBD, the protocol in which QEMU hands a disk on: an export that only takes writes, and a client that only writes.

Source: the NBD protocol specification (nbd/doc/proto.md): fixed newstyle negotiation with NBD_OPT_GO, simple replies.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import threading
from typing import Protocol

MAGIC, OPTION_MAGIC, REPLY_MAGIC = b"NBDMAGIC", b"IHAVEOPT", 0x3E889045565A9
REQUEST, SIMPLE = 0x25609513, 0x67446698
FIXED_NEWSTYLE, NO_ZEROES = 1, 2
OPTION_ABORT, OPTION_GO = 2, 7
ACK, INFO, UNSUPPORTED = 1, 3, 0x80000001
INFO_EXPORT, INFO_BLOCK_SIZE = 0, 3
HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA, SEND_ZEROES = 1, 2, 4, 8, 0x40
READ, WRITE, DISCONNECT, FLUSH, WRITE_ZEROES = 0, 1, 2, 3, 6
ALIGNMENT = 4096
REQUEST_BYTES_MAX = 2 * 1024 * 1024
OPTION_BYTES_MAX = 8192
OPTIONS_MAX = 32
IN_FLIGHT_MAX = 16
"""QEMU takes no more requests of one client at once."""
TIMEOUT_S = 30.0
ACCEPT_CHECK_S = 0.2
REQUEST_HEAD = struct.Struct("!IHHQQI")
SIMPLE_HEAD = struct.Struct("!IIQ")
_option = struct.Struct("!8sII")
_answer = struct.Struct("!QIII")


class NbdError(OSError):
    """The peer does not speak the protocol as expected, or refused: says what."""


class WriteSink(Protocol):
    """What takes an export's writes."""

    def write(self, offset: int, data: bytes | memoryview) -> None: ...

    def zero(self, offset: int, length: int) -> None: ...


def receive(connection: socket.socket, length: int) -> bytes:
    """Return so many bytes of what a peer sends. Raises OSError."""
    data = bytearray(length)
    view, at = memoryview(data), 0
    while at < length:
        count = connection.recv_into(view[at:])
        if count == 0:
            raise NbdError("the connection ended in the middle of a message")
        at += count
    return bytes(data)


def negotiate(connection: socket.socket, size_bytes: int, flags: int) -> bool:
    """Offer a client the only export there is; say whether it wants that. Raises OSError."""
    connection.sendall(MAGIC + OPTION_MAGIC + struct.pack("!H", FIXED_NEWSTYLE | NO_ZEROES))
    receive(connection, 4)
    for _ in range(OPTIONS_MAX):
        magic, option, length = _option.unpack(receive(connection, _option.size))
        if magic != OPTION_MAGIC or length > OPTION_BYTES_MAX:
            raise NbdError("the client's option is malformed")
        receive(connection, length)
        if option == OPTION_GO:
            export = struct.pack("!HQH", INFO_EXPORT, size_bytes, flags)
            sizes = struct.pack("!HIII", INFO_BLOCK_SIZE, ALIGNMENT, 1 << 16, REQUEST_BYTES_MAX)
            for info in (export, sizes):
                connection.sendall(_answer.pack(REPLY_MAGIC, option, INFO, len(info)) + info)
            connection.sendall(_answer.pack(REPLY_MAGIC, option, ACK, 0))
            return True
        answer = ACK if option == OPTION_ABORT else UNSUPPORTED
        connection.sendall(_answer.pack(REPLY_MAGIC, option, answer, 0))
        if option == OPTION_ABORT:
            return False
    raise NbdError("the client can't decide what it wants")


class NbdExport:
    """One disk, offered on a listening socket to one client, in a thread of its own. A write is confirmed once
    ``taker`` has it; an error of its ends the connection, so that the client's disk job fails and the guest goes on."""

    def __init__(self, listening: socket.socket, size_bytes: int, taker: WriteSink) -> None:
        self.error: OSError | None = None
        """Why it ended, if not because the client was done."""
        self._size, self._taker = size_bytes, taker
        self._listening = listening
        self._listening.settimeout(ACCEPT_CHECK_S)
        self._connection: socket.socket | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="nbd-export")
        self._thread.start()

    def close(self) -> None:
        """End it; returns when its thread has ended. The taker must have been told to let go."""
        self._closed.set()
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _serve(self) -> None:
        with self._listening, contextlib.ExitStack() as opened:
            try:
                connection = self._accept()
                if connection is not None:
                    self._connection = opened.enter_context(connection)
                    if negotiate(connection, self._size, HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_ZEROES):
                        self._transmit(connection)
            except OSError as error:  # noted before the client sees the connection end, and we are closed for that
                if not self._closed.is_set():
                    self.error = error

    def _accept(self) -> socket.socket | None:
        """Return the client's connection, or none if this is closed before there is one."""
        while not self._closed.is_set():
            try:
                connection, _ = self._listening.accept()
            except TimeoutError:
                continue
            connection.settimeout(None)
            return connection
        return None

    def _transmit(self, connection: socket.socket) -> None:
        while True:
            magic, _, kind, handle, offset, length = REQUEST_HEAD.unpack(receive(connection, REQUEST_HEAD.size))
            if magic != REQUEST:
                raise NbdError("the client's request is malformed")
            if kind == DISCONNECT:
                return
            error = 0
            if kind == WRITE:
                if length > REQUEST_BYTES_MAX:
                    raise NbdError(f"a write of {length} bytes")
                self._taker.write(offset, receive(connection, length))
            elif kind == WRITE_ZEROES:
                self._taker.zero(offset, length)
            elif kind != FLUSH:  # all is durable before the migration ends, not sooner
                error = errno.EINVAL
            connection.sendall(SIMPLE_HEAD.pack(SIMPLE, error, handle))


class NbdClient:
    """Writes to one export, several requests at once, of which no two touch the same bytes: a volume."""

    def __init__(self, connection: socket.socket, export: str) -> None:
        """Begin to speak on a connection, which is closed with this. Raises OSError."""
        self._in_flight: dict[int, tuple[int, int]] = {}
        """Offset and end of what each request writes, by its handle."""
        self._handle = 0
        self._socket = connection
        self._socket.settimeout(TIMEOUT_S)
        try:
            self.size_bytes = self._negotiate(export.encode())
        except BaseException:
            self._socket.close()
            raise

    def _negotiate(self, export: bytes) -> int:
        greeting = receive(self._socket, 18)
        if greeting[:16] != MAGIC + OPTION_MAGIC or not greeting[17] & FIXED_NEWSTYLE:
            raise NbdError("the server does not speak NBD as expected")
        request = struct.pack(f"!I{len(export)}sH", len(export), export, 0)
        self._socket.sendall(struct.pack("!I", FIXED_NEWSTYLE | NO_ZEROES))
        self._socket.sendall(_option.pack(OPTION_MAGIC, OPTION_GO, len(request)) + request)
        size = None
        for _ in range(OPTIONS_MAX):
            magic, option, kind, length = _answer.unpack(receive(self._socket, _answer.size))
            if magic != REPLY_MAGIC or option != OPTION_GO or length > OPTION_BYTES_MAX:
                raise NbdError("the server's answer is malformed")
            body = receive(self._socket, length)
            if kind == INFO and body[:2] == struct.pack("!H", INFO_EXPORT) and len(body) >= 12:
                size = struct.unpack_from("!Q", body, 2)[0]
            elif kind == ACK and size is not None:
                return int(size)
            elif kind != INFO:
                raise NbdError(f"the server refused export {export.decode()}: {kind:#x}")
        raise NbdError("the server's answer has no end")

    def write(self, offset: int, data: bytes) -> None:
        self._ask(WRITE, offset, len(data), data)

    def zero(self, offset: int, length: int) -> None:
        while length > 0:
            part = min(length, 1 << 30)
            self._ask(WRITE_ZEROES, offset, part)
            offset, length = offset + part, length - part

    def flush(self) -> None:
        """Return when all that was written is durable. Raises OSError."""
        self._settle()
        self._ask(FLUSH, 0, 0)
        self._settle()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.sendall(REQUEST_HEAD.pack(REQUEST, 0, DISCONNECT, 0, 0, 0))
        self._socket.close()

    def _ask(self, kind: int, offset: int, length: int, data: bytes = b"") -> None:
        end = offset + length
        while len(self._in_flight) >= IN_FLIGHT_MAX or any(
            offset < other_end and other < end for other, other_end in self._in_flight.values()
        ):
            self._take()
        self._handle += 1
        self._in_flight[self._handle] = (offset, end)
        self._socket.sendall(REQUEST_HEAD.pack(REQUEST, 0, kind, self._handle, offset, length) + data)
        while select.select([self._socket], [], [], 0)[0]:
            self._take()

    def _settle(self) -> None:
        while self._in_flight:
            self._take()

    def _take(self) -> None:
        """Take one answer. Raises OSError, for example with ENOSPC when the server's disk is full."""
        magic, error, handle = SIMPLE_HEAD.unpack(receive(self._socket, SIMPLE_HEAD.size))
        if magic != SIMPLE or self._in_flight.pop(handle, None) is None:
            raise NbdError("the server's reply is malformed")
        if error:
            raise OSError(error, f"the target's disk: {os.strerror(error)}")
