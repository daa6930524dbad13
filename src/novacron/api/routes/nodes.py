"""Routes for nodes: ``/api/v1/nodes``, and how a host joins."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from cryptography import x509
from litestar import Response, Router, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from msgspec import UNSET, UnsetType

from novacron import pki
from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import lists, metadata, replies
from novacron.api.read_model.paging import Page, Paging, Query
from novacron.model import limits
from novacron.model.access import Right
from novacron.model.constraints import Labels, Overcommit, Taints
from novacron.model.drain import DrainPolicy, TimeLimit
from novacron.model.errors import InvalidInput
from novacron.model.hardware import PciAddress
from novacron.model.link_sharing import Rate, SiteName
from novacron.model.metadata import MetadataChanges
from novacron.model.node import Node, NodeName
from novacron.model.token import JoinTicket, encode_ticket
from novacron.model.vm import check_name
from novacron.store import identities, lost_nodes, nodes, tokens
from novacron.store.database import Connection

Confirm = Annotated[
    str | None,
    QueryParameter(description="name of the node that is gone, to confirm that its host is off"),
]
NOTHING_WRITTEN: Mapping[str, Any] = {}
JoinTtl = Annotated[int, msgspec.Meta(ge=60, le=7 * 24 * 3600)]


MigrationsAtOnce = Annotated[int, msgspec.Meta(ge=1, le=limits.MIGRATIONS_PER_NODE_MAX)]
Passthrough = Annotated[tuple[PciAddress, ...], msgspec.Meta(max_length=limits.PASSTHROUGH_MAX)]


class ConfigureNode(MetadataChanges):
    """What is left out stays as it is; null removes the limit."""

    site: SiteName | UnsetType = UNSET
    zone: SiteName | UnsetType = UNSET
    labels: Labels | UnsetType = UNSET
    """The complete set: what is left out is removed."""
    taints: Taints | UnsetType = UNSET
    vcpu_overcommit: Overcommit | UnsetType = UNSET
    memory_overcommit: Overcommit | UnsetType = UNSET
    passthrough: Passthrough | UnsetType = UNSET
    """All PCI devices that can be passed through to guests."""
    migration_rate_bytes_per_s: Rate | UnsetType | None = UNSET
    migrations_at_once: MigrationsAtOnce | UnsetType | None = UNSET


class DrainNode(msgspec.Struct, forbid_unknown_fields=True):
    """What to do with guests that dirty memory faster than the link can send it."""

    policy: DrainPolicy = DrainPolicy.THROTTLE
    time_limit_s: TimeLimit | None = None
    """Seconds after which the drain fails with what is left; null: the server's limit."""


class Uncordon(msgspec.Struct, forbid_unknown_fields=True):
    """Whether the VMs that the node's last drain moved away come back."""

    bring_back: bool = False


class RenameNode(msgspec.Struct, forbid_unknown_fields=True):
    """The new name; the node's agent adopts it by itself."""

    name: NodeName


class CreateJoinToken(msgspec.Struct, forbid_unknown_fields=True):
    """A one-time token with which a host joins as ``node``. ``accept``: it need not be accepted after that."""

    node: NodeName
    ttl_s: JoinTtl = 3600
    accept: bool = False


class JoinToken(msgspec.Struct):
    """A token with which a host joins once."""

    token: str
    ttl_s: int


class Join(msgspec.Struct, forbid_unknown_fields=True):
    """A host that joins: its name, the secret of its join token, and a certificate request (PEM)."""

    name: NodeName
    secret: Annotated[str, msgspec.Meta(max_length=200)]
    csr: Annotated[str, msgspec.Meta(max_length=8000)]


class Joined(msgspec.Struct):
    """The host's certificate and the CA that it trusts from now on (PEM)."""

    certificate: str
    ca: str


@get("/", summary="List nodes by name")
async def list_nodes(request: ApiRequest, paging: NamedDependency[Paging]) -> Response[Page[Node]]:
    return lists.answer(request, paging, Query("node"))


@get("/{name:str}", summary="Show a node")
async def show_node(
    request: ApiRequest, name: FromPath[str], newer_than: FromQuery[int | None] = None, timeout_s: FromQuery[int] = 30
) -> Response[Node]:
    return await replies.single(request, "node", name, newer_than, min(max(timeout_s, 0), limits.LONG_POLL_S_MAX))


@post("/{name:str}/actions/cordon", summary="Cordon a node: place no new VMs on it", status_code=200)
async def cordon(request: ApiRequest, name: FromPath[str]) -> Response[Node]:
    return await _set(request, name, cordoned=True, draining=False)


@post("/{name:str}/actions/uncordon", summary="Uncordon a node", status_code=200)
async def uncordon(request: ApiRequest, name: FromPath[str], data: JSONBody[Uncordon | None] = None) -> Response[Node]:
    name, revision = replies.check_ref("node", name), replies.if_match(request)
    bring_back = data is not None and data.bring_back

    async def work(connection: Connection) -> Node:
        return await nodes.uncordon(connection, name, revision, request.user.name, bring_back=bring_back)

    return await replies.write(request, work)


