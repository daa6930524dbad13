"""Which blocks of a disk a qcow2 file has anything to say about, data or zeros (QEMU's docs/interop/qcow2.txt).

The file is a copy that a QEMU made, which its guest may have taken over: its tables are read here, within limits.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, TypeAlias

from novacron.disk.errors import Unacceptable
from novacron.disk.extent_maps import QCOW2_OFFSET, numbers, read_exactly

MAGIC, VERSION, HEAD_BYTES = b"QFI\xfb", 3, 80
CLUSTER_BITS_MIN, CLUSTER_BITS_MAX = 12, 21
Extent: TypeAlias = tuple[int, int]
"""Offset and length, in bytes."""


def written_extents(file: BinaryIO, extents_max: int) -> list[Extent]:
    """Return, in order, what was written into a qcow2 file without a backing file, also where it was zeros.

    Raises Unacceptable for what is no such file, and for more than ``extents_max`` of them.
    """
    extents = list[Extent]()
    for offset, length in _clusters(file):
        if extents and extents[-1][0] + extents[-1][1] == offset:
            extents[-1] = extents[-1][0], extents[-1][1] + length
        elif len(extents) >= extents_max:
            raise Unacceptable(f"the copy of the disk has more than {extents_max} extents")
        else:
            extents.append((offset, length))
    return extents


def _clusters(file: BinaryIO) -> Iterator[Extent]:
    head = read_exactly(file, 0, HEAD_BYTES, "its header")
    version, backing, _, cluster_bits, size, encrypted, l1_entries, l1_offset = struct.unpack_from(">IQIIQIIQ", head, 4)
    features = struct.unpack_from(">Q", head, 72)[0]
    plain = version == VERSION and not backing and not encrypted and not features & ~1  # 1: it was not closed
    if not head.startswith(MAGIC) or not plain or not CLUSTER_BITS_MIN <= cluster_bits <= CLUSTER_BITS_MAX:
        raise Unacceptable("the copy of the disk is not as QEMU was told to make it")
    cluster_bytes = 1 << cluster_bits
    table_bytes = cluster_bytes // 8 * cluster_bytes
    if l1_entries > -(-size // table_bytes) + 1:
        raise Unacceptable("the copy of the disk has too large a map")
    for number, entry in enumerate(numbers(read_exactly(file, l1_offset, 8 * l1_entries, "its L1 table"), "Q", "big")):
        if not entry & QCOW2_OFFSET:
            continue
        table = numbers(read_exactly(file, entry & QCOW2_OFFSET, cluster_bytes, "an L2 table"), "Q", "big")
        for index, cluster in enumerate(table):
            offset = number * table_bytes + index * cluster_bytes
            if cluster and offset < size:
                yield offset, min(cluster_bytes, size - offset)
