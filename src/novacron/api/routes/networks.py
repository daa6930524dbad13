"""Routes for networks and what belongs to them: ``/api/v1/networks``, ``security-groups``, ``floating-addresses`` and
``forwards``."""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar import Response, Router, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from msgspec import UNSET, UnsetType

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest
from novacron.api.edge import lists, metadata, replies
from novacron.api.read_model.paging import Page, Paging, Query
from novacron.model import limits
from novacron.model.access import Right
from novacron.model.metadata import MetadataChanges
from novacron.model.names import Name
from novacron.model.network import (
    Encryption,
    FloatingAddress,
    Forward,
    InterfaceName,
    Ipv6Addresses,
    Nameservers,
    Network,
    NetworkKind,
    NetworkSpec,
    Port,
    Protocol,
    Rules,
    SearchDomains,
    SecurityGroup,
    VlanId,
)
from novacron.model.vm import check_name
from novacron.store import ingress, network_changes, networks, security_groups
from novacron.store.database import Connection

Wait = Annotated[int, QueryParameter(ge=0, le=limits.LONG_POLL_S_MAX)]


class CreateNetwork(msgspec.Struct, forbid_unknown_fields=True):
    """A new network: its own, ``overlay``, or a ``bridge`` that hosts have. ``mtu``: what all nodes carry if not
    given. ``is_default``: VMs that are created without naming a network are in this one from now on."""

    name: Name
    kind: NetworkKind = NetworkKind.OVERLAY
    subnet: str | None = None
    subnet6: str | None = None
    ipv6_addresses: Ipv6Addresses = Ipv6Addresses.DHCP
    nat: bool = True
    nameservers: Nameservers = ()
    search_domains: SearchDomains = ()
    bridge: InterfaceName | None = None
    vlan: VlanId | None = None
    mtu: int | None = None
    encryption: Encryption = Encryption.BETWEEN_SITES
    is_default: bool = False

    def spec(self) -> NetworkSpec:
        return NetworkSpec(**{field: getattr(self, field) for field in NetworkSpec.__struct_fields__})


class ConfigureNetwork(MetadataChanges):
    """What to change; what is left out stays. ``name`` can change only while no VM uses it. Guests learn the others at
    the latest when they renew their lease; a guest's interface has a greater MTU from its VM's next start."""

    name: Name | UnsetType = UNSET
    mtu: int | UnsetType = UNSET
    nameservers: Nameservers | UnsetType = UNSET
    search_domains: SearchDomains | UnsetType = UNSET
    is_default: bool | UnsetType = UNSET


class CreateSecurityGroup(msgspec.Struct, forbid_unknown_fields=True):
    """A new security group. Traffic that no rule allows is blocked at the interfaces that have it."""

    name: Name
    rules: Rules = ()


class ConfigureSecurityGroup(MetadataChanges):
    """What to change; what is left out stays. ``rules`` is the complete set of rules."""

    rules: Rules | UnsetType = UNSET


class AddFloatingAddress(msgspec.Struct, forbid_unknown_fields=True):
    """An unused address of the hosts' network."""

    address: str


class AttachFloatingAddress(msgspec.Struct, forbid_unknown_fields=True):
    """The VM to attach it to; ``network``: which of its overlays, if it is in several."""

    vm: str
    network: Name | None = None


class CreateForward(msgspec.Struct, forbid_unknown_fields=True):
    """A port that leads to ``vm_port`` of a VM. ``address``: a floating one; those of the gateway's host if not
    given. ``port``: for a floating address, by default the VM's; for a gateway, one of its site's range (see
    ``GET /sites``), by default a free one."""

    vm: str
    vm_port: Port
    port: Port | None = None
    protocol: Protocol = Protocol.TCP
    address: str | None = None
    network: Name | None = None


@get("/networks", summary="List networks by name")
async def list_networks(request: ApiRequest, paging: NamedDependency[Paging]) -> Response[Page[Network]]:
    return lists.answer(request, paging, Query("network"))


@get("/networks/{name:str}", summary="Show a network")
async def show_network(
    request: ApiRequest, name: FromPath[str], newer_than: FromQuery[int | None] = None, timeout_s: Wait = 30
) -> Response[Network]:
    return await replies.single(request, "network", name, newer_than, timeout_s)


