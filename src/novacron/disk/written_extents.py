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
PLAIN, LUKS = 0, 2
"""How the content is encrypted; the tables never are."""
CLUSTER_BITS = 16
"""64 KiB, as the file was made with."""
CLUSTER_BYTES = 1 << CLUSTER_BITS
TABLE_BYTES = CLUSTER_BYTES // 8 * CLUSTER_BYTES
"""Of the disk, for each table of clusters."""
Extent: TypeAlias = tuple[int, int]
"""Offset and length, in bytes."""


def written_extents(
    file: BinaryIO, disk_bytes: int, extents_max: int, *, is_encrypted: bool = False
) -> list[Extent]:  # fmt: skip
    """Return, in order, what was written into a new qcow2 file of a disk of this size, also where it was zeros.

    Raises Unacceptable for what is no such file, and for more than ``extents_max`` of them.
    """
    extents = list[Extent]()
    for offset, length in _clusters(file, disk_bytes, LUKS if is_encrypted else PLAIN):
        if extents and extents[-1][0] + extents[-1][1] == offset:
            extents[-1] = extents[-1][0], extents[-1][1] + length
        elif len(extents) >= extents_max:
            raise Unacceptable(f"the copy of the disk has more than {extents_max} extents")
        else:
            extents.append((offset, length))
    return extents


def _clusters(file: BinaryIO, disk_bytes: int, method: int) -> Iterator[Extent]:
    head = read_exactly(file, 0, HEAD_BYTES, "its header")
    version, backing, _, cluster_bits, size, encryption, tables, tables_at = struct.unpack_from(">IQIIQIIQ", head, 4)
    features = struct.unpack_from(">Q", head, 72)[0]
    plain = version == VERSION and not backing and encryption == method and not features & ~1  # 1: it was not closed
    as_made = cluster_bits == CLUSTER_BITS and size == disk_bytes and tables <= -(-size // TABLE_BYTES) + 1
    if not head.startswith(MAGIC) or not plain or not as_made:
        raise Unacceptable("the copy of the disk does not have the expected format")
    for number, entry in enumerate(numbers(read_exactly(file, tables_at, 8 * tables, "its L1 table"), "Q", "big")):
        if not entry & QCOW2_OFFSET:
            continue
        table = numbers(read_exactly(file, entry & QCOW2_OFFSET, CLUSTER_BYTES, "an L2 table"), "Q", "big")
        for index, cluster in enumerate(table):
            offset = number * TABLE_BYTES + index * CLUSTER_BYTES
            if cluster and offset < size:
                yield offset, min(CLUSTER_BYTES, size - offset)
