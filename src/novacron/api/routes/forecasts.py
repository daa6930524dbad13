"""Routes for forecasts of load and capacity: ``/api/v1/forecasts`` and ``/api/v1/capacity``."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated

import msgspec
from litestar import Router, get
from litestar.params import FromQuery, QueryParameter

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import lists
from novacron.api.read_model.indexes import Object, matches
from novacron.api.read_model.paging import Paging, Query
from novacron.model import limits
from novacron.model.capacity_forecast import CapacityForecast, CapacityResource
from novacron.model.errors import InvalidInput
from novacron.model.load_forecast import ForecastAccuracy, NodeForecast, UnusualLoad, VmForecast
from novacron.model.metadata import wanted_tags
from novacron.store import capacity, forecasts, unusual_loads

DAYS_MAX = 3650
Limit = Annotated[int, QueryParameter(ge=1, le=limits.PAGE_SIZE_MAX)]


class ForecastOfNode(msgspec.Struct):
    """A node, and what is foreseen of it."""

    name: str
    site: str
    cpus: int | None
    """Logical CPUs that it has; null: it has not reported yet."""
    forecast: NodeForecast | None
    """null: nothing is known of its load lately, for example because no VM has run on it for an hour."""


class ForecastOfVm(msgspec.Struct):
    """A VM, and what is foreseen of it."""

    id: str
    name: str
    project: str
    node: str | None
    vcpus: int
    forecast: VmForecast | None
    """null: nothing is known of its load lately, for example because it has not run for a day."""
    unusual: UnusualLoad | None
    """How it is unlike itself; null: it is as usual, or too little is known of it."""


class NodeForecasts(msgspec.Struct):
    """A page of nodes with their forecasts, by name."""

    items: list[ForecastOfNode]
    next: str | None
    """``cursor`` of the next page; null: this is the last."""


class VmForecasts(msgspec.Struct):
    """A page of VMs with their forecasts, by name."""

    items: list[ForecastOfVm]
    next: str | None
    """``cursor`` of the next page; null: this is the last."""


class ForecastAccuracies(msgspec.Struct):
    """Of each kind of forecast."""

    items: list[ForecastAccuracy]


class CapacityPage(msgspec.Struct):
    """A page of what can be full, by resource and name."""

    items: list[CapacityForecast]
    next: str | None
    """``cursor`` of the next page; null: this is the last."""


@get("/", summary="Forecast the next hour of nodes", opt=authorization.in_fleet())
async def list_node_forecasts(
    request: ApiRequest,
    limit: Limit = limits.PAGE_SIZE_DEFAULT,
    cursor: FromQuery[str | None] = None,
    tag: lists.Tag = None,
    site: Annotated[str | None, QueryParameter(description="only nodes of this site")] = None,
) -> NodeForecasts:
    context, page = services(request), Paging(limit, cursor, None, None, wanted_tags(tag))
    selection = lists.selected(request, page, Query("node", lists.where({"spec.site": site})))
    bodies = [entry.body for entry in selection.entries]
    async with context.database.connection() as connection:
        made = await forecasts.of_nodes(connection, [body["name"] for body in bodies], datetime.now(UTC))
    items = [
        ForecastOfNode(
            body["name"], body["spec"]["site"], (body["status"]["inventory"] or {}).get("cpus"), made.get(body["name"])
        )
        for body in bodies
    ]
    return NodeForecasts(items, selection.next)


@get("/", summary="Forecast the next week of VMs", opt=authorization.in_project())
async def list_vm_forecasts(
    request: ApiRequest,
    limit: Limit = limits.PAGE_SIZE_DEFAULT,
    cursor: FromQuery[str | None] = None,
    tag: lists.Tag = None,
    node: FromQuery[str | None] = None,
    unusual: Annotated[bool, QueryParameter(description="only VMs that are unlike themselves")] = False,
) -> VmForecasts:
    context, page, now = services(request), Paging(limit, cursor, None, None, wanted_tags(tag)), datetime.now(UTC)
    async with context.database.connection() as connection:
        keep = _within(request, await unusual_loads.ids(connection, now)) if unusual else None
        selection = lists.selected(request, page, Query("vm", lists.where({"node": node}), keep=keep))
        bodies = {entry.body["id"]: entry.body for entry in selection.entries}
        made = await forecasts.of_vms(connection, bodies, now)
        odd = await unusual_loads.of_vms(connection, bodies, now)
    items = [
        ForecastOfVm(id, body["name"], body["project"], body["node"], body["spec"]["vcpus"], made.get(id), odd.get(id))
        for id, body in bodies.items()
    ]
    return VmForecasts(items, selection.next)


def _within(request: ApiRequest, ids: frozenset[str]) -> Callable[[Object], bool]:
    """Return what keeps the VMs of ``ids`` that the caller may see."""
    visible = authorization.visible(request, "vm")
    return lambda body: body["id"] in ids and (visible is None or matches(body, visible))


@get("/", summary="Compare forecasts with actual values", opt=authorization.in_fleet())
async def show_forecast_accuracy(
    request: ApiRequest,
    days: Annotated[int, QueryParameter(ge=1, le=DAYS_MAX, description="how many days to look back")] = 7,
) -> ForecastAccuracies:
    async with services(request).database.connection() as connection:
        return ForecastAccuracies(await forecasts.accuracies(connection, datetime.now(UTC), days))


@get("/", summary="Forecast when sites, pools, quotas and the database are full")
async def list_capacity(
    request: ApiRequest,
    resource: Annotated[CapacityResource | None, QueryParameter(description="only this kind")] = None,
    name: Annotated[str | None, QueryParameter(description="only this site, pool, quota or node")] = None,
    limit: Limit = limits.PAGE_SIZE_DEFAULT,
    cursor: FromQuery[str | None] = None,
) -> CapacityPage:
    after = ("", "") if cursor is None else _place(cursor)
    async with services(request).database.connection() as connection:
        items = await capacity.page(connection, resource, name, after, limit + 1)
    last = items[limit - 1] if len(items) > limit else None
    return CapacityPage(items[:limit], None if last is None else _cursor(last))


def _cursor(last: CapacityForecast) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode((last.resource, last.name))).decode()


def _place(cursor: str) -> tuple[str, str]:
    """Raises InvalidInput."""
    try:
        place = msgspec.json.decode(base64.urlsafe_b64decode(cursor.encode("ascii")), type=tuple[str, str])
    except (ValueError, msgspec.DecodeError):
        place = ("\0", "")
    if any("\0" in part for part in place):
        raise InvalidInput("is not a cursor", field="cursor", hint="send the `next` of the previous page unchanged")
    return place


nodes = Router("/forecasts/nodes", route_handlers=[list_node_forecasts], tags=["forecasts"])
vms = Router("/forecasts/vms", route_handlers=[list_vm_forecasts], tags=["forecasts"])
accuracy = Router("/forecasts/accuracy", route_handlers=[show_forecast_accuracy], tags=["forecasts"])
capacity_router = Router("/capacity", route_handlers=[list_capacity], tags=["forecasts"], opt=authorization.in_fleet())
