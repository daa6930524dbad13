"""Where in an image the pages lie that its guests will have in memory."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

PAGE = 4096
CPIO_HEADER_BYTES = 110
CPIO_MAGIC = b"070701"
ENTRIES_MAX = 1_000_000


def places(path: Path) -> list[tuple[int, int]]:
    """Return ``(offset, length)`` of the pages of a file: its own blocks, as a loader copies them, and if it is a cpio
    archive (format "newc"), those of the files in it, as a kernel keeps them."""
    size = path.stat().st_size
    pages = [(offset, min(PAGE, size - offset)) for offset in range(0, size, PAGE)]
    with path.open("rb") as file:
        at = 0
        for _ in range(ENTRIES_MAX):
            file.seek(at)
            header = file.read(CPIO_HEADER_BYTES)
            if len(header) < CPIO_HEADER_BYTES or header[:6] != CPIO_MAGIC:
                break
            try:
                length, name_length = int(header[54:62], 16), int(header[94:102], 16)
            except ValueError:
                break
            data_at = -(-(at + CPIO_HEADER_BYTES + name_length) // 4) * 4
            if data_at + length > size:
                break
            if data_at % PAGE:
                pages += [(data_at + offset, min(PAGE, length - offset)) for offset in range(0, length, PAGE)]
            at = -(-(data_at + length) // 4) * 4
    return pages


def data_ranges(descriptor: int, size: int, begin: int = 0) -> Iterator[tuple[int, int]]:
    """Return ``(start, end)`` of what of a file's first ``size`` bytes is no hole, each beginning at a whole page.

    ``begin`` is a page's beginning. The descriptor's offset moves: read with ``os.pread``, never through a buffered
    file, which goes on where it believes the offset to be.
    """
    at = begin
    while at < size:
        try:
            at = os.lseek(descriptor, at, os.SEEK_DATA) // PAGE * PAGE
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # a hole up to the end
        end = min(-(-os.lseek(descriptor, at, os.SEEK_HOLE) // PAGE) * PAGE, size)
        yield at, end
        at = end


def data_places(path: Path) -> list[tuple[int, int]]:
    """Return ``(offset, length)`` of the pages of a file that are not holes."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return [
            (offset, min(PAGE, end - offset))
            for start, end in data_ranges(file.fileno(), size)
            for offset in range(start, end, PAGE)
        ]


def pages_of(path: Path) -> Iterator[bytes]:
    """Return the whole pages of a file that are not holes, in order."""
    with path.open("rb", buffering=0) as file:
        for offset, length in data_places(path):
            page = os.pread(file.fileno(), length, offset)
            if len(page) == PAGE:
                yield page
