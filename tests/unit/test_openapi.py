"""The OpenAPI document names what clients generate types from."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator
from typing import Any, cast

import msgspec
import pytest
from litestar import Litestar
from litestar.handlers import HTTPRouteHandler

from novacron.api.access.context import Services
from novacron.api.app import create_app
from novacron.api.edge import openapi
from novacron.api.edge.openapi_examples import EXAMPLES
from novacron.api.edge.openapi_operations import operation_id
from novacron.client import protocol


@pytest.fixture(scope="module")
def app() -> Litestar:
    return create_app(cast(Services, types.SimpleNamespace()))


@pytest.fixture(scope="module")
def document(app: Litestar) -> dict[str, Any]:
    return openapi.describe(app)


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


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for item in document["paths"].values():
        yield from item.items()


def handlers(app: Litestar) -> dict[str, HTTPRouteHandler]:
    return {
        operation_id(handler): handler
        for route in app.routes
        for method, (handler, _) in getattr(route, "route_handler_map", {}).items()
        if method != "OPTIONS" and handler.resolve_include_in_schema()
    }


def test_each_operation_has_its_own_name_a_tag_and_words(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(ids) == len(set(ids)) and all(re.fullmatch("[a-z]+([A-Z][a-z]*)*", id) for id in ids)
    tags = {tag["name"] for tag in document["tags"]}
    assert all(tag["description"] for tag in document["tags"])
    for _, operation in operations(document):
        assert set(operation["tags"]) <= tags and len(operation["tags"]) == 1, operation["operationId"]
        assert operation["summary"] and operation["description"], operation["operationId"]


def test_no_schema_contradicts_itself_or_uses_python_s_patterns(document: dict[str, Any]) -> None:
    def schemas(value: Any) -> Iterator[dict[str, Any]]:
        if isinstance(value, dict):
            yield value
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from schemas(inner)

    for schema in schemas(document):
        assert {} not in schema.get("oneOf", []) and {} not in schema.get("anyOf", []), "anything or something"
        assert r"\Z" not in str(schema.get("pattern", "")), schema
    groups = document["components"]["schemas"]["CreateVm"]["properties"]["cpu_flags"]
    assert groups["items"]["type"] == "string" and groups["type"] == "array"


def test_each_request_body_has_an_example_that_the_api_accepts(document: dict[str, Any], app: Litestar) -> None:
    bodies = {id: handler.parsed_data_field for id, handler in handlers(app).items()}
    assert {id for id, body in bodies.items() if body is not None} == set(EXAMPLES)
    for id, example in EXAMPLES.items():
        body = bodies[id]
        assert body is not None
        msgspec.json.decode(msgspec.json.encode(example), type=body.annotation)


def source(handler: HTTPRouteHandler) -> str:
    """The text of a handler and of the functions of its module that it calls."""
    own = inspect.getsource(handler.fn)
    names = set(re.findall(r"\b(_\w+)\(", own))
    module = inspect.getmodule(handler.fn)
    return own + "".join(inspect.getsource(getattr(module, name)) for name in sorted(names) if hasattr(module, name))


def test_headers_are_documented_where_they_are_read(document: dict[str, Any], app: Litestar) -> None:
    documented = {
        operation["operationId"]: {parameter["name"] for parameter in operation.get("parameters", [])}
        for _, operation in operations(document)
    }
    for id, handler in handlers(app).items():
        text = source(handler)
        assert ("If-Match" in documented[id]) == ("replies.if_match(" in text), id
        if "POST" in handler.http_methods:
            assert ("Idempotency-Key" in documented[id]) == ("replies.write(" in text), id
    assert "Last-Event-ID" in documented["listEvents"]
    assert {"watch", "console"} <= set(documented)


def test_the_sdk_asks_for_pages_where_lists_have_them(document: dict[str, Any]) -> None:
    for path, item in document["paths"].items():
        schema = item.get("get", {}).get("responses", {}).get("200", {}).get("content", {}).get("application/json", {})
        if schema.get("schema", {}).get("$ref", "").endswith("List"):
            names = {parameter["name"] for parameter in item["get"].get("parameters", [])}
            assert ("limit" in names) == protocol.is_paged(path.removeprefix("/api/v1/")), path


def test_errors_are_documented_by_status(document: dict[str, Any]) -> None:
    for _, operation in operations(document):
        assert [status for status in operation["responses"] if status.startswith("4")], operation["operationId"]
    create = document["paths"]["/api/v1/vms"]["post"]["responses"]
    assert {"201", "400", "401", "403", "409", "413", "422", "429", "503"} <= set(create)
    assert set(create["201"]["headers"]) == {"ETag", "Location"}
