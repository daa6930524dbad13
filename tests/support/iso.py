"""A CD that boots: the smallest one with El Torito, for a BIOS (ECMA-119; El Torito 1.0)."""

from __future__ import annotations

import struct

from tests.support import boot_sector

SECTOR = 2048
CATALOG, IMAGE = 19, 20


def _both(value: int) -> bytes:
    return struct.pack("<I", value) + struct.pack(">I", value)


def _primary(name: str, sectors: int) -> bytes:
    text = b"\1CD001\1\0" + b"NOVACRON".ljust(32) + name.upper().encode().ljust(32)
    text += (
        bytes(8) + _both(sectors) + bytes(32) + b"\1\0\0\1" * 2 + struct.pack("<H", SECTOR) + struct.pack(">H", SECTOR)
    )
    return text.ljust(SECTOR, b"\0")


def _catalog() -> bytes:
    entry = struct.pack("<BBH24sHBB", 1, 0, 0, b"novacron", 0, 0x55, 0xAA)
    total = sum(struct.unpack("<16H", entry)) & 0xFFFF
    entry = entry[:28] + struct.pack("<H", -total & 0xFFFF) + entry[30:]
    return (entry + struct.pack("<BBHBBHI", 0x88, 0, 0, 0, 0, 4, IMAGE)).ljust(SECTOR, b"\0")


def bootable(text: str) -> bytes:
    """Return a CD that writes a text to the first serial line; not a hybrid: as a disk it boots nowhere."""
    record = b"\0CD001\1" + b"EL TORITO SPECIFICATION".ljust(64, b"\0") + struct.pack("<I", CATALOG)
    sectors = [bytes(SECTOR)] * 16
    sectors += [_primary(text, IMAGE + 1), record.ljust(SECTOR, b"\0"), b"\xffCD001\1".ljust(SECTOR, b"\0"), _catalog()]
    return b"".join(sectors) + boot_sector.sector(text).ljust(SECTOR, b"\0")
