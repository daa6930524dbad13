"""How long a disk's file must be for all the blocks that its own map names: a file that is shorter was cut off.

``qemu-img`` reads what is missing as zeros, and reports nothing. Maps are read by ourselves, within limits, before any
tool opens the file; compressed parts must be there to their last byte. Sources: QEMU's docs/interop/qcow2.txt, VMware's
Virtual Disk Format 1.1, VirtualBox' VDICore.h, Microsoft's Virtual Hard Disk Image Format Specification and [MS-VHDX].
"""

from __future__ import annotations

import os
import struct
import sys
from array import array
from collections.abc import Callable, Sequence
from typing import BinaryIO

from novacron.disk import compressed_clusters
from novacron.disk.errors import Unacceptable
from novacron.model.image import ImageFormat

SECTOR = 512
MAP_BYTES_MAX = 1 << 30
"""The largest map that is read: that of 1 TiB in VMDK's grains of 4 KiB."""
QCOW2_OFFSET = 0x00FFFFFFFFFFFE00
QCOW2_COMPRESSED = compressed_clusters.COMPRESSED
QCOW2_EXTENDED_L2 = 1 << 4
VMDK_AT_END = 0xFFFFFFFFFFFFFFFF
VMDK_COMPRESSED = 1 << 16
VMDK_ZERO_GRAIN = 1
"""An entry that names no sector of the file: the grain is zeros."""
VMDK_FOOTER_BYTES = 3 * SECTOR
"""A footer's marker, the footer, and the marker of the stream's end."""
VDI_FREE = 0xFFFFFFFE
"""From this on, an entry of a VDI's map names no block."""
VHD_FREE = 0xFFFFFFFF
VHDX_REGIONS = 192 << 10
VHDX_BAT = bytes.fromhex("6677c22d23f600429d64115e9bfd4a08")
VHDX_METADATA = bytes.fromhex("06a27c8b90479a4bb8fe575f050f886e")
VHDX_PARAMETERS = bytes.fromhex("3767a1ca36fa434db3b633f0aa44e76b")
VHDX_SECTOR_SIZE = bytes.fromhex("1dbf41816fa90947ba47f233a8faab5f")
VHDX_HAS_PARENT = 2
VHDX_PRESENT = (6, 7)
"""States of a block that is in the file, wholly or in part."""


def bytes_needed(file: BinaryIO, format: ImageFormat) -> int:
    """Return how many bytes a file must have, at least, for what its map names; 0 for a raw disk, which has no map.

    The file's header must have been checked. Raises Unacceptable when the map can't be read.
    """
    needed: dict[ImageFormat, Callable[[BinaryIO], int]] = {
        ImageFormat.QCOW2: _qcow2,
        ImageFormat.VMDK: _vmdk,
        ImageFormat.VDI: _vdi,
        ImageFormat.VHD: _vhd,
        ImageFormat.VHDX: _vhdx,
    }
    return needed[format](file) if format in needed else 0


def check_whole(file: BinaryIO, format: ImageFormat) -> None:
    """Raise Unacceptable when a file ends before the blocks that its map names."""
    size, needed = file.seek(0, os.SEEK_END), bytes_needed(file, format)
    if size < needed:
        raise Unacceptable(f"it is cut off: it has {size} bytes, and its own map needs {needed}; fetch it again")


def read_exactly(file: BinaryIO, offset: int, length: int, what: str) -> bytes:
    """Return ``length`` bytes. Raises Unacceptable when the file ends before."""
    if length > MAP_BYTES_MAX:
        raise Unacceptable(f"its header is damaged: {what} has {length} bytes")
    size = file.seek(0, os.SEEK_END)
    if offset + length > size:
        raise Unacceptable(f"it is cut off: {what} ends at byte {offset + length}, the file at {size}; fetch it again")
    file.seek(offset)
    return file.read(length)


def numbers(data: bytes, kind: str, order: str) -> array[int]:
    """Return a table of unsigned numbers; ``kind`` is array's: ``I`` or ``Q``; ``order`` that of their bytes."""
    numbers = array(kind)
    numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    if order != sys.byteorder:
        numbers.byteswap()
    return numbers


