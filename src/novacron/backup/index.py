"""The index: where each blob of a repository stands.

Blobs are kept in arrays, because a repository of disks has millions of them: some 150 bytes for each.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

import msgspec

from novacron.backup.errors import Damaged
from novacron.backup.pack import Blob, BlobType

BLOBS_PER_FILE_MAX = 50_000
"""Of one index file, as restic has it."""


class _Entry(msgspec.Struct, omit_defaults=True):
    id: str
    type: str
    offset: int
    length: int
    uncompressed_length: int = 0


class _Pack(msgspec.Struct):
    id: str
    blobs: list[_Entry]


class _IndexFile(msgspec.Struct):
    packs: list[_Pack]
    supersedes: list[str] = []


class Place(NamedTuple):
    """Where a blob stands: the pack's id, and its entry there."""

    pack: bytes
    blob: Blob


class RepositoryIndex:
    """All blobs of a repository by id."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._packs: list[bytes] = []
        self._pack_of, self._offset, self._length, self._raw = array("I"), array("I"), array("I"), array("I")
        self._types = array("B")

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, id: bytes) -> bool:
        return id in self._numbers

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._numbers)

    def add_pack(self, pack: bytes, blobs: Iterable[Blob]) -> None:
        """Add what is in a pack; a blob that is known stays where it was found first."""
        number = len(self._packs)
        self._packs.append(pack)
        for blob in blobs:
            if blob.id in self._numbers:
                continue
            self._numbers[blob.id] = len(self._pack_of)
            self._pack_of.append(number)
            self._offset.append(blob.offset)
            self._length.append(blob.length)
            self._raw.append(blob.raw_length)
            self._types.append(blob.type)

    def find(self, id: bytes) -> Place | None:
        """Return where a blob stands, or None."""
        number = self._numbers.get(id)
        if number is None:
            return None
        blob = Blob(
            id, BlobType(self._types[number]), self._offset[number], self._length[number], self._raw[number]
        )  # fmt: skip
        return Place(self._packs[self._pack_of[number]], blob)

    def packs(self) -> Collection[bytes]:
        """Return the ids of all packs."""
        return self._packs


def encode(packs: Iterable[tuple[bytes, Iterable[Blob]]]) -> bytes:
    """Return an index file of these packs."""
    return msgspec.json.encode(_IndexFile([
        _Pack(pack.hex(), [
            _Entry(blob.id.hex(), blob.type.word, blob.offset, blob.length, blob.raw_length) for blob in blobs
        ])
        for pack, blobs in packs
    ]))  # fmt: skip


def decode(content: bytes, name: str) -> Iterator[tuple[bytes, list[Blob]]]:
    """Yield the packs of an index file with their blobs. Raises Damaged."""
    try:
        for pack in msgspec.json.decode(content, type=_IndexFile).packs:
            yield bytes.fromhex(pack.id), [_blob(entry) for entry in pack.blobs]
    except (msgspec.MsgspecError, ValueError, KeyError) as error:
        raise Damaged(f"index {name} is damaged: {error}") from None


def _blob(entry: _Entry) -> Blob:
    id = bytes.fromhex(entry.id)
    if len(id) != 32 or not all(0 <= n < 1 << 32 for n in (entry.offset, entry.length, entry.uncompressed_length)):
        raise ValueError(f"blob {entry.id} can't be")
    return Blob(id, BlobType[entry.type.upper()], entry.offset, entry.length, entry.uncompressed_length)
