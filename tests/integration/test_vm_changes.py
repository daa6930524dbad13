"""What of a VM changes after it was created: its interfaces, its hardware, what cloud-init applies, its metadata."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import msgspec
import pytest

from novacron.disk import cloud_init
from novacron.model.cloud_init import SealedSeed, SeedChanges
from novacron.model.cpu import CpuKind, CpuModel
from novacron.model.errors import Conflict, IllegalState, InvalidInput, NotFound, NovaError
from novacron.model.guest_hardware import GuestHardware
from novacron.model.network import NetworkKind, NetworkSpec, NicSpec, Protocol
from novacron.model.plugged import NIC_PORTS, GuestNic, GuestNics
from novacron.model.project import Quota
from novacron.model.vm import Display, Firmware, Power, Vm, VmSpec, VmState, VmStatus, bound_to, mac_addresses
from novacron.server.node_statements import NodeBasis, statements
from novacron.store import ingress, networks, new_vms, nics, project_moves, projects, snapshots, vms
from novacron.store.database import Connection, Database
from novacron.wire.vms import Assignment
from tests.support.project_secrets import PlainSecrets
from tests.support.stored_fleet import add_node, add_vm

OWN, OTHER = "06:00:00:00:00:01", "06:00:00:00:00:02"


async def create(database: Database, name: str, spec: VmSpec, project: str = "default") -> Vm:
    async def work(connection: Connection) -> Vm:
        making = await projects.making(connection, project)
        return await new_vms.create(connection, making, new_vms.NewVm(name, spec, 0), "ann")

    return await database.transact(work)


class Changes:
    """Changes of one VM, each in a transaction of its own."""

    def __init__(self, database: Database, vm: str) -> None:
        self._database, self._vm = database, vm
        self._asked = nics.NicChange(vm, None, "ann")

    async def add(self, **fields: Any) -> tuple[NicSpec, ...]:
        return (
            await self._database.transact(lambda c: nics.add(c, self._asked, NicSpec(**fields)))
        ).spec.nics  # fmt: skip

    async def move(self, mac: str, **changes: Any) -> tuple[NicSpec, ...]:
        return (await self._database.transact(lambda c: nics.configure(c, self._asked, mac, changes))).spec.nics

    async def remove(self, mac: str) -> Vm:
        return await self._database.transact(lambda c: nics.remove(c, self._asked, mac))

    async def set(self, **changes: Any) -> Vm:
        return await self._database.transact(lambda c: vms.configure(c, self._vm, None, changes, None, "ann"))


async def running(database: Database, vm: Vm, machine: str, *devices: str, ports: int = 0) -> None:
    """Let a VM run with its interfaces as these devices of a machine type; none: an earlier version started it."""
    pairs = zip(mac_addresses(vm.id, vm.spec), devices, strict=False)
    nics = GuestNics(tuple(GuestNic(mac, device) for mac, device in pairs), ports=ports) if devices else None
    status = VmStatus(VmState.RUNNING, machine=machine, hardware=GuestHardware(1, 256, nics=nics))
    async with database.transaction() as connection:
        await connection.execute(
            "UPDATE vms SET status = $2, spec = jsonb_set(spec, '{power}', '\"running\"') WHERE id = $1",
            vm.id, msgspec.to_builtins(status),
        )  # fmt: skip


async def read(database: Database, vm: str) -> Vm:
    async with database.connection() as connection:
        return await vms.get(connection, vm)


async def rows(database: Database, vm: str) -> list[tuple[Any, ...]]:
    async with database.connection() as connection:
        found = await connection.fetch(
            "SELECT number, n.network, n.address, n.mac, m.mac AS held FROM nics n LEFT JOIN macs m USING (vm, number)"
            " WHERE vm = $1 ORDER BY number",
            vm,
        )
    return [tuple(row) for row in found]


async def test_interfaces_are_added_moved_and_removed_while_a_vm_is_off(database: Database) -> None:
    async with database.transaction() as connection:
        await projects.create(connection, projects.NewProject("closed", "", Quota(), False), "ann")
        for project, name in (("default", "lan"), ("default", "dmz"), ("closed", "theirs")):
            await networks.create(connection, project, name, NetworkSpec(NetworkKind.OVERLAY), None, "ann")
    await create(database, "db", VmSpec(image="tiny", mac=OTHER))
    web = await create(database, "web", VmSpec(image="tiny", mac=OWN, power=Power.STOPPED))
    change = Changes(database, web.id)
    [first] = await change.add(network="lan")
    assert (first.network, first.mac) == ("lan", OWN) and first.address, "the first takes the bridge's place"
    for fields, error, said in (
        ({"network": "none"}, NotFound, "no network"), ({"network": "theirs"}, NotFound, "has no network"),
        ({"network": "lan", "mac": OTHER}, Conflict, "VM db has"),
        ({"network": "lan", "mac": OWN}, NovaError, "another"),
        ({"network": "lan", "address": first.address}, NovaError, "is another VM's"),
        ({"network": "lan", "groups": ("none",)}, NotFound, "security group"),
    ):  # fmt: skip
        with pytest.raises(error, match=said):
            await change.add(**fields)
    kept, second = await change.add(network="dmz")
    assert kept == first and second.network == "dmz" and second.mac not in (None, OWN)
    assert await rows(database, web.id) == [
        (n, nic.network, nic.address, nic.mac, nic.mac) for n, nic in enumerate((first, second))
    ]
    async with database.transaction() as connection:
        forward = await ingress.forward(
            connection, web.id, ingress.NewForward(80, Protocol.TCP, None, None, "lan"), "ann"
        )
    for refused in (change.remove(OWN), change.move(OWN, network="dmz"), change.move(OWN, address="10.64.0.77")):
        with pytest.raises(Conflict, match=f"forward {forward.id} leads"):
            await refused
    async with database.transaction() as connection:
        await ingress.remove_forward(connection, forward.id, "ann")
    moved, _ = await change.move(OWN.upper(), network="dmz")
    assert (moved.network, moved.mac) == ("dmz", OWN) and moved.address not in (None, first.address, second.address)
    assert (await change.remove(OWN)).spec.nics == (second,)
    with pytest.raises(NotFound, match="no interface"):
        await change.remove(OWN)
    alone = await change.remove(str(second.mac))
    assert (alone.spec.nics, alone.spec.mac) == ((), second.mac) and await rows(database, web.id) == []

    held = await create(
        database, "held", VmSpec(image="tiny", nics=(NicSpec("theirs"),), power=Power.STOPPED), "closed"
    )
    with pytest.raises(NovaError, match="need a network"):
        await Changes(database, held.id).remove(str(held.spec.nics[0].mac))
    async with database.transaction() as connection:
        await add_node(connection, "host-a")
        unmanaged = await add_vm(connection, "running", "host-a")
    with pytest.raises(IllegalState, match="the host's own network while it runs"):
        await Changes(database, unmanaged).add(network="lan")


async def test_interfaces_change_while_a_vm_runs_or_the_refusal_says_why_not(database: Database) -> None:
    async with database.transaction() as connection:
        for name in ("lan", "dmz", "narrow"):
            await networks.create(connection, "default", name, NetworkSpec(NetworkKind.OVERLAY), None, "ann")
        await connection.execute("UPDATE networks SET mtu = 1200 WHERE name = 'narrow'")
    spec = VmSpec(image="tiny", nics=(NicSpec("lan"), NicSpec("lan")))
    web = await create(database, "web", spec)
    first, second = mac_addresses(web.id, web.spec)
    change = Changes(database, web.id)

    async def refused(what: Awaitable[object], field: str | None, why: str) -> None:
        with pytest.raises(IllegalState, match=why) as caught:
            await what
        assert (caught.value.field, caught.value.hint) == (field, "novacron vm stop web --wait")

    await refused(change.add(network="dmz"), None, "it is pending, and must be running, or stopped")
    await running(database, web, "pc-i440fx-7.2")
    await refused(change.add(network="dmz"), "network", "an earlier version")
    assert (await change.move(first, network="dmz"))[0].network == "dmz", "another network takes no other device"
    await refused(change.move(first, network="narrow"), "network", "MTU 1450, and network narrow has MTU")
    await running(database, web, "pc-q35-7.2", "nic0", "hot0")
    await refused(change.add(network="dmz"), "network", "no hot-plug ports")
    await refused(change.remove(first), "mac", "keeps on board")
    await running(database, web, "pc-q35-7.2", "nic0", "hot0", ports=1)
    await refused(change.add(network="dmz"), "network", "all 1 hot-plug ports")
    assert mac_addresses(web.id, (await change.remove(second)).spec) == (first,)
    await running(database, web, "pc-q35-7.2", "nic0", ports=8)
    assert [nic.network for nic in await change.add(network="dmz")] == ["dmz", "dmz"]
    await refused(change.remove(mac_addresses(web.id, (await read(database, web.id)).spec)[1]), "mac", "not got that")
    await running(database, web, "pc-i440fx-7.2", "nic0", "nic1")
    assert len((await change.remove(first)).spec.nics) == 1, "machines without PCI Express lose any"
    [last] = mac_addresses(web.id, (await read(database, web.id)).spec)
    await refused(change.remove(last), "network", "the host's own network")


async def test_ports_for_interfaces_are_a_new_vms_or_come_with_a_new_machine_type(database: Database) -> None:
    web = await create(database, "web", VmSpec(image="tiny", power=Power.STOPPED))

    async def ports() -> int:
        async with database.connection() as connection:
            return int(await connection.fetchval("SELECT nic_ports FROM vms WHERE id = $1", web.id))

    assert await ports() == NIC_PORTS
    async with database.transaction() as connection:  # as an earlier version has created it
        await connection.execute("UPDATE vms SET nic_ports = 0 WHERE id = $1", web.id)
    await Changes(database, web.id).set(protected=True)
    assert await ports() == 0, "the memory of its snapshots fits a machine without"
    await Changes(database, web.id).set(machine=None)
    assert await ports() == NIC_PORTS


async def test_no_snapshot_saves_memory_after_an_interface_came_or_left(database: Database) -> None:
    web = await create(database, "web", VmSpec(image="tiny"))
    await running(database, web, "pc-i440fx-7.2", "hot0")
    async with database.transaction() as connection:
        await add_node(connection, "host-a")
        await connection.execute("UPDATE vms SET node = 'host-a', epoch = 1")
        image = {"name": "tiny", "digest": "0" * 64, "size_bytes": 1, "disk_bytes": 1 << 20, "kind": "disk"}
        await connection.execute("UPDATE nodes SET status = jsonb_set(status, '{inventory,images}', $1)", [image])
    with pytest.raises(IllegalState, match="network interface while running"):
        await database.transact(lambda c: snapshots.create(c, web.id, "with", True, False, "ann"))


async def test_hardware_changes_while_a_vm_is_off_and_is_refused_with_words_otherwise(database: Database) -> None:
    web = await create(database, "web", VmSpec(image="tiny", power=Power.STOPPED))
    change = Changes(database, web.id)
    changed = (await change.set(firmware=Firmware.UEFI_SECURE, tpm=True, display=Display.NONE)).spec
    assert (changed.firmware, changed.tpm, changed.display) == (Firmware.UEFI_SECURE, True, Display.NONE)
    async with database.transaction() as connection:
        started = msgspec.to_builtins(VmStatus(machine="pc-q35-7.2"))
        await connection.execute("UPDATE vms SET status = $2 WHERE id = $1", web.id, started)
    with pytest.raises(IllegalState, match="Secure Boot") as why:
        await change.set(firmware=Firmware.UEFI)
    assert why.value.field == "firmware"
    async with database.transaction() as connection:
        running = await add_vm(connection, "running")
    for changes in (
        {"cpu": CpuKind.HOST},
        {"machine": None},
        {"tpm": True},
        {"display": Display.NONE},
        {"firmware": Firmware.UEFI},
        {"cloud_init": SeedChanges()},
    ):
        with pytest.raises(IllegalState, match="stop it explicitly") as why:
            await Changes(database, running).set(**changes)
        assert why.value.field == next(iter(changes))


async def test_processor_and_machine_type_are_chosen_anew_at_the_next_start(database: Database) -> None:
    web = await create(database, "web", VmSpec(image="tiny", power=Power.STOPPED))
    change = Changes(database, web.id)
    had = CpuModel("GenuineIntel", 6, 85, 4, ("avx512f",))

    async def report(status: VmStatus) -> None:
        async with database.transaction() as connection:
            await connection.execute(
                "UPDATE vms SET status = $2, node = 'host-a', epoch = 1 WHERE id = $1",
                web.id, msgspec.to_builtins(status),
            )  # fmt: skip

    async def told() -> tuple[CpuModel | None, int]:
        assert (await assigned()).booted_once_at == 4, "wherever the VM goes, it has booted once"
        return (await assigned()).cpu, (await assigned()).hardware_renewals

    async def assigned() -> Assignment:
        common = CpuModel("GenuineIntel", 6, 85, 4, ("sse4.2",))
        async with database.transaction("repeatable_read") as connection:
            [statement] = await statements(connection, "host-a", set(), PlainSecrets(), NodeBasis(common, ()))
        assert statement.assignment is not None and statement.assignment.machine == "pc-i440fx-7.2", "that it has run"
        return statement.assignment

    async with database.transaction() as connection:
        await add_node(connection, "host-a")
    started = VmStatus(VmState.STOPPED, machine="pc-i440fx-7.2", cpu=had, booted_once_at=4)
    await report(started)
    assert await told() == (had, 0), "it keeps what it was first started with"
    spec = (await change.set(cpu=CpuKind.BASELINE)).spec
    assert spec.hardware_renewals == 1 and bound_to(spec, started) == VmStatus(VmState.STOPPED, booted_once_at=4)
    await report(started)  # what the node said before
    assert await told() == (CpuModel("GenuineIntel", 6, 85, 4, ("sse4.2",)), 0)
    await report(msgspec.structs.replace(started, hardware_renewals=1))
    assert await told() == (had, 1), "once only"
    assert (await change.set(machine=None)).spec.hardware_renewals == 2, "the newest of today"
    assert (await change.set(machine="pc-i440fx-7.1", cpu_flags=("avx2",))).spec.cpu_flags == ("avx2",)
    with pytest.raises(InvalidInput, match="needs a pc-q35 machine type") as why:
        await change.set(firmware=Firmware.UEFI)
    assert why.value.field == "machine"
    with pytest.raises(InvalidInput, match="needs a pc-q35"):
        await create(database, "uefi", VmSpec(image="tiny", firmware=Firmware.UEFI, machine="pc-i440fx-7.1"))
    await report(msgspec.structs.replace(started, state=VmState.RUNNING))
    with pytest.raises(IllegalState, match="stop it explicitly") as off:
        await change.set(machine="pc-i440fx-7.1")
    assert off.value.field == "machine", "also with its present value"


async def test_user_data_changes_and_the_guest_takes_itself_for_a_new_instance(database: Database) -> None:
    web = await create(database, "web", VmSpec(image="tiny", power=Power.STOPPED))
    change = Changes(database, web.id)
    await change.set(cloud_init=SeedChanges(hostname="shop", user_data="#!/bin/sh\necho one"))
    await change.set(cloud_init=SeedChanges(user_data="#!/bin/sh\necho two"))
    async with database.connection() as connection:
        seed = await vms.seed_of(connection, web.id)
    assert seed == SealedSeed(hostname="shop", user_data="#!/bin/sh\necho two", generation=2)
    written = cloud_init.files(seed, id=web.id, name="web", macs=[OWN], address=None)
    assert f'"{web.id}-2"'.encode() in written["meta-data"] and b"two" in written["user-data"]
    with pytest.raises(NovaError, match="nothing that cloud-init knows") as why:
        await change.set(cloud_init=SeedChanges(user_data="hello"))
    assert why.value.field == "cloud_init.user_data"


async def test_vms_and_volumes_move_between_projects_within_quotas_or_say_what_ties_them(database: Database) -> None:
    async with database.transaction() as connection:
        await projects.create(connection, projects.NewProject("shop", "", Quota(vms=1, disk_mib=64), True), "ann")
        await projects.create(connection, projects.NewProject("closed", "", Quota(), False), "ann")
        await networks.create(connection, "default", "lan", NetworkSpec(NetworkKind.OVERLAY), None, "ann")
    web = await create(database, "web", VmSpec(image="tiny", power=Power.STOPPED))
    wired = await create(database, "wired", VmSpec(image="tiny", nics=(NicSpec("lan"),), power=Power.STOPPED))
    async with database.transaction() as connection:
        running = await add_vm(connection, "running")
        for id, vm in (("vol-a", web.id), ("vol-b", None)):
            await connection.execute(
                "INSERT INTO volumes (id, name, pool, kind, node, size_mib, phase, project, vm, vm_name, lun)"
                " VALUES ($1, $1, 'local', 'local', 'host-a', 64, 'ready', 'default', $2, $2, 0)",
                id, vm,
            )  # fmt: skip

    async def move(vm: str, project: str) -> Vm:
        wanted = project_moves.ProjectMove(vm, project, "ann")
        return await database.transact(lambda connection: project_moves.move_vm(connection, wanted))

    async def move_volume(id: str, project: str) -> str:
        wanted = project_moves.ProjectMove(id, project, "ann")
        return (await database.transact(lambda connection: project_moves.move_volume(connection, wanted))).project

    for vm, project, said in (
        (running, "shop", "stop it explicitly"), (wired.id, "shop", "in networks of project default: lan"),
        (web.id, "closed", "need one of its networks"), (web.id, "none", "no project"),
    ):  # fmt: skip
        with pytest.raises(NovaError, match=said):
            await move(vm, project)
    with pytest.raises(Conflict, match="attached to VM"):
        await move_volume("vol-a", "shop")
    assert (await move(web.id, "shop")).project == "shop"
    async with database.connection() as connection:
        assert await connection.fetchval("SELECT project FROM volumes WHERE id = 'vol-a'") == "shop"
        usage = {name: await projects.usage(connection, name) for name in ("default", "shop")}
        told = await connection.fetch("SELECT project, message FROM events WHERE reason = 'Moved' ORDER BY project")
        seen = await connection.fetch(
            "SELECT project, body IS NULL AS gone FROM changes WHERE kind = 'vm' AND key = $1 ORDER BY txid, seq",
            web.id,
        )
    assert (usage["shop"].vms, usage["shop"].disk_mib, usage["default"].vms) == (1, 64, 2)
    assert [tuple(row) for row in told] == [("default", "to project shop"), ("shop", "from project default")]
    assert [tuple(row) for row in seen][-2:] == [("default", True), ("shop", False)], "who follows a project sees it go"
    with pytest.raises(NovaError, match="may have 64 MiB of disks") as over:
        await move_volume("vol-b", "shop")
    assert over.value.field == "disk_mib"
    other = await create(database, "other", VmSpec(image="tiny", power=Power.STOPPED))
    with pytest.raises(NovaError, match="may have 1 VMs"):
        await move(other.id, "shop")
    await create(database, "web", VmSpec(image="tiny", power=Power.STOPPED))
    with pytest.raises(Conflict, match="has a VM named web"):
        await move(web.id, "default")
    async with database.transaction() as connection:
        await connection.execute("UPDATE volumes SET encryption_key = 'key-a' WHERE id = 'vol-b'")
    with pytest.raises(Conflict, match="encrypted with its project's key"):
        await move_volume("vol-b", "closed")
    async with database.transaction() as connection:
        await connection.execute("UPDATE projects SET encryption = true WHERE name = 'closed'")
        await connection.execute("UPDATE volumes SET encryption_key = '' WHERE id = 'vol-b'")
    with pytest.raises(Conflict, match="requires encryption"):
        await move_volume("vol-b", "closed")


async def test_an_image_moves_to_a_project_unless_vms_of_others_are_made_of_it(database: Database) -> None:
    async def move(project: str | None) -> None:
        await database.transact(lambda c: project_moves.move_image(c, "tiny", project, 12, "ann"))

    async with database.transaction() as connection:
        await projects.create(connection, projects.NewProject("shop", "", Quota(), True), "ann")
    await create(database, "web", VmSpec(image="tiny", power=Power.STOPPED))
    with pytest.raises(Conflict, match="VMs of other projects"):
        await move("shop")
    await move("default")
    with pytest.raises(NovaError, match="no node holds an image"):
        await create(database, "theirs", VmSpec(image="tiny"), "shop")
    await move(None)
    await create(database, "theirs", VmSpec(image="tiny"), "shop")
