"""The OpenAPI document: what the framework derives from the routes, and what it can't know."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
from litestar import Litestar
from litestar.handlers import HTTPRouteHandler

from novacron.api.access.authorization import RouteScope, scope_of
from novacron.api.edge import problems

PROBLEM = {"$ref": "#/components/responses/Problem"}
NOT_MODIFIED = {"description": "The object or list has not changed since the ETag in If-None-Match."}
PAGE = re.compile(r"Page\[(\w+)\]")
LISTS = {"ShownToken": "TokenList", "PoolOnNode": "PoolList"}
"""Lists that are not called after the struct of their items."""
METHODS = ("get", "put", "post", "delete", "patch", "head", "options")


def describe(app: Litestar) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of an application."""
    encoded = msgspec.json.encode(app.openapi_schema.to_schema())
    # The dialect of patterns in JSON Schema has no \\Z, and its $ takes no newline.
    schema = _with_named_pages(msgspec.json.decode(encoded.replace(rb'\\Z"', b'$"')))
    components = schema["components"]
    (_,), schemas = msgspec.json.schema_components([problems.Problem], ref_template="#/components/schemas/{name}")
    components["schemas"] |= schemas
    components.setdefault("responses", {})["Problem"] = {
        "description": "The request failed: a problem document (RFC 9457).",
        "content": {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    public = _public(app)
    for path, method, operation in _operations(schema):
        responses = operation["responses"]
        responses.pop("400", None)
        responses["default"] = PROBLEM
        if method == "get":
            responses["304"] = NOT_MODIFIED
        if path in public:
            operation["security"] = []
        parameters = operation.get("parameters", [])
        if any(parameter["name"] == "fields" for parameter in parameters):
            _only_some_fields(responses["200"])
    return schema


def _with_named_pages(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the document with each ``Page[Vm]`` called VmList: generated clients name their types after it."""
    schemas = schema["components"]["schemas"]
    names = {
        f"#/components/schemas/{key}": LISTS.get(page[1], f"{page[1]}List")
        for key, value in schemas.items()
        if (page := PAGE.fullmatch(value.get("title", "")))
    }
    for ref, name in names.items():
        schemas[name] = {**schemas.pop(ref.rpartition("/")[2]), "title": name}

    def renamed(value: Any) -> Any:
        if isinstance(value, list):
            return [renamed(item) for item in value]
        if not isinstance(value, dict):
            return value
        if value.get("$ref") in names:
            return {"$ref": f"#/components/schemas/{names[value['$ref']]}"}
        return {key: renamed(item) for key, item in value.items()}

    named: dict[str, Any] = renamed(schema)
    return named


def _operations(schema: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in schema["paths"].items():
        for method in METHODS:
            if method in item:
                yield path, method, item[method]


def _public(app: Litestar) -> set[str]:
    """Return the routes that need no token."""
    return {
        route.path_format
        for route in app.routes
        for handler in getattr(route, "route_handlers", ())
        if isinstance(handler, HTTPRouteHandler) and scope_of(handler) is RouteScope.PUBLIC
    }


def _only_some_fields(response: dict[str, Any]) -> None:
    """Declare that with ``fields`` objects have only those."""
    for content in response.get("content", {}).values():
        some = {
            "type": "object",
            "properties": {"items": {"type": "array", "items": {"type": "object"}}},
            "required": ["items", "next", "revision"],
        }
        content["schema"] = {"anyOf": [content["schema"], some]}
