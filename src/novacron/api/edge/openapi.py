"""The OpenAPI document: what the framework derives from the routes, schemas of the types themselves, and what neither
can know: headers, errors, streams, tags and examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from litestar import Litestar
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Components, Contact, License, SecurityScheme

from novacron import __version__
from novacron.api.access.authorization import RouteScope, scope_of
from novacron.api.edge import openapi_operations as operations
from novacron.api.edge import openapi_schemas as schemas
from novacron.api.edge import problems

ABOUT = """Runs virtual machines on hosts in many sites, and migrates them between hosts while they run.

Objects have a `revision`, which is also their ETag. Errors are problem documents (RFC 9457): `code` is stable, `field`
names the invalid input as it was written, `hint` says what to do next. The API rejects unknown query parameters and
fields. Responses can get new fields at any time, so clients must ignore fields that they do not know."""
TAGS = {
    "vms": "Virtual machines: their specs, status and actions.",
    "backups": "Backups of VMs, and the repositories that hold them.",
    "replicas": "Replicas of VMs: copies of their disks at other sites, updated in rounds.",
    "volumes": "Disks that exist independently and can be attached to VMs, and the pools that hold them.",
    "images": "Images that VMs start from: import, copy, delete.",
    "networks": "Networks, security groups, floating addresses and forwards.",
    "nodes": "Hosts and sites: join, drain, rename, remove.",
    "migrations": "Migrations of VMs between hosts.",
    "forecasts": "Forecasts of load and capacity, and their accuracy.",
    "links": "Bandwidth limits of migrations between sites.",
    "drills": "Drills that an installation runs on itself, and their results.",
    "events": "Events, and streams of all changes.",
    "access": "Users, tokens, roles, projects and the audit log.",
    "keys": "The platform's own keys and certificate authority.",
    "diagnosis": "Metrics and log levels.",
}


def config() -> OpenAPIConfig:
    """Return what the framework's document begins with."""
    return OpenAPIConfig(
        title="NovaCron",
        version=__version__,
        description=ABOUT,
        contact=Contact(name="The NovaCron project", url="https://novacron.dev"),
        license=License(name="Apache 2.0", identifier="Apache-2.0"),
        path="/schema/ui",
        render_plugins=[],
        operation_id_creator=lambda handler, _method, _path: operations.operation_id(handler),
        components=Components(
            security_schemes={"token": SecurityScheme(type="http", scheme="bearer", description="an API token")}
        ),
        security=[{"token": []}],
    )


class Route(NamedTuple):
    """One operation of the document, and the handler that serves it."""

    path: str
    method: str
    operation: dict[str, Any]
    handler: HTTPRouteHandler


def describe(app: Litestar) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of an application."""
    document: dict[str, Any] = app.openapi_schema.to_schema()
    requests: list[Any] = []
    answers: list[Any] = [problems.Problem, operations.WatchMessage]
    for route in _routes(app, document):
        answer = schemas.answer_type(route.handler.parsed_return_field.annotation)
        body = route.handler.parsed_data_field
        answers += [answer] if answer is not None else []
        answers += [spec.data_container for spec in (route.handler.responses or {}).values()]
        requests += [body.annotation] if body is not None else []
        operation = route.operation
        operation.pop("deprecated", None)
        operation.setdefault("tags", [operations.TAGS.get(route.path, "diagnosis")])
        operation["description"] = operations.described(operation["summary"], route.handler)
        operation["parameters"] = operations.parameters(route.handler, operation)
        if body is not None:
            operation["requestBody"] = operations.body(body.annotation, body.is_optional, operation["operationId"])
        operation["responses"] = operations.responses(route.handler, operation, answer)
        if scope_of(route.handler) is RouteScope.PUBLIC:
            operation["security"] = []
        operations.special(operation)
    document["paths"] |= operations.WEB_SOCKETS
    document["paths"] = dict(sorted(document["paths"].items()))
    components = document["components"]
    components["schemas"] = schemas.components(requests, answers)
    components["responses"] = operations.PROBLEMS
    document["tags"] = [{"name": name, "description": text} for name, text in TAGS.items()]
    return document


def _routes(app: Litestar, document: dict[str, Any]) -> Iterator[Route]:
    for route in app.routes:
        for method, (handler, _) in getattr(route, "route_handler_map", {}).items():
            operation = document["paths"].get(route.path_format, {}).get(method.lower())
            if operation is not None and isinstance(handler, HTTPRouteHandler):
                yield Route(route.path_format, method.lower(), operation, handler)
