"""All errors as RFC 9457 problem documents."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, InternalServerException, ValidationException

from novacron.api.access.context import services
from novacron.model.errors import NovaError
from novacron.telemetry import logs

log = logs.get(__name__)

MEDIA_TYPE = "application/problem+json"
TYPE_BASE = "https://novacron.dev/problems/"

CLIENT_GONE = "client disconnected prematurely"
"""The framework's words for it; it has no class for it."""

TITLES = {
    400: ("invalid-input", "Invalid input"),
    401: ("unauthenticated", "Not authenticated"),
    403: ("forbidden", "Not allowed"),
    404: ("not-found", "Not found"),
    405: ("method-not-allowed", "Method not allowed"),
    413: ("too-large", "Request too large"),
    415: ("unsupported-media-type", "Unsupported media type"),
}


class Problem(msgspec.Struct, omit_defaults=True):
    """An RFC 9457 problem. ``code`` is stable; ``field`` names the input at fault; ``hint`` says what to do next."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    instance: str | None = None
    field: str | None = None
    hint: str | None = None


def response(request: Request[Any, Any, Any], problem: Problem) -> Response[bytes]:
    problem.instance = request.url.path
    services(request).recorder.refused(request, problem.status, problem.detail)
    headers = {"WWW-Authenticate": "Bearer"} if problem.status == 401 else {}
    if problem.status == 503:
        headers["Retry-After"] = "2"
    return Response(msgspec.json.encode(problem), status_code=problem.status, media_type=MEDIA_TYPE, headers=headers)


def _problem(code: str, title: str, status: int, detail: str, field: str | None, hint: str | None) -> Problem:
    return Problem(TYPE_BASE + code, title, status, code, detail, field=field, hint=hint)


def of(error: NovaError) -> Problem:
    """Return the problem document of an error."""
    return _problem(error.code, error.title, error.status, error.detail, error.field, error.hint)


def on_nova_error(request: Request[Any, Any, Any], error: NovaError) -> Response[bytes]:
    return response(request, of(error))


def on_http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Turn the framework's errors into problems: broken JSON, wrong types, unknown routes, too large bodies."""
    status, field, detail = error.status_code, None, error.detail
    if isinstance(error, InternalServerException) and error.detail == CLIENT_GONE:
        return response(request, _problem("incomplete-body", TITLES[400][1], 400, "the body ended early", None, None))
    if isinstance(error, ValidationException) and isinstance(error.extra, list) and error.extra:
        first = error.extra[0]
        if isinstance(first, dict):
            field, detail = first.get("key"), str(first.get("message", detail))
    if status >= 500:
        return on_any_error(request, error)
    code, title = TITLES.get(status, ("http-error", "Request refused"))
    hint = "see the field's rules in /schema" if field else None
    if status == 404:
        hint = "the routes are listed in /schema"
    if status == 413:
        hint = "send less at once"
    answer = response(request, _problem(code, title, status, detail or title, field, hint))
    if status == 405:
        answer.headers["Allow"] = ", ".join(allowed(request))
    return answer


def allowed(request: Request[Any, Any, Any]) -> list[str]:
    """Return the methods that a path accepts."""
    asked = request.url.path.rstrip("/").split("/")
    methods = dict[tuple[str, ...], set[str]]()
    for route in request.app.routes:
        parts = tuple(route.path_format.rstrip("/").split("/"))
        alike = (part == asked_part or part.startswith("{") for part, asked_part in zip(parts, asked, strict=False))
        if len(parts) == len(asked) and all(alike):
            methods.setdefault(parts, set()).update(str(method) for method in getattr(route, "methods", ()))
    # A literal segment goes before a parameter.
    nearest = min(methods, key=lambda parts: [part.startswith("{") for part in parts], default=())
    return sorted(methods.get(nearest, ()))


def on_unstorable(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer for a value that the database can't store. The edge and the fields' types should have refused it."""
    log.warning("the database refused a value", path=request.url.path, error=str(error))
    detail = "the database can't store a value of this request"
    return response(request, _problem("invalid-input", TITLES[400][1], 400, detail, None, "see the fields in /schema"))


def on_any_error(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    reference = secrets.token_hex(6)
    log.error("request failed", reference=reference, path=request.url.path, exc_info=error)
    detail = f"the server failed, not the request; its log has the details under {reference}"
    return response(request, _problem("internal-error", "Internal error", 500, detail, None, "try again"))
