"""Files that are read or written piece by piece: the audit log has each of them once, however it is asked for."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import NamedTuple

KEPT_MAX = 10_000
KEPT_S = 600.0
"""A piece that comes later is recorded again."""


class RecordedFiles:
    """Files of which this server's audit records say that a caller was there, and when the last piece was asked for."""

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[str, ...], float] = OrderedDict()

    def begins(self, key: tuple[str, ...], first: bool) -> bool:
        """Say whether a piece has to be recorded: it is the first of its file, or none of it was recorded lately."""
        seen = self._seen.get(key)
        if first or seen is None or time.monotonic() - seen > KEPT_S:
            return True
        self.note(key)
        return False

    def note(self, key: tuple[str, ...]) -> None:
        """The audit log has it now."""
        self._seen.pop(key, None)
        self._seen[key] = time.monotonic()
        while len(self._seen) > KEPT_MAX:
            self._seen.popitem(last=False)


RECORDED = RecordedFiles()


class AskedPiece(NamedTuple):
    """A piece of a file that a caller asks for."""

    key: tuple[str, ...]
    """Who asks, for what."""
    first: bool
    """It begins the file, so it is recorded although another one was a moment ago."""
