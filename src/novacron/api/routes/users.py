"""Routes for users and their roles: ``/api/v1/users``, ``/api/v1/grants``, ``/api/v1/me``."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Response, Router, delete, get, patch, post, put
from litestar.di import NamedDependency
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, FromQuery, JSONBody

from novacron.api.access import authorization
from novacron.api.access.authentication import COOKIE
from novacron.api.access.context import ApiRequest, services
from novacron.api.access.recorder import address_of
from novacron.api.edge import lists, replies
from novacron.api.read_model.indexes import Entry
from novacron.api.read_model.paging import Page, Paging, Query
from novacron.model.access import Right, Role, access
from novacron.model.errors import Forbidden, InvalidInput, Unauthenticated
from novacron.model.names import Name
from novacron.model.token import TokenKind, csrf_of
from novacron.model.user import Grant, Invitation, Password, User, UserKind, UserName
from novacron.store import invitations, users
from novacron.store.database import Connection


class CreateUser(msgspec.Struct, forbid_unknown_fields=True):
    """A new user: a person, with a password or none yet; or a service account, of one project or (null) of none."""

    name: UserName
    kind: UserKind = UserKind.PERSON
    password: Password | None = None
    project: Name | None = None


class ConfigureUser(msgspec.Struct, forbid_unknown_fields=True):
    """Whether the user is disabled, and whether logins with a password demand a second factor; null: as it is."""

    disabled: bool | None = None
    second_factor_required: bool | None = None


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
    csrf: str | None = None
    """Of a browser's session: pages send it with changes, as the header ``X-CSRF-Token``."""


@get("/me", summary="Show the caller and their permissions")
async def show_me(request: ApiRequest) -> Response[Me]:
    caller = request.user
    rights = {name: sorted(has) for name, has in caller.access.projects.items()}
    csrf = csrf_of(request.cookies[COOKIE]) if caller.kind is TokenKind.SESSION else None
    me = Me(caller.name, caller.id, caller.kind, caller.project, sorted(caller.access.everywhere), rights, csrf)
    return Response(me, headers={"Cache-Control": "no-store"})


class ConfigureMe(msgspec.Struct, forbid_unknown_fields=True):
    """Settings of the caller's own. ``default_project``: of new objects; null: the only project, or ``default``."""

    default_project: Name | None


@patch("/me", summary="Change the caller's own settings", status_code=200)
async def configure_me(request: ApiRequest, data: JSONBody[ConfigureMe]) -> Response[User]:
    authorization.check_unrestricted(request, "change its user's settings")
    project = data.default_project
    if project is not None and not (
        request.user.access.sees(project) and services(request).cache.get("project", project)
    ):
        raise InvalidInput(
            f"there is no project {project!r}", field="default_project", hint="see: novacron project list"
        )

    async def work(connection: Connection) -> User:
        return await users.set_default_project(connection, request.user.user, project)

    return await replies.write(request, work)


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
        raise InvalidInput("only service accounts belong to a project: grant people a role in it", field="project")
    context = services(request)
    hash = None if data.password is None else await context.passwords.hash_new(data.password, [data.name])

    async def work(connection: Connection) -> User:
        user = await users.create(connection, data.name, data.kind, data.project, request.user.name)
        return user if hash is None else await users.set_password(connection, user, hash, request.user.name)

    return await replies.write(request, work, status=201, location=lambda user: f"/api/v1/users/{user.id}")


@patch("/users/{ref:str}", summary="Disable or enable a user, or require a second factor from them", status_code=200)
async def configure_user(request: ApiRequest, ref: FromPath[str], data: JSONBody[ConfigureUser]) -> Response[User]:
    user = _user(request, ref).body
    authorization.check(request, user["project"], Right.MANAGE)

    if data.disabled is None and data.second_factor_required is None:
        raise InvalidInput("nothing to change", hint="send disabled or second_factor_required")
    id, name = user["id"], request.user.name

    async def work(connection: Connection) -> User:
        if data.second_factor_required is not None:
            changed = await users.require_second_factor(connection, id, data.second_factor_required, name)
        if data.disabled is not None:
            changed = await users.disable(connection, id, data.disabled, name)
        return changed

    return await replies.write(request, work)


@put("/users/{ref:str}/password", summary="Set a password; the user's sessions end", status_code=200)
async def set_password(request: ApiRequest, ref: FromPath[str], data: JSONBody[SetPassword]) -> Response[User]:
    user, context = _user(request, ref).body, services(request)
    authorization.check_unrestricted(request, "set passwords")
    if not request.user.access.allows(Right.MANAGE, None):
        if user["id"] != request.user.user:
            raise Forbidden(f"{request.user.name} may not set other users' passwords")
        async with context.database.connection() as connection:
            password = await users.password_of(connection, user["name"])
        if password is not None and not await context.passwords.verify(
            user["name"], address_of(request), password[1], data.present or ""
        ):
            raise Unauthenticated("the current password is wrong", field="present")
    hash = await context.passwords.hash_new(data.password, [user["name"]])

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


INVITED = ResponseSpec(Invitation, description="The user has the role once they accept the invitation.")


@post("/grants", summary="Grant a role to a user whom the caller manages, or invite another user", status_code=201,
      responses={202: INVITED})  # fmt: skip
async def create_grant(request: ApiRequest, data: JSONBody[CreateGrant]) -> Response[Grant]:
    authorization.check(request, data.project, Right.MANAGE)
    if not request.user.access.covers(access([(data.project, data.role)])):
        raise Forbidden("the role has rights that this token does not have", field="role")
    if data.project is not None and not _takes_effect(request, data.user, data.project):
        invitation = await _invite(request, data, data.project)
        return Response(invitation, status_code=202)  # type: ignore[arg-type] # declared as INVITED

    async def work(connection: Connection) -> Grant:
        return await users.grant(connection, data.user, data.project, data.role, request.user.name)

    return await replies.write(request, work, status=201)


def _takes_effect(request: ApiRequest, ref: str, project: str) -> bool:
    """Say whether a role in a project takes effect at once: for users whom the caller manages, and members of the
    project. All others are invited; whether they exist is not said."""
    if request.user.access.allows(Right.MANAGE, None):
        return True
    cache = services(request).cache
    user = next((entry.body for entry in cache.all("user").values() if ref in (entry.body["id"], entry.body["name"])),
                None)  # fmt: skip
    if user is None:
        return False
    return _managed(request, user) or project in cache.callers.access_of(user["id"]).projects


async def _invite(request: ApiRequest, data: CreateGrant, project: str) -> Invitation:
    inviter = invitations.Inviter(request.user.user, request.user.name)
    async with replies.change(request) as connection:
        return await invitations.create(connection, data.user, project, data.role, inviter)


@delete("/grants/{id:str}", summary="Revoke a user's role", status_code=200)
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
        show_me, configure_me, list_users, show_user, create_user, configure_user, set_password, delete_user,
        list_grants, create_grant, delete_grant,
    ],
    tags=["access"],
    opt=authorization.SELF,
)  # fmt: skip
