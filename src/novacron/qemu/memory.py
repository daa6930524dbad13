"""The memory of a guest, as its QEMU's process holds it (proc(5): ``maps``, ``mem`` and ``pagemap``)."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from novacron.qemu.monitor import Monitor, MonitorFailed

PAGE = 4096
CHUNK_PAGES = 256
PRESENT = 0b11 << 62
"""Bits of a pagemap entry: the page is in memory, or swapped out."""
IN_HIGH_BYTE = bytes(1 if high & PRESENT >> 56 else 0 for high in range(256))
"""The same of an entry's last byte, as 0 or 1."""
MAP_BYTES = 1 << 20
BLOCK = re.compile(r"^\s*(\S+)\s+4 KiB\s+0x[0-9a-f]+\s+0x([0-9a-f]+)\s", re.MULTILINE)
"""A line of ``info ramblock``: name, size of a page, offset, length in use."""
MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw-p [0-9a-f]+ 00:00 0 *(?:\[anon.*)?$", re.MULTILINE)
"""A line of ``maps`` about memory that is nobody else's and no file's: what nobody ever wrote is zero."""


class MemoryBlock(NamedTuple):
    """A block of guest memory by the name that it has in QEMU's migration stream, and where QEMU's process has it."""

    name: bytes
    address: int
    size: int


async def blocks(monitor: Monitor) -> list[MemoryBlock]:
    """Return the guest's memory: what it began with, which is one block wherever the guest sees it, and what was
    plugged in. Raises MonitorFailed."""
    lengths = {name: int(length, 16) for name, length in BLOCK.findall(await _human(monitor, "info ramblock"))}
    devices = await monitor.execute("query-memory-devices")
    memory_blocks = []
    for guest_address in [0, *(device["data"]["addr"] for device in devices if device["type"] == "dimm")]:
        name, address = await _located(monitor, guest_address)
        if name not in lengths:
            raise MonitorFailed(f"QEMU does not say how long the block {name} of the guest's memory is")
        memory_blocks.append(MemoryBlock(name.encode(), address, lengths[name]))
    return memory_blocks


async def _located(monitor: Monitor, guest_address: int) -> tuple[str, int]:
    """Return the block at an address of the guest's, and where QEMU has it. Raises MonitorFailed."""
    output = await _human(monitor, f"gpa2hva {guest_address}")
    match = re.search(r"\((\S+)\) is 0x([0-9a-f]+)", output)
    if match is None:
        raise MonitorFailed(f"QEMU does not say where the guest's memory is: {output}")
    return match[1], int(match[2], 16)


async def _human(monitor: Monitor, line: str) -> str:
    return str(await monitor.execute("human-monitor-command", {"command-line": line}))


def check_private(pid: int, block: MemoryBlock) -> None:
    """Raise OSError unless all of the block is a process's own memory, of no file, that it can write."""
    at, end = block.address, block.address + block.size
    for start, stop in MAPPING.findall(Path(f"/proc/{pid}/maps").read_text()):
        if int(start, 16) <= at < int(stop, 16):
            at = int(stop, 16)
    if at < end:
        raise OSError(f"the block {block.name.decode()} of the guest's memory is not private memory at {at:#x}")


def touched(pid: int, block: MemoryBlock) -> bytearray:
    """Return a byte for each page of a block: 0 if nobody ever wrote it, so that it is zero. Raises OSError."""
    pages = bytearray()
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as file:
        file.seek(block.address // PAGE * 8)
        while len(pages) < block.size // PAGE:
            entries = file.read(min(MAP_BYTES, (block.size // PAGE - len(pages)) * 8))
            if not entries:
                raise OSError(f"the block {block.name.decode()} of the guest's memory has ended")
            pages += entries[7::8].translate(IN_HIGH_BYTE)
    return pages


class GuestMemory:
    """Reads a guest's memory while it runs, for as long as somebody holds this: of this process, even if its id is used
    again."""

    def __init__(self, pid: int, address: int, size: int) -> None:
        self._address, self._size = address, size
        self._memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        self._map = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)

    @classmethod
    async def of(cls, monitor: Monitor, pid: int, size: int) -> GuestMemory:
        """Find where QEMU has the guest's ``size`` bytes. Raises MonitorFailed; OSError without the right to look."""
        _, address = await _located(monitor, 0)
        return cls(pid, address, size)

    def __del__(self) -> None:
        for descriptor in (getattr(self, "_memory", None), getattr(self, "_map", None)):
            if descriptor is not None:
                os.close(descriptor)

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the guest's memory, as they are at this moment. Raises OSError when QEMU is gone."""
        return os.pread(self._memory, length, self._address + offset)

    def touched(self) -> list[int]:
        """Return the offset of every page that the guest ever touched."""
        entries = array("Q")
        entries.frombytes(os.pread(self._map, self._size // PAGE * 8, self._address // PAGE * 8))
        return [number * PAGE for number, entry in enumerate(entries) if entry & PRESENT]

    def pages(self) -> Iterator[tuple[int, bytes]]:
        """Return ``(offset, page)`` of every page that the guest ever touched."""
        for start in range(0, self._size // PAGE, CHUNK_PAGES):
            count = min(CHUNK_PAGES, self._size // PAGE - start)
            entries = array("Q")
            entries.frombytes(os.pread(self._map, count * 8, (self._address // PAGE + start) * 8))
            if not any(entry & PRESENT for entry in entries):
                continue
            data = self.read(start * PAGE, count * PAGE)
            for number, entry in enumerate(entries):
                if entry & PRESENT:
                    yield (start + number) * PAGE, data[number * PAGE : (number + 1) * PAGE]
