"""Whole files as volumes of a disk's stream."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, cast

from novacron.disk.blocks import data_ranges
from novacron.disk.stream import CHUNK_BYTES, PAGE, DiskRecorder


def is_plain(path: Path) -> bool:
    """Say whether there is a file of this name, and not a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def allocated(paths: Iterable[Path]) -> int:
    """Return how many bytes of their disks files take; those that are not there take none."""
    total = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_blocks * 512
    return total


def open_plain(path: Path) -> BinaryIO:
    """Open a file to read it, and nothing else: not what a link leads to, which whoever owns the directory may have
    put there, nor what would make us wait. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is not a regular file")
    return cast(BinaryIO, os.fdopen(descriptor, "rb", buffering=0))


def tell(path: Path, size_bytes: int, recorder: DiskRecorder) -> None:
    """Write a file of ``size_bytes`` into a stream, without its holes; what lacks to its last page is zeros.

    Raises OSError.
    """
    with open_plain(path) as file:
        for at, end in data_ranges(file.fileno(), size_bytes):
            for start in range(at, end, CHUNK_BYTES):
                data = os.pread(file.fileno(), min(CHUNK_BYTES, end - start), start)
                recorder.write(start, data.ljust(-(-len(data) // PAGE) * PAGE, b"\0"))


async def sync(path: Path) -> None:
    """Let what is in a file survive a power cut; others go on meanwhile. Raises OSError."""

    def work() -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    await asyncio.to_thread(work)


def make_durable(directory: Path) -> None:
    """Let a directory, and its own name, survive a power cut, with the names of the files in it. Raises OSError."""
    for path in (directory, directory.parent):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class KeptFile:
    """A volume that is a file which is there, and may be told more than once."""

    def __init__(self, path: Path) -> None:
        """Open the file. Raises OSError."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            count = os.pwrite(self._descriptor, view, offset)
            view, offset = view[count:], offset + count

    def zero(self, offset: int, length: int) -> None:
        for start, end in data_ranges(self._descriptor, offset + length, offset):  # a hole is zeros already
            for at in range(start, end, CHUNK_BYTES):
                self.write(at, bytes(min(CHUNK_BYTES, end - at)))

    def flush(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            self.close()


class NewFile(KeptFile):
    """A volume in a new file of ``size_bytes``: unwritten parts stay holes."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        """Make the file. Raises OSError."""
        self.path, self._size = path, size_bytes
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(self._descriptor, size_bytes)
        except OSError:
            self.close()
            raise

    def write(self, offset: int, data: bytes | memoryview) -> None:
        super().write(offset, memoryview(data)[: self._size - offset])

    def zero(self, offset: int, length: int) -> None:
        """Nothing to do: each page is sent once, and the file began with zeros."""
