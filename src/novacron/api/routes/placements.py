"""Routes that say where a VM would go, and why not elsewhere: nothing is changed."""

from __future__ import annotations

import msgspec
from litestar import Response, Router, get, post
from litestar.params import FromPath, JSONBody
from msgspec import UNSET

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.routes.vms import CreateVm, spec_of, with_templates
from novacron.model.access import Right
from novacron.model.placement import Verdict, Wish
from novacron.store import fleet, migrations, new_vms


class PlacementForecast(msgspec.Struct):
    """The verdict on each node: the best first, those that can't take the VM last."""

    items: list[Verdict]


@post(
    "/placements",
    summary="Show where a VM would be placed, without creating it",
    status_code=200,
    opt=authorization.in_fleet(Right.READ),
)
async def foresee_placement(request: ApiRequest, data: JSONBody[CreateVm]) -> Response[PlacementForecast]:
    data = await with_templates(request, data)
    project, spec = authorization.project_for_new(request, Right.READ), spec_of(request, data)
    home = services(request).cache.get("project", project)
    if data.nics is UNSET and home is not None:
        spec = new_vms.in_network(spec, home.body.get("default_network"))
    spec = fleet.of_project(spec, project)
    async with services(request).database.connection() as connection:
        verdicts = (await fleet.load(connection)).explain(Wish("", spec))
    return Response(PlacementForecast([verdict for verdict in verdicts if data.node in (None, verdict.node)]))


@get(
    "/vms/{ref:str}/placement",
    summary="Show the nodes that a VM could migrate to now",
    opt=authorization.in_project(Right.OPERATE),
)
async def placement(request: ApiRequest, ref: FromPath[str]) -> Response[PlacementForecast]:
    id = await authorization.resolve(request, "vm", ref)
    async with services(request).database.connection() as connection:
        return Response(PlacementForecast(await migrations.explain(connection, id)))


router = Router("/", route_handlers=[foresee_placement, placement], tags=["vms"])
