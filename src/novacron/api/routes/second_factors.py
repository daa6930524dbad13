"""Routes for second factors: a user's own, ``/api/v1/me/second-factors``, and those of others, for administrators."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Router, delete, get, post
from litestar.params import FromPath, JSONBody
from msgspec import Meta

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.access.recorder import address_of
from novacron.api.access.second_factors import new_challenge
from novacron.api.edge import replies
from novacron.model.access import Right
from novacron.model.errors import Forbidden, IllegalState, InvalidInput, Unauthenticated
from novacron.model.second_factor import FactorKind, FactorName, SecondFactors
from novacron.model.token import TokenKind
from novacron.model.user import User
from novacron.store import second_factors, users
from novacron.store.database import Connection
from novacron.store.second_factors import NewFactor, StoredFactor

Proof = Annotated[str, Meta(max_length=1024)]


class BeginSecondFactor(msgspec.Struct, forbid_unknown_fields=True):
    """A new second factor: an authenticator app (``totp``) or a security key (``webauthn``). ``password``: the user's
    present one."""

    kind: FactorKind
    name: FactorName
    password: Proof


class BegunFactor(msgspec.Struct):
    """A second factor that takes effect once confirmed. Of an app: the ``secret``, and the same as a ``uri`` for its QR
    code; shown once. Of a security key: the ``options`` for the browser's ``navigator.credentials.create``."""

    id: str
    kind: FactorKind
    name: str
    secret: str | None = None
    uri: str | None = None
    options: dict[str, Any] | None = None


class ConfirmSecondFactor(msgspec.Struct, forbid_unknown_fields=True):
    """The code that the app shows now, or what the browser's ``navigator.credentials.create`` answered."""

    code: Annotated[str, Meta(max_length=20)] | None = None
    credential: dict[str, Any] | None = None


class Confirmed(msgspec.Struct):
    """The user's second factors. ``recovery_codes``: with the first one, ten codes, shown once, each good for one login
    without the second factor."""

    factors: SecondFactors
    recovery_codes: list[str] | None


class Password(msgspec.Struct, forbid_unknown_fields=True):
    """The user's present password."""

    password: Proof


class RecoveryCodes(msgspec.Struct):
    """Codes for logins without the second factor: shown once, each valid once."""

    recovery_codes: list[str]


@get("/me/second-factors", summary="List the caller's second factors")
async def list_second_factors(request: ApiRequest) -> SecondFactors:
    async with services(request).database.connection() as connection:
        return await _shown(request, connection, request.user.user)


async def _shown(request: ApiRequest, connection: Connection, user: str) -> SecondFactors:
    required = await second_factors.is_required(connection, user, services(request).second_factors.required_of)
    return await second_factors.shown(connection, user, required)


def _check_own(request: ApiRequest) -> None:
    """Raise Forbidden for a token with scopes or a project: it must not change how its user logs in."""
    own = services(request).cache.get("token", request.user.id)
    if own is None:
        raise Unauthenticated("the API token was revoked")
    restricted = own.body["scopes"] is not None or own.body["project"] is not None
    if restricted and own.body["kind"] != TokenKind.SESSION:  # a session lacks rights only until there is a factor
        raise Forbidden(
            "a restricted token cannot change second factors", hint="use a token without scopes and project"
        )


async def _check_password(request: ApiRequest, password: str) -> User:
    """Return the caller, whose password this is. Raises Unauthenticated, IllegalState, TooManyRequests."""
    _check_own(request)
    context = services(request)
    async with context.database.connection() as connection:
        account = await users.password_of(connection, request.user.name)
    if account is None:
        raise IllegalState(f"user {request.user.name} has no password here", hint="second factors need a password")
    if not await context.passwords.verify(request.user.name, address_of(request), account[1], password):
        raise Unauthenticated("the password is wrong", field="password")
    return account[0]


@post("/me/second-factors", summary="Start adding a second factor; confirm it next", status_code=201)
async def begin_second_factor(request: ApiRequest, data: JSONBody[BeginSecondFactor]) -> BegunFactor:
    user, checks = await _check_password(request, data.password), services(request).second_factors
    begun = BegunFactor(second_factors.new_id(), data.kind, data.name)
    async with replies.change(request, begun) as connection:
        if data.kind is FactorKind.TOTP:
            sealed, begun.secret, begun.uri = checks.new_app(begun.id, user.name)
        else:
            sealed = new_challenge()
            others = await second_factors.confirmed(connection, user.id)
            begun.options = checks.registration(sealed, user.id, user.name, others)
        await second_factors.begin(connection, user, NewFactor(begun.id, data.kind, data.name, sealed))
    return begun


