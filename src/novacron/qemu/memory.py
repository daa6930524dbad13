"""The memory of a running guest, as its QEMU's process holds it (proc(5): ``mem`` and ``pagemap``)."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterator

from novacron.qemu.monitor import Monitor, MonitorFailed

PAGE = 4096
CHUNK_PAGES = 256
PRESENT = 0b11 << 62
"""Bits of a pagemap entry: the page is in memory, or swapped out."""


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
        output = await monitor.execute("human-monitor-command", {"command-line": "gpa2hva 0"})
        address = re.search(r"is (0x[0-9a-f]+)", str(output))
        if address is None:
            raise MonitorFailed(f"QEMU does not say where the guest's memory is: {output}")
        return cls(pid, int(address[1], 16), size)

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
