"""Routes for exports of VMs: ``/api/v1/exports``."""

from __future__ import annotations

from typing import Annotated

from litestar import Response, Router, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import lists, replies
from novacron.api.read_model.paging import Page, Paging, Query
from novacron.model import limits
from novacron.model.access import Right
from novacron.model.errors import IllegalState, InvalidInput
from novacron.model.export import Export, ExportPhase
from novacron.model.firmware_state import FirmwareState
from novacron.store import exports
from novacron.store.database import Connection
from novacron.wire.questions import ReadExport, ReadFirmwareState

Wait = Annotated[int, QueryParameter(ge=0, le=limits.LONG_POLL_S_MAX)]
Offset = Annotated[int, QueryParameter(ge=0, description="where the piece starts, in bytes")]


@post("/{ref:str}/actions/export", summary="Export the VM's disk, as it is now, to a file", status_code=202)
async def export_vm(request: ApiRequest, ref: FromPath[str]) -> Response[Export]:
    id = await authorization.resolve(request, "vm", ref)

    async def work(connection: Connection) -> Export:
        return await exports.create(connection, id, request.user.name)

    return await replies.write(request, work, status=202, location=lambda export: f"/api/v1/exports/{export.id}")


@get("/", summary="List exports, newest first")
async def list_exports(request: ApiRequest, paging: NamedDependency[Paging]) -> Response[Page[Export]]:
    return lists.answer(request, paging, Query("export", newest_first=True))


@get("/{id:str}", summary="Show an export")
async def show_export(
    request: ApiRequest, id: FromPath[str], newer_than: FromQuery[int | None] = None, timeout_s: Wait = 30
) -> Response[Export]:
    return await replies.single(request, "export", id, newer_than, timeout_s)


@get(
    "/{id:str}/data",
    summary="Fetch a piece of the file (qcow2)",
    media_type="application/octet-stream",
    opt=authorization.in_project(Right.WRITE),
)
async def fetch(request: ApiRequest, id: FromPath[str], offset: Offset = 0) -> Response[bytes]:
    context, export = services(request), await _ready(request, id)
    if offset >= export.size_bytes:
        raise InvalidInput(f"the file has {export.size_bytes} bytes", field="offset")
    return Response(
        await context.agents.ask(export.node, ReadExport(export.id, offset, limits.UPLOAD_PIECE_BYTES_MAX)),
        media_type="application/octet-stream",
    )


@get(
    "/{id:str}/firmware-state",
    summary="Fetch the state of the VM's firmware and TPM, which is secret",
    opt=authorization.in_project(Right.WRITE),
)
async def fetch_firmware_state(request: ApiRequest, id: FromPath[str]) -> FirmwareState:
    export = await _ready(request, id)
    return await services(request).agents.ask(export.node, ReadFirmwareState(export.id))


async def _ready(request: ApiRequest, id: str) -> Export:
    id = await authorization.resolve(request, "export", replies.check_ref("export", id))
    async with services(request).database.connection() as connection:
        export = await exports.get(connection, id)
    if export.phase is not ExportPhase.READY:
        raise IllegalState(f"export {id} is {export.phase}" + (f": {export.error}" if export.error else ""))
    return export


@delete("/{id:str}", summary="Delete an export and its file", status_code=200)
async def delete_export(request: ApiRequest, id: FromPath[str]) -> Response[Export]:
    id = await authorization.resolve(request, "export", replies.check_ref("export", id))

    async def work(connection: Connection) -> Export:
        return await exports.delete(connection, id, request.user.name)

    return await replies.write(request, work)


router = Router(
    "/exports",
    route_handlers=[list_exports, show_export, fetch, fetch_firmware_state, delete_export],
    tags=["vms"],
    opt=authorization.in_project(),
)
