"""Routes for replicas of VMs on other nodes: ``/api/v1/replicas``."""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar import Response, Router, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from msgspec import UNSET, UnsetType

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest
from novacron.api.edge import lists, replies
from novacron.api.read_model.indexes import Condition
from novacron.api.read_model.paging import Page, Paging, Query
from novacron.model import limits
from novacron.model.access import Right
from novacron.model.errors import InvalidInput
from novacron.model.names import Name
from novacron.model.node import NodeName
from novacron.model.replica import POINTS, RPO_S, PointCount, Replica, RpoSeconds
from novacron.model.replica_source import PointNumber, ReplicaId
from novacron.model.vm import Vm, check_name
from novacron.store import replica_failover, replicas
from novacron.store.database import Connection

Wait = Annotated[int, QueryParameter(ge=0, le=limits.LONG_POLL_S_MAX)]


class ReplicateVm(msgspec.Struct, forbid_unknown_fields=True):
    """Where to: a site, of which the platform chooses a node, or a node."""

    site: NodeName | None = None
    node: NodeName | None = None
    rpo_s: RpoSeconds = RPO_S
    """A round begins so many seconds after the one before."""
    points: PointCount = POINTS
    """How many of the newest points are kept."""


class ReplicaChanges(msgspec.Struct, forbid_unknown_fields=True):
    """What to change of a replica; what is left out stays."""

    rpo_s: RpoSeconds | UnsetType = UNSET
    points: PointCount | UnsetType = UNSET


class FailOverVm(msgspec.Struct, forbid_unknown_fields=True):
    """The replica and point to continue from; default: the newest. ``confirm``: the name of its node, which is off;
    needed unless a fence command has cut it off."""

    replica: ReplicaId | None = None
    point: PointNumber | None = None
    confirm: NodeName | None = None


class TryReplica(msgspec.Struct, forbid_unknown_fields=True):
    """The name of the VM that is made of a replica, and of which point; by default the newest."""

    name: Name
    point: PointNumber | None = None


@get("/", summary="List replicas of VMs, oldest first")
async def list_replicas(
    request: ApiRequest, paging: NamedDependency[Paging], vm: FromQuery[str | None] = None,
    node: FromQuery[str | None] = None,
) -> Response[Page[Replica]]:  # fmt: skip
    conditions: list[Condition] = []
    if vm is not None:
        conditions.append((("vm", vm), ("vm_name", vm)))
    if node is not None:
        conditions.append((("node", node),))
    return lists.answer(request, paging, Query("replica", tuple(conditions)))


@get("/{ref:str}", summary="Show a replica by id")
async def show_replica(
    request: ApiRequest, ref: FromPath[str], newer_than: FromQuery[int | None] = None, timeout_s: Wait = 30
) -> Response[Replica]:
    return await replies.single(request, "replica", ref, newer_than, timeout_s)


@post("/{ref:str}/actions/replicate", summary="Replicate the VM's disk to another site, in rounds", status_code=201)
async def replicate_vm(request: ApiRequest, ref: FromPath[str], data: JSONBody[ReplicateVm]) -> Response[Replica]:
    id = await authorization.resolve(request, "vm", ref)
    if (data.site is None) == (data.node is None):
        raise InvalidInput("give either a site or a node", field="site", hint="see: novacron site list")
    new = replicas.NewReplica(data.site, data.node, data.rpo_s, data.points)

    async def work(connection: Connection) -> Replica:
        return await replicas.create(connection, id, new, request.user.name)

    return await replies.write(request, work, status=201, location=lambda replica: f"/api/v1/replicas/{replica.id}")


@patch("/{ref:str}", summary="Change a replica's interval and the number of points it keeps", status_code=200)
async def configure_replica(
    request: ApiRequest, ref: FromPath[str], data: JSONBody[ReplicaChanges]
) -> Response[Replica]:
    id, if_match = await authorization.resolve(request, "replica", ref), replies.if_match(request)
    asked = {"rpo_s": data.rpo_s, "points_kept": data.points}
    changes = {name: value for name, value in asked.items() if isinstance(value, int)}
    if not changes:
        raise InvalidInput("the request changes nothing", hint="the fields and their rules are in /schema")

    async def work(connection: Connection) -> Replica:
        return await replicas.configure(connection, id, changes, if_match, request.user.name)

    return await replies.write(request, work)


@delete("/{ref:str}", summary="Delete a replica", status_code=202)
async def delete_replica(request: ApiRequest, ref: FromPath[str]) -> Response[Replica]:
    id = await authorization.resolve(request, "replica", ref)

    async def work(connection: Connection) -> Replica:
        return await replicas.delete(connection, id, request.user.name)

    return await replies.write(request, work, status=202)


@post(
    "/{ref:str}/actions/try", summary="Create an isolated VM from a replica, to test that it starts",
    status_code=202,
)  # fmt: skip
async def try_replica(request: ApiRequest, ref: FromPath[str], data: JSONBody[TryReplica]) -> Response[Vm]:
    check_name(data.name)
    id = await authorization.resolve(request, "replica", ref)

    async def work(connection: Connection) -> Vm:
        return await replica_failover.try_out(connection, id, data.name, data.point, request.user.name)

    return await replies.write(request, work, status=202, location=lambda vm: f"/api/v1/vms/{vm.id}")


@post(
    "/{ref:str}/actions/failover", summary="Fail over a VM whose node is gone to a replica", status_code=202,
    opt=authorization.in_project(Right.OPERATE),
)  # fmt: skip
async def fail_over_vm(
    request: ApiRequest, ref: FromPath[str], data: JSONBody[FailOverVm | None] = None
) -> Response[Vm]:
    id, options = await authorization.resolve(request, "vm", ref), data or FailOverVm()
    asked = replica_failover.FailoverRequest(options.replica, options.point, options.confirm)

    async def work(connection: Connection) -> Vm:
        return await replica_failover.fail_over(connection, id, asked, request.user.name)

    return await replies.write(request, work, status=202)


OF_VMS = (replicate_vm, fail_over_vm)
router = Router(
    "/replicas",
    route_handlers=[list_replicas, show_replica, configure_replica, delete_replica, try_replica],
    tags=["replicas"],
    opt=authorization.in_project(),
)
