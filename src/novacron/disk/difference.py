"""A qcow2 layer that has some blocks of a disk and no others, written by ourselves (QEMU's docs/interop/qcow2.txt).

QEMU's tools leave out what is zeros, or write all of it; this has the blocks that differ, zeros too. Clusters are
written in the order of the disk: header, table of reference counts, L1 table, data with its L2 tables, counts.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from novacron.disk.chain import BLOCK_BITS, BLOCK_BYTES, ENTRIES, MAGIC, VERSION, ZERO_FLAG, ZEROS

HEAD = struct.Struct(">4sIQIIQIIQQIIQQQQII")
HEAD_BYTES = 104
COUNT_ORDER = 4
"""Reference counts of 16 bits."""
COUNTS = BLOCK_BYTES // 2
"""Clusters whose counts one cluster has."""
USED_ONCE = 1 << 63
"""Of an entry: its cluster has a count of 1."""


def write(path: Path, size_bytes: int, blocks: Iterable[int], read: Callable[[int], bytes]) -> None:
    """Make a layer of a disk of ``size_bytes`` with these blocks, in order, each as ``read`` returns it. Raises
    OSError, and what ``read`` does."""
    with path.open("xb") as file:
        _Writer(file, size_bytes).write(blocks, read)


class _Writer:
    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self._file, self._size_bytes = file, size_bytes
        self._l1 = array("Q", bytes(8 * max(1, -(-size_bytes // (ENTRIES * BLOCK_BYTES)))))
        self._l1_at = 2 * BLOCK_BYTES
        self._next = 2 + -(-8 * len(self._l1) // BLOCK_BYTES)
        """The first cluster that is not used yet."""

    def write(self, blocks: Iterable[int], read: Callable[[int], bytes]) -> None:
        number, table = -1, array("Q")
        for block in blocks:
            if block // ENTRIES != number:
                self._put_table(number, table)
                number, table = block // ENTRIES, array("Q", bytes(BLOCK_BYTES))
            data = read(block)
            table[block % ENTRIES] = ZERO_FLAG if data == ZEROS else self._put(data) | USED_ONCE
        self._put_table(number, table)
        self._put_at(self._l1_at, _big_endian(self._l1))
        self._put_counts()

    def _put(self, data: bytes) -> int:
        """Write a cluster; return where it is."""
        at, self._next = self._next * BLOCK_BYTES, self._next + 1
        self._put_at(at, data)
        return at

    def _put_at(self, at: int, data: bytes) -> None:
        self._file.seek(at)
        self._file.write(data)

    def _put_table(self, number: int, table: array[int]) -> None:
        if table:
            self._l1[number] = self._put(_big_endian(table)) | USED_ONCE

    def _put_counts(self) -> None:
        """Write the counts of all clusters, their own too, then the header."""
        clusters = counted = self._next
        while counted != (counted := clusters + -(-counted // COUNTS)):
            pass
        places = array("Q")
        for first in range(0, counted, COUNTS):
            used = min(COUNTS, counted - first)
            places.append(self._put((b"\0\1" * used).ljust(BLOCK_BYTES, b"\0")))
        self._put_at(BLOCK_BYTES, _big_endian(places))
        self._put_at(0, HEAD.pack(
            MAGIC, VERSION, 0, 0, BLOCK_BITS, self._size_bytes, 0, len(self._l1), self._l1_at, BLOCK_BYTES, 1, 0, 0,
            0, 0, 0, COUNT_ORDER, HEAD_BYTES,
        ))  # fmt: skip
        self._file.truncate(self._next * BLOCK_BYTES)


def _big_endian(table: array[int]) -> bytes:
    if sys.byteorder != "big":
        table = array("Q", table)
        table.byteswap()
    return table.tobytes()
