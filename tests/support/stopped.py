"""Processes that stand still for a while."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.waiting import until


@contextmanager
def standing_still(pids: Sequence[int]) -> Iterator[None]:
    """Let processes do nothing while the block runs. They do when it begins: a signal takes its time to reach all
    threads."""
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        until(lambda: all(map(_stands, pids)), "the processes stand still")
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def _stands(pid: int) -> bool:
    states = [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in Path(f"/proc/{pid}/task").iterdir()]
    return all(state in "TZ" for state in states)
