"""Routes for what new VMs begin with: ``/api/v1/flavors`` and ``/api/v1/templates``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

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
from novacron.model.errors import InvalidInput
from novacron.model.metadata import MetadataChanges
from novacron.model.names import Name
from novacron.model.vm import check_name
from novacron.model.vm_templates import Flavor, FlavorSpec, Template, TemplateSpec, template_of
from novacron.store import vm_templates, vms
from novacron.store.database import Connection
from novacron.store.vm_templates import FLAVOR, TEMPLATE, NewTemplate, TemplateKind

P = TypeVar("P", Flavor, Template)
Wait = Annotated[int, QueryParameter(ge=0, le=limits.LONG_POLL_S_MAX)]


class CreateFlavor(msgspec.Struct, forbid_unknown_fields=True):
    """A new flavor, of the project or, ``shared``, for all of them."""

    name: Name
    spec: FlavorSpec
    shared: bool = False


class ConfigureFlavor(MetadataChanges):
    """What to change; what is left out stays. ``spec`` is replaced as a whole."""

    spec: FlavorSpec | UnsetType = UNSET


class CreateTemplate(msgspec.Struct, forbid_unknown_fields=True):
    """A new template, of the project or, ``shared``, for all of them: with its fields, or like a VM that exists."""

    name: Name
    spec: TemplateSpec | None = None
    vm: str | None = None
    shared: bool = False


class ConfigureTemplate(MetadataChanges):
    """What to change; what is left out stays. ``spec`` is replaced as a whole."""

    spec: TemplateSpec | UnsetType = UNSET


def _owner(request: ApiRequest, shared: bool) -> str | None:
    """Return the project of a new flavor or template; None: it is for all of them. Raises NotFound, Forbidden."""
    if not shared:
        return authorization.project_for_new(request)
    authorization.check(request, None, Right.OPERATE)
    return None


def _check_owner(request: ApiRequest, project: str | None) -> None:
    authorization.check(request, project, Right.OPERATE if project is None else Right.WRITE)


async def _create(
    request: ApiRequest, kind: TemplateKind[P], name: str, make: Callable[[Connection], Awaitable[NewTemplate]]
) -> Response[P]:
    check_name(name)

    async def work(connection: Connection) -> P:
        return await vm_templates.create(connection, kind, await make(connection), request.user.name)

    return await replies.write(
        request, work, status=201, location=lambda template: f"/api/v1/{kind.name}s/{template.name}"
    )  # fmt: skip


async def _configure(request: ApiRequest, kind: TemplateKind[P], name: str, data: Any) -> Response[P]:  # noqa: ANN401 - either kind's
    name = await authorization.resolve(request, kind.name, name)
    changes, revision, actor = metadata.Changes.of(data), replies.if_match(request), request.user.name

    async def work(connection: Connection) -> P:
        template = await vm_templates.get(connection, kind, name)
        _check_owner(request, template.project)

        async def configure() -> P:
            return await vm_templates.configure(connection, kind, name, changes.own["spec"], actor)

        target, has_own = (
            metadata.ObjectRef(kind.name, name, name, template.project),
            configure if changes.own else None,
        )
        return await metadata.apply(
            connection, target, kind.type, metadata.MetadataChange(changes.metadata, actor, revision), has_own
        )

    return await replies.write(request, work)


async def _delete(request: ApiRequest, kind: TemplateKind[P], name: str) -> Response[P]:
    name = await authorization.resolve(request, kind.name, name)

    async def work(connection: Connection) -> P:
        _check_owner(request, (await vm_templates.get(connection, kind, name)).project)
        return await vm_templates.delete(connection, kind, name, request.user.name)

    return await replies.write(request, work)


@get("/flavors", summary="List flavors by name")
async def list_flavors(request: ApiRequest, paging: NamedDependency[Paging]) -> Response[Page[Flavor]]:
    return lists.answer(request, paging, Query(FLAVOR.name))


@get("/flavors/{name:str}", summary="Show a flavor")
async def show_flavor(
    request: ApiRequest, name: FromPath[str], newer_than: FromQuery[int | None] = None, timeout_s: Wait = 30
) -> Response[Flavor]:
    return await replies.single(request, FLAVOR.name, name, newer_than, timeout_s)


@post("/flavors", summary="Create a flavor: a size of VMs", status_code=201)
async def create_flavor(request: ApiRequest, data: JSONBody[CreateFlavor]) -> Response[Flavor]:
    project = _owner(request, data.shared)

    async def make(_: Connection) -> NewTemplate:
        return NewTemplate(data.name, project, data.spec)

    return await _create(request, FLAVOR, data.name, make)


@patch("/flavors/{name:str}", summary="Change a flavor, for VMs created from now on", status_code=200)
async def configure_flavor(
    request: ApiRequest, name: FromPath[str], data: JSONBody[ConfigureFlavor]
) -> Response[Flavor]:
    return await _configure(request, FLAVOR, name, data)


@delete("/flavors/{name:str}", summary="Delete a flavor; VMs created with it are kept", status_code=200)
async def delete_flavor(request: ApiRequest, name: FromPath[str]) -> Response[Flavor]:
    return await _delete(request, FLAVOR, name)


@get("/templates", summary="List templates by name")
async def list_templates(request: ApiRequest, paging: NamedDependency[Paging]) -> Response[Page[Template]]:
    return lists.answer(request, paging, Query(TEMPLATE.name))


@get("/templates/{name:str}", summary="Show a template")
async def show_template(
    request: ApiRequest, name: FromPath[str], newer_than: FromQuery[int | None] = None, timeout_s: Wait = 30
) -> Response[Template]:
    return await replies.single(request, TEMPLATE.name, name, newer_than, timeout_s)


@post("/templates", summary="Create a template of VMs, from fields or from a VM", status_code=201)
async def create_template(request: ApiRequest, data: JSONBody[CreateTemplate]) -> Response[Template]:
    if (data.spec is None) == (data.vm is None):
        raise InvalidInput("give either a spec, or a VM to copy", field="spec")
    project = _owner(request, data.shared)
    vm = None if data.vm is None else await authorization.resolve(request, "vm", data.vm, "vm")

    async def make(connection: Connection) -> NewTemplate:
        spec = data.spec if vm is None else template_of((await vms.get(connection, vm)).spec)
        assert spec is not None
        return NewTemplate(data.name, project, spec)

    return await _create(request, TEMPLATE, data.name, make)


@patch("/templates/{name:str}", summary="Change a template, for VMs created from now on", status_code=200)
async def configure_template(
    request: ApiRequest, name: FromPath[str], data: JSONBody[ConfigureTemplate]
) -> Response[Template]:
    return await _configure(request, TEMPLATE, name, data)


@delete("/templates/{name:str}", summary="Delete a template; VMs created with it stay", status_code=200)
async def delete_template(request: ApiRequest, name: FromPath[str]) -> Response[Template]:
    return await _delete(request, TEMPLATE, name)


router = Router(
    "/",
    route_handlers=[
        list_flavors,
        show_flavor,
        create_flavor,
        configure_flavor,
        delete_flavor,
        list_templates,
        show_template,
        create_template,
        configure_template,
        delete_template,
    ],
    tags=["vms"],
    opt=authorization.in_project(),
)
