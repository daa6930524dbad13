"""Files that are made of others are made of these as they are now."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from lab import generate
from novacron.client import AsyncClient, Client


@pytest.mark.parametrize("path", generate.generated(), ids=lambda path: str(path.relative_to(generate.ROOT)))
def test_a_generated_file_is_up_to_date(path: Path) -> None:
    assert path.read_text() == generate.generated()[path], "run: script/generate"


def test_the_clients_have_the_same_methods_with_the_same_parameters() -> None:
    def methods(client: type) -> dict[str, list[str]]:
        members = inspect.getmembers(client, inspect.isfunction)
        return {name: list(inspect.signature(method).parameters) for name, method in members if name[0] != "_"}

    asynchronous = methods(AsyncClient)
    assert asynchronous.pop("do") == ["self", "work"]
    assert asynchronous == methods(Client)
