"""One process at a time works with a state folder: a lock that ends with its process, however that ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class FolderInUse(Exception):
    """Another process works with the folder. ``pid``: its process id, 0 when that is not known."""

    def __init__(self, directory: Path, pid: int) -> None:
        who = f"process {pid}" if pid else "another process"
        super().__init__(f"{who} already works with {directory}: stop it, or name another folder with --state-dir")
        self.pid = pid


class FolderLock:
    """The lock of a folder that exists, held from ``FolderLock(...)`` to ``release`` or the end of this process.

    Processes that are started meanwhile do not inherit it. Raises FolderInUse, OSError.
    """

    def __init__(self, directory: Path, name: str = "lock") -> None:
        self._descriptor = os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._descriptor, 20, 0).decode("ascii", "replace").strip()
            self.release()
            raise FolderInUse(directory, int(holder) if holder.isdecimal() else 0) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def keep_over_exec(self) -> None:
        """Let the program that this process becomes, and what it leaves its files to, hold the lock on."""
        os.set_inheritable(self._descriptor, True)

    def release(self) -> None:
        """Let others work with the folder; releasing it again does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
