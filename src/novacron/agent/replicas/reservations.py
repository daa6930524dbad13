"""Room for rounds that come in side by side: each sees what the others have yet to write."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from novacron.disk.files import allocated


class Reservations:
    """Of one file system. Called in threads."""

    def __init__(self, free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free) -> None:
        self._free_bytes = free_bytes
        self._lock = threading.Lock()
        self._reserved: dict[Path, int] = {}
        """Bytes by the directory into which they are written."""

    def reserve(self, directory: Path, needed_bytes: int, spare_bytes: int) -> int | None:
        """Reserve room for what is to be written into an empty directory, which leaves ``spare_bytes`` free; return
        None, or how much is free if that is not enough. Raises OSError."""
        with self._lock:
            unwritten = sum(
                max(0, reserved - _written(other)) for other, reserved in self._reserved.items() if other != directory
            )
            free_bytes = self._free_bytes(directory) - unwritten
            if needed_bytes > free_bytes - spare_bytes:
                return max(0, free_bytes)
            self._reserved[directory] = needed_bytes
            return None

    def release(self, directory: Path) -> None:
        """Nothing more is written there. May be called again."""
        with self._lock:
            self._reserved.pop(directory, None)


def _written(directory: Path) -> int:
    with contextlib.suppress(OSError):  # it is moved away at this moment: its room is not free any more
        return allocated(directory.iterdir())
    return 0