@post("/networks", summary="Create a network", status_code=201)
async def create_network(request: ApiRequest, data: JSONBody[CreateNetwork]) -> Response[Network]:
    check_name(data.name)
    project = authorization.project_for_new(request)
    if data.kind is NetworkKind.BRIDGE:  # VMs on it are in the hosts' network
        authorization.check(request, None, Right.OPERATE)

    async def work(connection: Connection) -> Network:
        actor = request.user.name
        network = await networks.create(connection, project, data.name, data.spec(), data.mtu, actor)
        if not data.is_default:
            return network
        return await network_changes.configure(connection, network.name, {"is_default": True}, None, actor)

    return await replies.write(request, work, status=201, location=lambda network: f"/api/v1/networks/{network.name}")


@patch("/networks/{name:str}", summary="Change a network", status_code=200)
async def configure_network(
    request: ApiRequest, name: FromPath[str], data: JSONBody[ConfigureNetwork]
) -> Response[Network]:
    name = await authorization.resolve(request, "network", name)
    changes, revision, actor = metadata.Changes.of(data), replies.if_match(request), request.user.name
    if "name" in changes.own:
        check_name(changes.own["name"])

    async def work(connection: Connection) -> Network:
        async def configure() -> Network:
            return await network_changes.configure(connection, name, changes.own, revision, actor)

        target, has_own = metadata.ObjectRef("network", name, name), configure if changes.own else None
        change = metadata.MetadataChange(changes.metadata, actor, revision)
        return await metadata.apply(connection, target, Network, change, has_own)

    return await replies.write(request, work)


@delete("/networks/{name:str}", summary="Delete a network that no VM uses", status_code=200)
async def delete_network(request: ApiRequest, name: FromPath[str]) -> Response[Network]:
    name = await authorization.resolve(request, "network", name)

    async def work(connection: Connection) -> Network:
        return await networks.delete(connection, name, request.user.name)

    return await replies.write(request, work)


@get("/security-groups", summary="List security groups by name")
async def list_groups(request: ApiRequest, paging: NamedDependency[Paging]) -> Response[Page[SecurityGroup]]:
    return lists.answer(request, paging, Query("security-group"))


@get("/security-groups/{name:str}", summary="Show a security group and its rules")
async def show_group(
    request: ApiRequest, name: FromPath[str], newer_than: FromQuery[int | None] = None, timeout_s: Wait = 30
) -> Response[SecurityGroup]:
    return await replies.single(request, "security-group", name, newer_than, timeout_s)


@post("/security-groups", summary="Create a security group", status_code=201)
async def create_group(request: ApiRequest, data: JSONBody[CreateSecurityGroup]) -> Response[SecurityGroup]:
    check_name(data.name)
    project = authorization.project_for_new(request)

    async def work(connection: Connection) -> SecurityGroup:
        return await security_groups.create(connection, project, data.name, data.rules, request.user.name)

    return await replies.write(
        request, work, status=201, location=lambda group: f"/api/v1/security-groups/{group.name}"
    )


@patch("/security-groups/{name:str}", summary="Change a security group's rules, description or tags", status_code=200)
async def configure_group(
    request: ApiRequest, name: FromPath[str], data: JSONBody[ConfigureSecurityGroup]
) -> Response[SecurityGroup]:
    name = await authorization.resolve(request, "security-group", name)
    changes, revision, actor = metadata.Changes.of(data), replies.if_match(request), request.user.name

    async def work(connection: Connection) -> SecurityGroup:
        async def configure() -> SecurityGroup:
            return await security_groups.configure(connection, name, changes.own["rules"], actor)

        target, has_own = metadata.ObjectRef("security-group", name, name), configure if changes.own else None
        return await metadata.apply(
            connection, target, SecurityGroup, metadata.MetadataChange(changes.metadata, actor, revision), has_own
        )

    return await replies.write(request, work)


@delete("/security-groups/{name:str}", summary="Delete an unused security group", status_code=200)
async def delete_group(request: ApiRequest, name: FromPath[str]) -> Response[SecurityGroup]:
    name = await authorization.resolve(request, "security-group", name)

    async def work(connection: Connection) -> SecurityGroup:
        return await security_groups.delete(connection, name, request.user.name)

    return await replies.write(request, work)


@get("/floating-addresses", summary="List floating addresses")
async def list_addresses(request: ApiRequest, paging: NamedDependency[Paging]) -> Response[Page[FloatingAddress]]:
    return lists.answer(request, paging, Query("floating-address"))


@get("/floating-addresses/{address:str}", summary="Show a floating address")
async def show_address(
    request: ApiRequest, address: FromPath[str], newer_than: FromQuery[int | None] = None, timeout_s: Wait = 30
) -> Response[FloatingAddress]:
    return await replies.single(request, "floating-address", address, newer_than, timeout_s)


