"""Routes for the platform key, which wraps the keys of projects: ``/api/v1/platform-key``."""

from __future__ import annotations

from litestar import Response, Router, get, post

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import replies
from novacron.model.access import Right
from novacron.model.encryption import PlatformKey, WrappedKey
from novacron.store import project_keys
from novacron.store.database import Connection

KEYS_MAX = 100
"""Keys that one request wraps anew: a key management service may take its time for each."""


async def _stands(connection: Connection, id: str) -> PlatformKey:
    revision = int(await connection.fetchval("SELECT pg_current_xact_id()::text"))
    return PlatformKey(id, await project_keys.counts(connection), revision)


@get("/", summary="Show the platform key and how many projects' keys each has wrapped")
async def show_platform_key(request: ApiRequest) -> PlatformKey:
    id = await services(request).platform_keys.id()
    async with services(request).database.connection() as connection:
        return await _stands(connection, id)


@post("/rewrap", summary="Wrap up to 100 projects' keys with the current platform key", status_code=200)
async def rewrap_project_keys(request: ApiRequest) -> Response[PlatformKey]:
    keys = services(request).platform_keys
    id = await keys.id()
    async with services(request).database.connection() as connection:
        before = await project_keys.not_wrapped_by(connection, id, KEYS_MAX)
    pairs: list[tuple[WrappedKey, WrappedKey]] = [(was, await keys.wrap(await keys.unwrap(was))) for was in before]

    async def work(connection: Connection) -> PlatformKey:
        for was, now in pairs:
            await project_keys.replace(connection, was, now)
        return await _stands(connection, id)

    return await replies.write(request, work)


router = Router(
    "/platform-key",
    route_handlers=[show_platform_key, rewrap_project_keys],
    tags=["access"],
    opt=authorization.in_fleet(Right.MANAGE),
)
