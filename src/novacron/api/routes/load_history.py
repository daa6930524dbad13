"""Routes for the load of past hours: ``/api/v1/vms/{ref}/load`` and ``/api/v1/nodes/{name}/load``."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Annotated

import msgspec
from litestar import Router, get
from litestar.params import FromPath, QueryParameter

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import replies
from novacron.model.load_hours import KEPT, PastHour
from novacron.store import load_history

Days = Annotated[int, QueryParameter(ge=1, le=KEPT.vm_days, description="how many days to look back")]
DAYS_DEFAULT = 14


class PastLoad(msgspec.Struct):
    """The hours of which something is known, the oldest first. An hour is known soon after it has ended."""

    items: list[PastHour]


@get("/{ref:str}/load", summary="Show the load of a VM's past hours", opt=authorization.in_project())
async def show_vm_load(request: ApiRequest, ref: FromPath[str], days: Days = DAYS_DEFAULT) -> PastLoad:
    id = await authorization.resolve(request, "vm", ref)
    async with services(request).database.connection() as connection:
        return PastLoad(await load_history.of_vm(connection, id, _since(days)))


@get("/{name:str}/load", summary="Show the load of a node's past hours", opt=authorization.in_fleet())
async def show_node_load(request: ApiRequest, name: FromPath[str], days: Days = DAYS_DEFAULT) -> PastLoad:
    if services(request).cache.get("node", replies.check_ref("node", name)) is None:
        raise authorization.no_such("node", name)
    async with services(request).database.connection() as connection:
        return PastLoad(await load_history.of_node(connection, name, _since(days)))


def _since(days: int) -> date:
    return (datetime.now(UTC) - timedelta(days=days)).date()


of_vms = Router("/vms", route_handlers=[show_vm_load], tags=["vms"])
of_nodes = Router("/nodes", route_handlers=[show_node_load], tags=["nodes"])
