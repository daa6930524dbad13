"""What the OpenAPI document says of operations: parameters, headers, bodies, answers and errors."""

from __future__ import annotations

import inspect
from typing import Any

import msgspec
from litestar.handlers import HTTPRouteHandler

from novacron.api.access.authorization import RouteScope, scope_of
from novacron.api.edge import openapi_schemas as schemas
from novacron.api.edge import problems
from novacron.api.edge.openapi_examples import EXAMPLES
from novacron.api.edge.openapi_words import PARAMETERS
from novacron.api.read_model.long_poll import SETTLED
from novacron.model import limits


class WatchMessage(msgspec.Struct, omit_defaults=True):
    """A message of ``/watch``."""

    revision: int | None = None
    kind: str | None = None
    object: dict[str, Any] | None = None
    deleted: str | None = None


NAMES = {
    "accept": "acceptInvitation",
    "change": "setLogLevel", "change_node": "setNodeLogLevel", "configure": "configureNode", "cordon": "cordonNode",
    "console_log": "showConsoleLog", "drain": "drainNode", "fetch": "fetchExportData", "join": "joinNode",
    "metrics": "showMetrics", "node_metrics": "showNodeMetrics", "placement": "showPlacement", "rename": "renameNode",
    "screenshot": "takeScreenshot", "show": "showLogLevel", "targets": "listScrapeTargets", "uncordon": "uncordonNode",
    "upload": "uploadImportData",
}  # fmt: skip
"""Operations that are not called after their handlers, whose names are the audit log's actions."""
CONDITIONAL = frozenset({
    "acceptNode", "addNic", "cloneVm", "configureAddress", "configureBackupPolicy",
    "configureBackupRepository", "configureFlavor",
    "configureForward", "configureGroup",
    "configureNetwork", "configureNic", "configureNode", "configureProject", "configureReplica",
    "configureSnapshot", "configureTemplate",
    "configureVm", "configureVolume", "cordonNode", "deleteVm", "drainNode", "migrateVm", "moveVm", "moveVolume",
    "pauseVm", "putLink", "rebootVm", "removeNic", "resetVm", "resumeVm", "scheduleMigration", "startVm", "stopVm",
    "uncordonNode", "unscheduleMigration",
})  # fmt: skip
"""Operations that take the header If-Match."""
TAGS = {"/api/v1/join": "nodes", "/api/v1/snapshots/{id}": "vms"}
"""Of routes that are not in a router of one subject."""
NO_BODY = ("204", "302", "303")
DROPPED = ("deprecated", "allowEmptyValue", "allowReserved")
JSON = "application/json"
STREAM = "text/event-stream"

WAIT = {
    "name": "wait", "in": "query", "required": False,
    "description": "Respond when the change is complete, or after this many seconds.",
    "schema": {"type": "integer", "minimum": 0, "maximum": limits.LONG_POLL_S_MAX, "default": 0},
}  # fmt: skip
KEY = {
    "name": "Idempotency-Key", "in": "header", "required": False,
    "description": "A request repeated with the same key within a day is not executed again:"
    " it gets the first response.",
    "schema": {"type": "string", "minLength": 1, "maxLength": limits.IDEMPOTENCY_KEY_LENGTH_MAX},
}  # fmt: skip
MATCH = {
    "name": "If-Match", "in": "header", "required": False,
    "description": "Make the change only if the object still has this ETag; otherwise respond with 412.",
    "schema": {"type": "string", "pattern": r'^(\*|"[0-9]{1,19}")$'},
}  # fmt: skip
NONE_MATCH = {
    "name": "If-None-Match", "in": "header", "required": False,
    "description": "Respond with 304 if the object or list still has this ETag.",
    "schema": {"type": "string"},
}  # fmt: skip
LAST_EVENT = {
    "name": "Last-Event-ID", "in": "header", "required": False,
    "description": "For the stream: the last `id` received; the stream continues after that revision.",
    "schema": {"type": "string", "pattern": "^[0-9]{1,19}$"},
}  # fmt: skip
AFTER = {
    "name": "after", "in": "query", "required": False,
    "description": "Continue after this revision.",
    "schema": {"type": "integer", "minimum": 0},
}  # fmt: skip
KINDS = {
    "name": "kinds", "in": "query", "required": False,
    "description": "Only changes of objects of these kinds: vm,node",
    "schema": {"type": "string"},
}  # fmt: skip
ETAG = {"description": "The revision, for If-Match and If-None-Match.", "schema": {"type": "string"}}
LOCATION = {"description": "Where the new object is.", "schema": {"type": "string", "format": "uri-reference"}}
AGE = {
    "description": "Only while the database is unavailable: how many seconds old the data may be.",
    "schema": {"type": "integer"},
}
RETRY = {"description": "Seconds to wait before the next attempt.", "schema": {"type": "integer"}}
NOT_MODIFIED = {"description": "The object or list has not changed since the ETag in If-None-Match."}


