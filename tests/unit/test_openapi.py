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
from novacron.api.edge import openapi, parameters
from novacron.api.edge.openapi_examples import EXAMPLES
from novacron.api.edge.openapi_operations import operation_id
from novacron.api.edge.openapi_words import FIELDS, FIELDS_OF, FIELDS_OF_LISTS
from novacron.api.routes import consoles, watch
from novacron.client import protocol

PYTHON_ONLY = re.compile(r"\\[AZz]|\(\?(P|#|<[^=!]|[aiLmsux-])|\(\?\(|[*+?}]\+")
"""What Python's patterns have and ECMA-262's, which JSON Schema prescribes, have not."""


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


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield each object of the document, schemas among them; examples are what users send."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from objects(inner)


def test_no_two_schemas_are_called_alike_and_each_says_what_it_is(document: dict[str, Any]) -> None:
    """Generators call classes after titles."""
    schemas = document["components"]["schemas"]
    assert {name: schema["title"] for name, schema in schemas.items()} == {name: name for name in schemas}
    assert len({name.lower() for name in schemas}) == len(schemas), "files of some generators"
    assert [name for name, schema in schemas.items() if not schema.get("description")] == [], "a docstring"


def fields_called(document: dict[str, Any], field: str) -> dict[str, dict[str, Any]]:
    """Return what each schema with a field of this name says of it."""
    schemas = document["components"]["schemas"]
    return {
        name: schema["properties"][field] for name, schema in schemas.items() if field in schema.get("properties", {})
    }


def test_fields_of_one_name_are_described_as_what_they_are_in_each_schema(document: dict[str, Any]) -> None:
    for name, status in fields_called(document, "status").items():
        if status.get("type") == "integer":
            assert "HTTP status" in status["description"], name
    for name, revision in fields_called(document, "revision").items():
        is_list = name.endswith("List")
        assert (revision["description"] == FIELDS_OF_LISTS["revision"]) == is_list, name
        assert not is_list or "ETag" not in revision["description"]
    sent = {
        value["$ref"].rpartition("/")[2]
        for _, operation in operations(document)
        for value in objects(operation.get("requestBody", {}))
        if "$ref" in value
    }
    for name, vm in fields_called(document, "vm").items():
        assert "$ref" not in str(vm) or "id" not in vm["description"].split(), name
        assert name not in sent or "name" in vm["description"], f"{name}: its routes take an id or a name"


def test_each_description_by_schema_is_used_and_differs_from_the_one_by_field(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for schema, words in FIELDS_OF.items():
        for field, text in words.items():
            assert text != FIELDS.get(field) and text in schemas[schema]["properties"][field]["description"], schema


def test_no_description_shows_the_program_s_own_names(document: dict[str, Any]) -> None:
    inner = re.compile(r"``|(?<![\w-])(None|True|False|WaitCode)(?![\w-])|\w\.py\b|\w\(\)")
    described = [value["description"] for value in objects(document) if isinstance(value.get("description"), str)]
    assert [text for text in described if inner.search(text)] == []


def test_each_answer_with_json_has_a_type(document: dict[str, Any]) -> None:
    for _, operation in operations(document):
        for status, response in operation["responses"].items():
            schema = response.get("content", {}).get("application/json", {}).get("schema")
            if schema is not None:
                assert "$ref" in schema or schema["items"].keys() == {"$ref"}, (operation["operationId"], status)


def test_each_parameter_says_what_it_is_for(document: dict[str, Any]) -> None:
    for _, operation in operations(document):
        for parameter in operation.get("parameters", []):
            assert parameter["description"], f"{operation['operationId']} {parameter['name']}: openapi_words.py"
            assert "type" in parameter["schema"] or "$ref" in parameter["schema"], parameter


def test_the_document_has_a_license_a_version_and_a_way_to_log_in(document: dict[str, Any]) -> None:
    assert document["info"]["license"] == {"name": "Apache 2.0", "identifier": "Apache-2.0"}
    assert document["info"]["version"] and document["info"]["contact"] and document["info"]["description"]
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"


def test_no_schema_contradicts_itself_or_uses_python_s_patterns(document: dict[str, Any]) -> None:
    for schema in objects(document):
        assert {} not in schema.get("oneOf", []) and {} not in schema.get("anyOf", []), "anything or something"
        assert schema.get("type") != "array" or schema.get("items") or schema.get("maxItems") == 0, schema
        assert not PYTHON_ONLY.search(str(schema.get("pattern", ""))), schema
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


def test_every_query_parameter_that_a_route_takes_is_documented_and_no_other_is_taken(
    document: dict[str, Any], app: Litestar
) -> None:
    documented = {
        operation["operationId"]: {p["name"] for p in operation.get("parameters", []) if p["in"] == "query"}
        for _, operation in operations(document)
    }
    known = {operation_id(handler): names for handler, names in parameters.of_handlers(app).items()}
    assert handlers(app).keys() - known.keys() == {"oidcCallback"}, "an identity provider adds its own"
    for id in handlers(app).keys() & known.keys():
        assert documented[id] | {"wait"} == known[id] | {"wait"}, id
    assert documented["watch"] == watch.PARAMETERS and documented["console"] == consoles.PARAMETERS


def test_what_answers_carry_is_documented(document: dict[str, Any]) -> None:
    """An object or a list of objects has an ETag, which reads take back; a new object says where it is."""
    schemas = document["components"]["schemas"]
    for method, operation in operations(document):
        success = next(operation["responses"][status] for status in operation["responses"] if status[0] in "23")
        reference = success.get("content", {}).get("application/json", {}).get("schema", {}).get("$ref", "")
        fields = schemas.get(reference.rpartition("/")[2], {}).get("properties", {})
        if method == "get" and {"revision", "id"} <= fields.keys():
            assert "ETag" in success["headers"] and "304" in operation["responses"], operation["operationId"]
        if "201" in operation["responses"]:
            assert "Location" in operation["responses"]["201"]["headers"], operation["operationId"]


def test_the_sdk_asks_for_pages_where_lists_have_them(document: dict[str, Any]) -> None:
    for path, item in document["paths"].items():
        schema = item.get("get", {}).get("responses", {}).get("200", {}).get("content", {}).get("application/json", {})
        if schema.get("schema", {}).get("$ref", "").endswith("List"):
            names = {parameter["name"] for parameter in item["get"].get("parameters", [])}
            assert ("limit" in names) == protocol.is_paged(path.removeprefix("/api/v1/")), path


def test_errors_are_documented_by_status(document: dict[str, Any]) -> None:
    for _, operation in operations(document):
        statuses = set(operation["responses"])
        expected = {"default"} | (set() if "101" in statuses else {"400", "429", "503"})
        if operation.get("security") != [] and "101" not in statuses:
            expected |= {"401", "403", "404"}
        if "requestBody" in operation and operation["requestBody"]["content"].keys() == {"application/json"}:
            expected |= {"413"}
        assert expected <= statuses, operation["operationId"]
    create = document["paths"]["/api/v1/vms"]["post"]["responses"]
    assert {"201", "400", "401", "403", "409", "413", "422", "429", "503"} <= set(create)
    assert set(create["201"]["headers"]) == {"ETag", "Location"}
