"""Who calls: a bearer token, checked against the watch cache, so that a revocation counts at once."""

from __future__ import annotations

from typing import Any

from litestar.connection import ASGIConnection
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult

from novacron.api.context import Caller, services
from novacron.model.errors import Unauthenticated, Unavailable
from novacron.model.token import hash_secret


class TokenAuthentication(AbstractAuthenticationMiddleware):
    """Admits requests with a valid token; all routes but those marked ``public`` need one."""

    async def authenticate_request(self, connection: ASGIConnection[Any, Any, Any, Any]) -> AuthenticationResult:
        header = connection.headers.get("authorization", "")
        scheme, _, secret = header.partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise Unauthenticated(
                "no API token was sent",
                field="Authorization",
                hint="send the header: Authorization: Bearer TOKEN",
            )
        cache = services(connection).cache
        if not cache.ready:
            raise Unavailable("this server has lost the database and will not answer from old data", hint="try again")
        id = cache.token(hash_secret(secret.strip()).hex())
        if id is None:
            raise Unauthenticated(
                "the API token is wrong or was revoked",
                field="Authorization",
                hint="ask an administrator for a new one",
            )
        entry = cache.get("token", id)
        return AuthenticationResult(user=Caller(id, entry.body["name"] if entry else id), auth=id)