@post(
    "/{name:str}/actions/accept",
    summary="Accept a host as a node, with the CPUs and memory that it reports",
    status_code=200,
    opt=authorization.in_fleet(Right.JOIN),
)
async def accept_node(request: ApiRequest, name: FromPath[str]) -> Response[Node]:
    name, revision = replies.check_ref("node", name), replies.if_match(request)

    async def work(connection: Connection) -> Node:
        return await nodes.accept(connection, name, revision, request.user.name)

    return await replies.write(request, work)


@post("/{name:str}/actions/drain", summary="Drain a node: cordon it and move its VMs to other nodes", status_code=202)
async def drain(request: ApiRequest, name: FromPath[str], data: JSONBody[DrainNode | None] = None) -> Response[Node]:
    name, revision = replies.check_ref("node", name), replies.if_match(request)
    order = data or DrainNode()
    limit_s = order.time_limit_s or services(request).drain_limit_s

    async def work(connection: Connection) -> Node:
        return await nodes.drain(connection, name, order.policy, revision, request.user.name, limit_s)

    return await replies.write(request, work, status=202)


@patch("/{name:str}", summary="Set a node's site, labels, migration limits, description and tags", status_code=200)
async def configure(request: ApiRequest, name: FromPath[str], data: JSONBody[ConfigureNode]) -> Response[Node]:
    changes = metadata.Changes.of(data)
    return await _set(request, name, changes.metadata, **changes.own)


async def _set(
    request: ApiRequest, name: str, described: Mapping[str, Any] = NOTHING_WRITTEN, /, **changes: object
) -> Response[Any]:
    name, revision, actor = replies.check_ref("node", name), replies.if_match(request), request.user.name

    async def work(connection: Connection) -> Node:
        async def configure() -> Node:
            node = await nodes.get(connection, name, lock=True)
            return await nodes.set_spec(
                connection, name, msgspec.structs.replace(node.spec, **changes), revision, actor
            )  # fmt: skip

        target, has_own = metadata.ObjectRef("node", name, name), configure if changes else None
        return await metadata.apply(
            connection, target, Node, metadata.MetadataChange(described, actor, revision), has_own
        )

    return await replies.write(request, work)


@delete(
    "/{name:str}",
    summary="Remove a node without VMs, or with force one that is gone for good, and revoke its certificate",
    status_code=204,
)
async def remove_node(
    request: ApiRequest, name: FromPath[str], force: FromQuery[bool] = False, confirm: Confirm = None
) -> None:
    name = replies.check_ref("node", name)
    async with replies.change(request) as connection:
        if force:
            await lost_nodes.remove_node(connection, name, confirm, request.user.name)
        else:
            await nodes.remove(connection, name, request.user.name)


@post("/{name:str}/actions/rename", summary="Rename a node", status_code=200)
async def rename(request: ApiRequest, name: FromPath[str], data: JSONBody[RenameNode]) -> Response[Node]:
    name = replies.check_ref("node", name)
    check_name(data.name)

    async def work(connection: Connection) -> Node:
        return await identities.rename(connection, name, data.name, request.user.name)

    return await replies.write(request, work)


@post(
    "/join-tokens",
    summary="Create a one-time token for a host to join",
    status_code=201,
    opt=authorization.in_fleet(Right.JOIN),
)
async def create_join_token(request: ApiRequest, data: JSONBody[CreateJoinToken]) -> JoinToken:
    context = services(request)
    async with replies.change(request) as connection:
        secret = await tokens.create_join(connection, data.node, data.ttl_s, request.user.name, accept=data.accept)
    ticket = JoinTicket(context.api_url, context.link_url, await asyncio.to_thread(context.trust), secret)
    return JoinToken(encode_ticket(ticket), data.ttl_s)


@post("/api/v1/join", summary="Join as a node with a one-time secret", status_code=201, exclude_from_auth=True)
async def join(request: ApiRequest, data: JSONBody[Join]) -> Joined:
    context = services(request)
    check_name(data.name)
    try:
        context.authority.issue_node(data.csr.encode(), data.name)  # before the secret is used up
        key_hash = pki.key_hash(x509.load_pem_x509_csr(data.csr.encode()))
    except ValueError as error:
        raise InvalidInput(f"the certificate request is invalid: {error}", field="csr") from None
    async with replies.change(request) as connection:
        holder = await identities.holder(connection, data.name, key_hash)  # it may have been renamed
        name = holder or data.name
        accepted = await tokens.use_join(connection, data.secret, name)
        await identities.join(connection, name, key_hash, accepted=accepted)
        if holder is None:
            await lost_nodes.take_place(connection, name)
    certificate = context.authority.issue_node(data.csr.encode(), name)
    return Joined(certificate.decode(), context.authority.pem.decode())


router = Router(
    "/nodes",
    route_handlers=[
        list_nodes,
        show_node,
        accept_node,
        cordon,
        uncordon,
        drain,
        configure,
        rename,
        remove_node,
        create_join_token,
    ],
    tags=["nodes"],
    opt=authorization.in_fleet(),
)
