"""Whether the first sector of a file is that of a disk of a PC: a partition table, a FAT file system, or boot code.

Two bytes at its end say so, but programs and Linux kernels have them there too, and any file may by chance. Sources:
the UEFI specification (legacy MBR), Microsoft's FAT specification.
"""

from __future__ import annotations

import struct

SECTOR = 512
SIGN_AT, SIGN = 510, b"\x55\xaa"
CODE_BYTES, TABLE_AT, ENTRY = 440, 446, struct.Struct("<B3sB3sII")
STATUSES = (0x00, 0x80)
FAT = struct.Struct("<HBHB")
FAT_AT = 11
JUMPS = (0xEB, 0xE9)
CODE_BEGINS = frozenset((0xFA, 0xFC, 0x31, 0x33, 0x0E, 0xEA, 0x8C, 0xB8, 0xBC, 0xBE, 0xFB, *JUMPS))
"""With what boot code begins: cli, cld, xor, push cs, a jump, a move to a register, sti."""


def is_one(sector: bytes) -> bool:
    """Say whether these 512 bytes are plausible as the first ones of a disk."""
    if len(sector) < SECTOR or sector[SIGN_AT:] != SIGN:
        return False
    table = sector[TABLE_AT:SIGN_AT]
    if any(table):
        return _is_table(table) or _is_fat(sector) or sector[0] in JUMPS
    return sector[0] in CODE_BEGINS or not any(sector[:CODE_BYTES])


def has_partitions(sector: bytes) -> bool:
    """Say whether these 512 bytes are a partition table, and not the boot sector of a file system."""
    is_signed = len(sector) >= SECTOR and sector[SIGN_AT:SECTOR] == SIGN
    return is_signed and not _is_fat(sector) and _is_table(sector[TABLE_AT:SIGN_AT])


def _is_table(table: bytes) -> bool:
    """Say whether there is a partition, and nothing that can't be one."""
    partitions = 0
    for status, _, kind, _, start, sectors in ENTRY.iter_unpack(table):
        if kind == 0 and sectors == 0:
            continue
        if status not in STATUSES or kind == 0 or sectors == 0 or start + sectors > 1 << 32:
            return False
        partitions += 1
    return partitions > 0


def _is_fat(sector: bytes) -> bool:
    sector_bytes, per_cluster, reserved, copies = FAT.unpack_from(sector, FAT_AT)
    return (
        sector_bytes in (512, 1024, 2048, 4096) and per_cluster.bit_count() == 1 and reserved > 0 and copies in (1, 2)
    )
