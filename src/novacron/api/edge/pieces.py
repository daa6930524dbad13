"""Files that are read or written piece by piece: the audit log has each of them once, however it is asked for."""

from __future__ import annotations

import time
from collections import OrderedDict

KEPT_MAX = 10_000
KEPT_S = 600.0
"""A piece that comes later is recorded again."""


class RecordedFiles:
    """Files of which this server's audit records say that a caller was there, and when the last piece was asked for."""

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[str, ...], float] = OrderedDict()

    def begins(self, key: tuple[str, ...], offset: int) -> bool:
        """Say whether a piece has to be recorded: it is the first of its file, or none of it was recorded lately."""
        now = time.monotonic()
        seen = self._seen.pop(key, None)
        self._seen[key] = now
        while len(self._seen) > KEPT_MAX:
            self._seen.popitem(last=False)
        return offset == 0 or seen is None or now - seen > KEPT_S


RECORDED = RecordedFiles()
