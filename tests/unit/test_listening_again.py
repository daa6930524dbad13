"""A server whose port a passing connection has taken listens once that has ended."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from novacron.server import http
from novacron.server.http import IN_USE, LISTEN_TRIES, Front


class Embedded:
    """The HTTP server, whose port is taken so many times."""

    def __init__(self, taken: int, error: str = f"{IN_USE} (os error 98)") -> None:
        self.taken, self.error, self.asked = taken, error, 0

    async def serve(self) -> None:
        self.asked += 1
        if self.asked <= self.taken:
            raise RuntimeError(self.error)


async def serve(embedded: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "LISTEN_AGAIN_S", 0.0)
    front = cast(Any, SimpleNamespace(_http=embedded, _settings=SimpleNamespace(port=7443)))
    async with asyncio.timeout(10):
        await Front._serve(front)


@pytest.mark.parametrize("taken", [0, 1, LISTEN_TRIES - 1])
async def test_a_port_that_is_taken_for_a_while_is_awaited(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded = Embedded(taken)
    await serve(embedded, monkeypatch)
    assert embedded.asked == taken + 1


@pytest.mark.parametrize(
    ("embedded", "tries"), [(Embedded(LISTEN_TRIES), LISTEN_TRIES), (Embedded(1, "no such certificate"), 1)]
)
async def test_what_does_not_end_or_is_another_failure_is_said(
    embedded: Embedded, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError):
        await serve(embedded, monkeypatch)
    assert embedded.asked == tries
