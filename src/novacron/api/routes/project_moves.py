"""Routes that move VMs, volumes and images to other projects: ``actions/move-to-project``."""

from __future__ import annotations

import msgspec
from litestar import Response, Router, post
from litestar.params import FromPath, JSONBody

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import replies
from novacron.api.routes import images
from novacron.model.access import Right
from novacron.model.event import Image
from novacron.model.names import Name
from novacron.model.vm import Vm
from novacron.model.volume import Volume
from novacron.store import project_moves
from novacron.store.database import Connection
from novacron.store.project_moves import ProjectMove


class MoveToProject(msgspec.Struct, forbid_unknown_fields=True):
    """The project to move it to."""

    project: Name


class MoveImage(msgspec.Struct, forbid_unknown_fields=True):
    """The project that is to own the image; null: all projects may use it, which takes a role in all projects."""

    project: Name | None


def _checked(request: ApiRequest, project: str) -> str:
    """Return a project in which the caller may write. Raises NotFound, Forbidden."""
    if not request.user.access.sees(project) or services(request).cache.get("project", project) is None:
        raise authorization.no_such("project", project, "project")
    authorization.check(request, project, Right.WRITE)
    return project


async def _move(request: ApiRequest, kind: str, ref: str, project: str, revision: int | None) -> ProjectMove:
    key = await authorization.resolve(request, kind, ref)
    return ProjectMove(key, _checked(request, project), request.user.name, revision)


@post(
    "/{ref:str}/actions/move-to-project",
    summary="Move a VM that is off, with its volumes and snapshots, to another project",
    status_code=200,
)
async def move_vm(request: ApiRequest, ref: FromPath[str], data: JSONBody[MoveToProject]) -> Response[Vm]:
    move = await _move(request, "vm", ref, data.project, replies.if_match(request))

    async def work(connection: Connection) -> Vm:
        return await project_moves.move_vm(connection, move)

    return await replies.write(request, work)


@post("/{ref:str}/actions/move-to-project", summary="Move a volume to another project", status_code=200)
async def move_volume(request: ApiRequest, ref: FromPath[str], data: JSONBody[MoveToProject]) -> Response[Volume]:
    move = await _move(request, "volume", ref, data.project, replies.if_match(request))

    async def work(connection: Connection) -> Volume:
        return await project_moves.move_volume(connection, move)

    return await replies.write(request, work)


@post(
    "/{name:str}/actions/move-to-project",
    summary="Move an image to a project, or share it with all",
    status_code=200,
    opt=authorization.SELF,
)
async def move_image(request: ApiRequest, name: FromPath[str], data: JSONBody[MoveImage]) -> Image:
    image = images.named(request, replies.check_ref("image", name))
    for owner in (image.project, data.project):
        authorization.check(request, owner, Right.OPERATE if owner is None else Right.WRITE)
    if data.project is not None:
        _checked(request, data.project)
    size_mib = -(-max(image.size_bytes, image.disk_bytes) >> 20)
    async with replies.change(request, image) as connection:
        await project_moves.move_image(connection, name, data.project, size_mib, request.user.name)
    return images.named(request, name)


image_router = Router("/images", route_handlers=[move_image], tags=["images"], opt=authorization.in_fleet())
