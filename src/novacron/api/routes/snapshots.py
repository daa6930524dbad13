"""Routes for a VM's snapshots: ``/api/v1/vms/{ref}/snapshots``."""

from __future__ import annotations

import msgspec
from litestar import Response, delete, get, patch, post
from litestar.params import FromPath, FromQuery, JSONBody

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import lists, metadata, replies
from novacron.api.read_model.paging import Page
from novacron.model.errors import NotFound
from novacron.model.metadata import MetadataChanges, wanted_tags
from novacron.model.names import Name
from novacron.model.snapshot import Snapshot
from novacron.model.vm import check_name
from novacron.store import snapshots
from novacron.store.database import Connection


class CreateSnapshot(msgspec.Struct, forbid_unknown_fields=True):
    """What is kept: the disk; with ``memory`` that too, for which the guest stands still. With ``quiesce`` the guest's
    agent first writes out what programs and file systems have."""

    name: Name
    memory: bool = False
    quiesce: bool = False


@get("/{ref:str}/snapshots", summary="List a VM's snapshots, oldest first; each names the one before it")
async def list_snapshots(request: ApiRequest, ref: FromPath[str], tag: lists.Tag = None) -> Page[Snapshot]:
    tags = set(wanted_tags(tag))
    context, id = services(request), await authorization.resolve(request, "vm", ref)
    async with context.database.connection() as connection:
        items = await snapshots.of_vm(connection, id)
    return Page[Snapshot]([item for item in items if tags.issubset(item.tags)], None, context.cache.revision)


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


@patch(
    "/{ref:str}/snapshots/{name:str}",
    summary="Change a snapshot's display name, description and tags",
    status_code=200,
)
async def configure_snapshot(
    request: ApiRequest, ref: FromPath[str], name: FromPath[str], data: JSONBody[MetadataChanges]
) -> Response[Snapshot]:
    vm, name = await authorization.resolve(request, "vm", ref), replies.check_ref("snapshot", name)
    async with services(request).database.connection() as connection:
        id = next((snapshot.id for snapshot in await snapshots.of_vm(connection, vm) if snapshot.name == name), None)
    if id is None:
        raise NotFound(f"VM {ref} has no snapshot {name!r}", hint=f"see: novacron snapshot list {ref}")
    revision = replies.if_match(request)
    return await metadata.write(request, metadata.ObjectRef("snapshot", id, name), Snapshot, data, revision)


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
    return await replies.single(request, "snapshot", id, newer_than, min(max(timeout_s, 0), 60))


ROUTES = [list_snapshots, create_snapshot, revert_snapshot, configure_snapshot, delete_snapshot]
