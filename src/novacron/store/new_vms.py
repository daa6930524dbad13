"""New VMs: the one way to create them, alone, many at once, as clones, or in one round trip."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from novacron.model.cloud_init import Seed
from novacron.model.errors import InvalidInput, NovaError
from novacron.model.firmware_state import FirmwareState
from novacron.model.network import NicSpec
from novacron.model.project import Project, Quota, Usage
from novacron.model.vm import BLANK_IMAGE, CloneOf, Power, Vm, VmSpec, VmStatus, vm_id
from novacron.model.volume import NewDisk
from novacron.store import (
    deferred_writes,
    events,
    fleet,
    hardware,
    imports,
    macs,
    media,
    metadata,
    networks,
    new_disks,
    projects,
    sizes,
    unreconciled,
    vms,
)
from novacron.store.database import Connection
from novacron.telemetry import traces

INTO = "INSERT INTO vms (id, name, spec, status, node, epoch, clone_of, project, disk_mib, trace, image_digest)"
"""How each insert of VMs begins: a new column is named here, and the inserts say where it comes from."""
INSERT = f"""
    {INTO}
    SELECT new.id, new.name, new.spec, $9::jsonb, new.node, (new.node IS NOT NULL)::int, new.clone_of, $10::text,
           new.disk_mib, new.trace,
           coalesce((SELECT v.image_digest FROM vms v WHERE v.id = new.clone_of ->> 'source'),
                    (SELECT d.digest FROM image_digests d WHERE d.name = new.spec ->> 'image'))
    FROM unnest($1::text[], $2::text[], $3::jsonb[], $4::text[], $5::jsonb[], $6::bigint[], $7::text[],
                $8::bool[]) AS new (id, name, spec, node, clone_of, disk_mib, trace, in_no_network)
    WHERE {deferred_writes.IN_TURN}
          AND ($11::jsonb IS NULL
               OR EXISTS (SELECT FROM projects WHERE name = $10 AND quota = $11 AND host_network AND NOT encryption
                              AND (new.in_no_network OR default_network IS NULL))
                  AND NOT EXISTS (SELECT FROM image_owners o WHERE o.name = new.spec ->> 'image' AND o.project <> $10)
                  AND NOT EXISTS (SELECT FROM unreconciled_vms u WHERE u.proven))
    ON CONFLICT (project, name) DO NOTHING RETURNING *
"""
"""The insert of VMs that are new. With a quota ($11) it checks by itself what ``_checked`` does for others: the
project still has that quota, may use the hosts' network and does not encrypt, has no default network unless the VM is
to be in no network, the image belongs to no other project, and no VM is unreconciled."""


INSERT_ADOPTED = f"""
    {INTO}
    SELECT $1, $2, $3, $4, $5, $6, NULL, $7, $8, $9,
           (SELECT digest FROM image_digests WHERE name = $3::jsonb ->> 'image')
    RETURNING *
"""
"""The insert of a VM that a node has and the database does not know. Raises UniqueViolationError where its name is
taken."""


class NewVm(NamedTuple):
    """A VM that is to be created."""

    name: str
    spec: VmSpec
    image_mib: int | None = None
    """Size of its image's disk; None: not known yet."""
    node: str | None = None
    """None: the platform chooses."""
    seed: Seed | None = None
    firmware_state: FirmwareState | None = None
    clone_of: CloneOf | None = None
    metadata: Mapping[str, Any] = {}
    disks: tuple[NewDisk, ...] = ()
    """Disks that are made with it beside its own."""
    names_no_network: bool = False
    """It was left open whether it is in a network: it is in its project's default one, if there is one."""

    @property
    def needs_only_its_row(self) -> bool:
        """Say whether nothing else is stored with it, and nothing locked for it."""
        return not any(
            (
                self.spec.nics,
                self.spec.mac,
                self.spec.media,
                self.spec.boot_once,
                self.disks,
                self.node,
                self.seed,
                self.firmware_state,
                self.clone_of,
                self.metadata,
            )
        )


class NewRow(NamedTuple):
    """What ``INSERT`` takes of each VM."""

    id: str
    name: str
    spec: dict[str, Any]
    node: str | None
    clone_of: dict[str, Any] | None
    disk_mib: int
    trace: str
    in_no_network: bool
    """It is in no network, even where its project has a default one."""


class QuickVm(NamedTuple):
    """A new VM that needs nothing but its row, if its project is still as it was known."""

    of: vms.ChangedVm
    row: NewRow
    quota: dict[str, Any]
    """Of the project, as it was known."""
    event: events.NewEvent


