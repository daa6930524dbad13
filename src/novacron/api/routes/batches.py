"""Routes for many VMs at once: ``/api/v1/vms/batch``. Each item succeeds or fails by itself, in one transaction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated

import msgspec
from litestar import Response, Router, delete, post, put
from litestar.params import JSONBody

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import problems, replies
from novacron.api.routes import sealed_seeds
from novacron.api.routes.vms import ConfigureVm, CreateVm, configuring, new_vm, with_templates
from novacron.model import limits
from novacron.model.errors import NovaError
from novacron.model.vm import Vm, VmAction
from novacron.store import deferred_writes, new_vms, projects, vms
from novacron.store.database import Connection

Refs = Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=limits.BATCH_MAX)]


class CreateVms(msgspec.Struct, forbid_unknown_fields=True):
    """New VMs."""

    items: Annotated[tuple[CreateVm, ...], msgspec.Meta(min_length=1, max_length=limits.BATCH_MAX)]


class ConfigureOne(msgspec.Struct, forbid_unknown_fields=True):
    """A VM by id or name, and what to change."""

    vm: str
    changes: ConfigureVm


class ConfigureVms(msgspec.Struct, forbid_unknown_fields=True):
    """Changes of VMs."""

    items: Annotated[tuple[ConfigureOne, ...], msgspec.Meta(min_length=1, max_length=limits.BATCH_MAX)]


class DeleteVms(msgspec.Struct, forbid_unknown_fields=True):
    """VMs by id or name."""

    vms: Refs


class Result(msgspec.Struct):
    """The result of one item: the VM, or the problem."""

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
    """Do each work in a savepoint of its own; return the VM of each, or the error."""
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
    """Do the work of all items in one transaction, and answer with the result of each."""

    async def all_(connection: Connection) -> Results:
        outcomes = await work(connection)
        changed = [outcome for outcome in outcomes if isinstance(outcome, Vm)]
        await services(request).recorder.done_all(connection, request, status, changed)
        results = [
            Result(status, outcome) if isinstance(outcome, Vm) else Result(outcome.status, problem=problems.of(outcome))
            for outcome in outcomes
        ]  # fmt: skip
        revision = max((vm.revision for vm in changed), default=0)
        return Results(results, len(changed), len(results) - len(changed), revision)

    return await replies.write(request, all_, status=200, recorded=True)


@post("/vms/batch", summary="Create VMs", status_code=200)
async def create_vms(request: ApiRequest, data: JSONBody[CreateVms]) -> Response[Results]:
    project, actor = authorization.project_for_new(request), request.user.name
    new, refused = list[new_vms.NewVm](), dict[int, NovaError]()
    for number, item in enumerate(data.items):
        try:
            vm = new_vm(request, await with_templates(request, item, number))
            new.append(await sealed_seeds.of_new(request, vm, project))
        except NovaError as error:
            refused[number] = error

    async def work(connection: Connection) -> list[Vm | NovaError]:
        created = await new_vms.create_all(connection, await projects.making(connection, project), new, actor)
        rest = iter(created)
        return [refused[number] if number in refused else next(rest) for number in range(len(data.items))]

    return await _write(request, work, 201)


@put("/vms/batch", summary="Change VMs", status_code=200)
async def configure_vms(request: ApiRequest, data: JSONBody[ConfigureVms]) -> Response[Results]:
    works = [await _configuring(request, item) for item in data.items]
    return await _write(request, lambda connection: _one_by_one(connection, works), 200)


async def _configuring(request: ApiRequest, item: ConfigureOne) -> Work | NovaError:
    try:
        id = await authorization.resolve(request, "vm", item.vm, "vm")
        changes = await sealed_seeds.with_sealed_changes(request, id, item.changes)
        return configuring(request, id, item.vm, changes, None, "changes")[1]
    except NovaError as error:
        return error


@delete("/vms/batch", summary="Delete VMs", status_code=200)
async def delete_vms(request: ApiRequest, data: JSONBody[DeleteVms]) -> Response[Results]:
    async def deleting(ref: str) -> Work | NovaError:
        try:
            id = await authorization.resolve(request, "vm", ref, "vms")
        except NovaError as error:
            return error

        async def work(connection: Connection) -> Vm:
            return await vms.act(connection, id, VmAction.DELETE, None, request.user.name)

        return work

    works = [await deleting(ref) for ref in data.vms]
    return await _write(request, lambda connection: _one_by_one(connection, works), 202)


router = Router(
    "/", route_handlers=[create_vms, configure_vms, delete_vms], tags=["vms"], opt=authorization.in_project()
)
