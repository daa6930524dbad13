"""What of a VM changes after it was created: its interfaces, its hardware, what cloud-init applies, its metadata."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from novacron.disk import cloud_init
from novacron.model.cloud_init import SeedChanges, StoredSeed
from novacron.model.errors import Conflict, IllegalState, NotFound, NovaError
from novacron.model.network import NetworkKind, NetworkSpec, NicSpec
from novacron.model.project import Quota
from novacron.model.vm import Display, Firmware, Power, Vm, VmSpec, VmStatus
from novacron.store import ingress, networks, new_vms, nics, projects, vms
from novacron.store.database import Connection, Database
from tests.support.stored_fleet import add_vm

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
        ({"network": "lan", "address": first.address}, NovaError, "in use|taken|has"),
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
        forward = await ingress.forward(connection, web.id, ingress.NewForward(80, network="lan"), "ann")
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
        running = await add_vm(connection, "running")
    with pytest.raises(IllegalState, match="stopped on request"):
        await Changes(database, running).add(network="lan")


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
        {"tpm": True},
        {"display": Display.NONE},
        {"firmware": Firmware.UEFI},
        {"cloud_init": SeedChanges()},
    ):
        with pytest.raises(IllegalState, match="stopped on request") as why:
            await Changes(database, running).set(**changes)
        assert why.value.field == next(iter(changes))


async def test_user_data_changes_and_the_guest_takes_itself_for_a_new_instance(database: Database) -> None:
    web = await create(database, "web", VmSpec(image="tiny", power=Power.STOPPED))
    change = Changes(database, web.id)
    await change.set(cloud_init=SeedChanges(hostname="shop", user_data="#!/bin/sh\necho one"))
    await change.set(cloud_init=SeedChanges(user_data="#!/bin/sh\necho two"))
    async with database.connection() as connection:
        seed = await vms.seed_of(connection, web.id)
    assert seed == StoredSeed(hostname="shop", user_data="#!/bin/sh\necho two", generation=2)
    written = cloud_init.files(seed, id=web.id, name="web", macs=[OWN], address=None)
    assert f'"{web.id}-2"'.encode() in written["meta-data"] and b"two" in written["user-data"]
    with pytest.raises(NovaError, match="nothing that cloud-init knows") as why:
        await change.set(cloud_init=SeedChanges(user_data="hello"))
    assert why.value.field == "cloud_init.user_data"
