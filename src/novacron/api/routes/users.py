"""Routes for users and their roles: ``/api/v1/users``, ``/api/v1/grants``, ``/api/v1/me``."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Response, Router, delete, get, patch, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.access.recorder import address_of
from novacron.api.edge import lists, replies
from novacron.api.read_model.indexes import Entry
from novacron.api.read_model.paging import Page, Paging, Query
from novacron.model.access import Right, Role, access
from novacron.model.errors import Forbidden, InvalidInput, Unauthenticated
from novacron.model.token import TokenKind
from novacron.model.user import Grant, Password, User, UserKind, UserName
from novacron.model.vm import Name
from novacron.store import users
from novacron.store.database import Connection


class CreateUser(msgspec.Struct, forbid_unknown_fields=True):
    """A new user: a person, with a password or none yet; or a service account, of one project or (null) of none."""

    name: UserName
    kind: UserKind = UserKind.PERSON
    password: Password | None = None
    project: Name | None = None


class ConfigureUser(msgspec.Struct, forbid_unknown_fields=True):
    """Whether the user is disabled."""

    disabled: bool


class SetPassword(msgspec.Struct, forbid_unknown_fields=True):
    """A new password. A user who changes their own password must send the present one, if there is one."""

    password: Password
    present: str | None = None


class CreateGrant(msgspec.Struct, forbid_unknown_fields=True):
    """A role for a user, in a project or (null) everywhere; it replaces the role that they had there."""

    user: str
    role: Role
    project: Name | None = None


class Me(msgspec.Struct):
    """The caller and their permissions: everywhere, and in projects."""

    user: str
    token: str
    kind: TokenKind
    project: str
    everywhere: list[Right]
    projects: dict[str, list[Right]]


@get("/me", summary="Show the caller and their permissions")
async def show_me(request: ApiRequest) -> Me:
    caller = request.user
    rights = {name: sorted(has) for name, has in caller.access.projects.items()}
    return Me(caller.name, caller.id, caller.kind, caller.project, sorted(caller.access.everywhere), rights)


def _managed(request: ApiRequest, body: dict[str, Any]) -> bool:
    """Say whether the caller manages a user: themselves, a service account of their project, or any user."""
    access, project = request.user.access, body["project"]
    return body["id"] == request.user.user or access.allows(Right.MANAGE, project)


def _user(request: ApiRequest, ref: str) -> Entry:
    every = services(request).cache.all("user").values()
    for entry in every:
        if ref in (entry.body["id"], entry.body["name"]) and _managed(request, entry.body):
            return entry
    raise authorization.no_such("user", ref)


@get("/users", summary="List users by name: all, those of projects that the caller manages, or the caller")
async def list_users(request: ApiRequest, paging: NamedDependency[Paging]) -> Response[Page[User]]:
    return lists.answer(request, paging, Query("user", keep=lambda body: _managed(request, body)))


@get("/users/{ref:str}", summary="Show a user by id or name")
async def show_user(request: ApiRequest, ref: FromPath[str]) -> User:
    return msgspec.convert(_user(request, ref).body, User)


@post("/users", summary="Create a user", status_code=201)
async def create_user(request: ApiRequest, data: JSONBody[CreateUser]) -> Response[User]:
    authorization.check(request, data.project, Right.MANAGE)
    if data.kind is UserKind.SERVICE and data.password is not None:
        raise InvalidInput("service accounts have tokens, not passwords", field="password")
    if data.kind is UserKind.PERSON and data.project is not None:
        raise InvalidInput("only service accounts belong to a project: give people a role in it", field="project")
    context = services(request)
    hash = None if data.password is None else await context.passwords.hash(data.password)

    async def work(connection: Connection) -> User:
        user = await users.create(connection, data.name, data.kind, data.project, request.user.name)
        return user if hash is None else await users.set_password(connection, user, hash, request.user.name)

    return await replies.write(request, work, status=201, location=lambda user: f"/api/v1/users/{user.id}")


@patch("/users/{ref:str}", summary="Disable or enable a user", status_code=200)
async def configure_user(request: ApiRequest, ref: FromPath[str], data: JSONBody[ConfigureUser]) -> Response[User]:
    user = _user(request, ref).body
    authorization.check(request, user["project"], Right.MANAGE)

    async def work(connection: Connection) -> User:
        return await users.disable(connection, user["id"], data.disabled, request.user.name)

    return await replies.write(request, work)


@put("/users/{ref:str}/password", summary="Set a password; the user's sessions end", status_code=200)
async def set_password(request: ApiRequest, ref: FromPath[str], data: JSONBody[SetPassword]) -> Response[User]:
    user, context = _user(request, ref).body, services(request)
    own = context.cache.get("token", request.user.id)
    if own is None or own.body["scopes"] is not None or own.body["project"] is not None:
        raise Forbidden("a restricted token cannot set passwords", hint="use a token without scopes and project")
    if not request.user.access.allows(Right.MANAGE, None):
        if user["id"] != request.user.user:
            raise Forbidden(f"{request.user.name} may not set others' passwords")
        async with context.database.connection() as connection:
            password = await users.password_of(connection, user["name"])
        if password is not None and not await context.passwords.verify(
            user["name"], address_of(request), password[1], data.present or ""
        ):
            raise Unauthenticated("the present password is wrong", field="present")
    hash = await context.passwords.hash(data.password)

    async def work(connection: Connection) -> User:
        return await users.set_password(connection, await users.get(connection, user["id"]), hash, request.user.name)

    return await replies.write(request, work)


@delete("/users/{ref:str}", summary="Delete a user with their tokens and roles", status_code=200)
async def delete_user(request: ApiRequest, ref: FromPath[str]) -> Response[User]:
    user = _user(request, ref).body
    authorization.check(request, user["project"], Right.MANAGE)

    async def work(connection: Connection) -> User:
        return await users.delete(connection, user["id"], request.user.name)

    return await replies.write(request, work)


@get("/grants", summary="List role grants that the caller may see")
async def list_grants(
    request: ApiRequest,
    paging: NamedDependency[Paging],
    user: FromQuery[str | None] = None,
    project: Annotated[str | None, authorization.PROJECT] = None,
) -> Response[Page[Grant]]:
    access = request.user.access

    def keep(grant: dict[str, Any]) -> bool:
        return (
            (grant["user"] == request.user.user or access.allows(Right.MANAGE, grant["project"]))
            and user in (None, grant["user"], grant["user_name"])
            and project in (None, grant["project"])
        )

    return lists.answer(request, paging, Query("grant", keep=keep))


@post("/grants", summary="Grant a role to a user", status_code=201)
async def create_grant(request: ApiRequest, data: JSONBody[CreateGrant]) -> Response[Grant]:
    authorization.check(request, data.project, Right.MANAGE)
    if not request.user.access.covers(access([(data.project, data.role)])):
        raise Forbidden("the role has rights that this token does not have", field="role")

    async def work(connection: Connection) -> Grant:
        return await users.grant(connection, data.user, data.project, data.role, request.user.name)

    return await replies.write(request, work, status=201)


@delete("/grants/{id:str}", summary="Revoke a role of a user", status_code=200)
async def delete_grant(request: ApiRequest, id: FromPath[str]) -> Response[Grant]:
    id = replies.check_ref("grant", id)

    async def work(connection: Connection) -> Grant:
        grant = await users.get_grant(connection, id)
        if not request.user.access.allows(Right.MANAGE, grant.project):
            raise authorization.no_such("grant", id)
        return await users.revoke(connection, id, request.user.name)

    return await replies.write(request, work)


router = Router(
    "/",
    route_handlers=[
        show_me, list_users, show_user, create_user, configure_user, set_password, delete_user, list_grants,
        create_grant, delete_grant,
    ],
    tags=["access"],
    opt=authorization.SELF,
)  # fmt: skip
