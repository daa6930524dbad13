"""A VHDX whose writer was killed: what it had begun is in the log alone ([MS-VHDX], section 2.3)."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

SECTOR = 4096
REGIONS, BAT = 192 << 10, bytes.fromhex("6677c22d23f600429d64115e9bfd4a08")
HEADERS = (64 << 10, 128 << 10)
LOG = bytes(range(1, 17))
PATTERN = 0x5A


def crc32c(data: bytes | bytearray) -> int:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _summed(data: bytearray) -> bytes:
    """Return a structure with its checksum, which is its second word."""
    struct.pack_into("<I", data, 4, 0)
    struct.pack_into("<I", data, 4, crc32c(data))
    return bytes(data)


def with_log(path: Path, size_bytes: int = 16 << 20) -> Path:
    """Make a VHDX of which only the log says that its first MiB was written with ``PATTERN``."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "vhdx", str(path), str(size_bytes)], check=True)
    write = f"write -q -P {PATTERN:#x} 0 1M"
    subprocess.run(["qemu-io", "-f", "vhdx", "-c", write, str(path)], check=True, capture_output=True)
    data = bytearray(path.read_bytes())
    count = struct.unpack_from("<I", data, REGIONS + 8)[0]
    entries = (REGIONS + 16 + 32 * number for number in range(count))
    bat = next(struct.unpack_from("<Q", data, at + 16)[0] for at in entries if data[at : at + 16] == BAT)
    first = HEADERS[0]
    log_offset = struct.unpack_from("<Q", data, first + 72)[0]
    lost = bytes(data[bat : bat + SECTOR])
    data[bat : bat + SECTOR] = bytes(SECTOR)
    entry = bytearray(2 * SECTOR)
    struct.pack_into("<4sIIIQII16sQQ", entry, 0, b"loge", 0, len(entry), 0, 1, 1, 0, LOG, len(data), len(data))
    struct.pack_into("<4s4s8sQQ", entry, 64, b"desc", lost[-4:], lost[:8], bat, 1)
    struct.pack_into("<4sI4084sI", entry, SECTOR, b"data", 0, lost[8:-4], 1)
    data[log_offset : log_offset + len(entry)] = _summed(entry)
    for at in HEADERS:
        header = bytearray(data[at : at + SECTOR])
        header[48:64] = LOG
        data[at : at + SECTOR] = _summed(header)
    path.write_bytes(data)
    return path
