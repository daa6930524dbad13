"""A clock that tests set."""

from __future__ import annotations


class Clock:
    """Returns ``now_s``, which the test sets."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s
