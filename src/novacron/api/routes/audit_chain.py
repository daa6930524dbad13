"""Routes for who verifies the audit log: its chain, its signed heads; and for the erasure of a person's data."""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar import Router, get, post
from litestar.params import FromQuery, JSONBody, QueryParameter

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import text
from novacron.audit_chain.entries import ChainEntry
from novacron.audit_chain.heads import SignedHead
from novacron.audit_chain.verification import ChainState
from novacron.model import limits
from novacron.model.access import Right
from novacron.model.errors import NotFound
from novacron.model.user import UserName
from novacron.store import audit, audit_chain, erasure, users
from novacron.store.erasure import Erasure

Limit = Annotated[int, QueryParameter(ge=1, le=limits.PAGE_SIZE_MAX)]
After = Annotated[int, QueryParameter(ge=0, le=text.INT64_MAX)]
HINT = "send the `next` of the previous page unchanged"


class Entries(msgspec.Struct):
    """A page of the chain's entries."""

    items: list[ChainEntry]
    next: str | None


class Heads(msgspec.Struct):
    """A page of signed heads."""

    items: list[SignedHead]
    next: str | None


@get("/audit/chain", summary="Show where the audit log's hash chain begins and ends, and which keys sign its heads")
async def show_audit_chain(request: ApiRequest) -> ChainState:
    async with services(request).database.connection() as connection:
        return await audit_chain.state(connection)


@get("/audit/entries", summary="List the entries of the audit log's hash chain in their order, with their records")
async def list_audit_entries(
    request: ApiRequest, limit: Limit = limits.PAGE_SIZE_DEFAULT, after: After = 0,
    cursor: FromQuery[str | None] = None,
) -> Entries:  # fmt: skip
    begin = after if cursor is None else text.natural(cursor, "cursor", hint=HINT)
    async with services(request).database.connection() as connection:
        items = await audit_chain.read(connection, begin, limit + 1)
    return Entries(items[:limit], str(items[limit - 1].seq) if len(items) > limit else None)


@get("/audit/heads", summary="List the signed heads of the audit log's hash chain in their order")
async def list_audit_heads(
    request: ApiRequest, limit: Limit = limits.PAGE_SIZE_DEFAULT, cursor: FromQuery[str | None] = None
) -> Heads:
    begin = 0 if cursor is None else text.natural(cursor, "cursor", hint=HINT)
    async with services(request).database.connection() as connection:
        items = await audit_chain.heads(connection, begin, limit + 1)
    return Heads(items[:limit], str(items[limit].seq) if len(items) > limit else None)


class EraseUser(msgspec.Struct, forbid_unknown_fields=True):
    """The user to erase, by id or name."""

    user: UserName


@post("/audit/erasures", status_code=200,
      summary="Delete a user, and replace their name and addresses in all records with a pseudonym")  # fmt: skip
async def erase_user(request: ApiRequest, data: JSONBody[EraseUser]) -> Erasure:
    context, caller = services(request), request.user
    async with context.database.transaction() as connection:
        id, name, exists = await erasure.find(connection, data.user)
        if exists:
            await users.delete(connection, id, caller.name)
    # In a transaction of its own: what the deletion has recorded is erased, too.
    async with context.database.transaction() as connection:
        erased = await erasure.erase(connection, id, name)
        if not exists and not erased.records:
            raise NotFound(f"there is no user {data.user!r}, and no record names one", field="user")
        detail = f"data of one person was replaced in {erased.records} records"
        records = context.recorder.records(request, 200, [erased])
        await audit.add(connection, [
            msgspec.structs.replace(record, name=erased.pseudonym, detail=detail) for record in records
        ])  # fmt: skip
    return erased


router = Router(
    "/",
    route_handlers=[show_audit_chain, list_audit_entries, list_audit_heads, erase_user],
    tags=["access"],
    opt=authorization.in_fleet(Right.MANAGE),
)
