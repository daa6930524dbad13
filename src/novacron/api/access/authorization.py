"""Authorization: which right a caller needs for each route, and which objects a caller sees.

A route declares its scope in ``opt`` (its router may do so for all). The guard checks what can be known before the
route runs. In the scope of a project, the route looks objects and projects up with the functions below, and gets only
what its caller may use: an object that a caller may not see does not exist for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.params import QueryParameter

from novacron.api.access.context import ApiRequest, services
from novacron.api.read_model.indexes import Condition, Entry
from novacron.api.read_model.principals import Caller
from novacron.api.read_model.watch_cache import NAMED
from novacron.model.access import Access, Right
from novacron.model.errors import Conflict, Forbidden, NotFound
from novacron.store import tenancy_lookup

SCOPE, RIGHT = "scope", "right"
SHARED = ("flavor", "template")
"""Kinds of which those that belong to no project are for all of them."""
REF = re.compile(r"[a-z0-9.:-]{1,80}\Z")
LISTED_BY = {
    "import": "image imports", "export": "vm exports", "security-group": "security-group list",
    "floating-address": "floating-address list", "backup-repository": "backup repository list",
    "backup-policy": "backup policy list",
    "replica": "replica list", "plan": "plan list",
}  # fmt: skip


class RouteScope(StrEnum):
    PUBLIC = "public"
    """Anyone, without a token."""
    SELF = "self"
    """Any authenticated caller: the route is about the caller, or checks the right itself."""
    PROJECT = "project"
    FLEET = "fleet"


def in_project(right: Right | None = None) -> dict[str, Any]:
    """Return the ``opt`` of a route on a project's objects; without a right: to read, or to write."""
    return {SCOPE: RouteScope.PROJECT, **({} if right is None else {RIGHT: right})}


def in_fleet(right: Right | None = None) -> dict[str, Any]:
    """Return the ``opt`` of a route on the fleet; without a right: to read, or to operate."""
    return {SCOPE: RouteScope.FLEET, **({} if right is None else {RIGHT: right})}


PROJECT = QueryParameter(
    annotation=str | None, name="project", required=False,
    description="project to use; default: the caller's own for new objects, all visible ones for lists",
)  # fmt: skip
"""Query parameter of every route."""
SELF = {SCOPE: RouteScope.SELF}
PUBLIC = {SCOPE: RouteScope.PUBLIC}
VERBS = {Right.CONSOLE: "see consoles", Right.METRICS: "read metrics of", Right.JOIN: "let hosts join"}
"""How rights are called in sentences, where not as they are."""


def scope_of(handler: BaseRouteHandler) -> RouteScope | None:
    """Return the scope of a route; None: it declares none, and is served to nobody."""
    if handler.opt.get("exclude_from_auth"):
        return RouteScope.PUBLIC
    scope = handler.opt.get(SCOPE)
    return None if scope is None else RouteScope(scope)


def right_of(handler: BaseRouteHandler, method: str) -> Right:
    """Return the right that a route needs."""
    if RIGHT in handler.opt:
        return Right(handler.opt[RIGHT])
    if method in ("GET", "HEAD"):
        return Right.READ
    return Right.OPERATE if scope_of(handler) is RouteScope.FLEET else Right.WRITE


async def guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Raise Forbidden or NotFound unless the caller may use a route."""
    scope = scope_of(handler)
    if scope is RouteScope.PUBLIC or connection.scope.get("method") == "OPTIONS":  # lists the methods
        return
    if scope is None:
        raise Forbidden("this route does not declare who may use it")
    caller: Caller = connection.user
    right = right_of(handler, str(connection.scope.get("method", "GET")))
    if scope is RouteScope.FLEET and not caller.access.allows(right, None):
        raise Forbidden(
            f"{caller.name} may not {VERBS.get(right, right)} the fleet",
            hint="ask an administrator for a role in all projects",
        )
    if scope is RouteScope.PROJECT:
        named_project(connection)


def named_project(connection: ASGIConnection[Any, Any, Any, Any]) -> str | None:
    """Return the project that a request names, if the caller sees it. Raises NotFound."""
    name: str | None = connection.query_params.get("project")
    if name is None or name == "*":
        return None
    caller: Caller = connection.user
    if not caller.access.sees(name) or services(connection).cache.get("project", name) is None:
        raise NotFound(f"there is no project {name!r}", field="project", hint="see: novacron project list")
    return name


def _right(request: ApiRequest) -> Right:
    return right_of(request.route_handler, request.method)


def check(request: ApiRequest, project: str | None, right: Right | None = None) -> None:
    """Raise Forbidden unless the caller has the route's right, or another one, in a project; None: in the fleet."""
    needed = right or _right(request)
    if not request.user.access.allows(needed, project):
        where = "the fleet" if project is None else f"in project {project}"
        raise Forbidden(
            f"{request.user.name} may not {VERBS.get(needed, needed)} {where}",
            hint="ask an administrator for a role that allows it",
        )


