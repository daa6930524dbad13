"""A limit of bytes for what waits: a queue of a thousand messages may hold a thousand times the largest one."""

from __future__ import annotations


class ByteBudget:
    """How many bytes may wait at once."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.used_bytes = 0

    def take(self, size_bytes: int) -> bool:
        """Count bytes that are to wait and return True; if there is no room for them, return False."""
        if self.used_bytes + size_bytes > self._bytes_max:
            return False
        self.used_bytes += size_bytes
        return True

    def give_back(self, size_bytes: int) -> None:
        """Count bytes as handled."""
        self.used_bytes -= size_bytes
