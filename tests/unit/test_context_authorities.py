"""Contexts of the CLI follow the authorities of their server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from novacron import context_file, pki
from novacron.cli import authorities
from novacron.client import Client
from novacron.client.protocol import served_authorities

URL = "https://control.example.net:7443"
OLD, NEW, PROXY = (pki.new_authority(0.0)[1].decode() for _ in range(3))


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], context_file.Context]:
    """Settings with one context that trusts the old authority; returns what it is by now."""
    path = tmp_path / "config.json"
    monkeypatch.setenv("NOVACRON_CONFIG", str(path))
    with context_file.changing(path) as contexts:
        contexts.add("main", context_file.Context(URL, "token", OLD, authorities="before"))
    monkeypatch.setattr(authorities, "served_authorities", {URL: "now"})
    monkeypatch.setitem(served_authorities, URL, "now")
    return lambda: context_file.read(path).get("main")


def serve(monkeypatch: pytest.MonkeyPatch, ca: str) -> list[str]:
    asked: list[str] = []

    def authority(_: Client) -> str:
        asked.append(ca)
        return ca

    monkeypatch.setattr(Client, "authority", authority)
    return asked


def test_a_context_trusts_both_authorities_once_its_server_says_so(
    stored: Callable[[], context_file.Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = serve(monkeypatch, OLD + NEW)
    for _ in range(2):
        authorities.follow()
    assert stored() == context_file.Context(URL, "token", OLD + NEW, authorities="now")
    assert len(asked) == 1, "it asks once for each change"


def test_a_context_that_verifies_something_else_is_left_as_it_is_unless_that_is_asked_for(
    stored: Callable[[], context_file.Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = serve(monkeypatch, NEW + PROXY)
    for _ in range(2):
        authorities.follow()
    assert stored().ca == OLD and len(asked) == 1
    authorities.trust("main")
    assert stored().ca == NEW + PROXY


def test_a_command_that_has_done_its_work_does_not_fail_because_of_its_settings(
    stored: Callable[[], context_file.Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOVACRON_CONTEXT", "gone")
    authorities.follow()
    monkeypatch.delenv("NOVACRON_CONTEXT")
    monkeypatch.setenv("NOVACRON_URL", "https://elsewhere.example.net")
    asked = serve(monkeypatch, NEW)
    authorities.follow()
    assert asked == [] and stored().ca == OLD
