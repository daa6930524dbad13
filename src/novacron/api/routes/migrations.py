"""Routes for migrations: ``/api/v1/migrations``."""

from __future__ import annotations

from typing import Annotated

from litestar import Response, Router, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest
from novacron.api.edge import lists, replies
from novacron.api.read_model.paging import Page, Paging, Query
from novacron.model import limits
from novacron.model.access import Right
from novacron.model.migration import Migration, MigrationPhase
from novacron.store import migrations
from novacron.store.database import Connection

Wait = Annotated[int, QueryParameter(ge=0, le=limits.LONG_POLL_S_MAX)]


@get("/", summary="List migrations, newest first")
async def list_migrations(
    request: ApiRequest,
    paging: NamedDependency[Paging],
    vm: FromQuery[str | None] = None,
    phase: FromQuery[MigrationPhase | None] = None,
) -> Response[Page[Migration]]:
    return lists.answer(
        request, paging, Query("migration", (*lists.of_vm(vm), *lists.where({"phase": phase})), newest_first=True)
    )


@get("/{id:str}", summary="Show a migration")
async def show_migration(
    request: ApiRequest, id: FromPath[str], newer_than: FromQuery[int | None] = None, timeout_s: Wait = 30
) -> Response[Migration]:
    return await replies.single(request, "migration", id, newer_than, timeout_s)


@post(
    "/{id:str}/actions/abort",
    summary="Abort a migration; the VM stays on its source node",
    status_code=200,
    opt=authorization.in_project(Right.OPERATE),
)
async def abort_migration(request: ApiRequest, id: FromPath[str]) -> Response[Migration]:
    id = await authorization.resolve(request, "migration", replies.check_ref("migration", id))

    async def work(connection: Connection) -> Migration:
        return await migrations.abort(connection, id, request.user.name)

    return await replies.write(request, work)


router = Router(
    "/migrations",
    route_handlers=[list_migrations, show_migration, abort_migration],
    tags=["migrations"],
    opt=authorization.in_project(),
)
