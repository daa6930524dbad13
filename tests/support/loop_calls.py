"""Which calls that a file system may take its time for are made in the event loop."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

SLOW = (
    "fsync", "fdatasync", "truncate", "ftruncate", "unlink", "link", "rename", "replace", "mkdir", "rmdir", "statvfs",
)  # fmt: skip
"""Calls that a file system may take its time for."""


@pytest.fixture
def on_loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The slow calls that the loop's own thread has made, with their first argument."""
    calls, loops = list[str](), threading.get_ident()

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def work(*args: Any, **options: Any) -> Any:
            if threading.get_ident() == loops:
                calls.append(f"{name} {args[0]}")
            return call(*args, **options)

        return work

    for name in SLOW:
        monkeypatch.setattr(os, name, watched(name, getattr(os, name)))
    yield calls
    monkeypatch.undo()
