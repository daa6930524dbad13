"""Routes for the encryption of networks between nodes: ``/api/v1/network-encryption``."""

from __future__ import annotations

from litestar import Response, Router, get, put
from litestar.params import JSONBody

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import replies
from novacron.model.access import Right
from novacron.model.network import NetworkEncryption
from novacron.store import network_encryption


@get("/", summary="Show whether all traffic of networks between nodes is encrypted")
async def show_network_encryption(request: ApiRequest) -> Response[NetworkEncryption]:
    async with services(request).database.connection() as connection:
        return Response(await network_encryption.get(connection))


@put("/", summary="Set whether all traffic of networks between nodes is encrypted", status_code=200,
     opt=authorization.in_fleet(Right.MANAGE))  # fmt: skip
async def configure_network_encryption(
    request: ApiRequest, data: JSONBody[NetworkEncryption]
) -> Response[NetworkEncryption]:
    async with replies.change(request) as connection:
        return Response(await network_encryption.configure(connection, data, request.user.name))


router = Router(
    "/network-encryption",
    route_handlers=[show_network_encryption, configure_network_encryption],
    tags=["networks"],
    opt=authorization.in_fleet(),
)
