"""Routes for what migrations between sites may use: ``/api/v1/links``."""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar import Response, Router, delete, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import lists, replies
from novacron.api.read_model.paging import Page, Paging, Query
from novacron.model.link_sharing import Link, LinkSpec
from novacron.model.node import NodeName
from novacron.model.probe import SECONDS_MAX, PathMeasured
from novacron.model.vm import check_name
from novacron.store import links
from novacron.store.database import Connection


@get("/", summary="List limits of migrations between sites")
async def list_links(request: ApiRequest, paging: NamedDependency[Paging]) -> Response[Page[Link]]:
    return lists.answer(request, paging, Query("link"))


@put("/{one:str}/{other:str}", summary="Limit the bandwidth of all migrations between two sites", status_code=200)
async def put_link(
    request: ApiRequest, one: FromPath[str], other: FromPath[str], data: JSONBody[LinkSpec]
) -> Response[Link]:
    sites, revision = (check_name(one), check_name(other)), replies.if_match(request)

    async def work(connection: Connection) -> Link:
        return await links.put(connection, *sites, data, revision, request.user.name)

    return await replies.write(request, work)


@delete("/{one:str}/{other:str}", summary="Remove the limit of migrations between two sites", status_code=204)
async def remove_link(request: ApiRequest, one: FromPath[str], other: FromPath[str]) -> None:
    sites = replies.check_ref("site", one), replies.check_ref("site", other)
    async with replies.change(request) as connection:
        await links.remove(connection, *sites, request.user.name)


class ProbeLink(msgspec.Struct, forbid_unknown_fields=True):
    """Two nodes, and how long to send data from one to the other, which uses the whole link."""

    source: NodeName
    target: NodeName
    seconds: Annotated[float, msgspec.Meta(ge=0.5, le=SECONDS_MAX)] = 3.0


@post("/actions/probe", summary="Measure the network path between two nodes", status_code=200)
async def probe_link(request: ApiRequest, data: JSONBody[ProbeLink]) -> PathMeasured:
    return await services(request).agents.probe(data.source, data.target, data.seconds)


router = Router(
    "/links",
    route_handlers=[list_links, put_link, remove_link, probe_link],
    tags=["links"],
    opt=authorization.in_fleet(),
)
