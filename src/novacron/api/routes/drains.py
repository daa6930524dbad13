"""Routes for drains of nodes and sites: ``/api/v1/drains``, ``/api/v1/sites``."""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar import Response, Router, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import lists, replies
from novacron.api.read_model.paging import Page, Paging, Query
from novacron.api.routes.nodes import DrainNode, Uncordon
from novacron.model import limits
from novacron.model.drain import Drain
from novacron.model.network import FORWARD_PORTS_DEFAULT, PortRangeText
from novacron.model.node import Node
from novacron.store import nodes
from novacron.store import sites as store_sites
from novacron.store.database import Connection

Wait = Annotated[int, QueryParameter(ge=0, le=limits.LONG_POLL_S_MAX)]


class Site(msgspec.Struct):
    """A site and its nodes."""

    name: str
    nodes: list[str]
    ready: int
    cordoned: int
    forward_ports: str = FORWARD_PORTS_DEFAULT
    """Ports of its gateways that projects may forward to VMs."""


class SiteList(msgspec.Struct):
    """All sites."""

    items: list[Site]


class ConfigureSite(msgspec.Struct, forbid_unknown_fields=True):
    """Ports of the site's gateways that projects may forward to VMs, such as ``30000-32767``."""

    forward_ports: PortRangeText


class SiteSettings(msgspec.Struct):
    """What is set for a site."""

    name: str
    forward_ports: str


class SiteNodes(msgspec.Struct):
    """All nodes of a site."""

    items: list[Node]

    @property
    def revision(self) -> int:
        return max(node.revision for node in self.items)


@get("/drains", summary="List drains, newest first")
async def list_drains(
    request: ApiRequest, paging: NamedDependency[Paging], node: FromQuery[str | None] = None
) -> Response[Page[Drain]]:
    return lists.answer(request, paging, Query("drain", lists.where({"node": node}), newest_first=True))


@get("/drains/{id:str}", summary="Show the progress of a drain")
async def show_drain(
    request: ApiRequest, id: FromPath[str], newer_than: FromQuery[int | None] = None, timeout_s: Wait = 30
) -> Response[Drain]:
    return await replies.single(request, "drain", id, newer_than, timeout_s)


@get("/sites", summary="List sites by name")
async def list_sites(request: ApiRequest) -> Response[SiteList]:
    sites: dict[str, Site] = {}
    for name, entry in sorted(services(request).cache.all("node").items()):
        spec = entry.body["spec"]
        site = sites.setdefault(spec["site"], Site(spec["site"], [], 0, 0))
        site.nodes.append(name)
        site.ready += entry.body["status"]["ready"]
        site.cordoned += spec["cordoned"]
    async with services(request).database.connection() as connection:
        for name, ports in (await store_sites.all_forward_ports(connection)).items():
            if name in sites:
                sites[name].forward_ports = ports
    return Response(SiteList([sites[name] for name in sorted(sites)]))


@post(
    "/sites/{site:str}/actions/drain",
    summary="Drain a site: cordon its nodes and move their VMs to other sites",
    status_code=202,
)
async def drain_site(
    request: ApiRequest, site: FromPath[str], data: JSONBody[DrainNode | None] = None
) -> Response[SiteNodes]:
    order = data or DrainNode()
    limit_s = order.time_limit_s or services(request).drain_limit_s
    site = replies.check_ref("site", site)

    async def work(connection: Connection) -> SiteNodes:
        names = await nodes.of_site(connection, site)
        actor = request.user.name
        return SiteNodes([await nodes.drain(connection, name, order.policy, None, actor, limit_s) for name in names])

    return await replies.write(request, work, status=202)


@patch("/sites/{site:str}", summary="Set which ports of a site's gateways may be forwarded", status_code=200)
async def configure_site(request: ApiRequest, site: FromPath[str], data: JSONBody[ConfigureSite]) -> SiteSettings:
    site = replies.check_ref("site", site)
    async with replies.change(request) as connection:
        await store_sites.set_forward_ports(connection, site, data.forward_ports, request.user.name)
    return SiteSettings(site, data.forward_ports)


@post("/sites/{site:str}/actions/uncordon", summary="Uncordon all nodes of a site", status_code=200)
async def uncordon_site(
    request: ApiRequest, site: FromPath[str], data: JSONBody[Uncordon | None] = None
) -> Response[SiteNodes]:
    bring_back = data is not None and data.bring_back
    site = replies.check_ref("site", site)

    async def work(connection: Connection) -> SiteNodes:
        names = await nodes.of_site(connection, site)
        done = [
            await nodes.uncordon(connection, name, None, request.user.name, bring_back=bring_back) for name in names
        ]
        return SiteNodes(done)

    return await replies.write(request, work)


router = Router(
    "/",
    route_handlers=[list_drains, show_drain, list_sites, configure_site, drain_site, uncordon_site],
    tags=["nodes"],
    opt=authorization.in_fleet(),
)
