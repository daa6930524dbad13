"""What a disk has that consists of qcow2 layers over a raw one, block by block (QEMU's docs/interop/qcow2.txt).

A guest that took its QEMU over may have made the layers, or another node: their tables are read here, within limits,
and what their headers say of other files is not followed.
"""

from __future__ import annotations

import contextlib
import os
import struct
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

from novacron.disk.errors import Unacceptable
from novacron.disk.extent_maps import QCOW2_COMPRESSED, QCOW2_OFFSET, numbers, read_exactly
from novacron.disk.files import open_plain

MAGIC, VERSION, HEAD_BYTES = b"QFI\xfb", 3, 80
BLOCK_BITS = 16
BLOCK_BYTES = 1 << BLOCK_BITS
"""Of qcow2's clusters, as QEMU makes them by default."""
ENTRIES = BLOCK_BYTES // 8
"""Blocks that one table says where they are."""
ZERO_FLAG = 1
NOT_CLOSED = 1
ZEROS = bytes(BLOCK_BYTES)
TABLES_HELD = 64
"""Of one layer in memory: 64 KiB each, for 512 MiB of the disk."""


class ReadLayer:
    """One layer, open to be read."""

    def __init__(self, path: Path) -> None:
        """Raises Unacceptable for what is not a plain layer as QEMU creates them, OSError."""
        self._file = open_plain(path)
        try:
            head = read_exactly(self._file, 0, HEAD_BYTES, "its header")
            version, _, _, bits, size, encrypted, tables, at = struct.unpack_from(">IQIIQIIQ", head, 4)
            features = struct.unpack_from(">Q", head, 72)[0]
            if not head.startswith(MAGIC) or version != VERSION or encrypted or features & ~NOT_CLOSED:
                raise Unacceptable(f"{path.name} is not a plain layer as QEMU creates them")
            if bits != BLOCK_BITS:
                raise Unacceptable(f"{path.name} has clusters of {1 << bits & 0xFFFFFFFF} bytes, not {BLOCK_BYTES}")
            self.size_bytes = int(size)
            needed = -(-self.size_bytes // (ENTRIES * BLOCK_BYTES))
            if tables < needed:
                raise Unacceptable(f"{path.name} is damaged: its L1 table is too short")
            self._l1 = numbers(read_exactly(self._file, at, 8 * needed, "its L1 table"), "Q", "big")
        except BaseException:
            self._file.close()
            raise
        self._tables: dict[int, array[int]] = {}

    def close(self) -> None:
        self._file.close()

    def numbers_of_tables(self) -> list[int]:
        """Return which tables there are, in order."""
        return [number for number, entry in enumerate(self._l1) if entry & QCOW2_OFFSET]

    def table(self, number: int) -> array[int] | None:
        """Return a table's entries; None: the layer has none of its blocks. Raises Unacceptable, OSError."""
        at = self._l1[number] & QCOW2_OFFSET if number < len(self._l1) else 0
        if not at:
            return None
        held = self._tables.get(number)
        if held is None:
            held = numbers(read_exactly(self._file, at, BLOCK_BYTES, "an L2 table"), "Q", "big")
            while len(self._tables) >= TABLES_HELD:
                del self._tables[next(iter(self._tables))]
            self._tables[number] = held
        return held

    def read(self, block: int) -> bytes | None:
        """Return a block; None: it is what is below. Raises Unacceptable, OSError."""
        table = self.table(block // ENTRIES)
        entry = 0 if table is None else table[block % ENTRIES]
        if entry & QCOW2_COMPRESSED:
            raise Unacceptable("a layer has compressed blocks, which QEMU does not write for guests")
        if entry & ZERO_FLAG:
            return ZEROS
        at = entry & QCOW2_OFFSET
        if not at:
            return None
        return os.pread(self._file.fileno(), BLOCK_BYTES, at).ljust(BLOCK_BYTES, b"\0")


class Chain:
    """Layers, from the lowest up, over a raw disk. To be closed."""

    def __init__(self, below: Path, layers: Sequence[Path]) -> None:
        """Raises Unacceptable, OSError."""
        with contextlib.ExitStack() as opened:
            self._below = opened.enter_context(below.open("rb", buffering=0))
            self._layers = []
            for path in layers:
                layer = ReadLayer(path)
                opened.callback(layer.close)
                self._layers.append(layer)
            self._opened = opened.pop_all()

    def __enter__(self) -> Chain:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._opened.close()

    @property
    def size_bytes(self) -> int:
        """Return how large the disk is."""
        return self._layers[-1].size_bytes if self._layers else os.fstat(self._below.fileno()).st_size

    def written(self) -> Iterator[int]:
        """Return, in order, the blocks that a layer has. Raises Unacceptable, OSError."""
        end = -(-self.size_bytes // BLOCK_BYTES)
        for number in sorted({number for layer in self._layers for number in layer.numbers_of_tables()}):
            tables = [table for layer in self._layers if (table := layer.table(number)) is not None]
            for index in range(ENTRIES):
                block = number * ENTRIES + index
                if block < end and any(table[index] for table in tables):
                    yield block

    def read(self, block: int) -> bytes:
        """Return a block, with zeros after the disk's end. Raises Unacceptable, OSError."""
        offset = block * BLOCK_BYTES
        for layer in reversed(self._layers):
            if offset >= layer.size_bytes:  # it was smaller then, and what is below it does not show through
                return ZEROS
            content = layer.read(block)
            if content is not None:
                return content
        return self.below(block)

    def below(self, block: int) -> bytes:
        """Return a block of the raw disk. Raises OSError."""
        return os.pread(self._below.fileno(), BLOCK_BYTES, block * BLOCK_BYTES).ljust(BLOCK_BYTES, b"\0")
