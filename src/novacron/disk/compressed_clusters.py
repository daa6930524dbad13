"""Compressed clusters of a qcow2, of which the last ones may end anywhere: whether all of their bytes are in the file.

An entry of the map says in which sector a cluster ends, not at which byte, and ``qemu-img`` fills what is missing with
zeros, which often unpack to something. So those that reach beyond the file's end are unpacked here. Source: QEMU's
docs/interop/qcow2.txt.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import BinaryIO, NamedTuple

import zstandard

from novacron.disk.errors import Unacceptable
from novacron.disk.unpack import MEMORY_BYTES_MAX

SECTOR = 512
COMPRESSED = 1 << 62
TYPE_FEATURE, TYPE_AT, ZLIB, ZSTD = 1 << 3, 104, 0, 1
OVERHANGING_MAX = 512
"""Clusters that can reach into the sector in which the file ends: each has a byte there of its own."""


class CompressedClusters(NamedTuple):
    """How a qcow2 compresses its clusters, of ``cluster_bytes`` each, in a file of ``file_bytes``."""

    cluster_bytes: int
    file_bytes: int
    zstd: bool

    def bytes_needed(self, file: BinaryIO, entries: Iterable[int]) -> int:
        """Return how long a file must be, at least, for the clusters of some entries of its map; 0 without compressed
        ones. Raises Unacceptable when there are more of them than a file can have."""
        needed, overhanging = 0, set()
        for entry in entries:
            if not entry & COMPRESSED:
                continue
            offset, end = self._place(entry)
            if end <= self.file_bytes or offset >= self.file_bytes:
                needed = max(needed, offset + 1)
            else:
                overhanging.add((offset, end))
                if len(overhanging) > OVERHANGING_MAX:
                    raise Unacceptable(f"its map is damaged: over {OVERHANGING_MAX} clusters share its last sector")
        if needed > self.file_bytes:
            return needed
        for offset, end in sorted(overhanging, reverse=True):
            if not self._is_whole(file, offset):
                return max(self.file_bytes + 1, end - SECTOR + 1)
        return self.file_bytes if overhanging else needed

    def _place(self, entry: int) -> tuple[int, int]:
        """Return where a cluster begins in the file, and where the sector ends in which it ends."""
        cluster_bits = self.cluster_bytes.bit_length() - 1
        offset_bits = 62 - (cluster_bits - 8)
        offset = entry & ((1 << offset_bits) - 1)
        more_sectors = (entry & (COMPRESSED - 1)) >> offset_bits
        return offset, (offset // SECTOR + 1 + more_sectors) * SECTOR

    def _is_whole(self, file: BinaryIO, offset: int) -> bool:
        """Say whether a cluster can be unpacked from the bytes that there are."""
        file.seek(offset)
        data = file.read(2 * self.cluster_bytes + SECTOR)
        try:
            if self.zstd:
                unpacker = zstandard.ZstdDecompressor(max_window_size=MEMORY_BYTES_MAX)
                with unpacker.stream_reader(data) as reader:
                    return len(reader.read(self.cluster_bytes)) == self.cluster_bytes
            unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, self.cluster_bytes)
            return len(unpacked) == self.cluster_bytes
        except (zlib.error, zstandard.ZstdError):
            return False


def of_file(file: BinaryIO, head: bytes, cluster_bytes: int, file_bytes: int) -> CompressedClusters:
    """Return how a qcow2 compresses its clusters. ``head``: at least the first 80 bytes of its version 3, or 72 of
    version 2. Raises Unacceptable for a method that is not known."""
    method = ZLIB
    if struct.unpack_from(">I", head, 4)[0] >= 3 and struct.unpack_from(">Q", head, 72)[0] & TYPE_FEATURE:
        file.seek(TYPE_AT)
        method = (file.read(1) or b"\0")[0]
    if method not in (ZLIB, ZSTD):
        raise Unacceptable(f"it is compressed by a method that is not known (number {method})")
    return CompressedClusters(cluster_bytes, file_bytes, method == ZSTD)
