"""Routes for many VMs at once: ``/api/v1/vms/batch``. Each item succeeds or fails by itself, in one transaction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

import msgspec
from litestar import Response, Router, delete, post, put
from litestar.params import JSONBody
from msgspec import UNSET

from novacron.api.access import authorization
from novacron.api.context import ApiRequest, services
from novacron.api.edge import problems, replies
from novacron.api.routes import images
from novacron.api.routes.vms import ConfigureVm, CreateVm, spec_of
from novacron.model import limits
from novacron.model.cloud_init import check_seed
from novacron.model.errors import InvalidInput, NovaError
from novacron.model.vm import Action, Vm, VmSpec, check_name
from novacron.store import deferred_writes, projects, vms
from novacron.store.database import Connection

Refs = Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=limits.BATCH_MAX)]


class CreateVms(msgspec.Struct, forbid_unknown_fields=True):
    items: Annotated[tuple[CreateVm, ...], msgspec.Meta(min_length=1, max_length=limits.BATCH_MAX)]


class ConfigureOne(msgspec.Struct, forbid_unknown_fields=True):
    """A VM by id or name, and what to change."""

    vm: str
    changes: ConfigureVm


class ConfigureVms(msgspec.Struct, forbid_unknown_fields=True):
    items: Annotated[tuple[ConfigureOne, ...], msgspec.Meta(min_length=1, max_length=limits.BATCH_MAX)]


class DeleteVms(msgspec.Struct, forbid_unknown_fields=True):
    """VMs by id or name."""

    vms: Refs


class Result(msgspec.Struct):
    """What became of one item: the VM, or why not."""

    status: int
    vm: Vm | None = None
    problem: problems.Problem | None = None


class Results(msgspec.Struct):
    """In the order of the items."""

    items: list[Result]
    done: int
    failed: int
    revision: int = 0


Work = Callable[[Connection], Awaitable[Vm]]


async def _one_by_one(connection: Connection, works: Sequence[Work | NovaError]) -> list[Vm | NovaError]:
    """Do each work in a transaction of its own within the one of all; return what it did, or why not."""
    results = list[Vm | NovaError]()
    for work in works:
        try:
            if isinstance(work, NovaError):
                raise work
            with deferred_writes.undone_with_block():
                async with connection.transaction():
                    results.append(await work(connection))
        except NovaError as error:
            results.append(error)
    return results


async def _write(
    request: ApiRequest, work: Callable[[Connection], Awaitable[list[Vm | NovaError]]], status: int
) -> Response[Results]:  # fmt: skip
    """Do what is asked of all items in one transaction, and answer with what became of each."""

    async def all_(connection: Connection) -> Results:
        found = await work(connection)
        made = [one for one in found if isinstance(one, Vm)]
        await services(request).recorder.done_all(connection, request, status, made)
        results = [
            Result(status, one) if isinstance(one, Vm) else Result(one.status, problem=problems.of(one))
            for one in found
        ]  # fmt: skip
        revision = max((vm.revision for vm in made), default=0)
        return Results(results, len(made), len(results) - len(made), revision)

    return await replies.write(request, all_, status=200, recorded=True)


@post("/vms/batch", summary="Create VMs", status_code=200)
async def create_vms(request: ApiRequest, data: JSONBody[CreateVms]) -> Response[Results]:
    project, sizes, actor = authorization.project_for_new(request), images.disks_mib(request), request.user.name
    specs: list[VmSpec | NovaError] = []
    for item in data.items:
        try:
            if item.cloud_init is not None:
                check_seed(item.cloud_init)
            specs.append(spec_of(request, item))
        except NovaError as error:
            specs.append(error)

    async def work(connection: Connection) -> list[Vm | NovaError]:
        making = await projects.making(connection, project)
        plain, others = list[tuple[int, vms.Plain]](), list[tuple[int, Work | NovaError]]()
        for number, (item, spec) in enumerate(zip(data.items, specs, strict=True)):
            needs_more = (item.nics, item.node, item.cloud_init, item.firmware_state)
            if isinstance(spec, NovaError):
                others.append((number, spec))
            elif making.limited or any(needs_more):
                others.append((number, creating(making, item, spec)))
            else:
                plain.append((number, vms.Plain(item.name, spec, sizes.get(spec.image))))
        made = await vms.create_plain(connection, making, [one for _, one in plain], actor)
        found = dict(zip([number for number, _ in plain], made, strict=True))
        made = await _one_by_one(connection, [one for _, one in others])
        found |= dict(zip([number for number, _ in others], made, strict=True))
        return [found[number] for number in range(len(data.items))]

    def creating(making: projects.Making, item: CreateVm, spec: VmSpec) -> Work:
        async def create(connection: Connection) -> Vm:
            return await vms.create(
                connection, making, item.name, spec, item.node, actor, item.cloud_init,
                firmware_state=item.firmware_state, image_mib=sizes.get(spec.image),
            )  # fmt: skip

        return create

    return await _write(request, work, 201)


@put("/vms/batch", summary="Change VMs", status_code=200)
async def configure_vms(request: ApiRequest, data: JSONBody[ConfigureVms]) -> Response[Results]:
    works = [await _configuring(request, item) for item in data.items]
    return await _write(request, lambda connection: _one_by_one(connection, works), 200)


async def _configuring(request: ApiRequest, item: ConfigureOne) -> Work | NovaError:
    changes = item.changes
    given: dict[str, Any] = {
        field: value for field in changes.__struct_fields__ if (value := getattr(changes, field)) is not UNSET
    }
    try:
        id = await authorization.resolve(request, "vm", item.vm, "vm")
        name = None if changes.name is UNSET else check_name(given.pop("name"))
        if not given and name is None:
            raise InvalidInput("nothing is to change", field="changes")
    except NovaError as error:
        return error

    async def work(connection: Connection) -> Vm:
        return await vms.configure(connection, id, name, given, None, request.user.name)

    return work


@delete("/vms/batch", summary="Delete VMs", status_code=200)
async def delete_vms(request: ApiRequest, data: JSONBody[DeleteVms]) -> Response[Results]:
    async def deleting(ref: str) -> Work | NovaError:
        try:
            id = await authorization.resolve(request, "vm", ref, "vms")
        except NovaError as error:
            return error

        async def work(connection: Connection) -> Vm:
            return await vms.act(connection, id, Action.DELETE, None, request.user.name)

        return work

    works = [await deleting(ref) for ref in data.vms]
    return await _write(request, lambda connection: _one_by_one(connection, works), 202)


router = Router(
    "/", route_handlers=[create_vms, configure_vms, delete_vms], tags=["vms"], opt=authorization.in_project()
)
