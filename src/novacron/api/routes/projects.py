"""Routes for projects: ``/api/v1/projects``."""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar import Response, Router, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from msgspec import UNSET, UnsetType

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import lists, metadata, replies
from novacron.api.read_model.paging import Page, Paging, Query
from novacron.model import limits
from novacron.model.access import Right
from novacron.model.encryption import ErasedKey
from novacron.model.errors import InvalidInput
from novacron.model.metadata import Description, MetadataChanges
from novacron.model.names import Name
from novacron.model.project import Project, Quota, Usage
from novacron.model.vm import check_name
from novacron.store import project_keys, projects
from novacron.store.database import Connection

Wait = Annotated[int, QueryParameter(ge=0, le=limits.LONG_POLL_S_MAX)]


class CreateProject(msgspec.Struct, forbid_unknown_fields=True):
    """A new project. ``host_network``: its VMs may be on the hosts' network; otherwise each needs one of its own.
    ``encryption``: what it creates is encrypted at rest."""

    name: Name
    description: Description = ""
    quota: Quota = msgspec.field(default_factory=Quota)
    host_network: bool = False
    encryption: bool = False


class ConfigureProject(MetadataChanges):
    """What to change; what is left out stays. A quota is replaced as a whole: what it leaves out has no limit.
    ``encryption`` applies to objects created afterwards."""

    name: Name | UnsetType = UNSET
    quota: Quota | UnsetType = UNSET
    host_network: bool | UnsetType = UNSET
    encryption: bool | UnsetType = UNSET


class EraseKey(msgspec.Struct, forbid_unknown_fields=True):
    """``confirm`` is the project's name once more: what its key encrypts is lost for ever."""

    confirm: Name


class ProjectUsage(msgspec.Struct):
    """A project's usage and quota."""

    usage: Usage
    quota: Quota


@get("/", summary="List projects by name", opt=authorization.SELF)
async def list_projects(request: ApiRequest, paging: NamedDependency[Paging]) -> Response[Page[Project]]:
    return lists.answer(request, paging, Query("project"))


@get("/{name:str}", summary="Show a project", opt=authorization.SELF)
async def show_project(
    request: ApiRequest, name: FromPath[str], newer_than: FromQuery[int | None] = None, timeout_s: Wait = 30
) -> Response[Project]:
    _check_seen(request, name)
    return await replies.single(request, "project", name, newer_than, timeout_s)


@get("/{name:str}/usage", summary="Show a project's usage and quota", opt=authorization.SELF)
async def show_usage(request: ApiRequest, name: FromPath[str]) -> ProjectUsage:
    _check_seen(request, name)
    async with services(request).database.connection() as connection:
        return ProjectUsage(
            await projects.usage(connection, name), (await projects.get(connection, name)).quota
        )  # fmt: skip


def _check_seen(request: ApiRequest, name: str) -> None:
    if not request.user.access.sees(name):
        raise authorization.no_such("project", name)


@post("/", summary="Create a project", status_code=201)
async def create_project(request: ApiRequest, data: JSONBody[CreateProject]) -> Response[Project]:
    check_name(data.name)
    key = await services(request).platform_keys.new() if data.encryption else None
    new = projects.NewProject(data.name, data.description, data.quota, data.host_network, key)

    async def work(connection: Connection) -> Project:
        return await projects.create(connection, new, request.user.name)

    return await replies.write(request, work, status=201, location=lambda project: f"/api/v1/projects/{project.name}")


@patch(
    "/{name:str}",
    summary="Change a project's name, description, tags, quota, encryption or access to the hosts' network",
    status_code=200,
)
async def configure_project(
    request: ApiRequest, name: FromPath[str], data: JSONBody[ConfigureProject]
) -> Response[Project]:
    name = replies.check_ref("project", name)
    changes, revision, actor = metadata.Changes.of(data), replies.if_match(request), request.user.name
    new_name = name if data.name is UNSET else check_name(data.name)
    key = await services(request).platform_keys.new() if data.encryption is True else None

    async def work(connection: Connection) -> Project:
        async def configure() -> Project:
            return await projects.configure(connection, name, changes.own, actor, key)

        target, has_own = metadata.ObjectRef("project", name, new_name, new_name), configure if changes.own else None
        return await metadata.apply(
            connection, target, Project, metadata.MetadataChange(changes.metadata, actor, revision), has_own
        )

    return await replies.write(request, work)


@delete("/{name:str}", summary="Delete an empty project", status_code=200)
async def delete_project(request: ApiRequest, name: FromPath[str]) -> Response[Project]:
    name = replies.check_ref("project", name)

    async def work(connection: Connection) -> Project:
        return await projects.delete(connection, name, request.user.name)

    return await replies.write(request, work)


@post(
    "/{name:str}/erase-key",
    summary="Destroy a project's key: data encrypted with it can no longer be read",
    status_code=200,
)
async def erase_project_key(
    request: ApiRequest, name: FromPath[str], data: JSONBody[EraseKey]
) -> Response[ErasedKey]:  # fmt: skip
    name = replies.check_ref("project", name)
    if data.confirm != name:
        raise InvalidInput(
            f"{data.confirm!r} is not the project's name",
            field="confirm",
            hint=f"to confirm, repeat the project's name: {name}",
        )
    async with services(request).database.connection() as connection:
        encrypts = (await projects.get(connection, name)).encryption
    successor = await services(request).platform_keys.new() if encrypts else None

    async def work(connection: Connection) -> ErasedKey:
        return await project_keys.erase(connection, name, successor, request.user.name)

    return await replies.write(request, work)


router = Router(
    "/projects",
    route_handlers=[
        list_projects,
        show_project,
        show_usage,
        create_project,
        configure_project,
        delete_project,
        erase_project_key,
    ],
    tags=["access"],
    opt=authorization.in_fleet(Right.MANAGE),
)