def _problem(description: str, headers: dict[str, Any] | None = None) -> dict[str, Any]:
    content = {problems.MEDIA_TYPE: {"schema": {"$ref": schemas.REFERENCE + "Problem"}}}
    return {"description": description, **({"headers": headers} if headers else {}), "content": content}


PROBLEMS = {
    "InvalidInput": _problem("A parameter, header or field is missing, unknown or invalid; `field` names it."),
    "Unauthenticated": _problem("The token is missing, wrong, expired or revoked."),
    "Forbidden": _problem("The caller's role does not allow it, or the project's quota is used up."),
    "NotFound": _problem("There is no such object, or the caller may not see it."),
    "Conflict": _problem("The name is in use, the object's state does not allow it, or there is no capacity."),
    "StaleRevision": _problem("The object has changed: its ETag is not the one in If-Match."),
    "TooLarge": _problem("The body is too large."),
    "IdempotencyMismatch": _problem("Another request used this Idempotency-Key."),
    "TooManyRequests": _problem("A rate limit was exceeded.", {"Retry-After": RETRY}),
    "Unavailable": _problem("Too busy, or the database or a node can't be reached: try again.", {"Retry-After": RETRY}),
    "Problem": _problem("The request failed: a problem document (RFC 9457)."),
}


def _web_socket(
    tag: str, summary: str, description: str, given: list[dict[str, Any]], message: dict[str, Any]
) -> dict[str, Any]:
    """Return the operation of a WebSocket, which the document's language has no word for."""
    return {
        "get": {
            "tags": [tag],
            "summary": summary,
            "description": description,
            "parameters": given,
            "responses": {
                "101": {"description": "The connection is now a WebSocket."},
                "200": {"description": "One message on the WebSocket.", "content": message},
                "4XX": {"$ref": "#/components/responses/Problem"},
                "default": {"$ref": "#/components/responses/Problem"},
            },
        }
    }


