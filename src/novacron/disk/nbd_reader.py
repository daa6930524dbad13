"""A client that reads a disk over NBD, and asks where it holds data.

Source: the NBD protocol specification (nbd/doc/proto.md): structured replies, NBD_CMD_BLOCK_STATUS with the context
``base:allocation``. The server may be in the hands of whoever made the disk: all that it says has limits.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator

from novacron.disk import nbd
from novacron.disk.nbd import NbdError, receive

OPTION_STRUCTURED, OPTION_SET_CONTEXT, CONTEXT_REPLY = 8, 10, 4
ALLOCATION = b"base:allocation"
READ, BLOCK_STATUS = 0, 7
STRUCTURED, CHUNK_DONE = 0x668E33EF, 1
CHUNK_NONE, CHUNK_DATA, CHUNK_HOLE, CHUNK_STATUS, CHUNK_ERRORS = 0, 1, 2, 5, 1 << 15
READS_ZERO = 2
"""Flag of an extent in ``base:allocation``."""
READ_BYTES_MAX = 2 << 20
STATUS_BYTES = 1 << 30
"""Of the disk, for one question where it holds data."""
CHUNK_BYTES_MAX = 16 << 20
CHUNKS_MAX = 1 << 16
_chunk = struct.Struct("!IHHQI")
_extent = struct.Struct("!II")


class NbdReader:
    """Reads one export. Any thread may use it; there is one request at a time."""

    def __init__(self, connection: socket.socket, export: str, timeout_s: float = nbd.TIMEOUT_S) -> None:
        """Begin to speak on a connection, which is closed with this. Raises OSError."""
        self._lock, self._handle = threading.Lock(), 0
        self._socket = connection
        self._socket.settimeout(timeout_s)
        try:
            self._context, self.size_bytes = self._negotiate(export.encode())
        except BaseException:
            self._socket.close()
            raise

    def _negotiate(self, export: bytes) -> tuple[int, int]:
        greeting = receive(self._socket, 18)
        if greeting[:16] != nbd.MAGIC + nbd.OPTION_MAGIC or not greeting[17] & nbd.FIXED_NEWSTYLE:
            raise NbdError("the server does not speak NBD as expected")
        self._socket.sendall(struct.pack("!I", nbd.FIXED_NEWSTYLE | nbd.NO_ZEROES))
        self._ask_option(OPTION_STRUCTURED, b"")
        name = struct.pack(f"!I{len(export)}s", len(export), export)
        query = struct.pack(f"!II{len(ALLOCATION)}s", 1, len(ALLOCATION), ALLOCATION)
        contexts = self._ask_option(OPTION_SET_CONTEXT, name + query)
        replies = [body for kind, body in contexts if kind == CONTEXT_REPLY and body[4:] == ALLOCATION]
        infos = self._ask_option(nbd.OPTION_GO, name + struct.pack("!H", 0))
        exports = [body for kind, body in infos if kind == nbd.INFO and body[:2] == struct.pack("!H", nbd.INFO_EXPORT)]
        if len(replies) != 1 or not exports or len(exports[0]) < 12:
            raise NbdError("the server does not describe its disk")
        return int(struct.unpack_from("!I", replies[0])[0]), int(struct.unpack_from("!Q", exports[0], 2)[0])

    def _ask_option(self, option: int, data: bytes) -> list[tuple[int, bytes]]:
        """Return the server's replies before it agrees. Raises OSError."""
        self._socket.sendall(struct.pack("!8sII", nbd.OPTION_MAGIC, option, len(data)) + data)
        replies = list[tuple[int, bytes]]()
        for _ in range(nbd.OPTIONS_MAX):
            magic, of, kind, length = struct.unpack("!QIII", receive(self._socket, 20))
            if magic != nbd.REPLY_MAGIC or of != option or length > nbd.OPTION_BYTES_MAX:
                raise NbdError("the server's answer is malformed")
            body = receive(self._socket, length)
            if kind == nbd.ACK:
                return replies
            if kind & nbd.UNSUPPORTED & (1 << 31):
                raise NbdError(f"the server refused option {option}: {body[:200].decode(errors='replace')}")
            replies.append((kind, body))
        raise NbdError("the server's answer has no end")

    def read(self, offset: int, length: int) -> bytes:
        """Return so many bytes of the disk. Raises OSError."""
        data = bytearray(length)
        for at in range(0, length, READ_BYTES_MAX):
            self._read_into(memoryview(data)[at : at + READ_BYTES_MAX], offset + at)
        return bytes(data)

    def _read_into(self, target: memoryview, offset: int) -> None:
        filled = 0
        for kind, body in self._ask(READ, offset, len(target)):
            if kind not in (CHUNK_DATA, CHUNK_HOLE) or len(body) < 8:
                raise NbdError(f"the server answered a read with {kind}")
            at = struct.unpack_from("!Q", body)[0] - offset
            length = len(body) - 8 if kind == CHUNK_DATA else struct.unpack_from("!I", body, 8)[0]
            if not 0 <= at <= at + length <= len(target):
                raise NbdError("the server answered with a different part of the disk")
            if kind == CHUNK_DATA:
                target[at : at + length] = body[8:]
            filled += length
        if filled != len(target):
            raise NbdError(f"the server answered with {filled} of {len(target)} bytes")

    def data_extents(self) -> Iterator[tuple[int, int]]:
        """Yield offset and length of what may hold data; the rest reads as zeros. Raises OSError."""
        begin = end = 0
        for offset, length in self._data():
            if offset == end:
                end += length
                continue
            if end > begin:
                yield begin, end - begin
            begin, end = offset, offset + length
        if end > begin:
            yield begin, end - begin

    def _data(self) -> Iterator[tuple[int, int]]:
        at = 0
        while at < self.size_bytes:
            before = at
            for length, flags in self._status(at, min(STATUS_BYTES, self.size_bytes - at)):
                length = min(length, self.size_bytes - at)
                if not flags & READS_ZERO and length:
                    yield at, length
                at += length
            if at == before:
                raise NbdError("the server does not report where the disk has data")

    def _status(self, offset: int, length: int) -> list[tuple[int, int]]:
        extents = list[tuple[int, int]]()
        for kind, body in self._ask(BLOCK_STATUS, offset, length):
            if (
                kind != CHUNK_STATUS
                or len(body) % _extent.size != 4
                or struct.unpack_from("!I", body)[0] != self._context
            ):
                raise NbdError("the server does not answer where the disk has data")
            extents += _extent.iter_unpack(body[4:])
        return extents

    def _ask(self, command: int, offset: int, length: int) -> list[tuple[int, bytes]]:
        """Return the chunks of the answer that say something. Raises OSError."""
        with self._lock:
            self._handle += 1
            request = struct.pack("!IHHQQI", nbd.REQUEST, 0, command, self._handle, offset, length)
            self._socket.sendall(request)
            chunks = list[tuple[int, bytes]]()
            for _ in range(CHUNKS_MAX):
                magic, flags, kind, handle, size = _chunk.unpack(receive(self._socket, _chunk.size))
                if magic != STRUCTURED or handle != self._handle or size > CHUNK_BYTES_MAX:
                    raise NbdError("the server's reply is malformed")
                body = receive(self._socket, size)
                if kind & CHUNK_ERRORS:
                    code = struct.unpack_from("!I", body)[0] if len(body) >= 4 else 0
                    raise OSError(code, f"the disk can't be read at {offset}: {os.strerror(code)}")
                if kind != CHUNK_NONE:
                    chunks.append((kind, body))
                if flags & CHUNK_DONE:
                    return chunks
            raise NbdError("the server's reply has no end")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.sendall(struct.pack("!IHHQQI", nbd.REQUEST, 0, nbd.DISCONNECT, 0, 0, 0))
        self._socket.close()
