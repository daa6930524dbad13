"""Routes for logins: with a password, or through an OpenID Connect provider. A session is a cookie that scripts can't
read, and a value (``csrf``) that pages send with each change."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from litestar import Response, Router, get, post
from litestar.datastructures import Cookie
from litestar.params import FromQuery, JSONBody, QueryParameter
from msgspec import Meta

from novacron.api.access import authorization
from novacron.api.access.authentication import COOKIE
from novacron.api.access.context import ApiRequest, services
from novacron.api.access.recorder import TRIED, address_of
from novacron.api.edge import replies
from novacron.model import limits
from novacron.model.errors import NotFound, Unauthenticated
from novacron.model.oidc import roles_of, user_name
from novacron.model.token import csrf_of
from novacron.model.user import User, UserKind
from novacron.store import events, tokens, users

STEP_COOKIE = "__Host-novacron-login"
DEVICE_COOKIE = "__Host-novacron-device"
"""Marks a browser in which a user has logged in: others' wrong passwords for that name do not lock it out."""


class Login(msgspec.Struct, forbid_unknown_fields=True):
    user: Annotated[str, Meta(max_length=limits.NAME_LENGTH_MAX)]
    password: Annotated[str, Meta(max_length=1024)]


class LoggedIn(msgspec.Struct):
    """The user of the new session; send ``csrf`` with each change as the header ``X-CSRF-Token``."""

    user: str
    csrf: str
    expires_at: datetime | None


@post("/login", summary="Log in with a password; the answer sets a cookie", status_code=201, opt=authorization.PUBLIC,
      exclude_from_auth=True)  # fmt: skip
async def login(request: ApiRequest, data: JSONBody[Login]) -> Response[LoggedIn]:
    context = services(request)
    request.scope["state"][TRIED] = data.user
    async with context.database.connection() as connection:
        account = await users.password_of(connection, data.user)
    mark, hash = request.cookies.get(DEVICE_COOKIE, ""), None if account is None else account[1]
    device = None if account is None else context.browsers.known(account[0].id, mark)
    good = await context.passwords.verify(data.user, address_of(request), hash, data.password, device)
    if not good or account is None:
        raise Unauthenticated("the name or the password is wrong")
    response = await _session(request, account[0])
    if device is None:
        mark = context.browsers.mark(account[0].id)
        response.set_cookie(_cookie(DEVICE_COOKIE, mark, limits.DEVICE_S))
    return response


async def _session(request: ApiRequest, user: User, to: str | None = None) -> Response[LoggedIn]:
    life_s = int(services(request).lifetimes.session_s)
    async with replies.change(request, user) as connection:
        new = tokens.NewToken("session", session=True, expires_in_s=life_s)
        token, secret = await tokens.create(connection, user, new, user.name)
    cookie = _cookie(COOKIE, secret, life_s)
    body = LoggedIn(user.name, csrf_of(secret), token.expires_at)
    if to is None:
        return Response(body, status_code=201, cookies=[cookie], headers={"Cache-Control": "no-store"})
    return Response(body, status_code=303, cookies=[cookie], headers={"Cache-Control": "no-store", "Location": to})


@post("/logout", summary="Log out", status_code=204, opt=authorization.SELF)
async def logout(request: ApiRequest) -> Response[None]:
    async with replies.change(request) as connection:
        await tokens.revoke(connection, request.user.id, request.user.name)
    return Response(None, status_code=204, cookies=[_cookie(COOKIE, "", 0)])


def _cookie(name: str, value: str, max_age_s: int) -> Cookie:
    return Cookie(name, value=value, path="/", httponly=True, secure=True, samesite="strict", max_age=max_age_s)


@get("/oidc/login", summary="Log in at the provider, with a redirect", status_code=302, opt=authorization.PUBLIC,
     exclude_from_auth=True)  # fmt: skip
async def oidc_login(request: ApiRequest) -> Response[None]:
    oidc = services(request).oidc
    if oidc is None:
        raise NotFound("this installation has no identity provider", hint="see: novacron server --oidc")
    where, step = await oidc.begin()
    # Lax: the provider's page leads back here.
    cookie = Cookie(STEP_COOKIE, value=step, path="/", httponly=True, secure=True, samesite="lax", max_age=600)
    return Response(None, status_code=302, headers={"Location": where, "Cache-Control": "no-store"}, cookies=[cookie])


@get("/oidc/callback", summary="Complete a login at the provider", status_code=303, opt=authorization.PUBLIC,
     exclude_from_auth=True)  # fmt: skip
async def oidc_callback(
    request: ApiRequest, sent_state: Annotated[str, QueryParameter(name="state")] = "", code: FromQuery[str] = ""
) -> Response[LoggedIn]:
    oidc = services(request).oidc
    if oidc is None:
        raise NotFound("this installation has no identity provider")
    claims = await oidc.end(request.cookies.get(STEP_COOKIE, ""), sent_state, code)
    provider = oidc.provider
    async with services(request).database.transaction() as connection:
        user = await users.by_identity(connection, provider.issuer, str(claims["sub"]))
        if user is None:
            name = await users.free_name(connection, user_name(claims, provider.name_claim))
            identity = (provider.issuer, str(claims["sub"]))
            user = await users.create(connection, name, UserKind.PERSON, None, events.SYSTEM, identity=identity)
        if user.disabled:
            raise Unauthenticated(f"user {user.name} is disabled")
        if provider.roles:
            await users.set_roles(connection, user, roles_of(provider, claims))
    return await _session(request, user, to="/")


router = Router("/", route_handlers=[login, logout, oidc_login, oidc_callback], tags=["access"])