def _row(new: NewVm, spec: VmSpec, disk_mib: int) -> NewRow:
    clone_of = None if new.clone_of is None else msgspec.to_builtins(new.clone_of)
    return NewRow(
        vm_id(secrets.token_bytes(10)),
        new.name,
        msgspec.to_builtins(spec),
        new.node,
        clone_of,
        disk_mib,
        traces.carry(),
        not new.names_no_network or spec.address is not None,
    )


def arguments_of(rows: Sequence[NewRow], project: str, quota: Mapping[str, object] | None = None) -> list[object]:
    """Return what ``INSERT`` takes."""
    columns = list(map(list, zip(*rows, strict=True)))
    return [*columns, msgspec.to_builtins(VmStatus()), project, quota]


def in_default_network(project: Project, new: NewVm) -> NewVm:
    """Return a new VM as it is to be made: in its project's default network, if it names none and there is one.
    Pure."""
    spec = in_network(new.spec, project.default_network) if new.names_no_network else new.spec
    return new if spec is new.spec else new._replace(spec=spec, names_no_network=False)


def in_network(spec: VmSpec, network: str | None) -> VmSpec:
    """Return the spec of a VM that names no network with an interface in this one. One with an address of the hosts'
    network stays there. Pure."""
    if network is None or spec.nics or spec.address is not None:
        return spec
    return msgspec.structs.replace(spec, nics=(NicSpec(network, mac=spec.mac),), mac=None)


async def create(connection: Connection, making: projects.Making, new: NewVm, actor: str) -> Vm:
    """Store a new VM of a project, placed on a node if one is named.

    Raises Conflict, NotFound, NoCapacity, InvalidInput, QuotaExceeded.
    """
    new = in_default_network(making.project, new)
    row, after = await _checked(connection, making, new)
    stored = await connection.fetchrow(INSERT, *arguments_of([row], making.project.name))
    if stored is None:
        raise vms.name_taken(new.name)
    making.has = after
    vm = vms.of_row(stored)
    await networks.attach(connection, vm.id, vm.spec)
    if new.disks:
        await new_disks.make(connection, vm, new.disks, actor)
        if making.limited:
            making.has = await projects.lock_usage(connection, vm.project)
    if new.seed is not None:
        await connection.execute(
            "INSERT INTO vm_seeds (vm, seed) VALUES ($1, $2)", vm.id, msgspec.to_builtins(new.seed)
        )  # fmt: skip
    if new.firmware_state is not None:
        await connection.execute(
            "INSERT INTO vm_firmware_states (vm, state) VALUES ($1, $2)", vm.id, msgspec.to_builtins(new.firmware_state)
        )
    await events.record_all(connection, [_created(vm, actor)])
    if not new.metadata:
        return vm
    target = metadata.ObjectRef("vm", vm.id, vm.name, vm.project)
    return await metadata.change(connection, target, Vm, metadata.MetadataChange(new.metadata, actor))


async def create_all(
    connection: Connection, making: projects.Making, new: Sequence[NewVm], actor: str
) -> list[Vm | NovaError]:
    """Store new VMs; return, in their order, each VM or why it could not be created. Raises Unavailable.

    VMs that need only their row are stored in one statement, unless the project has a quota, which might be reached
    between two of them.
    """
    new = [in_default_network(making.project, vm) for vm in new]
    at_once = [number for number, vm in enumerate(new) if vm.needs_only_its_row and not making.limited]
    results = dict(zip(at_once, await _insert_all(connection, making, [new[n] for n in at_once], actor), strict=True))
    for number, vm in enumerate(new):
        if number in results:
            continue
        try:
            with deferred_writes.undone_with_block():
                async with connection.transaction():
                    results[number] = await create(connection, making, vm, actor)
        except NovaError as error:
            results[number] = error
    return [results[number] for number in range(len(new))]


async def _insert_all(
    connection: Connection, making: projects.Making, new: Sequence[NewVm], actor: str
) -> list[Vm | NovaError]:
    rows, refused, names = list[NewRow](), dict[int, NovaError](), set[str]()
    for number, vm in enumerate(new):
        try:
            row, _ = await _checked(connection, making, vm)
            if vm.name in names:
                raise vms.name_taken(vm.name)
        except NovaError as error:
            refused[number] = error
            continue
        names.add(vm.name)
        rows.append(row)
    if not rows:
        return list(refused.values())
    stored = await connection.fetch(INSERT, *arguments_of(rows, making.project.name))
    created = {row["name"]: vms.of_row(row) for row in stored}
    await events.record_all(connection, [_created(vm, actor) for vm in created.values()])
    return [refused.get(number) or created.get(vm.name) or vms.name_taken(vm.name) for number, vm in enumerate(new)]


