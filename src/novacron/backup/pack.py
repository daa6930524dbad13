"""Packs: files of many blobs, each sealed by itself, with a sealed list of them at the end."""

from __future__ import annotations

import enum
import hashlib
import struct
from typing import NamedTuple

import zstandard

from novacron.backup.crypto import OVERHEAD_BYTES, Key
from novacron.backup.errors import Damaged

ID_BYTES = 32
TARGET_BYTES = 16 << 20
"""A pack is finished once it is as long."""
BLOB_BYTES_MAX = 32 << 20
"""Content of a blob; more is nothing that a repository of disks holds, and may be hostile."""

_PLAIN, _COMPRESSED, _LENGTH = struct.Struct("<BI32s"), struct.Struct("<BII32s"), struct.Struct("<I")


class BlobType(enum.IntEnum):
    """What a blob holds: part of a file, or a directory."""

    DATA = 0
    TREE = 1

    @property
    def word(self) -> str:
        return self.name.lower()


class Blob(NamedTuple):
    """Where a blob stands in a pack."""

    id: bytes
    type: BlobType
    offset: int
    length: int
    """Sealed."""
    raw_length: int
    """Of its content if it is compressed, else 0."""


class PackWriter:
    """Collects sealed blobs of one type."""

    def __init__(self, type: BlobType) -> None:
        self.type = type
        self.blobs: list[Blob] = []
        self.length = 0
        self._parts: list[bytes] = []

    def add(self, id: bytes, sealed: bytes, raw_length: int) -> None:
        """Add a blob that ``sealed_blob`` made."""
        self.blobs.append(Blob(id, self.type, self.length, len(sealed), raw_length))
        self._parts.append(sealed)
        self.length += len(sealed)

    def finish(self, key: Key) -> tuple[bytes, bytes]:
        """Return the pack's id and content."""
        header = key.seal(b"".join(map(_entry, self.blobs)))
        content = b"".join((*self._parts, header, _LENGTH.pack(len(header))))
        return hashlib.sha256(content).digest(), content


def _entry(blob: Blob) -> bytes:
    if blob.raw_length:
        return _COMPRESSED.pack(2 + blob.type, blob.length, blob.raw_length, blob.id)
    return _PLAIN.pack(blob.type, blob.length, blob.id)


def sealed_blob(key: Key, compressor: zstandard.ZstdCompressor, content: bytes | memoryview) -> tuple[bytes, int]:
    """Return a blob's content as it stands in a pack, and its ``raw_length``."""
    compressed = compressor.compress(content)
    if len(compressed) < len(content):
        return key.seal(compressed), len(content)
    return key.seal(content), 0


def check_length(blob: Blob) -> None:
    """Raise Damaged for a blob that is longer than any may be."""
    if max(blob.raw_length, blob.length - OVERHEAD_BYTES) > BLOB_BYTES_MAX:
        raise Damaged(f"{blob.type.word} blob {blob.id.hex()} exceeds the size limit of blobs")


def content_of(key: Key, blob: Blob, sealed: bytes | memoryview) -> bytes:
    """Return a blob's content, which is what its id says. Raises Damaged."""
    check_length(blob)
    what = f"{blob.type.word} blob {blob.id.hex()}"
    content = key.open(sealed, what)
    if blob.raw_length:
        try:
            if zstandard.frame_content_size(content) not in (-1, blob.raw_length):
                raise Damaged(f"{what} unpacks to a length that differs from its entry")
            content = zstandard.ZstdDecompressor().decompress(content, max_output_size=blob.raw_length)
        except zstandard.ZstdError as error:
            raise Damaged(f"{what} can't be unpacked: {error}") from None
    if hashlib.sha256(content).digest() != blob.id:
        raise Damaged(f"{what} has content that does not match its id")
    return content
