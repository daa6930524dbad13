"""Where the partitions of a raw disk end: a file that ends before was cut off, though nothing else in it tells.

Sources: the UEFI specification (legacy MBR, GPT), the Linux kernel's Documentation/filesystems/squashfs.rst.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from novacron.disk import boot_sector
from novacron.disk.errors import Unacceptable

SECTOR = 512
SECTOR_SIZES = (512, 4096)
GPT_MAGIC, GPT_HEADER_BYTES = b"EFI PART", 92
GPT_ENTRIES_MAX, GPT_ENTRY_BYTES = 1024, (128, 4096)
"""What a table is read up to; every known one has 128 entries of 128 bytes."""
PROTECTIVE = 0xEE
"""An entry of an MBR that stands for all of a disk with a GPT, and often names too many sectors."""
CD_AT, CD_MAGICS = 32769, (b"CD001", b"BEA01")
SQUASHFS_MAGIC, SQUASHFS_USED_AT = b"hsqs", 40


class Partition(NamedTuple):
    number: int
    begin: int
    """As all here: a byte of the disk."""
    end: int


def check_whole(file: BinaryIO) -> None:
    """Raise Unacceptable when a raw disk ends before one of its partitions does.

    A squashfs may: it never uses what is behind it (OpenWrt's images end there). A CD may, too: its partition table is
    for the firmware of PCs, and covers what a writer pads.
    """
    size = file.seek(0, io.SEEK_END)
    if any(_read(file, CD_AT, len(magic)) == magic for magic in CD_MAGICS):
        return
    for partition in partitions(file):
        if size < partition.end and size < _used_end(file, partition):
            raise Unacceptable(
                f"it is cut off: it has {size} bytes, and its partition {partition.number} ends at {partition.end};"
                " fetch it again, or import it with --format raw if it is whole"
            )


def partitions(file: BinaryIO) -> list[Partition]:
    """Return the partitions that a disk's GPT names, or else its MBR; none where there is neither, or it is damaged."""
    for sector_bytes in SECTOR_SIZES:
        header = _read(file, sector_bytes, GPT_HEADER_BYTES)
        if len(header) == GPT_HEADER_BYTES and header.startswith(GPT_MAGIC) and _is_intact(header):
            return list(_of_gpt(file, header, sector_bytes))
    return list(_of_mbr(_read(file, 0, SECTOR)))


def _is_intact(header: bytes) -> bool:
    """Say whether a GPT's header has its checksum; others are not read by guests."""
    length, checksum = struct.unpack_from("<II", header, 12)
    return int(length) == GPT_HEADER_BYTES and zlib.crc32(header[:16] + bytes(4) + header[20:]) == int(checksum)


def _of_gpt(file: BinaryIO, header: bytes, sector_bytes: int) -> Iterator[Partition]:
    at, count, entry_bytes = struct.unpack_from("<QII", header, 72)
    if count > GPT_ENTRIES_MAX or not GPT_ENTRY_BYTES[0] <= entry_bytes <= GPT_ENTRY_BYTES[1] or at >= 1 << 40:
        return
    table = _read(file, at * sector_bytes, count * entry_bytes)
    for number in range(len(table) // entry_bytes):
        entry = table[number * entry_bytes :][: GPT_ENTRY_BYTES[0]]
        first, last = struct.unpack_from("<QQ", entry, 32)
        if any(entry[:16]) and first <= last:
            yield Partition(number + 1, first * sector_bytes, (last + 1) * sector_bytes)


def _of_mbr(sector: bytes) -> Iterator[Partition]:
    """Yield the partitions of an MBR; a file system's boot sector has code where those would be."""
    if not boot_sector.has_partitions(sector):
        return
    table = sector[boot_sector.TABLE_AT : boot_sector.SIGN_AT]
    for number, (_, _, kind, _, first, sectors) in enumerate(boot_sector.ENTRY.iter_unpack(table), 1):
        if kind and kind != PROTECTIVE:
            yield Partition(number, first * SECTOR, (first + sectors) * SECTOR)


def _used_end(file: BinaryIO, partition: Partition) -> int:
    """Return where what a partition holds ends, as far as that is known to be less than all of it."""
    head = _read(file, partition.begin, SQUASHFS_USED_AT + 8) if partition.begin < 1 << 60 else b""
    if len(head) == SQUASHFS_USED_AT + 8 and head.startswith(SQUASHFS_MAGIC):
        return int(partition.begin + struct.unpack_from("<Q", head, SQUASHFS_USED_AT)[0])
    return partition.end


def _read(file: BinaryIO, at: int, length: int) -> bytes:
    file.seek(at)
    return file.read(length)
