"""What is wrong with a repository's packs, by reading all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from novacron.backup.crypto import OVERHEAD_BYTES, Key
from novacron.backup.errors import Damaged, NotStored, RepositoryError
from novacron.backup.pack import _COMPRESSED, _LENGTH, _PLAIN, BLOB_BYTES_MAX, Blob, BlobType, content_of
from novacron.backup.repository import Repository
from novacron.backup.storage import Kind


def check_packs(repository: Repository) -> Iterator[RepositoryError]:
    """Read all packs, each blob in them, and yield what is wrong."""
    indexed = set(repository.index.packs())
    for name in repository.storage.names(Kind.PACK):
        try:
            _check_pack(repository, name)
        except RepositoryError as error:
            yield error
        indexed.discard(bytes.fromhex(name))
    for pack in indexed:
        yield NotStored(f"pack {pack.hex()} is not in the repository")


def _check_pack(repository: Repository, name: str) -> None:
    content = memoryview(repository.storage.read(Kind.PACK, name))
    if hashlib.sha256(content).hexdigest() != name:
        raise Damaged(f"pack {name} has content that does not match its name")
    end = bytes(content[-min(len(content), _header_bytes(bytes(content[-4:]))) :])
    for blob in _blobs_of(repository.key, end, name):
        content_of(repository.key, blob, content[blob.offset : blob.offset + blob.length])


def _header_bytes(end: bytes) -> int:
    """Return how long the header is of a pack that ends with ``end``, with its length. Raises Damaged."""
    if len(end) < _LENGTH.size:
        raise Damaged("a pack is too short")
    length: int = _LENGTH.unpack(end[-_LENGTH.size :])[0]
    if not OVERHEAD_BYTES <= length <= BLOB_BYTES_MAX:
        raise Damaged(f"a pack's header can't have {length} bytes")
    return length + _LENGTH.size


def _blobs_of(key: Key, end: bytes, name: str) -> list[Blob]:
    """Return what is in a pack that ends with ``end``, its whole header. Raises Damaged."""
    header = memoryview(key.open(memoryview(end)[: -_LENGTH.size], f"the header of pack {name}"))
    blobs, at, offset = list[Blob](), 0, 0
    while at < len(header):
        kind = header[at]
        if kind > 3:
            raise Damaged(f"pack {name} has a blob of unknown type {kind}")
        entry = _COMPRESSED if kind >= 2 else _PLAIN
        if at + entry.size > len(header):
            raise Damaged(f"the header of pack {name} is cut short")
        _, length, *raw, id = entry.unpack_from(header, at)
        blobs.append(Blob(id, BlobType(kind % 2), offset, length, raw[0] if raw else 0))
        at, offset = at + entry.size, offset + length
    return blobs
