"""Routes for a VM's snapshots: ``/api/v1/vms/{ref}/snapshots``."""

from __future__ import annotations

import msgspec
from litestar import Response, delete, get, post
from litestar.params import FromPath, FromQuery, JSONBody

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import replies
from novacron.api.read_model.paging import Page
from novacron.model.snapshot import Snapshot
from novacron.model.vm import Name, check_name
from novacron.store import snapshots
from novacron.store.database import Connection


class CreateSnapshot(msgspec.Struct, forbid_unknown_fields=True):
    """What is kept: the disk; with ``memory`` that too, for which the guest stands still. With ``quiesce`` the guest's
    agent first writes out what programs and file systems have."""

    name: Name
    memory: bool = False
    quiesce: bool = False


@get("/{ref:str}/snapshots", summary="List a VM's snapshots, oldest first; each names the one before it")
async def list_snapshots(request: ApiRequest, ref: FromPath[str]) -> Page[Snapshot]:
    context, id = services(request), await authorization.resolve(request, "vm", ref)
    async with context.database.connection() as connection:
        items = await snapshots.of_vm(connection, id)
    return Page[Snapshot](items, None, context.cache.revision)


@post("/{ref:str}/snapshots", summary="Create a snapshot", status_code=202)
async def create_snapshot(
    request: ApiRequest, ref: FromPath[str], data: JSONBody[CreateSnapshot]
) -> Response[Snapshot]:
    id, name = await authorization.resolve(request, "vm", ref), check_name(data.name)

    async def work(connection: Connection) -> Snapshot:
        return await snapshots.create(connection, id, name, data.memory, data.quiesce, request.user.name)

    return await replies.write(request, work, status=202)


@post(
    "/{ref:str}/snapshots/{name:str}/actions/revert",
    summary="Revert the VM to a snapshot; later writes are lost",
    status_code=202,
)
async def revert_snapshot(request: ApiRequest, ref: FromPath[str], name: FromPath[str]) -> Response[Snapshot]:
    id, name = await authorization.resolve(request, "vm", ref), replies.check_ref("snapshot", name)

    async def work(connection: Connection) -> Snapshot:
        return await snapshots.revert(connection, id, name, request.user.name)

    return await replies.write(request, work, status=202)


@delete("/{ref:str}/snapshots/{name:str}", summary="Delete a snapshot; the VM stays as it is", status_code=202)
async def delete_snapshot(request: ApiRequest, ref: FromPath[str], name: FromPath[str]) -> Response[Snapshot]:
    id, name = await authorization.resolve(request, "vm", ref), replies.check_ref("snapshot", name)

    async def work(connection: Connection) -> Snapshot:
        return await snapshots.delete(connection, id, name, request.user.name)

    return await replies.write(request, work, status=202)


@get("/snapshots/{id:str}", summary="Show a snapshot by id", opt=authorization.in_project())
async def show_snapshot(
    request: ApiRequest, id: FromPath[str], newer_than: FromQuery[int | None] = None, timeout_s: FromQuery[int] = 30
) -> Response[Snapshot]:
    return await replies.one(request, "snapshot", id, newer_than, min(max(timeout_s, 0), 60))


ROUTES = [list_snapshots, create_snapshot, revert_snapshot, delete_snapshot]