@post(
    "/floating-addresses",
    summary="Allocate a floating address for a project",
    status_code=201,
    opt=authorization.in_fleet(),
)
async def add_address(request: ApiRequest, data: JSONBody[AddFloatingAddress]) -> Response[FloatingAddress]:
    project = authorization.project_for_new(request, Right.OPERATE)

    async def work(connection: Connection) -> FloatingAddress:
        return await ingress.add_address(connection, project, data.address, request.user.name)

    return await replies.write(
        request, work, status=201, location=lambda floating: f"/api/v1/floating-addresses/{floating.address}"
    )


@patch(
    "/floating-addresses/{address:str}",
    summary="Change a floating address's display name, description and tags",
    status_code=200,
)
async def configure_address(
    request: ApiRequest, address: FromPath[str], data: JSONBody[MetadataChanges]
) -> Response[FloatingAddress]:
    address = await authorization.resolve(request, "floating-address", address)
    target = metadata.ObjectRef("floating-address", address, address)
    revision = replies.if_match(request)
    return await metadata.write(request, target, FloatingAddress, data, revision)


@delete(
    "/floating-addresses/{address:str}",
    summary="Release a detached floating address",
    status_code=200,
    opt=authorization.in_fleet(),
)
async def remove_address(request: ApiRequest, address: FromPath[str]) -> Response[FloatingAddress]:
    async def work(connection: Connection) -> FloatingAddress:
        return await ingress.remove_address(connection, address, request.user.name)

    return await replies.write(request, work)


@post("/floating-addresses/{address:str}/actions/attach", summary="Attach a floating address to a VM", status_code=200)
async def attach_address(
    request: ApiRequest, address: FromPath[str], data: JSONBody[AttachFloatingAddress]
) -> Response[FloatingAddress]:
    address = await authorization.resolve(request, "floating-address", address)
    vm = await authorization.resolve(request, "vm", data.vm, "vm")

    async def work(connection: Connection) -> FloatingAddress:
        return await ingress.attach(connection, address, vm, data.network, request.user.name)

    return await replies.write(request, work)


@post("/floating-addresses/{address:str}/actions/detach", summary="Detach a floating address", status_code=200)
async def detach_address(request: ApiRequest, address: FromPath[str]) -> Response[FloatingAddress]:
    address = await authorization.resolve(request, "floating-address", address)

    async def work(connection: Connection) -> FloatingAddress:
        return await ingress.detach(connection, address, request.user.name)

    return await replies.write(request, work)


@get("/forwards", summary="List port forwards")
async def list_forwards(
    request: ApiRequest, paging: NamedDependency[Paging], vm: FromQuery[str | None] = None
) -> Response[Page[Forward]]:
    return lists.answer(request, paging, Query("forward", lists.of_vm(vm)))


@post("/forwards", summary="Forward a port to a VM", status_code=201)
async def create_forward(request: ApiRequest, data: JSONBody[CreateForward]) -> Response[Forward]:
    vm = await authorization.resolve(request, "vm", data.vm, "vm")

    async def work(connection: Connection) -> Forward:
        new = ingress.NewForward(data.vm_port, data.protocol, data.port, data.address, data.network)
        return await ingress.forward(connection, vm, new, request.user.name)

    return await replies.write(request, work, status=201)


@patch("/forwards/{id:str}", summary="Change a port forward's display name, description and tags", status_code=200)
async def configure_forward(
    request: ApiRequest, id: FromPath[str], data: JSONBody[MetadataChanges]
) -> Response[Forward]:
    id = await authorization.resolve(request, "forward", replies.check_ref("forward", id))
    revision = replies.if_match(request)
    return await metadata.write(request, metadata.ObjectRef("forward", id, id), Forward, data, revision)


@delete("/forwards/{id:str}", summary="Delete a port forward", status_code=200)
async def remove_forward(request: ApiRequest, id: FromPath[str]) -> Response[Forward]:
    id = await authorization.resolve(request, "forward", replies.check_ref("forward", id))

    async def work(connection: Connection) -> Forward:
        return await ingress.remove_forward(connection, id, request.user.name)

    return await replies.write(request, work)


router = Router(
    "/",
    route_handlers=[
        list_networks, show_network, create_network, configure_network, delete_network,
        list_groups, show_group, create_group, configure_group, delete_group,
        list_addresses, show_address, add_address, configure_address, remove_address, attach_address, detach_address,
        list_forwards, create_forward, configure_forward, remove_forward,
    ],
    tags=["networks"],
    opt=authorization.in_project(),
)  # fmt: skip
