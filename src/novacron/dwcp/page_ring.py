"""The pages of one session that both ends can name by number: a file with room for the newest of them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

PAGE = 4096
SLOTS = 262_144
"""Pages that a ring holds: 1 GiB."""
MARGIN = 8192
"""The oldest slots are not named any more: the piece that names them may itself overwrite them."""


class PageRing:
    """Slots are numbered from 0 without end; the file holds the last ``slots`` of them. It has no name on disk."""

    def __init__(self, directory: Path, slots: int = SLOTS) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix="ring-", dir=directory)
        Path(name).unlink()
        self._file = descriptor
        self._slots = slots
        self.next = 0

    @property
    def oldest(self) -> int:
        """The first slot that may still be named."""
        return min(self.next, max(0, self.next - self._slots + MARGIN))

    def append(self, pages: list[bytes]) -> None:
        """Give ``pages`` the next slots. Raises OSError when the disk is full."""
        while pages:
            place = self.next % self._slots
            part = pages[: self._slots - place]
            data = b"".join(part)
            if os.pwrite(self._file, data, place * PAGE) != len(data):
                raise OSError(28, "a session's pages can't be written: no space left on device")
            self.next += len(part)
            pages = pages[len(part) :]

    def read(self, slot: int) -> bytes:
        """Return a page. Raises KeyError when the ring does not hold it any more, or never did."""
        if not self.oldest <= slot < self.next:
            raise KeyError(slot)
        return os.pread(self._file, PAGE, slot % self._slots * PAGE)

    def close(self) -> None:
        os.close(self._file)
