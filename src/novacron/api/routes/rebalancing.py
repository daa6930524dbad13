"""Routes for rebalancing: ``/api/v1/rebalancing``."""

from __future__ import annotations

from litestar import Response, Router, get, put
from litestar.params import JSONBody

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import replies
from novacron.model.rebalance import Settings
from novacron.store import rebalancing
from novacron.store.rebalancing import Rebalancing


@get("/", summary="Show the rebalancing policy and its latest decisions")
async def show_rebalancing(request: ApiRequest) -> Response[Rebalancing]:
    async with services(request).database.connection() as connection:
        return Response(await rebalancing.get(connection))


@put("/", summary="Set the rebalancing policy; omitted fields get their defaults", status_code=200)
async def configure_rebalancing(request: ApiRequest, data: JSONBody[Settings]) -> Response[Rebalancing]:
    async with replies.change(request) as connection:
        return Response(await rebalancing.configure(connection, data, request.user.name))


router = Router(
    "/rebalancing",
    route_handlers=[show_rebalancing, configure_rebalancing],
    tags=["nodes"],
    opt=authorization.in_fleet(),
)
