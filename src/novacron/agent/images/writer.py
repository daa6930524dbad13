"""Files of images as they come in: written from their beginning, with holes for zeros, hashed and synced meanwhile."""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

Hash: TypeAlias = "hashlib._Hash"

PIECE_BYTES, HOLE_BYTES = 4 << 20, 1 << 16
PIECES_AHEAD = 8
SYNC_BYTES = 64 << 20
ZEROS = bytes(HOLE_BYTES)


def _filled(piece: bytes) -> Iterator[tuple[int, int]]:
    """Return what of a piece is not to be a hole, in blocks that follow each other."""
    start = None
    for at in range(0, len(piece), HOLE_BYTES):
        empty = piece.startswith(ZEROS[: len(piece) - at], at)
        if start is None and not empty:
            start = at
        elif start is not None and empty:
            yield start, at
            start = None
    if start is not None:
        yield start, len(piece)


class Writer:
    """A file that is written from its beginning: zeros become holes, and its SHA-256 is known at the end.

    Hashing, and bringing what was written to the disk, go on meanwhile in threads of their own. Raises OSError.
    """

    def __init__(self, path: Path, *, digest: bool = True) -> None:
        self.held_bytes = 0
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._hash = hashlib.sha256()
        self._queue: queue.Queue[bytes | None] = queue.Queue(PIECES_AHEAD)
        self._unsynced_bytes = 0
        self._sync_wanted, self._over = threading.Event(), False
        work = (self._digest, self._sync) if digest else ()
        self._threads = [threading.Thread(target=each, name="import") for each in work]
        for thread in self._threads:
            thread.start()

    def _digest(self) -> None:
        while (piece := self._queue.get()) is not None:
            self._hash.update(piece)

    def _sync(self) -> None:
        while self._sync_wanted.wait() and not self._over:
            self._sync_wanted.clear()
            with contextlib.suppress(OSError):  # told when the file is ended
                os.fdatasync(self._descriptor)

    def write(self, piece: bytes) -> None:
        """Add at most ``PIECE_BYTES`` bytes."""
        if self._threads:
            self._queue.put(piece)
        self._unsynced_bytes += len(piece)
        if self._unsynced_bytes >= SYNC_BYTES:
            self._unsynced_bytes = 0
            self._sync_wanted.set()
        for start, end in _filled(piece):
            block = memoryview(piece)[start:end]
            while block:  # as much at once as there is: each call is a chance for other threads to come between
                count = os.pwrite(self._descriptor, block, self.held_bytes + start)
                block, start = block[count:], start + count
        self.held_bytes += len(piece)

    def close(self) -> Hash:
        """End the file and return its SHA-256, which can go on."""
        try:
            os.truncate(self._descriptor, self.held_bytes)
            os.fsync(self._descriptor)
        finally:
            self.abandon()
        return self._hash

    def abandon(self) -> None:
        if self._threads:
            self._over = True
            self._sync_wanted.set()
            self._queue.put(None)
            for thread in self._threads:
                thread.join()
            self._threads = []
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