WEB_SOCKETS: dict[str, Any] = {
    "/api/v1/watch": _web_socket(
        "events",
        "Follow every change over a WebSocket",
        "The first message has only the current `revision`. Each later message is a change: `kind`, and `object` or"
        " the key of the `deleted` object; the last change of a revision has its `revision`, to resume from.",
        [KINDS, AFTER],
        {JSON: {"schema": schemas.reference(WatchMessage)}},
    ),
    "/api/v1/console": _web_socket(
        "vms",
        "Open a console or a TCP port of a VM over a WebSocket",
        "Binary messages carry what the guest writes and reads; a display speaks VNC (RFC 6143)."
        " An empty message to a port marks the end of the data.",
        [
            {
                "name": "ticket", "in": "query", "required": True, "schema": {"type": "string"},
                "description": "From the actions open-console and open-port: valid once, within a minute.",
            }
        ],
        {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    ),
}  # fmt: skip
WEB_SOCKETS["/api/v1/watch"]["get"]["operationId"] = "watch"
WEB_SOCKETS["/api/v1/console"]["get"] |= {"operationId": "console", "security": []}


def operation_id(handler: HTTPRouteHandler) -> str:
    """Return what an operation is called: ``list_vms`` is listVms."""
    first, *others = handler.handler_name.split("_")
    return NAMES.get(handler.handler_name, first + "".join(word.capitalize() for word in others))


def described(summary: str, handler: HTTPRouteHandler) -> str:
    """Return a description: the summary, as a sentence, and what the handler's docstring adds."""
    said = summary if summary.endswith(".") else summary + "."
    words = " ".join((inspect.getdoc(handler.fn) or "").split("Raises ")[0].replace("``", "`").split())
    return f"{said} {words}".strip()


def takes_key(handler: HTTPRouteHandler, answer: object) -> bool:
    """Say whether an operation takes an Idempotency-Key: it creates or changes an object, and answers with it."""
    return "POST" in handler.http_methods and schemas.is_object(answer)


def parameters(handler: HTTPRouteHandler, operation: dict[str, Any]) -> list[dict[str, Any]]:
    """Return an operation's parameters, with the headers that the framework does not know of."""
    answer = schemas.answer_type(handler.parsed_return_field.annotation)
    given = [_parameter(parameter) for parameter in operation.get("parameters", [])]
    if "GET" in handler.http_methods:
        return given + ([NONE_MATCH] if has_etag(answer) else [])
    return (
        given
        + ([WAIT] if answer in SETTLED else [])
        + ([KEY] if takes_key(handler, answer) else [])
        + ([MATCH] if operation_id(handler) in CONDITIONAL else [])
    )


def has_etag(answer: object) -> bool:
    """Say whether an answer of this type has an ETag."""
    return schemas.page_name(answer) is not None or schemas.is_object(answer)


def _parameter(parameter: dict[str, Any]) -> dict[str, Any]:
    """Return a parameter without what says nothing: it can be left out, but it can't be null."""
    said = {key: value for key, value in parameter.items() if key not in DROPPED}
    schema = {key: value for key, value in said["schema"].items() if key != "description"}
    alternatives = schema.pop("oneOf", None)
    if alternatives is not None:
        (only,) = (alternative for alternative in alternatives if alternative != {"type": "null"})
        schema = {**only, **schema}
    bounds = {key: int(schema[key]) for key in ("minimum", "maximum") if key in schema}
    pattern = {"pattern": schemas.portable_pattern(schema["pattern"])} if "pattern" in schema else {}
    words = {"description": said.get("description") or PARAMETERS.get(said["name"], "")}
    return {**said, **words, "schema": {**schema, **bounds, **pattern}}


def body(type_: object, is_optional: bool, operation_id: str) -> dict[str, Any]:
    """Return the body that an operation takes."""
    schema = schemas.reference(type_)
    if is_optional:
        (schema,) = (alternative for alternative in schema["anyOf"] if alternative != {"type": "null"})
    example = EXAMPLES.get(operation_id)
    content = {"schema": schema} if example is None else {"schema": schema, "example": example}
    return {"required": not is_optional, "content": {JSON: content}}


def responses(handler: HTTPRouteHandler, operation: dict[str, Any], answer: object) -> dict[str, Any]:
    """Return all answers of an operation."""
    success = {
        status: response for status, response in operation["responses"].items() if status.isdecimal() and status < "400"
    }
    others = {str(status): spec.data_container for status, spec in (handler.responses or {}).items()}
    for status, response in success.items():
        _describe_success(status, response, others.get(status, answer))
    if "GET" in handler.http_methods and has_etag(answer):
        success["304"] = NOT_MODIFIED
    return success | {
        status: {"$ref": f"#/components/responses/{name}"} for status, name in _errors(handler, answer).items()
    }


def _describe_success(status: str, response: dict[str, Any], answer: object) -> None:
    if status in NO_BODY:
        response.pop("content", None)
    for media, content in response.get("content", {}).items():
        is_json = answer is not None and media == JSON
        content["schema"] = schemas.reference(answer) if is_json else {"type": "string", "format": "binary"}
    headers = {"ETag": ETAG} if has_etag(answer) else {}
    if headers and status == "200":
        headers["Age"] = AGE
    response["headers"] = headers | ({"Location": LOCATION} if status == "201" else {})
    if not response["headers"]:
        del response["headers"]


def _errors(handler: HTTPRouteHandler, answer: object) -> dict[str, str]:
    errors = {"400": "InvalidInput", "429": "TooManyRequests", "503": "Unavailable", "default": "Problem"}
    if scope_of(handler) is not RouteScope.PUBLIC:
        errors |= {"401": "Unauthenticated", "403": "Forbidden", "404": "NotFound"}
    if "GET" not in handler.http_methods:
        errors |= {"409": "Conflict"}
    if operation_id(handler) in CONDITIONAL:
        errors |= {"412": "StaleRevision"}
    if handler.parsed_data_field is not None:
        errors |= {"413": "TooLarge"}
    if takes_key(handler, answer):
        errors |= {"422": "IdempotencyMismatch"}
    return dict(sorted(errors.items()))


def special(operation: dict[str, Any]) -> None:
    """Add what only one operation has."""
    match operation["operationId"]:
        case "listEvents":
            operation["parameters"] += [LAST_EVENT, AFTER]
            operation["responses"]["200"]["content"][STREAM] = {"schema": {"type": "string"}}
        case "uploadImportData" | "writeGuestFile":
            content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
            operation["requestBody"] = {"required": True, "content": content}