def _qcow2(file: BinaryIO) -> int:
    head = read_exactly(file, 0, 72, "its header")
    cluster_bits, l1_entries, l1_offset, disk_bytes = (
        struct.unpack_from(code, head, at)[0] for code, at in ((">I", 20), (">I", 36), (">Q", 40), (">Q", 24))
    )
    version = struct.unpack_from(">I", head, 4)[0]
    if version >= 3:
        head = read_exactly(file, 0, 80, "its header")
    features = struct.unpack_from(">Q", head, 72)[0] if version >= 3 else 0
    entry_words = 2 if features & QCOW2_EXTENDED_L2 else 1
    cluster_bytes = 1 << cluster_bits
    compressed = compressed_clusters.of_file(file, head, cluster_bytes, file.seek(0, os.SEEK_END))
    l1 = numbers(read_exactly(file, l1_offset, 8 * l1_entries, "its L1 table"), "Q", "big")
    last: int = l1_offset + 8 * l1_entries
    tables = {entry & QCOW2_OFFSET: number for number, entry in enumerate(l1) if entry & QCOW2_OFFSET}
    for offset, number in tables.items():
        entries = numbers(read_exactly(file, offset, cluster_bytes, "an L2 table"), "Q", "big")[::entry_words]
        last = max(last, offset + cluster_bytes, compressed.bytes_needed(file, entries))
        last = max(last, _qcow2_clusters_end(entries, number * len(entries), cluster_bytes, disk_bytes))
    return last


def _qcow2_clusters_end(entries: Sequence[int], first: int, cluster_bytes: int, disk_bytes: int) -> int:
    """Return where the last plain cluster of an L2 table ends in the file, 0 if there is none. ``first`` is the number
    of the table's first cluster in the disk, whose last cluster may end with the disk."""
    offsets = [0 if entry & QCOW2_COMPRESSED else entry & QCOW2_OFFSET for entry in entries]
    highest = max(offsets)
    if not highest:
        return 0
    begins_at = (first + offsets.index(highest)) * cluster_bytes
    return highest + min(cluster_bytes, max(0, disk_bytes - begins_at))


