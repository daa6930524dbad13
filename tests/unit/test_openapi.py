"""The OpenAPI document names what clients generate types from."""

from __future__ import annotations

import types
from typing import Any, cast

import pytest

from novacron.api.access.context import Services
from novacron.api.app import create_app
from novacron.api.edge import openapi


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi.describe(create_app(cast(Services, types.SimpleNamespace())))


def test_each_list_schema_has_its_own_name(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert {"VmList", "NodeList", "TokenList", "PoolList", "MigrationList"} <= set(schemas)
    assert schemas["VmList"]["title"] == "VmList"
    assert schemas["VmList"]["properties"]["items"]["items"] == {"$ref": "#/components/schemas/Vm"}
    assert not [name for name in schemas if name.startswith("Page")]


def test_each_reference_resolves(document: dict[str, Any]) -> None:
    def references(value: Any) -> set[str]:
        if isinstance(value, list):
            return set[str]().union(*map(references, value))
        if not isinstance(value, dict):
            return set()
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(references, value.values()))

    for reference in references(document):
        place: Any = document
        for name in reference.removeprefix("#/").split("/"):
            assert name in place, reference
            place = place[name]
