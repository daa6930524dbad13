"""Routes for VMs: ``/api/v1/vms``."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import msgspec
from litestar import Response, Router, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from msgspec import UNSET, UnsetType

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import lists, metadata, replies
from novacron.api.read_model.indexes import NOTHING
from novacron.api.read_model.paging import Page, Paging, Query
from novacron.api.routes import (
    backups,
    consoles,
    exports,
    guest_commands,
    images,
    nics,
    project_moves,
    replicas,
    sealed_seeds,
    snapshots,
    vm_moves,
)
from novacron.api.routes.nodes import Confirm
from novacron.model import limits
from novacron.model.access import Right
from novacron.model.cloud_init import Seed, SeedChanges, check_seed
from novacron.model.devices import DiskBus, NicModel
from novacron.model.errors import InvalidInput, NovaError
from novacron.model.firmware_state import FirmwareState
from novacron.model.ipv4 import check_interface
from novacron.model.mac import MacAddress
from novacron.model.metadata import FIELDS as METADATA
from novacron.model.metadata import Description, DisplayName, Tags
from novacron.model.names import Name
from novacron.model.network import SecurityGroups
from novacron.model.presets import PRESETS
from novacron.model.vm import (
    BLANK_IMAGE,
    Firmware,
    MemoryMib,
    Nics,
    Power,
    StopTimeout,
    Vcpus,
    Vm,
    VmAction,
    VmChanges,
    VmFields,
    VmSpec,
    VmState,
    check_name,
)
from novacron.model.vm_templates import Flavor, Template, merged
from novacron.model.volume import NewDisk
from novacron.store import clones, lost_nodes, new_vms, projects, vm_templates, vms
from novacron.store.database import Connection

P = TypeVar("P", Flavor, Template)
Wait = Annotated[int, QueryParameter(ge=0, le=limits.LONG_POLL_S_MAX, description="how long to wait, in seconds")]


class CreateVm(VmFields, frozen=True, kw_only=True):
    """A new VM. The platform chooses a node unless ``node`` names one. Fields that are left out are those of
    ``flavor``, then those of ``template``, then the usual ones.

    ``nics`` left out: the VM is in the default network of its project, if there is one. An empty list: in none.
    """

    name: Name
    flavor: Name | None = None
    template: Name | None = None
    node: Name | None = None
    cloud_init: Seed | None = None
    firmware_state: FirmwareState | None = None
    nics: Nics | UnsetType = UNSET  # type: ignore[assignment]  # left out is not the same as none
    display_name: DisplayName = ""
    description: Description = ""
    tags: Tags = ()
    disks: Annotated[tuple[NewDisk, ...], msgspec.Meta(max_length=limits.NEW_DISKS_PER_VM_MAX)] = ()
    """Further disks."""
    # Left out, these are as its operating system likes them.
    vcpus: Vcpus | UnsetType = UNSET  # type: ignore[assignment]
    memory_mib: MemoryMib | UnsetType = UNSET  # type: ignore[assignment]
    firmware: Firmware | UnsetType = UNSET  # type: ignore[assignment]
    tpm: bool | UnsetType = UNSET  # type: ignore[assignment]
    disk_bus: DiskBus | UnsetType = UNSET  # type: ignore[assignment]
    nic_model: NicModel | UnsetType = UNSET  # type: ignore[assignment]

    def fields(self) -> dict[str, Any]:
        """Return the fields of its spec that are not to be as every VM has them."""
        fields = {field: getattr(self, field) for field in VmFields.__struct_fields__}
        chosen = PRESETS[self.os] | {field: value for field, value in fields.items() if value is not UNSET}
        if self.image == BLANK_IMAGE and self.disk_mib is None:
            chosen["own_disk"] = False
        return chosen


MacAddresses = Annotated[tuple[MacAddress | None, ...], msgspec.Meta(min_length=1, max_length=limits.NICS_PER_VM_MAX)]


class ConfigureVm(VmChanges):
    """What to change; what is left out stays. The size changes while the VM is off; while the VM runs it grows up to
    its maxima."""

    name: Name | UnsetType = UNSET
    security_groups: SecurityGroups | UnsetType = UNSET
    """Of all interfaces of the VM, from now on."""
    macs: MacAddresses | UnsetType = UNSET
    """MAC addresses of all interfaces, in their order, while the VM is off; null: a free one."""
    cloud_init: SeedChanges | UnsetType = UNSET
    """What cloud-init applies when the VM, which is off, starts next: the guest takes itself for a new instance."""
    display_name: DisplayName | UnsetType = UNSET
    description: Description | UnsetType = UNSET
    tags: Tags | UnsetType = UNSET


class CloneVm(msgspec.Struct, forbid_unknown_fields=True):
    """A clone of a VM and its current disk: a full copy or, if ``linked``, sharing layers."""

    name: Name
    linked: bool = False
    address: str | None = None
    power: Power = Power.RUNNING
    macs: MacAddresses | None = None
    """MAC addresses of all its interfaces, in their order; null for one or all: free ones."""


class StopVm(msgspec.Struct, forbid_unknown_fields=True):
    """How to stop: the guest has ``timeout_s`` seconds to power off before it is forced to; 0 forces at once."""

    timeout_s: StopTimeout = limits.STOP_TIMEOUT_S_DEFAULT


class RecoverVm(msgspec.Struct, forbid_unknown_fields=True):
    """How a VM is recovered whose node is gone."""

    confirm: Name | None = None
    """The name of its node, to confirm that the host is off."""
    discard_disk: bool = False
    """Begin with a new disk if the old one was on that node only."""


@get("/", summary="List VMs by name")
async def list_vms(
    request: ApiRequest,
    paging: NamedDependency[Paging],
    node: FromQuery[str | None] = None,
    in_state: Annotated[VmState | None, QueryParameter(name="state", description="only VMs in this state")] = None,
    image: FromQuery[str | None] = None,
    name: Annotated[
        str | None, QueryParameter(description="only the VM with this name; web*: VMs whose names start with web")
    ] = None,
) -> Response[Page[Vm]]:
    conditions = lists.where({"node": node, "status.state": in_state, "spec.image": image})
    prefix = ""
    if name is not None:
        prefix = name.removesuffix("*") if name.endswith("*") else f"{name} "
        if " " in prefix[:-1] or prefix == " ":  # behind a name, the place of a VM in lists has a space and its id
            conditions = (NOTHING,)
    return lists.answer(request, paging, Query("vm", conditions, prefix))


@get("/{ref:str}", summary="Show a VM by id or name")
async def show_vm(
    request: ApiRequest, ref: FromPath[str], newer_than: FromQuery[int | None] = None, timeout_s: Wait = 30
) -> Response[Vm]:
    return await replies.single(request, "vm", ref, newer_than, timeout_s)


async def with_templates(request: ApiRequest, data: CreateVm, number: int | None = None) -> CreateVm:
    """Return a VM that is to be created, with what its flavor and template set. ``number``: of the batch's item.

    Raises InvalidInput, NotFound.
    """
    layers = []
    if data.template is not None:
        layers.append((await _template(request, vm_templates.TEMPLATE, data.template)).spec.fields())
    if data.flavor is not None:
        layers.append((await _template(request, vm_templates.FLAVOR, data.flavor)).spec.fields())
    if layers:
        given: dict[str, Any] = msgspec.json.decode(await request.body())
        if number is not None:
            given = given["items"][number]
        try:
            data = msgspec.convert(merged(*layers, given), CreateVm)
        except msgspec.ValidationError as error:  # each is valid alone
            raise InvalidInput(
                f"combined with its fields: {error}", field="flavor" if data.flavor else "template"
            ) from None
    return data


async def _template(request: ApiRequest, kind: vm_templates.TemplateKind[P], name: str) -> P:
    """Return a flavor or template that the caller may use. Raises NotFound."""
    entry = authorization.find(request, kind.name, name)
    if entry is not None:
        return msgspec.convert(entry.body, kind.type)
    async with services(request).database.connection() as connection:  # this replica may not have received it yet
        template = await vm_templates.get(connection, kind, name, field=kind.name)
    if not authorization.may_mean(request, kind.name, template.project):
        raise vm_templates.missing(kind.name, name, kind.name)
    return template


def new_vm(request: ApiRequest, data: CreateVm) -> new_vms.NewVm:
    """Return the VM that a caller wants to create. Raises InvalidInput, Forbidden."""
    spec = spec_of(request, data)
    size_mib = images.disks_mib(request).get(spec.image)
    seed = None if data.cloud_init is None else check_seed(data.cloud_init)
    described = {field: value for field in METADATA if (value := getattr(data, field))}
    return new_vms.NewVm(
        data.name, spec, size_mib, data.node, seed, data.firmware_state,
        metadata=described, disks=data.disks, names_no_network=data.nics is UNSET,
    )  # fmt: skip


def spec_of(request: ApiRequest, data: CreateVm) -> VmSpec:
    """Return the spec of a VM that a caller wants to create. Raises InvalidInput, Forbidden."""
    check_name(data.name)
    if data.devices:
        authorization.check(request, None, Right.OPERATE)
    address = None if data.address is None else check_interface(data.address)
    for image in (data.image, *(disk.image for disk in data.disks if disk.image is not None)):
        images.check_held(request, image)
    return VmSpec(**{**data.fields(), "address": address})


@post("/", summary="Create a VM", status_code=201)
async def create_vm(request: ApiRequest, data: JSONBody[CreateVm]) -> Response[Vm]:
    project, actor = authorization.project_for_new(request), request.user.name
    new = await sealed_seeds.of_new(request, new_vm(request, await with_templates(request, data)), project)

    async def work(connection: Connection) -> Vm:
        return await new_vms.create(connection, await projects.making(connection, project), new, actor)

    statement, home = None, services(request).cache.get("project", project)
    if home is not None:
        with contextlib.suppress(NovaError):  # ``work`` refuses it with the right error
            statement = new_vms.quickly(home.body, new, actor)
    return await replies.write(
        request, work, status=201, location=lambda vm: f"/api/v1/vms/{vm.id}", statement=statement
    )  # fmt: skip


@patch("/{ref:str}", summary="Change a VM: its size, hardware, placement, name, description or tags", status_code=200)
async def configure_vm(request: ApiRequest, ref: FromPath[str], data: JSONBody[ConfigureVm]) -> Response[Vm]:
    id, revision = await authorization.resolve(request, "vm", ref), replies.if_match(request)
    data = await sealed_seeds.with_sealed_changes(request, id, data)
    changes, work = configuring(request, id, ref, data, revision)
    statement = None
    if changes.own and not changes.metadata and data.name is UNSET:
        statement = _in_one_statement(
            request, id, lambda vm: vms.configure_in_one_statement(vm, changes.own, revision, request.user.name)
        )
    return await replies.write(request, work, status=200, statement=statement)


def configuring(
    request: ApiRequest, id: str, ref: str, data: ConfigureVm, revision: int | None, field: str | None = None
) -> tuple[metadata.Changes, Callable[[Connection], Awaitable[Vm]]]:
    """Return what changes of a VM, and what changes it. Raises InvalidInput."""
    changes, actor = metadata.Changes.of(data, field), request.user.name
    own = dict(changes.own)
    name = None if data.name is UNSET else check_name(own.pop("name"))
    target = metadata.ObjectRef("vm", id, name or ref)

    async def work(connection: Connection) -> Vm:
        async def configure() -> Vm:
            return await vms.configure(connection, id, name, own, revision, actor)

        has_own = configure if changes.own else None
        return await metadata.apply(
            connection, target, Vm, metadata.MetadataChange(changes.metadata, actor, revision), has_own
        )

    return changes, work


def _in_one_statement(
    request: ApiRequest, id: str, make: Callable[[Vm], vms.OneStatement | None]
) -> vms.OneStatement | None:
    """Return a change of a VM as one statement, if the VM in the cache shows that it is allowed."""
    entry = services(request).cache.get("vm", id)
    if entry is None:
        return None
    with contextlib.suppress(NovaError):  # the cache may lag: the database decides
        return make(msgspec.convert(entry.body, Vm))
    return None


@delete(
    "/{ref:str}",
    summary="Delete a VM and everything that belongs to it; with force, at once, because its node is gone",
    status_code=202,
)
async def delete_vm(
    request: ApiRequest, ref: FromPath[str], force: FromQuery[bool] = False, confirm: Confirm = None
) -> Response[Vm]:
    if not force:
        return await _act(request, ref, VmAction.DELETE, status=202)
    authorization.check(request, None, Right.OPERATE)
    id, revision = await authorization.resolve(request, "vm", ref), replies.if_match(request)

    async def work(connection: Connection) -> Vm:
        return await lost_nodes.delete_vm(connection, id, revision, confirm, request.user.name)

    return await replies.write(request, work, status=202)


@post(
    "/{ref:str}/actions/recover",
    summary="Recover a VM whose node is gone",
    status_code=202,
    opt=authorization.in_project(Right.OPERATE),
)
async def recover_vm(request: ApiRequest, ref: FromPath[str], data: JSONBody[RecoverVm | None] = None) -> Response[Vm]:
    id, options = await authorization.resolve(request, "vm", ref), data or RecoverVm()

    async def work(connection: Connection) -> Vm:
        return await lost_nodes.recover_vm(
            connection, id, options.confirm, request.user.name, discard_disk=options.discard_disk
        )

    return await replies.write(request, work, status=202)


@post("/{ref:str}/actions/start", summary="Start a VM", status_code=202)
async def start_vm(request: ApiRequest, ref: FromPath[str]) -> Response[Vm]:
    return await _act(request, ref, VmAction.START)


@post("/{ref:str}/actions/stop", summary="Stop: power off, by force after a timeout", status_code=202)
async def stop_vm(request: ApiRequest, ref: FromPath[str], data: JSONBody[StopVm | None] = None) -> Response[Vm]:
    return await _act(request, ref, VmAction.STOP, stop_timeout_s=(data or StopVm()).timeout_s)


@post("/{ref:str}/actions/pause", summary="Pause the guest: stop its CPUs, keep its memory", status_code=202)
async def pause_vm(request: ApiRequest, ref: FromPath[str]) -> Response[Vm]:
    return await _act(request, ref, VmAction.PAUSE)


@post("/{ref:str}/actions/resume", summary="Resume a paused guest", status_code=202)
async def resume_vm(request: ApiRequest, ref: FromPath[str]) -> Response[Vm]:
    return await _act(request, ref, VmAction.RESUME)


@post("/{ref:str}/actions/reboot", summary="Reboot the guest; without a guest agent, reset it", status_code=202)
async def reboot_vm(request: ApiRequest, ref: FromPath[str]) -> Response[Vm]:
    return await _act(request, ref, VmAction.REBOOT)


@post("/{ref:str}/actions/reset", summary="Reset the guest, like a reset button", status_code=202)
async def reset_vm(request: ApiRequest, ref: FromPath[str]) -> Response[Vm]:
    return await _act(request, ref, VmAction.RESET)


@post("/{ref:str}/actions/clone", summary="Clone a VM on its node", status_code=201)
async def clone_vm(request: ApiRequest, ref: FromPath[str], data: JSONBody[CloneVm]) -> Response[Vm]:
    id, revision = await authorization.resolve(request, "vm", ref), replies.if_match(request)
    check_name(data.name)
    address = None if data.address is None else check_interface(data.address)
    changes = {"address": address, "power": data.power}

    async def work(connection: Connection) -> Vm:
        asked = clones.NewClone(data.name, changes, data.linked, revision, data.macs)
        return await clones.create(connection, id, asked, request.user.name)

    return await replies.write(request, work, status=201, location=lambda vm: f"/api/v1/vms/{vm.id}")


async def _act(
    request: ApiRequest, ref: str, action: VmAction, *, status: int = 202, stop_timeout_s: int | None = None
) -> Response[Any]:
    id, revision = await authorization.resolve(request, "vm", ref), replies.if_match(request)

    async def work(connection: Connection) -> Vm:
        return await vms.act(connection, id, action, revision, request.user.name, stop_timeout_s)

    statement = _in_one_statement(
        request, id, lambda vm: vms.act_in_one_statement(vm, action, revision, request.user.name, stop_timeout_s)
    )  # fmt: skip
    return await replies.write(request, work, status=status, statement=statement)


router = Router(
    "/vms",
    route_handlers=[
        list_vms, show_vm, create_vm, configure_vm, delete_vm, start_vm, stop_vm, pause_vm, resume_vm, reboot_vm,
        reset_vm, recover_vm, clone_vm, exports.export_vm, backups.back_up_vm, *replicas.OF_VMS, *vm_moves.ROUTES,
        consoles.open_console, consoles.open_port, consoles.console_log, consoles.screenshot,
        *guest_commands.ROUTES, project_moves.move_vm, *nics.ROUTES, *snapshots.ROUTES,
    ],
    tags=["vms"],
    opt=authorization.in_project(),
)  # fmt: skip