def _vmdk(file: BinaryIO) -> int:
    head = read_exactly(file, 0, SECTOR, "its header")
    size = file.seek(0, os.SEEK_END)
    if struct.unpack_from("<Q", head, 56)[0] == VMDK_AT_END:
        tail = read_exactly(file, max(0, size - VMDK_FOOTER_BYTES + SECTOR), 2 * SECTOR, "its footer")
        head = tail[:SECTOR]
        if not head.startswith(b"KDMV") or any(tail[SECTOR:]):
            raise Unacceptable("it is cut off: the footer that ends such a stream is missing; fetch it again")
    flags, capacity, grain_sectors = struct.unpack_from("<IQQ", head, 8)
    entries_per_table = struct.unpack_from("<I", head, 44)[0]
    directory_sector = struct.unpack_from("<Q", head, 56)[0]
    if not 0 < grain_sectors <= 1 << 16 or not 0 < entries_per_table <= 1 << 16:
        raise Unacceptable(f"its header is damaged: grains of {grain_sectors} sectors, tables of {entries_per_table}")
    tables = -(-capacity // (grain_sectors * entries_per_table))
    directory = numbers(read_exactly(file, directory_sector * SECTOR, 4 * tables, "its grain directory"), "I", "little")
    last: int = directory_sector * SECTOR + 4 * tables
    table_bytes = 4 * entries_per_table
    for sector in set(directory) - {0, VMDK_ZERO_GRAIN}:
        grains = numbers(read_exactly(file, sector * SECTOR, table_bytes, "a grain table"), "I", "little")
        highest = max(grains)
        last = max(last, sector * SECTOR + table_bytes)
        if highest <= VMDK_ZERO_GRAIN:
            continue
        if flags & VMDK_COMPRESSED:
            packed = struct.unpack("<QI", read_exactly(file, highest * SECTOR, 12, "a grain"))[1]
            last = max(last, highest * SECTOR + 12 + packed)
        else:
            last = max(last, (highest + grain_sectors) * SECTOR)
    return last


def _vdi(file: BinaryIO) -> int:
    head = read_exactly(file, 0, SECTOR, "its header")
    map_offset, data_offset = struct.unpack_from("<II", head, 0x154)
    block_bytes, extra_bytes, blocks = struct.unpack_from("<III", head, 0x178)
    entries = numbers(read_exactly(file, map_offset, 4 * blocks, "its map"), "I", "little")
    highest = max((entry for entry in entries if entry < VDI_FREE), default=-1)
    return int(max(map_offset + 4 * blocks, data_offset + (highest + 1) * (block_bytes + extra_bytes)))


def _vhd(file: BinaryIO) -> int:
    size = file.seek(0, os.SEEK_END)
    footer = read_exactly(file, max(0, size - SECTOR), SECTOR, "its footer")
    if not footer.startswith(b"conectix"):
        raise Unacceptable("it is cut off: the footer that ends a VHD is missing; fetch it again")
    kind = struct.unpack_from(">I", footer, 60)[0]
    if kind == 2:
        return int(struct.unpack_from(">Q", footer, 48)[0]) + SECTOR
    dynamic = read_exactly(file, struct.unpack_from(">Q", footer, 16)[0], 1024, "its dynamic header")
    table_offset = struct.unpack_from(">Q", dynamic, 16)[0]
    entries, block_bytes = struct.unpack_from(">II", dynamic, 28)
    if not dynamic.startswith(b"cxsparse") or not SECTOR <= block_bytes <= 1 << 28:
        raise Unacceptable("its dynamic header is damaged")
    table = numbers(read_exactly(file, table_offset, 4 * entries, "its block allocation table"), "I", "big")
    highest = max((entry for entry in table if entry != VHD_FREE), default=None)
    bitmap_bytes = -(-block_bytes // (8 * SECTOR * SECTOR)) * SECTOR
    blocks_end = 0 if highest is None else highest * SECTOR + bitmap_bytes + block_bytes
    return int(max(table_offset + 4 * entries, blocks_end)) + SECTOR


def _vhdx(file: BinaryIO) -> int:
    regions = _vhdx_entries(read_exactly(file, VHDX_REGIONS, 64 << 10, "its region table"), b"regi", 16, 32)
    if VHDX_BAT not in regions or VHDX_METADATA not in regions:
        raise Unacceptable("its region table is damaged")
    (bat_offset, bat_bytes), (metadata_offset, metadata_bytes) = regions[VHDX_BAT], regions[VHDX_METADATA]
    metadata = read_exactly(file, metadata_offset, metadata_bytes, "its metadata")
    items = _vhdx_items(metadata)
    if VHDX_PARAMETERS not in items or VHDX_SECTOR_SIZE not in items:
        raise Unacceptable("its metadata is damaged")
    block_bytes, parameters = struct.unpack_from("<II", metadata, items[VHDX_PARAMETERS])
    if parameters & VHDX_HAS_PARENT:
        raise Unacceptable("it is a differencing disk (with a parent); convert it to a full disk")
    sector_bytes = struct.unpack_from("<I", metadata, items[VHDX_SECTOR_SIZE])[0]
    if not 1 << 20 <= block_bytes <= 256 << 20 or sector_bytes not in (512, 4096):
        raise Unacceptable(f"its metadata is damaged: blocks of {block_bytes} bytes, sectors of {sector_bytes}")
    chunk = (sector_bytes << 23) // block_bytes  # after so many blocks comes the entry of a bitmap
    entries = numbers(read_exactly(file, bat_offset, bat_bytes, "its block allocation table"), "Q", "little")
    del entries[chunk :: chunk + 1]
    last = max(((entry >> 20 << 20) + block_bytes for entry in entries if entry & 7 in VHDX_PRESENT), default=0)
    return max(last, bat_offset + bat_bytes, metadata_offset + metadata_bytes)


def _vhdx_entries(table: bytes, magic: bytes, first: int, size: int) -> dict[bytes, tuple[int, int]]:
    """Return offset and length of each region, by its identifier."""
    if not table.startswith(magic):
        raise Unacceptable("its region table is damaged")
    count = min(struct.unpack_from("<I", table, 8)[0], (len(table) - first) // size)
    places = (first + number * size for number in range(count))
    return {table[at : at + 16]: struct.unpack_from("<QI", table, at + 16) for at in places}


def _vhdx_items(metadata: bytes) -> dict[bytes, int]:
    """Return where in the metadata each item is, by its identifier."""
    if not metadata.startswith(b"metadata"):
        raise Unacceptable("its metadata is damaged")
    count = min(struct.unpack_from("<H", metadata, 10)[0], (len(metadata) - 32) // 32)
    places = (32 + number * 32 for number in range(count))
    items = {metadata[at : at + 16]: struct.unpack_from("<I", metadata, at + 16)[0] for at in places}
    return {identifier: offset for identifier, offset in items.items() if offset + 8 <= len(metadata)}
