"""No two interfaces of a fleet have the same MAC address, but those that had it before addresses were assigned."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import asyncpg
import msgspec
import pytest

from novacron.model import mac
from novacron.model.errors import Conflict, IllegalState, NovaError
from novacron.model.network import NetworkKind, NetworkSpec, NicSpec
from novacron.model.project import Quota
from novacron.model.vm import Vm, VmAction, VmSpec, VmState, VmStatus, mac_addresses
from novacron.store import clones, idempotency, macs, networks, new_vms, projects, vms
from novacron.store.create_groups import CreateGroups
from novacron.store.database import TRIES_MAX, Connection, Database, migrate
from tests.conftest import url_of
from tests.support.creates import quick_create
from tests.support.stored_fleet import add_node

OLD_VM = "INSERT INTO vms (id, name, spec, status, epoch, project) VALUES ($1, $1, $2, $3, 0, 'default')"
"""As servers of an earlier version create VMs: without a MAC address in the spec."""
MANY = (
    "INSERT INTO vms (id, name, spec, status, epoch, revision, project)"
    " SELECT id, id, spec, '{}', 0, 1, 'default' FROM unnest($1::text[], $2::jsonb[]) new (id, spec)"
)
AGAIN = "INSERT INTO vms (id, name, spec, status, epoch, revision, project) VALUES ($1, $1, $2, '{}', 0, 1, 'default')"
HELD = "SELECT vm, number, mac, shared FROM macs ORDER BY vm, number"


async def _create(database: Database, name: str, spec: VmSpec, project: str = "default") -> Vm:
    async def work(connection: Connection) -> Vm:
        new = new_vms.NewVm(name, spec, 0)
        return await new_vms.create(connection, await projects.making(connection, project), new, "ann")

    return await database.transact(work)


async def _create_batch(database: Database, names: list[str]) -> list[Vm | NovaError]:
    async def work(connection: Connection) -> list[Vm | NovaError]:
        new = [new_vms.NewVm(name, VmSpec(image="tiny"), 0) for name in names]
        return await new_vms.create_all(connection, await projects.making(connection, "default"), new, "ann")

    return await database.transact(work)


async def _create_quickly(database: Database, name: str, project: dict[str, Any]) -> Vm:
    new, claim = new_vms.NewVm(name, VmSpec(image="tiny"), 0), idempotency.KeyClaim("t", name, name.encode())
    stored = await CreateGroups(database).create(quick_create(project, new, claim))
    return await _create(database, name, VmSpec(image="tiny")) if stored is None else stored.vm


def _colliding(count: int) -> Iterator[bytes]:
    """Yield what new addresses are made of: a few values again and again, and then random ones."""
    yield from itertools.islice(itertools.cycle([bytes([n]) * mac.RANDOM_BYTES for n in range(4)]), count)
    while True:
        yield os.urandom(mac.RANDOM_BYTES)


async def test_vms_created_at_once_in_every_way_have_different_mac_addresses(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with database.connection() as connection:
        project: dict[str, Any] = await connection.fetchval("SELECT to_jsonb(p) FROM projects p")
    drawn, real = _colliding(30), mac.from_random
    monkeypatch.setattr(mac, "from_random", lambda _: real(next(drawn)))
    ways = [
        *(_create(database, f"single-{n}", VmSpec(image="tiny")) for n in range(8)),
        *(_create_quickly(database, f"quick-{n}", project) for n in range(8)),
    ]
    batches = [_create_batch(database, [f"batch-{b}-{n}" for n in range(5)]) for b in range(2)]
    created: list[Any] = [*await asyncio.gather(*ways)]
    created += itertools.chain(*await asyncio.gather(*batches))
    addresses = [vm.spec.mac for vm in created]
    assert len(set(addresses)) == 26, sorted(addresses)
    async with database.connection() as connection:
        assert {(row["vm"], row["mac"]) for row in await connection.fetch(HELD)} == {
            (vm.id, vm.spec.mac) for vm in created
        }


async def test_a_chosen_mac_address_is_one_interfaces_in_the_fleet_until_its_vm_is_gone(database: Database) -> None:
    async with database.transaction() as connection:
        await projects.create(connection, projects.NewProject("other", "", Quota(), True), "ann")
        for project, name in (("default", "lan"), ("other", "theirs")):
            await networks.create(connection, project, name, NetworkSpec(NetworkKind.OVERLAY), None, "ann")
    chosen = "52:54:00:AA:BB:CC"
    web = await _create(database, "web", VmSpec(image="tiny", nics=(NicSpec("lan"), NicSpec("lan", mac=chosen))))
    assert web.spec.nics[1].mac == chosen.lower()
    async with database.connection() as connection:
        rows = await connection.fetch("SELECT mac FROM nics WHERE vm = $1 ORDER BY number", web.id)
    assert [row["mac"] for row in rows] == [nic.mac for nic in web.spec.nics], "its networks know them, too"
    for project, network, said in (("default", "lan", "VM web has"), ("other", "theirs", "another VM has")):
        for spec, field in (
            (VmSpec(image="tiny", mac=chosen), "mac"),
            (VmSpec(image="tiny", nics=(NicSpec(network, mac=chosen.lower()),)), "nics[0].mac"),
        ):
            with pytest.raises(Conflict, match=said) as taken:
                await _create(database, "db", spec, project)
            assert taken.value.field == field
    both = await asyncio.gather(
        *(_create(database, f"at-once-{n}", VmSpec(image="tiny", mac="06:00:00:00:00:01")) for n in range(4)),
        return_exceptions=True,
    )
    assert sorted(type(end).__name__ for end in both) == ["Conflict"] * 3 + ["Vm"]
    async with database.transaction() as connection:
        await vms.remove(connection, web)
    assert (await _create(database, "db", VmSpec(image="tiny", mac=chosen))).spec.mac == chosen.lower()


async def test_a_vm_that_is_off_gets_other_mac_addresses_and_lets_go_of_its_own(database: Database) -> None:
    async def change(macs: Sequence[str | None], **more: Any) -> Vm:
        async def work(connection: Connection) -> Vm:
            return await vms.configure(connection, web.id, None, {"macs": macs, **more}, None, "ann")

        return await database.transact(work)

    async with database.transaction() as connection:
        await networks.create(connection, "default", "lan", NetworkSpec(NetworkKind.OVERLAY), None, "ann")
    taken, own = "06:00:00:00:00:01", "06:00:00:00:00:02"
    await _create(database, "db", VmSpec(image="tiny", mac=taken))
    web = await _create(database, "web", VmSpec(image="tiny", nics=(NicSpec("lan", mac=own), NicSpec("lan"))))
    with pytest.raises(IllegalState, match="stop it explicitly"):
        await change([own, None])
    async with database.transaction() as connection:
        await vms.act(connection, web.id, VmAction.STOP, None, "ann")
    for wanted, refused, field in (
        ([own], "2 interfaces", "macs"), ([own, taken], "VM db has", "macs[1]"), ([own, own], "another", "macs[1]"),
        ([None, "01:00:00:00:00:00"], "multicast", "macs[1]"),
    ):  # fmt: skip
        with pytest.raises(NovaError, match=refused) as why:
            await change(wanted)
        assert why.value.field == field
    swapped = await change([web.spec.nics[1].mac, own])
    assert [nic.mac for nic in swapped.spec.nics] == [web.spec.nics[1].mac, own]
    changed = await change([None, "06:00:00:00:00:AA"], start_order=3)
    first, second = (nic.mac for nic in changed.spec.nics)
    assert second == "06:00:00:00:00:aa" and first not in (own, web.spec.nics[1].mac)
    assert [nic.address for nic in changed.spec.nics] == [nic.address for nic in web.spec.nics]
    async with database.connection() as connection:
        for query in (
            "SELECT mac FROM nics WHERE vm = $1 ORDER BY number", "SELECT mac FROM macs WHERE vm = $1 ORDER BY number",
        ):  # fmt: skip
            assert [row["mac"] for row in await connection.fetch(query, web.id)] == [first, second], query
    await _create(database, "next", VmSpec(image="tiny", mac=own))


async def test_a_clone_has_mac_addresses_of_its_own_new_ones_unless_they_are_named(database: Database) -> None:
    async with database.transaction() as connection:
        await add_node(connection, "a")
        await connection.execute("UPDATE nodes SET status = jsonb_set(status, '{inventory,networks}', 'true')")
        await networks.create(connection, "default", "lan", NetworkSpec(subnet="10.9.0.0/24"), None, "ann")
    taken, kept = "06:00:00:00:00:01", "06:00:00:00:00:02"
    web = await _create(database, "web", VmSpec(image="tiny", mac=taken))
    two = await _create(database, "two", VmSpec(image="tiny", nics=(NicSpec("lan"), NicSpec("lan"))))

    async def clone(of: Vm, name: str, macs: Sequence[str | None] | None = None) -> tuple[str, ...]:
        async with database.transaction() as connection:
            status = msgspec.to_builtins(VmStatus(state=VmState.STOPPED))
            await connection.execute("UPDATE vms SET node = 'a', epoch = 1, status = $2 WHERE id = $1", of.id, status)
            made = await clones.create(connection, of.id, clones.NewClone(name, {}, False, None, macs), "ann")
        return mac_addresses(made.id, made.spec)

    assert len({*mac_addresses(two.id, two.spec), *await clone(two, "other-two")}) == 4
    first, second = await clone(two, "third-two", [None, kept])
    assert second == kept and first not in mac_addresses(two.id, two.spec)
    assert await clone(web, "other") != (taken,)
    for named, says, field in (
        ([taken], "VM web has the MAC address", "macs[0]"), ([kept], "VM third-two has", "macs[0]"),
        ([None, None], "1 interfaces, not 2", "macs"),
    ):  # fmt: skip
        with pytest.raises(NovaError, match=says) as refused:
            await clone(web, "refused", named)
        assert refused.value.field == field
    async with database.connection() as connection:
        held = [row["mac"] for row in await connection.fetch(HELD)]
    assert len(held) == len(set(held)) == 8


async def test_vms_from_before_keep_their_mac_addresses_even_shared_ones_which_no_other_gets(
    postgres: Any, template: str
) -> None:
    spec, status = msgspec.to_builtins(VmSpec(image="tiny")), msgspec.to_builtins(VmStatus())
    del spec["mac"]
    two = spec | {"nics": [{"network": "lan", "address": None, "groups": []}] * 2}
    seen: dict[str, str] = {}
    for id in (f"vm-{number}" for number in itertools.count()):
        shared = mac.from_id(id)
        if shared in seen:
            first, second = seen[shared], id
            break
        seen[shared] = id
    admin = await asyncpg.connect(postgres.url)
    await admin.execute("CREATE DATABASE test_before_macs")
    url = url_of(postgres, "test_before_macs")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "novacron.store.schema", "0021", env={**os.environ, "NOVACRON_DATABASE_URL": url}
    )
    assert await process.wait() == 0
    old = await asyncpg.connect(url)
    await old.set_type_codec(
        "jsonb", schema="pg_catalog", encoder=lambda v: msgspec.json.encode(v).decode(), decoder=msgspec.json.decode
    )
    for id, said in ((first, spec), (second, spec), ("vm-two", two)):
        await old.execute(OLD_VM, id, said, status)
    await migrate(url)
    await old.execute("DELETE FROM vms WHERE id = $1", second)
    await old.execute(OLD_VM, second, spec, status)  # an old server still runs beside new ones
    held = [tuple(row) for row in await old.fetch(HELD)]
    await old.close()
    assert held == sorted([
        (first, 0, shared, False), (second, 0, shared, True),
        ("vm-two", 0, mac.from_id("vm-two"), False), ("vm-two", 1, mac.from_id("vm-two", 1), False),
    ])  # fmt: skip
    assert mac_addresses("vm-two", msgspec.convert(two, VmSpec)) == (held[-2][2], held[-1][2])
    database = await Database.open(url)
    for gone in (None, first):
        if gone is not None:
            async with database.connection() as connection:
                await connection.execute("DELETE FROM vms WHERE id = $1", gone)
        with pytest.raises(Conflict, match="has the MAC address"):
            await _create(database, "new", VmSpec(image="tiny", mac=shared))
    await database.close()
    await admin.execute("DROP DATABASE test_before_macs WITH (FORCE)")
    await admin.close()


async def test_a_create_does_not_read_the_addresses_of_the_whole_fleet(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute("ALTER TABLE macs SET (autovacuum_enabled = false)")  # it has no statistics
    for number in range(8):  # a plan that is kept is no other
        async with database.transaction() as connection:
            spec = msgspec.to_builtins(VmSpec(image="tiny", mac=f"52:54:00:00:00:0{number}"))
            await connection.execute(OLD_VM, f"vm-{number}", spec, {})
            reads = await connection.fetchval("SELECT seq_scan FROM pg_stat_xact_user_tables WHERE relname = 'macs'")
        assert reads == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)  # 0.3 ms each, and as long to draw them
async def test_a_million_vms_have_a_million_mac_addresses(database: Database) -> None:
    """Through the trigger, each address drawn as ``macs`` draws it, and some of them twice."""
    async with database.connection() as connection:
        await connection.execute("SET statement_timeout = 0")
        await connection.execute("ALTER TABLE vms DISABLE TRIGGER USER")
        await connection.execute("ALTER TABLE vms ENABLE TRIGGER claim_macs")
        for hundred in range(100):
            ids = [f"vm-{hundred}-{n}" for n in range(10_000)]
            for _ in range(TRIES_MAX):  # in a million there may be one that was drawn before
                specs = [msgspec.to_builtins(macs.assign(VmSpec(image="tiny"))) for _ in ids]
                with contextlib.suppress(asyncpg.SerializationError):
                    await connection.execute(MANY, ids, specs, timeout=120)
                    break
            with pytest.raises(asyncpg.SerializationError):
                await connection.execute(AGAIN, f"again-{hundred}", specs[0])
        row = await connection.fetchrow("SELECT count(*), count(DISTINCT mac) AS distinct_macs FROM macs", timeout=120)
    assert row is not None and tuple(row) == (1_000_000, 1_000_000)
