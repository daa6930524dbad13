"""Pauses between attempts that fail."""

from __future__ import annotations

import random
from collections.abc import Callable

SPREAD = 0.25


class Backoff:
    """Each pause is twice the last, from ``first_s`` to ``max_s``, less up to a quarter at random: peers that lost the
    same link do not all come back in the same moment."""

    def __init__(self, first_s: float, max_s: float, chance: Callable[[], float] = random.random) -> None:
        self._first_s, self._max_s, self._chance = first_s, max_s, chance
        self._pause_s = first_s

    def next_s(self) -> float:
        """Return how long to wait before the next attempt, in seconds."""
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, self._max_s)
        return pause_s * (1 - SPREAD * self._chance())

    def reset(self) -> None:
        """An attempt succeeded: begin with the shortest pause again."""
        self._pause_s = self._first_s
