"""Routes for VMs of which nodes know more than the database: ``/api/v1/unreconciled-vms``."""

from __future__ import annotations

import msgspec
from litestar import Response, Router, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest
from novacron.api.edge import lists, replies
from novacron.api.read_model.paging import Page, Paging, Query
from novacron.model.access import Right
from novacron.model.names import Name
from novacron.model.unreconciled import UnreconciledVm
from novacron.model.vm import Vm, check_name
from novacron.store import adoption
from novacron.store.database import Connection


class AdoptVm(msgspec.Struct, forbid_unknown_fields=True):
    """How to adopt a VM from a node's record."""

    node: Name | None = None
    """The node whose record to use, if several have one; by default the node that has the VM."""
    name: Name | None = None
    """A new name, if another VM has taken its own."""
    project: Name | None = None
    """Where it belongs, if its project is not in the database."""
    confirm: Name | None = None
    """The VM's name, to confirm that no other node runs it; needed if this one no longer has it."""


class ForgetVm(msgspec.Struct, forbid_unknown_fields=True):
    """Deletes the nodes' copies of a VM: the database is right."""

    confirm: Name | None = None
    """The VM's name: the disk that the node has is lost."""


@get("/", summary="List VMs of which a node has newer records than the database", opt=authorization.in_project())
async def list_unreconciled(
    request: ApiRequest, paging: NamedDependency[Paging], node: FromQuery[str | None] = None
) -> Response[Page[UnreconciledVm]]:
    return lists.answer(request, paging, Query("unreconciled-vm", lists.where({"node": node})))


@post("/{ref:str}/actions/adopt", summary="Adopt a VM into the database from its node's records", status_code=200)
async def adopt_vm(request: ApiRequest, ref: FromPath[str], data: JSONBody[AdoptVm | None] = None) -> Response[Vm]:
    ref, how = replies.check_ref("VM", ref), data or AdoptVm()
    if how.name is not None:
        check_name(how.name)

    async def work(connection: Connection) -> Vm:
        adopted = adoption.Adoption(how.node, how.name, how.project, how.confirm)
        return await adoption.adopt(connection, ref, adopted, request.user.name)

    return await replies.write(request, work)


@post("/{ref:str}/actions/forget", summary="Delete nodes' copies of a VM: the database is right", status_code=204)
async def forget_vm(request: ApiRequest, ref: FromPath[str], data: JSONBody[ForgetVm | None] = None) -> None:
    ref, confirm = replies.check_ref("VM", ref), None if data is None else data.confirm
    async with replies.change(request) as connection:
        await adoption.forget(connection, ref, confirm, request.user.name)


router = Router(
    "/unreconciled-vms",
    route_handlers=[list_unreconciled, adopt_vm, forget_vm],
    tags=["vms"],
    opt=authorization.in_fleet(Right.OPERATE),
)