def project_for_new(request: ApiRequest, right: Right | None = None) -> str:
    """Return the project for a new object: the one that is named, else the caller's own.

    Raises NotFound, Forbidden.
    """
    name = named_project(request) or request.user.project
    check(request, name, right)
    return name


def visible(request: ApiRequest, kind: str) -> Condition | None:
    """Return the condition that objects of a kind meet which the caller asks for and may see; None: all of them.

    Raises NotFound.
    """
    if scope_of(request.route_handler) is RouteScope.FLEET:
        return None
    owner = "name" if kind == "project" else "project"
    shared: Condition = ((owner, None),) if kind in SHARED else ()
    name, access = named_project(request), request.user.access
    if name is not None:
        return ((owner, name), *shared)
    if access.sees_all:
        return None
    return (*((owner, project) for project in access.projects if access.sees(project)), *shared)


def is_shared(kind: str, project: str | None) -> bool:
    """Say whether an object is for all projects, because it belongs to none."""
    return project is None and kind in SHARED


def may_mean(request: ApiRequest, kind: str, project: str | None) -> bool:
    """Say whether the caller may mean an object of this project; None: of none."""
    if is_shared(kind, project):
        return True
    return request.user.access.sees(project) and named_project(request) in (None, project)


def sees_change(access: Access, kind: str, project: str | None) -> bool:
    """Say whether a caller may see the changes of an object of this project; None: of none."""
    return is_shared(kind, project) or access.sees(project)


def _find(request: ApiRequest, kind: str, ref: str) -> Iterator[Entry]:
    """Yield the objects that the caller may see with that key, or else with that name."""
    cache = services(request).cache
    entry = cache.get(kind, ref)
    for candidate in [entry] if entry is not None else cache.named(kind, ref):
        if may_mean(request, kind, candidate.body["project"]):
            yield candidate


def no_such(kind: str, ref: str, field: str | None = None) -> NotFound:
    what = {"vm": "VM"}.get(kind, kind.replace("-", " "))
    return NotFound(
        f"there is no {what} {ref!r}", field=field, hint=f"see: novacron {LISTED_BY.get(kind, f'{kind} list')}"
    )


def find(request: ApiRequest, kind: str, ref: str, field: str | None = None) -> Entry | None:
    """Return the object that the caller means, if this replica has one that they may see. Raises Conflict."""
    candidates = list(_find(request, kind, ref))
    if len(candidates) > 1:
        own = [entry for entry in candidates if entry.body["project"] == request.user.project]
        if len(own) != 1:
            where = ", ".join(sorted(entry.body["project"] for entry in candidates))
            raise Conflict(f"{ref} exists in several projects: {where}", field=field or "project", hint="add ?project=")
        return own[0]
    return candidates[0] if candidates else None


def seen(request: ApiRequest, kind: str, ref: str) -> Entry:
    """Return the object that the caller means. Raises NotFound, Conflict."""
    entry = find(request, kind, ref)
    if entry is None:
        raise no_such(kind, ref)
    check(request, entry.body["project"])
    return entry


async def resolve(request: ApiRequest, kind: str, ref: str, field: str | None = None) -> str:
    """Return the key of the object that the caller means, if they have the route's right: also of an object that this
    replica has not received yet. Raises NotFound, Forbidden, Conflict."""
    entry = find(request, kind, ref, field)
    if entry is not None:
        check(request, entry.body["project"])
        return str(
            entry.body["name" if kind in tenancy_lookup.BY_NAME else "address" if kind == "floating-address" else "id"]
        )
    if not REF.match(ref):  # no name or id has this form
        raise no_such(kind, ref[:80], field)
    async with services(request).database.connection() as connection:
        rows = await tenancy_lookup.find(connection, kind, ref, by_name=kind in NAMED)
    rows = [(key, project) for key, project in rows if may_mean(request, kind, project)]
    if len(rows) != 1:
        raise no_such(kind, ref, field)
    key, project = rows[0]
    check(request, project)
    return key


def check_unrestricted(request: ApiRequest, what: str) -> None:
    """Raise Forbidden for a token with scopes or a project of its own."""
    own = services(request).cache.get("token", request.user.id)
    if own is None or own.body["scopes"] is not None or own.body["project"] is not None:
        raise Forbidden(f"a restricted token cannot {what}", hint="use a token without scopes and project")
