"""How far the server's database had come when this node was heard last, where it outlives the agent."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from novacron.model.database_mark import DatabaseMark
from novacron.model.errors import MALFORMED

LENGTH = 128
"""Of what is in the file, in bytes."""


class RememberedMark:
    """The mark of the last acknowledgement. A server whose database knows less is told so."""

    def __init__(self, path: Path) -> None:
        self.mark: DatabaseMark | None = None
        with contextlib.suppress(OSError, *MALFORMED):
            self.mark = msgspec.json.decode(path.read_bytes(), type=DatabaseMark)
        # Open, and as long as it ever gets: it is written in place, which needs no room on a disk that is full.
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def take(self, mark: DatabaseMark | None) -> None:
        """Remember what the server says."""
        if mark is None or mark == self.mark:
            return
        self.mark = mark
        with contextlib.suppress(OSError):  # the next acknowledgement says more
            os.pwrite(self._descriptor, msgspec.json.encode(mark).ljust(LENGTH - 1) + b"\n", 0)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self._descriptor)
