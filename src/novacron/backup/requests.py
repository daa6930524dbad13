"""Requests to storage behind a network: repeated a few times, within limits."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from novacron.backup.errors import RepositoryError

T = TypeVar("T")


class RequestLimits(NamedTuple):
    """How long requests may take. All attempts together take less than work on a repository may be silent."""

    connect_s: float = 10.0
    request_s: float = 120.0
    """Of one attempt, with all that is sent and received: 16 MiB with at least 1.1 Mbit/s."""
    repeat_s: float = 120.0
    """After which no further attempt begins."""
    attempts: int = 12
    first_pause_s: float = 0.2
    pause_s_max: float = 8.0


LIMITS = RequestLimits()


def repeated(
    request: Callable[[], T], errors: tuple[type[Exception], ...],
    failure: Callable[[Exception], tuple[RepositoryError, bool]], limits: RequestLimits,
) -> T:  # fmt: skip
    """Send a request until it is answered for good. ``failure`` says of one of ``errors`` what it means, and whether
    the request is worth repeating. Raises what it means."""
    began, pause_s, attempt = time.monotonic(), limits.first_pause_s, 1
    while True:
        try:
            return request()
        except errors as error:
            meaning, passes = failure(error)
            late = attempt == limits.attempts or time.monotonic() - began + pause_s > limits.repeat_s
            if not passes or late:
                raise meaning from None  # the library's own text is long, and not ours
        threading.Event().wait(pause_s * random.uniform(0.75, 1))  # noqa: S311 - nobody gains by guessing it
        pause_s, attempt = min(2 * pause_s, limits.pause_s_max), attempt + 1
