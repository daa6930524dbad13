"""Routes for API tokens: ``/api/v1/tokens``."""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar import Router, delete, get, post

from novacron.api import reply
from novacron.api.context import ApiRequest, services
from novacron.model.token import Token
from novacron.store import tokens


class CreateToken(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=63)]


class CreatedToken(msgspec.Struct):
    """A new token. The secret is shown here and never again."""

    id: str
    name: str
    secret: str


class TokenList(msgspec.Struct):
    items: list[Token]
    next: str | None
    revision: int


@get("/", summary="List API tokens, never their secrets")
async def list_tokens(request: ApiRequest) -> TokenList:
    cache = services(request).cache
    items = [msgspec.convert(entry.body, Token) for entry in cache.all("token").values()]
    return TokenList(sorted(items, key=lambda token: token.created_at), None, cache.revision)


@post("/", summary="Create an API token", status_code=201)
async def create_token(request: ApiRequest, data: CreateToken) -> CreatedToken:
    context = services(request)
    async with context.database.transaction() as connection:
        token, secret = await tokens.create(connection, data.name, request.user.name)
    await context.cache.reached(token.revision, reply.OWN_WRITE_WAIT_S)
    return CreatedToken(token.id, token.name, secret)


@delete("/{id:str}", summary="Revoke an API token, at once and for good", status_code=204)
async def revoke_token(request: ApiRequest, id: str) -> None:
    context = services(request)
    async with context.database.transaction() as connection:
        await tokens.revoke(connection, reply.check_ref("token", id), request.user.name)
        revision = int(await connection.fetchval("SELECT pg_current_xact_id()::text"))
    await context.cache.reached(revision, reply.OWN_WRITE_WAIT_S)


router = Router("/tokens", route_handlers=[list_tokens, create_token, revoke_token], tags=["tokens"])