@post("/me/second-factors/{ref:str}/actions/confirm", summary="Confirm a new second factor: it counts from now on",
      status_code=200)  # fmt: skip
async def confirm_second_factor(
    request: ApiRequest, ref: FromPath[str], data: JSONBody[ConfirmSecondFactor]
) -> Confirmed:
    _check_own(request)
    context, caller = services(request), request.user
    async with context.database.connection() as connection:
        factor = await second_factors.get(connection, caller.user, ref)
    if factor.confirmed:
        raise IllegalState(f"second factor {factor.name} is already confirmed")
    good = await context.passwords.counted(
        context.passwords.limits_of_factor(caller.name, address_of(request)), lambda: _confirms(request, factor, data)
    )
    if not good:
        raise Unauthenticated("the code is wrong", field="code", hint="check the clock of the app's device")
    codes = None
    async with replies.change(request, factor) as connection:
        user = await users.get(connection, caller.user)
        if not await second_factors.confirmed(connection, user.id):
            codes = await second_factors.new_recovery_codes(connection, user, caller.name)
        await _confirm(request, connection, factor, data)
        await second_factors.added(connection, user, factor, caller.name)
        await second_factors.unlock_session(connection, caller.id)
        return Confirmed(await _shown(request, connection, user.id), codes)


async def _confirms(request: ApiRequest, factor: StoredFactor, data: ConfirmSecondFactor) -> bool:
    """Say whether a code is right now; a security key's answer is looked at when it is stored."""
    if factor.kind is FactorKind.WEBAUTHN:
        if data.credential is None:
            raise InvalidInput("the browser's answer is missing", field="credential")
        return True
    if data.code is None:
        raise InvalidInput("the app's code is missing", field="code")
    return services(request).second_factors.step_of(factor, data.code) is not None


async def _confirm(
    request: ApiRequest, connection: Connection, factor: StoredFactor, data: ConfirmSecondFactor
) -> None:
    checks = services(request).second_factors
    if data.credential is not None and factor.kind is FactorKind.WEBAUTHN:
        key = checks.register(factor.secret, data.credential)
        await second_factors.confirm_key(connection, factor, key.credential, key.public_key, key.counter)
    else:
        step = checks.step_of(factor, data.code or "")
        await second_factors.confirm_app(connection, factor, step or 0)


@post("/me/second-factors/{ref:str}/actions/remove", summary="Remove one of the caller's second factors",
      status_code=204)  # fmt: skip
async def remove_second_factor(request: ApiRequest, ref: FromPath[str], data: JSONBody[Password]) -> None:
    user, required_of = await _check_password(request, data.password), services(request).second_factors.required_of
    async with replies.change(request) as connection:
        factor = await second_factors.get(connection, user.id, ref)
        others = [other for other in await second_factors.confirmed(connection, user.id) if other.id != factor.id]
        if factor.confirmed and not others and await second_factors.is_required(connection, user.id, required_of):
            raise IllegalState(f"user {user.name} must have a second factor", hint="add another one first")
        await second_factors.remove(connection, user, factor, request.user.name)


@post("/me/recovery-codes", summary="Create new recovery codes; earlier ones become invalid", status_code=201)
async def renew_recovery_codes(request: ApiRequest, data: JSONBody[Password]) -> RecoveryCodes:
    user = await _check_password(request, data.password)
    async with replies.change(request, user) as connection:
        if not await second_factors.confirmed(connection, user.id):
            raise IllegalState(f"user {user.name} has no second factor", hint="add one first")
        return RecoveryCodes(await second_factors.new_recovery_codes(connection, user, request.user.name))


@get(
    "/users/{ref:str}/second-factors", summary="List a user's second factors", opt=authorization.in_fleet(Right.MANAGE)
)
async def list_second_factors_of(request: ApiRequest, ref: FromPath[str]) -> SecondFactors:
    async with services(request).database.transaction() as connection:
        user = await users.get(connection, ref)
        return await _shown(request, connection, user.id)


@delete("/users/{ref:str}/second-factors", status_code=204, opt=authorization.in_fleet(Right.MANAGE),
        summary="Remove all second factors and recovery codes of a user; their sessions end")  # fmt: skip
async def reset_second_factors(request: ApiRequest, ref: FromPath[str]) -> None:
    _check_own(request)
    async with services(request).database.transaction() as connection:
        user = await users.get(connection, ref)
    async with replies.change(request, user) as connection:
        await second_factors.reset(connection, user, request.user.name)


router = Router(
    "/",
    route_handlers=[
        list_second_factors, begin_second_factor, confirm_second_factor, remove_second_factor, renew_recovery_codes,
        list_second_factors_of, reset_second_factors,
    ],
    tags=["access"],
    opt=authorization.SELF,
)  # fmt: skip
