"""Routes for logins: with a password, or through an OpenID Connect provider. A session is a cookie that scripts can't
read, and a value (``csrf``) that pages send with each change."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from litestar import Response, Router, get, post
from litestar.datastructures import Cookie
from litestar.openapi import ResponseSpec
from litestar.params import FromQuery, JSONBody, QueryParameter
from msgspec import Meta

from novacron.api.access import authorization
from novacron.api.access.authentication import COOKIE
from novacron.api.access.context import ApiRequest, services
from novacron.api.access.recorder import TRIED, address_of
from novacron.api.access.second_factors import new_challenge
from novacron.api.edge import replies
from novacron.model import limits
from novacron.model.errors import IllegalState, NotFound, Unauthenticated
from novacron.model.oidc import roles_of, user_name
from novacron.model.second_factor import WRONG_IN_A_ROW_MAX, FactorKind
from novacron.model.token import csrf_of
from novacron.model.user import User, UserKind
from novacron.store import events, login_links, second_factors, tokens, users
from novacron.store.database import Connection
from novacron.store.second_factors import PendingLogin, StoredFactor

STEP_COOKIE = "__Host-novacron-login"
DEVICE_COOKIE = "__Host-novacron-device"
"""Marks a browser in which a user has logged in: others' wrong passwords for that name do not lock it out."""


class Login(msgspec.Struct, forbid_unknown_fields=True):
    """A user's name and password."""

    user: Annotated[str, Meta(max_length=limits.NAME_LENGTH_MAX)]
    password: Annotated[str, Meta(max_length=1024)]


class LoggedIn(msgspec.Struct):
    """The user of the new session; send ``csrf`` with each change as the header ``X-CSRF-Token``.

    ``must_enrol``: the session has no rights until the user has added a second factor.
    """

    user: str
    csrf: str
    expires_at: datetime | None
    must_enrol: bool = False


class SecondFactorStep(msgspec.Struct):
    """The password is right, and a second factor is needed: send ``step`` with a code, a security key's answer or a
    recovery code to ``/login/second-factor``. ``webauthn``: for the browser's ``navigator.credentials.get``."""

    step: str
    factors: list[FactorKind]
    webauthn: dict[str, Any] | None
    expires_at: datetime


class LoginSecondFactor(msgspec.Struct, forbid_unknown_fields=True):
    """The step of the login's answer, with one of: an app's code, what the browser's ``navigator.credentials.get``
    answered, or a recovery code."""

    step: Annotated[str, Meta(max_length=200)]
    code: Annotated[str, Meta(max_length=20)] | None = None
    credential: dict[str, Any] | None = None
    recovery_code: Annotated[str, Meta(max_length=60)] | None = None


class LoginLink(msgspec.Struct):
    """A link of the caller's: open ``path`` at the server's address in a browser, once, before it ends."""

    path: str
    expires_at: datetime


class LoginWithLink(msgspec.Struct, forbid_unknown_fields=True):
    """What follows ``#login=`` in a link's path."""

    secret: Annotated[str, Meta(max_length=200)]


STEP = ResponseSpec(SecondFactorStep, description="The password is correct; a second factor is required.")


@post("/login", summary="Log in with a password; the response sets a cookie, or asks for a second factor",
      status_code=201, opt=authorization.PUBLIC, exclude_from_auth=True, responses={202: STEP})  # fmt: skip
async def login(request: ApiRequest, data: JSONBody[Login]) -> Response[LoggedIn]:
    context = services(request)
    request.scope["state"][TRIED] = data.user
    async with context.database.connection() as connection:
        account = await users.password_of(connection, data.user)
    mark, hash = request.cookies.get(DEVICE_COOKIE, ""), None if account is None else account[1]
    device = None if account is None else context.browsers.browser_of(account[0].id, mark)
    good = await context.passwords.verify(data.user, address_of(request), hash, data.password, device)
    if not good or account is None:
        raise Unauthenticated("the name or the password is wrong")
    return await _enter(request, account[0], device)


