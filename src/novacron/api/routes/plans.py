"""Routes for recovery plans: ``/api/v1/plans``."""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar import Response, Router, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest
from novacron.api.edge import lists, replies
from novacron.api.read_model.paging import Page, Paging, Query
from novacron.model import limits
from novacron.model.access import Right
from novacron.model.names import Name
from novacron.model.plan import GoneNodes, Plan, PlanAction, PlanVms
from novacron.model.vm import check_name
from novacron.store import plans
from novacron.store.database import Connection

Wait = Annotated[int, QueryParameter(ge=0, le=limits.LONG_POLL_S_MAX)]


class CreatePlan(msgspec.Struct, forbid_unknown_fields=True):
    """A new recovery plan of the project: its VMs, by name or id, in the order in which they go on."""

    name: Name
    vms: PlanVms


class FailOverPlan(msgspec.Struct, forbid_unknown_fields=True):
    """``confirm``: the names of the nodes that are gone, whose hosts are off. A node that a fence command has cut off
    needs none."""

    confirm: GoneNodes = ()


@get("/", summary="List recovery plans by name")
async def list_plans(request: ApiRequest, paging: NamedDependency[Paging]) -> Response[Page[Plan]]:
    return lists.answer(request, paging, Query("plan"))


@get("/{ref:str}", summary="Show a recovery plan by id or name, with the reports of its last runs")
async def show_plan(
    request: ApiRequest, ref: FromPath[str], newer_than: FromQuery[int | None] = None, timeout_s: Wait = 30
) -> Response[Plan]:
    return await replies.single(request, "plan", ref, newer_than, timeout_s)


@post("/", summary="Create a recovery plan: VMs to recover from their replicas, in order", status_code=201)
async def create_plan(request: ApiRequest, data: JSONBody[CreatePlan]) -> Response[Plan]:
    check_name(data.name)
    project = authorization.project_for_new(request)
    of = tuple(
        [
            msgspec.structs.replace(item, vm=await authorization.resolve(request, "vm", item.vm, "vms"))
            for item in data.vms
        ]
    )

    async def work(connection: Connection) -> Plan:
        return await plans.create(connection, project, data.name, of, request.user.name)

    return await replies.write(request, work, status=201, location=lambda plan: f"/api/v1/plans/{plan.id}")


@delete("/{ref:str}", summary="Delete a recovery plan with its reports; its VMs and replicas are kept", status_code=200)
async def delete_plan(request: ApiRequest, ref: FromPath[str]) -> Response[Plan]:
    id = await authorization.resolve(request, "plan", ref)

    async def work(connection: Connection) -> Plan:
        return await plans.delete(connection, id, request.user.name)

    return await replies.write(request, work)


@post("/{ref:str}/actions/test", summary="Test a recovery plan: start isolated VMs from all replicas", status_code=202)
async def test_plan(request: ApiRequest, ref: FromPath[str]) -> Response[Plan]:
    return await _begin(request, ref, PlanAction.TEST, ())


@post(
    "/{ref:str}/actions/failover", summary="Fail over all VMs of a plan to their replicas", status_code=202,
    opt=authorization.in_project(Right.OPERATE),
)  # fmt: skip
async def fail_over_plan(
    request: ApiRequest, ref: FromPath[str], data: JSONBody[FailOverPlan | None] = None
) -> Response[Plan]:
    return await _begin(request, ref, PlanAction.FAILOVER, (data or FailOverPlan()).confirm)


@post(
    "/{ref:str}/actions/switch", summary="Move all VMs of a plan to their replicas, without loss", status_code=202,
    opt=authorization.in_project(Right.OPERATE),
)  # fmt: skip
async def switch_plan(request: ApiRequest, ref: FromPath[str]) -> Response[Plan]:
    return await _begin(request, ref, PlanAction.SWITCH, ())


@post(
    "/{ref:str}/actions/failback", summary="Move all VMs of a plan back to their earlier nodes, without loss",
    status_code=202, opt=authorization.in_project(Right.OPERATE),
)  # fmt: skip
async def fail_back_plan(request: ApiRequest, ref: FromPath[str]) -> Response[Plan]:
    return await _begin(request, ref, PlanAction.FAILBACK, ())


async def _begin(request: ApiRequest, ref: str, action: PlanAction, confirm: tuple[str, ...]) -> Response[Plan]:
    id = await authorization.resolve(request, "plan", ref)

    async def work(connection: Connection) -> Plan:
        return await plans.begin(connection, id, action, request.user.name, confirm)

    return await replies.write(request, work, status=202)


@post("/{ref:str}/actions/stop", summary="Stop the run in progress before its next VM", status_code=202)
async def stop_plan(request: ApiRequest, ref: FromPath[str]) -> Response[Plan]:
    id = await authorization.resolve(request, "plan", ref)

    async def work(connection: Connection) -> Plan:
        return await plans.stop(connection, id, request.user.name)

    return await replies.write(request, work, status=202)


router = Router(
    "/plans",
    route_handlers=[
        list_plans,
        show_plan,
        create_plan,
        delete_plan,
        test_plan,
        fail_over_plan,
        switch_plan,
        fail_back_plan,
        stop_plan,
    ],
    tags=["replicas"],
    opt=authorization.in_project(),
)
