"""How fast the rest of a disk is copied while its guest reads from the same repository. Pure."""

from __future__ import annotations

SPEED_MIN, SPEED_MAX = 1 << 20, 1 << 30
"""Bytes a second; the latter is no limit."""
SLOW_READ_S = 0.02
"""A guest whose reads take longer waits for its repository."""
DOWN, UP = 8, 2


def next_speed(speed: int, mean_read_s: float, limit: int | None) -> int:
    """Return the speed that follows ``speed`` (bytes a second), given how long the guest's reads took since then: the
    copy gives way at once, and comes back step by step, up to ``limit`` if there is one."""
    top = SPEED_MAX if limit is None else limit
    if mean_read_s > SLOW_READ_S:
        return min(top, max(SPEED_MIN, speed // DOWN))
    return min(top, speed * UP)
