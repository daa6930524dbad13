"""Compressed files, unpacked within limits of size and memory: gzip, bzip2, xz, zstd, and zip with one file in it.

A few bytes can become terabytes, and a header can ask for gigabytes of memory: the size is limited by the caller, the
memory by ``MEMORY_BYTES_MAX``.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import BinaryIO, Protocol

import zstandard

from novacron.disk.errors import Unacceptable

MEMORY_BYTES_MAX = 256 << 20
"""What xz and zstd may take; ``xz -9`` and ``zstd --ultra -22`` need less."""
PIECE_BYTES = 1 << 20
ZSTD_PIECE_BYTES = 2048
"""So much zstd becomes at most 64 MiB: a block of 128 KiB takes four bytes or more."""


class Compression(StrEnum):
    GZIP = "gzip"
    BZIP2 = "bzip2"
    XZ = "xz"
    ZSTD = "zstd"
    ZIP = "zip"


MAGICS = {
    b"\x1f\x8b": Compression.GZIP,
    b"BZh": Compression.BZIP2,
    b"\xfd7zXZ\0": Compression.XZ,
    b"\x28\xb5\x2f\xfd": Compression.ZSTD,
    b"PK\x03\x04": Compression.ZIP,
}


class _Decompressor(Protocol):
    """One stream: what the standard library's decompressors have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """zlib's decompressor in the form of the others: it keeps what it was given and has not used yet."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


DMG_TRAILER, DMG_TRAILER_BYTES = b"koly", 512
"""What ends an Apple disk image, whose first bytes may be a compressed block of its disk."""


def detect(file: BinaryIO) -> Compression | None:
    """Return how a file is compressed, or None when it is not."""
    file.seek(max(0, file.seek(0, io.SEEK_END) - DMG_TRAILER_BYTES))
    if file.read(len(DMG_TRAILER)) == DMG_TRAILER:
        return None
    file.seek(0)
    head = file.read(8)
    return next((kind for magic, kind in MAGICS.items() if head.startswith(magic)), None)


def unpack(file: BinaryIO, kind: Compression, write: Callable[[bytes], None], size_bytes_max: int) -> None:
    """Hand a compressed file's content to ``write``, piece by piece, at most ``size_bytes_max`` bytes in all.

    Raises Unacceptable when the file is damaged, cut off, too large unpacked, or a zip of more than one file.
    """
    size_bytes = 0
    file.seek(0)
    try:
        for piece in _pieces(file, kind):
            size_bytes += len(piece)
            if size_bytes > size_bytes_max:
                raise Unacceptable(f"unpacked, it has more than {size_bytes_max} bytes")
            write(piece)
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, zipfile.BadZipFile, EOFError, ValueError) as error:
        raise Unacceptable(f"it can't be unpacked as {kind}: {error}; fetch it again") from error
    except NotImplementedError as error:  # a zip with a method that Python does not have
        raise Unacceptable(f"it can't be unpacked as {kind}: {error}; unpack it first") from error
    if not size_bytes:
        raise Unacceptable(f"unpacked, it is empty ({kind})")


def _pieces(file: BinaryIO, kind: Compression) -> Iterator[bytes]:
    match kind:
        case Compression.GZIP:
            return _streams(file, _Gzip)
        case Compression.BZIP2:
            return _streams(file, bz2.BZ2Decompressor)
        case Compression.XZ:
            return _streams(file, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY_BYTES_MAX))
        case Compression.ZSTD:
            return _zstd(file)
        case Compression.ZIP:
            return _zip(file)


def _streams(file: BinaryIO, begin: Callable[[], _Decompressor]) -> Iterator[bytes]:
    """Yield the content of consecutive streams in a file; zeros may follow the last. Raises EOFError when the
    last one does not end."""
    stream, data = begin(), file.read(PIECE_BYTES)
    started = False
    while data or started:
        try:
            piece = stream.decompress(data, PIECE_BYTES)
        except OSError as error:  # so bzip2's says that its data is damaged
            raise ValueError(str(error)) from error
        started = True
        if piece:
            yield piece
        if stream.eof:
            data = stream.unused_data.lstrip(b"\0") or file.read(PIECE_BYTES).lstrip(b"\0")
            stream, started = begin(), False
        elif not piece:
            data = file.read(PIECE_BYTES)
            if not data:
                raise EOFError("it is cut off")
        else:
            data = b""


def _zstd(file: BinaryIO) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=MEMORY_BYTES_MAX)
    frame, data = decompressor.decompressobj(), file.read(ZSTD_PIECE_BYTES)
    while data:
        unpacked = frame.decompress(data)
        yield from (unpacked[at : at + PIECE_BYTES] for at in range(0, len(unpacked), PIECE_BYTES))
        if frame.eof:
            data = frame.unused_data.lstrip(b"\0") or file.read(ZSTD_PIECE_BYTES).lstrip(b"\0")
            frame = decompressor.decompressobj()
            continue
        data = file.read(ZSTD_PIECE_BYTES)
        if not data:
            raise EOFError("it is cut off")


class _Limited(io.RawIOBase):
    """A file of which nothing reads more than ``MEMORY_BYTES_MAX`` at once, regardless of a zip's directory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(min(size, MEMORY_BYTES_MAX + 1) if size >= 0 else MEMORY_BYTES_MAX + 1)
        if len(data) > MEMORY_BYTES_MAX:
            raise zipfile.BadZipFile(f"a part of it has more than {MEMORY_BYTES_MAX} bytes")
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True


def _zip(file: BinaryIO) -> Iterator[bytes]:
    with zipfile.ZipFile(_Limited(file)) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        if len(members) != 1:
            raise Unacceptable(f"it is a zip of {len(members)} files; a zip must contain a single disk: unpack it")
        if members[0].flag_bits & 1:
            raise Unacceptable("it is an encrypted zip: unpack it first")
        with archive.open(members[0]) as opened:
            while piece := opened.read(PIECE_BYTES):
                yield piece
