"""The table of what becomes of each feature of a VM: every cell is tried against the store, restarts against what QEMU
gets; the slow matrix tries them on real QEMU."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock

import msgspec
import pytest

from lab.feature_matrix import FEATURES, Cell, Fate, Feature, Operation, page
from novacron.agent.vm.launch import Inherited, StartRequest, qemu_config
from novacron.client import archive_format
from novacron.disk.images import LocalImage
from novacron.model.errors import NovaError
from novacron.model.hardware import HostHardware, PciDevice
from novacron.model.metadata import FIELDS as METADATA
from novacron.model.network import NetworkKind, NetworkSpec
from novacron.model.node import AcceleratorKind, ImageInfo
from novacron.model.vm import Firmware, Power, Vm, VmSpec, VmState, VmStatus
from novacron.model.vm_templates import template_of
from novacron.model.volume import NewDisk
from novacron.qemu.command import QemuCd, command
from novacron.qemu.guest_memory import MemoryLayout
from novacron.qemu.nics import QemuNic
from novacron.store import (
    backup_repositories,
    backups,
    clones,
    exports,
    migrations,
    networks,
    new_vms,
    projects,
    snapshots,
    vms,
)
from novacron.store.backup_repositories import NewRepository
from novacron.store.database import Connection, Database
from novacron.wire import messages as wire
from tests.support.fleet import node
from tests.support.partial import holds
from tests.support.stored_fleet import KEY, add_node

RICH = {
    "cpus": 8, "networks": True, "bridges": ["br1"], "vlan_bridges": ["br1"], "huge_2m_mib": 1024, "tpm": True,
    "plugs_nics": True, "firmware": [kind.value for kind in Firmware],
}  # fmt: skip
"""What a node has that can take all of the features; one that lacks them takes none that need them."""
POOR = {
    "cpus": 1,
    "networks": True,
    "bridges": ["br1"],
    "vlan_bridges": [],
    "huge_2m_mib": 0,
    "tpm": False,
    "firmware": ["bios"],
}
DISK, ISO, KERNEL = (
    ImageInfo("tiny", "0" * 64, 1, "disk", disk_bytes=8 << 20), ImageInfo("cd", "1" * 64, 1, "iso"),
    ImageInfo("linux", "2" * 64, 1, "boot-file"),
)  # fmt: skip


def inventory(name: str, *, rich: bool) -> dict[str, Any]:
    """Return what a node reports that can take every feature, or none that needs something of its node."""
    devices = [
        PciDevice(f"0000:0{n}:00.0", "8086:10fb", "Ethernet controller", "", n) for n in range(1, 4 if rich else 1)
    ]
    images = (DISK, ISO, KERNEL) if rich else (DISK,)
    plain = node("a").status.inventory
    assert plain is not None
    pool = msgspec.to_builtins(plain.pools[0]) | {"bytes_total": 1 << 40, "bytes_free": 1 << 39, "id": name}
    known: dict[str, Any] = msgspec.to_builtins(plain)
    return known | {
        "images": msgspec.to_builtins(images), "pools": [pool], **(RICH if rich else POOR),
        "hardware": msgspec.to_builtins(HostHardware("", (), (), (), tuple(devices))),
    }  # fmt: skip


async def change_node(connection: Connection, name: str, *, rich: bool) -> None:
    await connection.execute(
        "UPDATE nodes SET status = jsonb_set(status, '{inventory}', $2) WHERE name = $1",
        name,
        inventory(name, rich=rich),
    )


@pytest.fixture
async def fleet(database: Database) -> Database:
    """Nodes a and b, which can take every feature; networks of each kind; a repository for backups."""
    async with database.transaction() as connection:
        for name in ("a", "b"):
            await add_node(connection, name, inventory=inventory(name, rich=True))
        await connection.execute(
            "UPDATE nodes SET spec = spec || $1", {"passthrough": [f"0000:0{number}:00.0" for number in range(1, 4)]}
        )
        for network, spec in (
            ("lan", NetworkSpec(subnet="10.23.0.0/24")), ("six", NetworkSpec(subnet6="fd23:0:0:6::/64")),
            ("vlan-40", NetworkSpec(NetworkKind.BRIDGE, bridge="br1", vlan=40)),
        ):  # fmt: skip
            await networks.create(connection, "default", network, spec, None, "test")
        await backup_repositories.create(connection, NewRepository("default", "nightly", KEY, 7), "test")
    return database


async def create_vm(connection: Connection, feature: Feature, name: str) -> Vm:
    """Create a VM with a feature on node a, in the way of ``POST /vms``, that runs."""
    given = {"memory_mib": 256, **feature.fields}
    metadata = {field: given.pop(field) for field in METADATA if field in given}
    disks = msgspec.convert(given.pop("disks", []), tuple[NewDisk, ...])
    spec = msgspec.convert({"image": "tiny", **given}, VmSpec)
    new = new_vms.NewVm(name, spec, 8, "a", metadata=metadata, disks=disks)
    vm = await new_vms.create(connection, await projects.making(connection, "default"), new, "test")
    await connection.execute("UPDATE volumes SET phase = 'ready'")
    await enter(connection, vm, VmState.RUNNING)
    return await vms.get(connection, vm.id)


async def enter(connection: Connection, vm: Vm, state: VmState) -> None:
    power = Power.STOPPED if state is VmState.STOPPED else Power.RUNNING
    await connection.execute(
        "UPDATE vms SET status = $2, spec = spec || $3 WHERE id = $1",
        vm.id, msgspec.to_builtins(VmStatus(state=state)), {"power": power},
    )  # fmt: skip


class Result(NamedTuple):
    """What there is after an operation: the fields of a VM, and how many volumes it has."""

    fields: dict[str, Any]
    volumes: int = 0


async def stored(connection: Connection, vm: Vm) -> Result:
    now = await vms.get(connection, vm.id)
    every = msgspec.json.decode(msgspec.json.encode(now))
    fields = every["spec"] | {field: every[field] for field in METADATA}
    return Result(fields, await connection.fetchval("SELECT count(*) FROM volumes WHERE vm = $1", vm.id))


async def live(connection: Connection, vm: Vm, *, warm: bool = False) -> Result:
    await migrations.create(connection, vm.id, migrations.MoveRequest(actor="test", target="b", warm=warm))
    return await stored(connection, vm)


async def warm(connection: Connection, vm: Vm) -> Result:
    return await live(connection, vm, warm=True)


async def cold(connection: Connection, vm: Vm) -> Result:
    await enter(connection, vm, VmState.STOPPED)
    return await live(connection, vm)


async def clone(connection: Connection, vm: Vm) -> Result:
    made = await clones.create(connection, vm.id, clones.NewClone("copy", {}, linked=False), "test")
    return await stored(connection, made)


async def from_template(connection: Connection, vm: Vm) -> Result:
    spec = msgspec.convert(msgspec.to_builtins(template_of(vm.spec).fields()), VmSpec)
    new = new_vms.NewVm("like-it", spec, 8)
    return await stored(
        connection, await new_vms.create(connection, await projects.making(connection, "default"), new, "test")
    )


async def snapshot(connection: Connection, vm: Vm) -> Result:
    taken = await snapshots.create(connection, vm.id, "whole", memory=True, quiesce=False, actor="test")
    await connection.execute("UPDATE snapshots SET phase = 'ready'")
    await snapshots.revert(connection, vm.id, "whole", "test")
    had = taken.excluded_volumes or ()
    now = await stored(connection, vm)
    return now._replace(volumes=now.volumes - len(had))


async def export(connection: Connection, vm: Vm) -> Result:
    made = await exports.create(connection, vm.id, "test")
    carried = archive_format.carried(msgspec.json.decode(msgspec.json.encode(made.spec)))
    described = {field: value for field, value in (await stored(connection, vm)).fields.items()
                 if field in archive_format.DESCRIBED}  # fmt: skip
    return Result(carried | described)


async def backup(connection: Connection, vm: Vm) -> Result:
    repository = await connection.fetchval("SELECT id FROM backup_repositories")
    made = await backups.create(connection, vm.id, repository, "test")
    await connection.execute(
        "UPDATE backups SET phase = 'kept', result = result || $2 WHERE id = $1",
        made.id, {"snapshot": "5" * 64, "disk_bytes": 8 << 20},
    )  # fmt: skip
    return await stored(
        connection, await backups.restore(connection, made.id, backups.NewRestore("restored", {}), "test")
    )


Do = Callable[[Connection, Vm], Awaitable[Result]]
IN_STORE: dict[Operation, Do] = {
    Operation.LIVE: live, Operation.WARM: warm, Operation.COLD: cold, Operation.CLONE: clone,
    Operation.TEMPLATE: from_template, Operation.SNAPSHOT: snapshot, Operation.EXPORT: export, Operation.BACKUP: backup,
}  # fmt: skip


def has_feature(feature: Feature, result: Result) -> bool:
    if "disks" in feature.fields:
        return result.volumes == 1
    return all(holds(value, result.fields.get(field)) for field, value in feature.fields.items())


class RolledBack(Exception):
    """Ends a transaction of which nothing is to stay."""


async def tried(database: Database, feature: Feature, operation: Operation, *, rich: bool) -> str:
    """Return what becomes of a feature: kept, left out, or the code of the error. ``rich``: of the node that the
    operation needs something of."""
    fate = ""
    try:
        async with database.transaction() as connection:
            vm = await create_vm(connection, feature, "vm")
            assert has_feature(feature, await stored(connection, vm)), feature.name
            moves = operation in (Operation.LIVE, Operation.WARM, Operation.COLD)
            await change_node(connection, "b" if moves else "a", rich=rich)
            result = await IN_STORE[operation](connection, vm)
            fate = Fate.KEPT if has_feature(feature, result) else Fate.LEFT_OUT
            raise RolledBack
    except RolledBack:
        return fate
    except NovaError as error:
        return error.code


@pytest.mark.parametrize("operation", IN_STORE)
async def test_each_cell_says_what_becomes_of_a_feature(fleet: Database, operation: Operation) -> None:
    wrong = []
    for feature in FEATURES:
        cell = feature.cell(operation)
        wanted = cell.code if cell.fate is Fate.REFUSED else str(cell.fate)
        found = await tried(fleet, feature, operation, rich=True)
        if found != wanted:
            wrong.append(f"{feature.name}: {found}, not {wanted}")
        if cell.unless and (found := await tried(fleet, feature, operation, rich=False)) != cell.code:
            wrong.append(f"{feature.name}, if {cell.unless}: {found}, not {cell.code}")
    assert not wrong, f"{operation}: change lab/feature_matrix.py, or what happens"


HIDDEN = {"dedicated CPUs", "PCI device of the host", "IPv4 address in a network",
          "IPv6 address in a network", "VLAN of a host bridge", "further disk (a volume)",
          "tags, description, display name", "disk bus `virtio`", "NIC model `virtio`"}  # fmt: skip
"""Features that don't change what ``qemu_config`` makes of a spec: defaults, and what the agent does beside QEMU."""


