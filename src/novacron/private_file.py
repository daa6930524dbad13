"""Files that are nobody else's business: written whole or not at all, with their mode and owner from the first byte."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

PRIVATE = 0o600
UMASK = 0o077
"""Of servers and agents: what they write only they can read, unless they say otherwise."""


def write(path: Path, data: bytes, mode: int = PRIVATE, owner: tuple[int, int] | None = None) -> None:
    """Write a file durably. ``mode`` holds whatever the umask is; ``owner`` is a user id and a group id.

    Raises OSError.
    """
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE)
    with os.fdopen(descriptor, "wb") as file:
        if owner is not None:
            os.fchown(descriptor, *owner)
        os.fchmod(descriptor, mode)
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    temporary.replace(path)


def opened(path: Path, mode: str = "wb") -> IO[bytes]:
    """Open a file to write it a piece at a time, as ``open`` does; one that is made only its owner can read.

    Raises OSError.
    """
    return open(path, mode, opener=_private)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, PRIVATE)


def readable_by_others(path: Path) -> bool:
    """Say whether any user of this host can read a file. Raises OSError."""
    status = path.stat()
    return bool(status.st_mode & 0o004)


def in_memory(name: str, data: bytes) -> int:
    """Return a file that is in memory only, open to be read; other processes reach it only if they inherit it.

    Raises OSError.
    """
    writable = os.memfd_create(name, os.MFD_CLOEXEC)
    with os.fdopen(writable, "wb") as file:
        file.write(data)
        file.flush()
        return os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
