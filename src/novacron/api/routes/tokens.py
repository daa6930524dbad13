"""Routes for API tokens: ``/api/v1/tokens``."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec
from litestar import Router, delete, get, post
from litestar.params import FromPath, FromQuery, JSONBody

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import replies
from novacron.api.read_model.indexes import Entry
from novacron.api.read_model.paging import Page
from novacron.model import limits
from novacron.model.access import Right
from novacron.model.errors import Forbidden, InvalidInput, Unauthenticated
from novacron.model.names import Name
from novacron.model.token import Token, TokenKind
from novacron.store import tokens, users

Lifetime = Annotated[int, msgspec.Meta(ge=60, le=limits.TOKEN_S_MAX)]


class CreateToken(msgspec.Struct, forbid_unknown_fields=True):
    """A token of the caller's own, or of another ``user`` whom the caller manages. It does what its user may, within
    ``scopes`` and in one ``project``, if those are given, until it expires."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=63)]
    user: str | None = None
    scopes: Annotated[tuple[Right, ...], msgspec.Meta(min_length=1)] | None = None
    project: Name | None = None
    expires_in_s: Lifetime | None = None


class CreatedToken(msgspec.Struct):
    """A new token. The secret is shown here and never again."""

    id: str
    name: str
    secret: str
    expires_at: datetime | None


class ShownToken(Token, frozen=True):
    """A token, and when and from where it was used last, to the minute."""

    used_at: datetime | None = None
    used_from: str | None = None


def _managed(request: ApiRequest, user: str) -> bool:
    """Say whether the caller manages a user's tokens."""
    entry = services(request).cache.get("user", user)
    project = None if entry is None else entry.body["project"]
    return user == request.user.user or request.user.access.allows(Right.MANAGE, project)


@get("/", summary="List API tokens and sessions, never their secrets")
async def list_tokens(request: ApiRequest, user: FromQuery[str | None] = None) -> Page[ShownToken]:
    context = services(request)
    bodies = [
        entry.body
        for entry in context.cache.all("token").values()
        if _managed(request, entry.body["user"]) and user in (None, entry.body["user"], entry.body["user_name"])
    ]
    async with context.database.connection() as connection:
        used = await tokens.uses(connection, [body["id"] for body in bodies])
    items = [
        msgspec.convert({**body, **dict(zip(("used_at", "used_from"), used.get(body["id"], ()), strict=False))},
                        ShownToken)
        for body in bodies
    ]  # fmt: skip
    return Page[ShownToken](sorted(items, key=lambda token: token.created_at), None, context.cache.revision)


@post("/", summary="Create an API token", status_code=201)
async def create_token(request: ApiRequest, data: JSONBody[CreateToken]) -> CreatedToken:
    caller = request.user
    async with replies.change(request) as connection:
        ref = caller.user if data.user is None else data.user
        user = await users.get(connection, ref, field="user")
        if not _managed(request, user.id):
            raise authorization.no_such("user", ref, "user")
        life_s = services(request).lifetimes.of_token(data.expires_in_s)
        data = msgspec.structs.replace(data, expires_in_s=life_s)
        _check_no_more(request, user.id, data)
        new = tokens.NewToken(data.name, data.scopes, data.project, data.expires_in_s)
        token, secret = await tokens.create(connection, user, new, caller.name)
    return CreatedToken(token.id, token.name, secret, token.expires_at)


def _check_no_more(request: ApiRequest, user: str, data: CreateToken) -> None:
    """Raise Forbidden if a token would create one with more rights or a longer life than its own, whoever its user is.

    Raises InvalidInput for a project that there is not, or that the caller does not see.
    """
    cache, access = services(request).cache, request.user.access
    own = cache.get("token", request.user.id)
    if own is None:
        raise Unauthenticated("the API token was revoked")
    if data.project is not None and not (access.sees(data.project) and cache.get("project", data.project)):
        raise InvalidInput(f"there is no project {data.project!r}", field="project")
    field = _wider(own.body, request.user.expires_at_s, data)
    if field is not None:
        raise Forbidden("a token can't create a token with more rights or a longer lifetime than its own", field=field)
    scopes = None if data.scopes is None else frozenset(data.scopes)
    if not access.covers(cache.callers.access_of(user).within(scopes, data.project)):
        raise Forbidden("the token can't have more rights than you", field="scopes")


def _wider(own: dict[str, Any], expires_at_s: float, data: CreateToken) -> str | None:
    """Return the field by which a new token would go beyond the caller's; None: it would not."""
    if own["scopes"] is not None and (data.scopes is None or not set(data.scopes) <= set(own["scopes"])):
        return "scopes"
    if own["project"] is not None and data.project != own["project"]:
        return "project"
    if own["expires_at"] is None or own["kind"] != TokenKind.API:
        return None
    left_s = expires_at_s - datetime.now().timestamp()
    return "expires_in_s" if data.expires_in_s is None or data.expires_in_s > left_s else None


@delete("/{id:str}", summary="Revoke an API token or end a session, immediately and permanently", status_code=204)
async def revoke_token(request: ApiRequest, id: FromPath[str]) -> None:
    entry: Entry | None = services(request).cache.get("token", replies.check_ref("token", id))
    if entry is None or not _managed(request, entry.body["user"]):
        raise authorization.no_such("token", id)
    async with replies.change(request) as connection:
        await tokens.revoke(connection, id, request.user.name)


router = Router(
    "/tokens", route_handlers=[list_tokens, create_token, revoke_token], tags=["access"], opt=authorization.SELF
)  # fmt: skip