def quickly(project_row: dict[str, Any], new: NewVm, actor: str) -> QuickVm | None:
    """Return what ``create`` does where that is one row; None where it takes more: a project with a quota, addresses,
    or what only nodes know. Raises InvalidInput."""
    spec, project = new.spec, msgspec.convert(project_row, Project)
    sizes.check_maxima(spec)
    media.check(spec)
    hardware.check_machine(spec)
    if project.quota != Quota() or not project.host_network or project.encryption:
        return None
    if spec.ha or spec.disk_mib is not None or in_default_network(project, new) is not new:
        return None
    if not new.needs_only_its_row or (spec.own_disk and new.image_mib is None):
        return None
    row = _row(new, macs.assign(spec), (new.image_mib or 0) if spec.own_disk else 0)
    event = events.NewEvent("vm", row.id, new.name, "Created", f"created from {_origin(spec)}", actor, project.name)
    return QuickVm(vms.ChangedVm(row.id, new.name, project.name), row, project_row["quota"], event)


async def _checked(connection: Connection, making: projects.Making, new: NewVm) -> tuple[NewRow, Usage]:
    """Check that a VM can be created, and return its row and what its project uses with it.

    Raises NotFound, NoCapacity, InvalidInput, QuotaExceeded.
    """
    spec, project = new.spec, making.project.name
    sizes.check_maxima(spec)
    hardware.check_machine(spec)
    await unreconciled.check_name(connection, project, new.name)
    if spec.image not in making.usable:
        await imports.check_usable(connection, spec.image, project)
        making.usable.add(spec.image)
    if not spec.nics and spec.connected and not making.project.host_network:
        raise InvalidInput(
            f"VMs of project {project} need a network", field="nics",
            hint="choose one, or create a default network: novacron network create NAME --default",
        )  # fmt: skip
    await vms.check_available(connection, None, spec)
    await macs.check_free(connection, spec, project)
    disk_mib = 0
    if spec.own_disk:
        image_mib = await sizes.image_disk_mib(connection, spec.image) if new.image_mib is None else new.image_mib
        disk_mib = spec.disk_mib or image_mib or 0
    after = making.with_(vms=1, vcpus=spec.vcpus, memory_mib=spec.memory_mib, disk_mib=disk_mib)
    if spec.disk_mib is not None:
        await sizes.check_disk(connection, spec.image, 0, spec.disk_mib)
    first_start = int(spec.power is Power.STOPPED)
    spec = await media.pin(connection, media.booting_once(spec, first_start), project)
    spec = await networks.give_addresses(connection, macs.assign(spec), project)
    if new.clone_of is None:
        spec = msgspec.structs.replace(spec, encryption_key=making.project.key_of_new)
        if new.seed is not None:
            hardware.check_sealed(new.seed, spec.encryption_key)
        if spec.encryption_key and new.firmware_state is not None and new.firmware_state.tpm is not None:
            raise InvalidInput(
                f"TPM state can't be imported into project {project}, which encrypts TPMs",
                field="firmware_state.tpm", hint="leave it out: the VM then starts with an empty TPM",
            )  # fmt: skip
    return _row(await _on_a_node(connection, new, spec, project), spec, disk_mib), after


async def _on_a_node(connection: Connection, new: NewVm, spec: VmSpec, project: str) -> NewVm:
    """Return a new VM with its node, if that has to be known already. Raises NotFound, NoCapacity, InvalidInput."""
    if new.disks:
        new_disks.check(new.disks, spec)
        if new.node is None:
            return new._replace(node=await new_disks.choose_node(connection, new.disks, spec, project))
    if new.node is not None:
        await fleet.check(connection, new.node, spec, project)
    return new


def _origin(spec: VmSpec) -> str:
    if spec.image != BLANK_IMAGE:
        return f"image {spec.image}"
    return "an empty disk" if spec.own_disk else "no image"


def _created(vm: Vm, actor: str) -> events.NewEvent:
    of = vm.clone_of
    source = _origin(vm.spec) if of is None else of.source_name if of.backup else f"VM {of.source_name}"
    return events.NewEvent("vm", vm.id, vm.name, "Created", f"created from {source}", actor, vm.project)