async def _enter(
    request: ApiRequest, user: User, device: str | None, *, ends_at: datetime | None = None
) -> Response[LoggedIn]:
    """Open a session of a user who has proved to be that with one factor, or ask for the second one."""
    context = services(request)
    async with context.database.connection() as connection:
        factors = await second_factors.confirmed(connection, user.id)
        enrol = not factors and await second_factors.is_required(
            connection, user.id, context.second_factors.required_of
        )
    if factors:
        return Response(await _ask(request, user, factors), status_code=202,  # type: ignore[arg-type]
                        headers={"Cache-Control": "no-store"})  # declared as STEP  # fmt: skip
    session = await _session(request, user, enrol=enrol, ends_at=ends_at)
    return await _remember_browser(request, session, user, device)


async def _ask(request: ApiRequest, user: User, factors: Sequence[StoredFactor]) -> SecondFactorStep:
    context, challenge = services(request), new_challenge()
    async with context.database.connection() as connection:
        step, until = await second_factors.begin_login(connection, user.id, challenge)
    kinds = sorted({factor.kind for factor in factors})
    return SecondFactorStep(step, kinds, context.second_factors.login(challenge, factors), until)


@post("/login-links", summary="Create a one-time link that logs the caller in to the web UI", status_code=201,
      opt=authorization.SELF)  # fmt: skip
async def create_login_link(request: ApiRequest) -> Response[LoginLink]:
    authorization.check_unrestricted(request, "create a login link")
    async with replies.change(request) as connection:
        user = await users.get(connection, request.user.user)
        if user.kind is UserKind.SERVICE:
            raise IllegalState(f"user {user.name} is a service account: only people can log in to the web UI")
        secret, expires_at = await login_links.create(connection, request.user.id)
    # Behind #, so that it is sent to no server, and stands in no log and no Referer.
    body = LoginLink(f"/ui/#login={secret}", expires_at)
    return Response(body, status_code=201, headers={"Cache-Control": "no-store"})


@post("/login/link", summary="Log in with a link; the response sets a cookie, or asks for a second factor",
      status_code=201, opt=authorization.PUBLIC, exclude_from_auth=True, responses={202: STEP})  # fmt: skip
async def login_with_link(request: ApiRequest, data: JSONBody[LoginWithLink]) -> Response[LoggedIn]:
    """A link stands for the password only, and its session ends no later than the token that asked for the link."""
    async with services(request).database.connection() as connection:
        link = await login_links.use(connection, data.secret)
        user = None if link is None else await users.get(connection, link[0])
    if link is None or user is None:
        raise Unauthenticated("the link was used or has ended", hint="create a new one: novacron web")
    request.scope["state"][TRIED] = user.name
    return await _enter(request, user, None, ends_at=link[1])


@post("/login/second-factor", summary="Complete a login with a second factor; the response sets a cookie",
      status_code=201, opt=authorization.PUBLIC, exclude_from_auth=True)  # fmt: skip
async def login_second_factor(request: ApiRequest, data: JSONBody[LoginSecondFactor]) -> Response[LoggedIn]:
    context = services(request)
    ended = Unauthenticated("the login has expired, or its second factor was wrong too often", hint="log in again")
    async with context.database.connection() as connection:
        step = await second_factors.try_login(connection, data.step)
        user = None if step is None else await second_factors.user_of(connection, step.user)
    if step is None or user is None:
        raise ended
    request.scope["state"][TRIED] = user.name
    device = context.browsers.browser_of(user.id, request.cookies.get(DEVICE_COOKIE, ""))
    limits_ = context.passwords.limits_of_factor(user.name, address_of(request), device)
    if not await context.passwords.counted(limits_, lambda: _proves(request, step, data)):
        raise Unauthenticated(
            "the second factor is wrong", hint="each code works once, and only while the app shows it"
        )
    async with context.database.connection() as connection:
        if not await second_factors.end_login(connection, data.step):
            raise ended
    return await _remember_browser(request, await _session(request, user), user, device)


