"""The pages of one session that both ends can name by number: a file with room for the newest of them."""

from __future__ import annotations

import os
import secrets
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

PAGE = 4096
CIPHER_BLOCK = 16
SLOTS = 262_144
"""Pages that a ring holds: 1 GiB."""
MARGIN = 8192
"""The oldest slots are not named any more: the piece that names them may itself overwrite them."""
CLOSED_AT_ONCE_BYTES = 16 << 20


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

    def append(self, pages: Sequence[bytes | memoryview]) -> None:
        """Give ``pages`` the next slots. Raises OSError when the disk is full."""
        while pages:
            place = self.next % self._slots
            part = pages[: self._slots - place]
            data = self._sealed(b"".join(part))
            if os.pwrite(self._file, data, place * PAGE) != len(data):
                raise OSError(28, "a session's pages can't be written: no space left on device")
            self.next += len(part)
            pages = pages[len(part) :]

    def read(self, slot: int, count: int = 1) -> bytes:
        """Return pages in a row. Raises KeyError when the ring does not hold all of them any more, or never did."""
        if not (self.oldest <= slot and slot + count <= self.next):
            raise KeyError(slot)
        place = slot % self._slots
        first = min(count, self._slots - place)
        data = os.pread(self._file, first * PAGE, place * PAGE)
        if first < count:
            data += os.pread(self._file, (count - first) * PAGE, 0)
        return self._opened(data, slot)

    def _sealed(self, data: bytes) -> bytes:
        """Return what goes into the file for pages that get the next slots."""
        return data

    def _opened(self, data: bytes, slot: int) -> bytes:
        """Return the pages from a slot on as they were before they went into the file."""
        return data

    def close(self) -> None:
        """Let the pages go. Of a large file that takes tenths of a second, for which an event loop must not wait."""
        if min(self.next, self._slots) * PAGE > CLOSED_AT_ONCE_BYTES:
            threading.Thread(target=os.close, args=(self._file,), name="ring").start()
        else:
            os.close(self._file)


class EncryptedRing(PageRing):
    """A ring whose file holds nothing in the clear (AES-256 in CTR mode). The key is in memory only, and goes with the
    session. Slots are never numbered twice, so no part of the key stream is used twice."""

    def __init__(self, directory: Path, slots: int = SLOTS) -> None:
        super().__init__(directory, slots)
        self._key = algorithms.AES(secrets.token_bytes(32))

    def _cipher(self, slot: int) -> Cipher[modes.CTR]:
        return Cipher(self._key, modes.CTR((slot * (PAGE // CIPHER_BLOCK)).to_bytes(CIPHER_BLOCK, "big")))

    def _sealed(self, data: bytes) -> bytes:
        return _whole(self._cipher(self.next).encryptor(), data)

    def _opened(self, data: bytes, slot: int) -> bytes:
        return _whole(self._cipher(slot).decryptor(), data)


def _whole(context: CipherContext, data: bytes) -> bytes:
    return context.update(data) + context.finalize()


def open_ring(directory: Path, slots: int, encrypted: bool) -> PageRing:
    """Return a new ring. Raises OSError."""
    return EncryptedRing(directory, slots) if encrypted else PageRing(directory, slots)