def arguments(spec: VmSpec) -> list[str]:
    """Return QEMU's arguments for a VM, started from its stored spec as an agent reads it."""
    assignment = wire.Assignment("vm-a", "a", spec, False, "", 0, None, "default", bytes(32))
    read = msgspec.json.decode(msgspec.json.encode(assignment), type=wire.Assignment)
    image = Mock(spec=LocalImage, disk=Path("/images/tiny.raw"), cmdline="", kernel=None, initrd=None)
    cds = tuple(QemuCd(number) for number in range(len(read.spec.cdroms)))
    inherited = Inherited(
        (QemuNic("02:00:00:00:00:01", None),), (), (), 3, 4, 5, 6 if read.spec.kernel else None, None, None,
        8 if read.spec.firmware is not Firmware.BIOS else None, None, (), cds=cds,
        serials=tuple(range(20, 20 + read.spec.serial_ports)),
        memory=MemoryLayout(read.spec.numa_nodes, read.spec.hugepages),
    )  # fmt: skip
    request = StartRequest(read, image, AcceleratorKind.TCG, "", list, incoming=False)
    return command(qemu_config("vm-a", "qemu", request, inherited), incoming=False, paused=False)


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_a_vm_that_starts_again_has_the_same_devices(feature: Feature) -> None:
    assert (feature.cell(Operation.AGENT), feature.cell(Operation.HOST)) == (Cell(), Cell())
    given = {field: value for field, value in feature.fields.items() if field not in (*METADATA, "disks")}
    spec = msgspec.convert({"image": "tiny", "memory_mib": 256, **given}, VmSpec)
    plain = VmSpec(image="tiny", memory_mib=256, vcpus=spec.vcpus)
    assert arguments(spec) == arguments(msgspec.convert(msgspec.to_builtins(spec), VmSpec))
    assert (arguments(spec) == arguments(plain)) == (feature.name in HIDDEN)


def test_the_page_has_a_line_for_each_feature_and_a_column_for_each_operation() -> None:
    table = [line.strip("| ").split(" | ") for line in page().splitlines() if line.startswith("| ")]
    assert [line[0] for line in table[2:]] == [feature.name for feature in FEATURES]
    assert all(len(line) == 1 + len(Operation) for line in table)
