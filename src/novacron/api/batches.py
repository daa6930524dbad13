"""Routes for many VMs at once: ``/api/v1/vms/batch``. Each item succeeds or fails by itself, in one transaction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
from litestar import Response, Router, delete, post, put
from msgspec import UNSET

from novacron.api import images, problems, reply, scopes
from novacron.api.context import ApiRequest, services
from novacron.api.vms import ConfigureVm, CreateVm, spec_of
from novacron.model import limits
from novacron.model.errors import InvalidInput, NovaError
from novacron.model.seed import check_seed
from novacron.model.vm import Action, Vm, check_name
from novacron.store import projects, vms
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


async def _each(
    request: ApiRequest, works: list[Work | NovaError], status: int,
    begin: Callable[[Connection], Awaitable[None]] | None = None,
) -> Response[Results]:  # fmt: skip
    """Do each work in a transaction within the one of all, after ``begin``, and answer with what became of it."""

    async def all_(connection: Connection) -> Results:
        recorder, results = services(request).recorder, []
        if begin is not None:
            await begin(connection)
        for work in works:
            try:
                if isinstance(work, NovaError):
                    raise work
                async with connection.transaction():
                    vm = await work(connection)
                results.append(Result(status, vm))
            except NovaError as error:
                results.append(Result(error.status, problem=problems.of(error)))
        made = [result.vm for result in results if result.vm is not None]
        await recorder.done_all(connection, request, status, made)
        revision = max((vm.revision for vm in made), default=0)
        return Results(results, len(made), len(results) - len(made), revision)

    return await reply.write(request, all_, status=200, recorded=True)


@post("/vms/batch", summary="Create VMs", status_code=200)
async def create_vms(request: ApiRequest, data: CreateVms) -> Response[Results]:
    project, sizes = scopes.project_for_new(request), images.disks_mib(request)
    making: list[projects.Making] = []

    async def begin(connection: Connection) -> None:
        making[:] = [await projects.making(connection, project)]

    def creating(item: CreateVm) -> Work | NovaError:
        try:
            spec = spec_of(request, item)
            seed = None if item.cloud_init is None else check_seed(item.cloud_init)
        except NovaError as error:
            return error

        async def work(connection: Connection) -> Vm:
            return await vms.create(
                connection, making[0], item.name, spec, item.node, request.user.name, seed,
                firmware_state=item.firmware_state, image_mib=sizes.get(spec.image),
            )  # fmt: skip

        return work

    return await _each(request, [creating(item) for item in data.items], 201, begin)


@put("/vms/batch", summary="Change VMs", status_code=200)
async def configure_vms(request: ApiRequest, data: ConfigureVms) -> Response[Results]:
    works: list[Work | NovaError] = []
    for item in data.items:
        works.append(await _configuring(request, item))
    return await _each(request, works, 200)


async def _configuring(request: ApiRequest, item: ConfigureOne) -> Work | NovaError:
    changes = item.changes
    given: dict[str, Any] = {
        field: value for field in changes.__struct_fields__ if (value := getattr(changes, field)) is not UNSET
    }
    try:
        id = await scopes.resolve(request, "vm", item.vm, "vm")
        name = None if changes.name is UNSET else check_name(given.pop("name"))
        if not given and name is None:
            raise InvalidInput("nothing is to change", field="changes")
    except NovaError as error:
        return error

    async def work(connection: Connection) -> Vm:
        return await vms.configure(connection, id, name, given, None, request.user.name)

    return work


@delete("/vms/batch", summary="Delete VMs", status_code=200)
async def delete_vms(request: ApiRequest, data: DeleteVms) -> Response[Results]:
    async def deleting(ref: str) -> Work | NovaError:
        try:
            id = await scopes.resolve(request, "vm", ref, "vms")
        except NovaError as error:
            return error

        async def work(connection: Connection) -> Vm:
            return await vms.act(connection, id, Action.DELETE, None, request.user.name)

        return work

    return await _each(request, [await deleting(ref) for ref in data.vms], 202)


router = Router("/", route_handlers=[create_vms, configure_vms, delete_vms], tags=["vms"], opt=scopes.in_project())