async def _proves(request: ApiRequest, step: PendingLogin, data: LoginSecondFactor) -> bool:
    """Say whether a login's second factor is right, and use it up; count wrong ones in a row."""
    async with services(request).database.connection() as connection:
        if data.code is not None and await second_factors.wrong(connection, step.user) >= WRONG_IN_A_ROW_MAX:
            raise Unauthenticated(
                "too many wrong codes: app codes are refused",
                hint="use a security key or a recovery code, or ask an administrator to reset your second factors",
            )
        if await _is_right(request, connection, step, data):
            await second_factors.forget_wrong(connection, step.user)
            return True
        await second_factors.count_wrong(connection, step.user)
        return False


async def _is_right(request: ApiRequest, connection: Connection, step: PendingLogin, data: LoginSecondFactor) -> bool:
    if data.recovery_code is not None:
        return await second_factors.use_recovery_code(connection, step.user, data.recovery_code)
    checks = services(request).second_factors
    for factor in await second_factors.confirmed(connection, step.user):
        counter = None
        if factor.kind is FactorKind.TOTP and data.code is not None:
            counter = checks.step_of(factor, data.code)
        elif factor.kind is FactorKind.WEBAUTHN and data.credential is not None:
            counter = checks.counter_of(factor, step.challenge, data.credential)
        if counter is not None and await second_factors.use(connection, factor, counter):
            return True
    return False


async def _remember_browser(
    request: ApiRequest, response: Response[LoggedIn], user: User, device: str | None
) -> Response[LoggedIn]:
    """Mark a browser in which a user has logged in."""
    mark = services(request).browsers.mark(user.id, device)
    if mark != request.cookies.get(DEVICE_COOKIE):  # another browser, or its mark was made with a key of before
        response.set_cookie(_cookie(DEVICE_COOKIE, mark, limits.DEVICE_S))
    return response


async def _session(
    request: ApiRequest, user: User, to: str | None = None, *, enrol: bool = False, ends_at: datetime | None = None
) -> Response[LoggedIn]:
    """Open a session; ``enrol``: one without rights, until the user has a second factor. It ends at ``ends_at`` at the
    latest."""
    life_s = int(services(request).lifetimes.session_s)
    if ends_at is not None:
        life_s = min(life_s, max(1, int((ends_at - datetime.now(UTC)).total_seconds())))
    async with replies.change(request, user) as connection:
        new = tokens.NewToken("session", scopes=() if enrol else None, session=True, expires_in_s=life_s)
        token, secret = await tokens.create(connection, user, new, user.name)
    cookie = _cookie(COOKIE, secret, life_s)
    body = LoggedIn(user.name, csrf_of(secret), token.expires_at, enrol)
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


@get("/oidc/login", summary="Redirect to the identity provider to log in", status_code=302, opt=authorization.PUBLIC,
     exclude_from_auth=True)  # fmt: skip
async def oidc_login(request: ApiRequest) -> Response[None]:
    oidc = services(request).oidc
    if oidc is None:
        raise NotFound("this installation has no identity provider", hint="see: novacron server --oidc")
    where, step = await oidc.begin()
    # Lax: the provider's page leads back here.
    cookie = Cookie(STEP_COOKIE, value=step, path="/", httponly=True, secure=True, samesite="lax", max_age=600)
    return Response(None, status_code=302, headers={"Location": where, "Cache-Control": "no-store"}, cookies=[cookie])


@get("/oidc/callback", summary="Complete a login at the identity provider", status_code=303, opt=authorization.PUBLIC,
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


router = Router(
    "/",
    route_handlers=[
        login, login_second_factor, create_login_link, login_with_link, logout, oidc_login, oidc_callback
    ],
    tags=["access"],
)  # fmt: skip
