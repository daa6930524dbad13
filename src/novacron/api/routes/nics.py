"""Routes for a VM's network interfaces: ``/api/v1/vms/{ref}/nics``."""

from __future__ import annotations

import msgspec
from litestar import Response, delete, patch, post
from litestar.params import FromPath, JSONBody
from msgspec import UNSET, UnsetType

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest
from novacron.api.edge import replies
from novacron.model import mac as macs
from novacron.model.errors import InvalidInput
from novacron.model.network import NetworkName, NicSpec, SecurityGroups
from novacron.model.vm import Vm
from novacron.store import nics
from novacron.store.database import Connection
from novacron.store.nics import NicChange


class ConfigureNic(msgspec.Struct, forbid_unknown_fields=True):
    """What to change; what is left out stays. In another network the interface gets a free address, unless one is
    named."""

    network: NetworkName | UnsetType = UNSET
    address: str | UnsetType | None = UNSET
    address6: str | UnsetType | None = UNSET
    """IPv6 address; null: the one derived from its MAC address."""
    groups: SecurityGroups | UnsetType = UNSET


async def _asked(request: ApiRequest, ref: str, revision: int | None) -> NicChange:
    return NicChange(await authorization.resolve(request, "vm", ref), revision, request.user.name)


@post("/{ref:str}/nics", summary="Add a network interface to a VM", status_code=200)
async def add_nic(request: ApiRequest, ref: FromPath[str], data: JSONBody[NicSpec]) -> Response[Vm]:
    asked = await _asked(request, ref, replies.if_match(request))

    async def work(connection: Connection) -> Vm:
        return await nics.add(connection, asked, data)

    return await replies.write(request, work)


@patch(
    "/{ref:str}/nics/{mac:str}",
    summary="Change the network, address or security groups of a network interface",
    status_code=200,
)
async def configure_nic(
    request: ApiRequest, ref: FromPath[str], mac: FromPath[str], data: JSONBody[ConfigureNic]
) -> Response[Vm]:
    asked, mac = await _asked(request, ref, replies.if_match(request)), macs.check(mac, "mac")
    changes = {field: value for field in data.__struct_fields__ if (value := getattr(data, field)) is not UNSET}
    if not changes:
        raise InvalidInput("the request changes nothing", hint="the fields and their rules are in /schema")

    async def work(connection: Connection) -> Vm:
        return await nics.configure(connection, asked, mac, changes)

    return await replies.write(request, work)


@delete("/{ref:str}/nics/{mac:str}", summary="Remove a network interface from a VM", status_code=200)
async def remove_nic(request: ApiRequest, ref: FromPath[str], mac: FromPath[str]) -> Response[Vm]:
    asked, mac = await _asked(request, ref, replies.if_match(request)), macs.check(mac, "mac")

    async def work(connection: Connection) -> Vm:
        return await nics.remove(connection, asked, mac)

    return await replies.write(request, work)


ROUTES = [add_nic, configure_nic, remove_nic]
