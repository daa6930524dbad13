"""What a guest printed on its serial line: QEMU appends it to a file, which is kept within limits here."""

from __future__ import annotations

import os
from pathlib import Path

from novacron.qemu.command import console_log_path

OLDER = "console.log.1"
BYTES_MAX, KEPT_BYTES = 4 << 20, 1 << 20


def bound(directory: Path) -> None:
    """Where the guest of a VM's directory has written too much, keep the end of it apart and begin anew.

    Raises OSError.
    """
    path = console_log_path(directory)
    if not path.exists() or path.stat().st_size <= BYTES_MAX:
        return
    with path.open("r+b") as file:
        file.seek(-KEPT_BYTES, os.SEEK_END)
        (directory / OLDER).write_bytes(file.read(KEPT_BYTES))
        file.truncate(0)


def read(directory: Path, bytes_max: int) -> bytes:
    """Return the end of what the guest printed. Raises OSError."""
    text = b""
    for name in (console_log_path(directory).name, OLDER):
        path = directory / name
        if path.exists() and len(text) < bytes_max:
            with path.open("rb") as file:
                file.seek(-min(path.stat().st_size, bytes_max - len(text)), os.SEEK_END)
                text = file.read(bytes_max) + text
    return text[-bytes_max:]
