"""Authentication by bearer token or browser session, against the watch cache: a revocation takes effect immediately."""

from __future__ import annotations

import time
from typing import Any

from litestar.connection import ASGIConnection
from litestar.enums import ScopeType
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult

from novacron.api.access.context import services
from novacron.api.access.recorder import UNSAFE, address_of
from novacron.api.read_model.principals import Caller
from novacron.model.errors import Forbidden, Unauthenticated, Unavailable
from novacron.model.token import TokenKind, csrf_of, hash_secret, same_secret

COOKIE = "__Host-novacron-session"
"""Holds a browser's session; scripts cannot read it."""


class Authentication(AbstractAuthenticationMiddleware):
    """Admits requests with a valid token or session; all routes but those marked ``exclude_from_auth`` need one."""

    async def authenticate_request(self, connection: ASGIConnection[Any, Any, Any, Any]) -> AuthenticationResult:
        cache = services(connection).cache
        if not (cache.answers() if _reads(connection) else cache.ready):
            raise Unavailable(
                "this server has lost its database connection and does not serve stale data", hint="try again"
            )
        header = connection.headers.get("authorization")
        caller = _by_header(connection, header) if header is not None else _by_cookie(connection)
        services(connection).recorder.used(caller.id, address_of(connection))
        return AuthenticationResult(user=caller, auth=caller.id)


def _reads(connection: ASGIConnection[Any, Any, Any, Any]) -> bool:
    """Say whether a request only reads what there is: it may be answered from memory while the database is away.

    Streams and consoles are not: they would last longer than that may.
    """
    streams = "text/event-stream" in connection.headers.get("accept", "")
    return connection.scope.get("method") in ("GET", "HEAD") and not streams


def _by_header(connection: ASGIConnection[Any, Any, Any, Any], header: str) -> Caller:
    scheme, _, secret = header.partition(" ")
    if scheme.lower() != "bearer" or not secret:
        raise Unauthenticated(
            "no API token was sent", field="Authorization", hint="send the header: Authorization: Bearer TOKEN"
        )
    caller = _caller(connection, secret.strip())
    if caller is None or caller.kind is not TokenKind.API:
        raise Unauthenticated(
            "the API token is wrong, has expired or was revoked",
            field="Authorization",
            hint="create a new token, or ask an administrator for one",
        )
    return caller


def _by_cookie(connection: ASGIConnection[Any, Any, Any, Any]) -> Caller:
    secret = connection.cookies.get(COOKIE)
    if not secret:
        raise Unauthenticated(
            "no API token was sent", field="Authorization", hint="send the header: Authorization: Bearer TOKEN"
        )
    caller = _caller(connection, secret)
    if caller is None or caller.kind is not TokenKind.SESSION:
        raise Unauthenticated("the session has ended", hint="log in again")
    if connection.scope["type"] == ScopeType.WEBSOCKET and not _from_own_page(connection):
        raise Forbidden("a page from another origin can't use the session", field="Origin")
    if connection.scope.get("method") in UNSAFE:
        sent = connection.headers.get("x-csrf-token", "")
        if not same_secret(sent, csrf_of(secret)):
            raise Forbidden("a change from a browser needs the session's token", field="X-CSRF-Token")
    return caller


def _from_own_page(connection: ASGIConnection[Any, Any, Any, Any]) -> bool:
    """Say whether a page of this server opens a WebSocket: browsers send the cookie for pages of any origin."""
    host = connection.headers.get("host")
    return host is not None and connection.headers.get("origin") == f"https://{host}"


def _caller(connection: ASGIConnection[Any, Any, Any, Any], secret: str) -> Caller | None:
    caller = services(connection).cache.callers.get(hash_secret(secret).hex())
    return None if caller is None or caller.expires_at_s <= time.time() else caller
