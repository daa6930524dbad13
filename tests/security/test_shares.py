"""One tenant takes no more than their share of what all use."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from novacron.api.edge.slots import Full, SlotLimits, Slots
from novacron.model import limits
from novacron.model.errors import QuotaExceeded, Unavailable
from novacron.model.image import ImportPhase, ImportSpec, Source
from novacron.model.node import ImageInfo, Inventory
from novacron.model.project import Quota
from novacron.store import backups, exports, garbage, imports, nodes, projects
from novacron.store.database import Connection, Database
from tests.support.fleet import node
from tests.support.stored_fleet import add_backup, add_node, add_vm


async def test_a_project_takes_half_of_a_node_s_imports_and_no_more(database: Database) -> None:
    """Also when it asks for all of them at once."""
    async with database.transaction() as connection:
        await add_node(connection, "host-a")
        for name in ("greedy", "modest"):
            await projects.create(connection, projects.NewProject(name, "", Quota(), False), "test")

    async def begin(project: str, name: str) -> bool:
        spec = ImportSpec(name, Source.UPLOAD, "", 1024)
        try:
            async with database.transaction() as connection:
                await imports.create(connection, project, spec, "host-a", "test")
        except Unavailable:
            return False
        return True

    begun = await asyncio.gather(*(begin("greedy", f"greedy-{number}") for number in range(20)))
    assert sum(begun) == limits.IMPORTS_PER_PROJECT_MAX < limits.IMPORTS_PER_NODE_MAX
    assert await begin("modest", "modest"), "there is room for others"


async def project_with(connection: Connection, name: str, **quota: int) -> None:
    await projects.create(connection, projects.NewProject(name, "", Quota(**quota), False), "test")


async def test_an_image_counts_with_the_disk_in_it_and_nothing_larger_is_made_than_the_quota_allows(
    database: Database,
) -> None:
    """A file of 449 kB became 96 MiB, and counted nowhere."""
    async with database.transaction() as connection:
        await add_node(connection, "host-a")
        await project_with(connection, "web", images=2, image_mib=100)

        async def begin(name: str, size_bytes: int) -> str:
            spec = ImportSpec(name, Source.UPLOAD, "", size_bytes)
            return (await imports.create(connection, "web", spec, "host-a", "ann")).id

        async def usage() -> tuple[int, int]:
            has = await projects.usage(connection, "web")
            return has.images, has.image_mib

        first = await begin("first", 449_000)
        assert await usage() == (1, 1), "an import counts from its beginning"
        converting = imports.ImportReport(first, ImportPhase.CONVERTING, 449_000, disk_bytes=96 << 20)
        await imports.report(connection, "host-a", converting)
        assert await usage() == (1, 96)
        assert (await imports.get(connection, first)).disk_mib == 96, "its node is told that it may"
        second = await begin("second", 1000)
        await imports.report(
            connection, "host-a", imports.ImportReport(second, ImportPhase.CONVERTING, 1000, disk_bytes=96 << 20)
        )
        failed = await imports.get(connection, second)
        assert failed.phase is ImportPhase.FAILED and "100 MiB of images" in failed.error and failed.disk_mib == 0
        await begin("third", 1000)
        with pytest.raises(QuotaExceeded) as refused:
            async with connection.transaction():
                await begin("fourth", 1000)
        assert refused.value.field == "images"
        with_first = msgspec.structs.replace(
            inventory_of("host-a"), images=(ImageInfo("first", "f", 500, "disk", "", 96 << 20),)
        )
        await nodes.connected(connection, "host-a", with_first)
        await imports.report(connection, "host-a", imports.ImportReport(first, ImportPhase.DONE, 449_000))
        assert await usage() == (2, 97), "of the image, and the import that goes on"
        await imports.disown(connection, "first")
        assert await usage() == (1, 1)


def inventory_of(name: str) -> Inventory:
    inventory = node(name).status.inventory
    assert inventory is not None
    return inventory


async def test_snapshots_and_exports_count_with_what_they_can_take(database: Database) -> None:
    async with database.transaction() as connection:
        await add_node(connection, "host-a")
        vm = await add_vm(connection, "web", "host-a", memory_mib=512)
        await connection.execute("UPDATE vms SET disk_mib = 2000")
        for name, memory in (("one", True), ("two", False)):
            await connection.execute(
                "INSERT INTO snapshots (id, vm, vm_name, name, memory, quiesce, vcpus, memory_mib, phase, project)"
                " VALUES ($1, $2, $2, $1, $3, false, 1, 512, 'ready', 'default')",
                name, vm, memory,
            )  # fmt: skip
        with_disk = msgspec.structs.replace(
            inventory_of("host-a"), images=(ImageInfo("tiny", "0" * 64, 1, "disk", "", 2000 << 20),)
        )
        await nodes.connected(connection, "host-a", with_disk)
        await connection.execute("UPDATE projects SET quota = $1", {"image_mib": 3000})
        export = await exports.create(connection, vm, "ann")
        has = await projects.usage(connection, "default")
        assert (has.snapshots, has.snapshot_mib, has.image_mib) == (2, 2 * 2000 + 512, 2000)
        with pytest.raises(QuotaExceeded) as refused:
            async with connection.transaction():
                await exports.create(connection, vm, "ann")
        assert refused.value.field == "image_mib"
    async with database.transaction() as connection:
        await exports.delete(connection, export.id, "ann")
        assert (await projects.usage(connection, "default")).image_mib == 0


async def test_backups_count_with_what_they_wrote_and_the_first_with_its_disk(database: Database) -> None:
    """Nothing kept a project from filling the directory that all projects' repositories share."""
    async with database.transaction() as connection:
        first = await add_backup(connection)
        repository = (await backups.get(connection, first)).repository
        await connection.execute("UPDATE vms SET disk_mib = 2000")
        await connection.execute("UPDATE backups SET result = result || $1", {"written_bytes": (700 << 20) - 9})
        await add_vm(connection, "db", "a")
        await connection.execute("UPDATE vms SET disk_mib = 2000")
        await connection.execute("UPDATE projects SET quota = $1", {"backups": 3, "backup_mib": 2750})

        async def usage() -> tuple[int, int]:
            has = await projects.usage(connection, "default")
            return has.backups, has.backup_mib

        async def refused(vm: str) -> str | None:
            with pytest.raises(QuotaExceeded) as refusal:
                async with connection.transaction():
                    await backups.create(connection, vm, repository, "ann")
            return refusal.value.field

        assert await usage() == (1, 700)
        await backups.create(connection, "web", repository, "ann")
        assert await usage() == (2, 701), "most of its disk is there already"
        made = await backups.create(connection, "db", repository, "ann")
        assert await usage() == (3, 2701)
        await connection.execute("UPDATE backups SET phase = 'failed' WHERE id = $1", made.id)
        assert await usage() == (2, 701)
        await connection.execute("UPDATE projects SET quota = $1", {"backup_mib": 2000})
        assert await refused("db") == "backup_mib"
        await connection.execute("UPDATE projects SET quota = $1", {"backups": 2})
        assert await refused("db") == "backups"


async def test_a_project_takes_half_of_a_nodes_backups_and_exports(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BACKUPS_PER_PROJECT_MAX", 2)
    monkeypatch.setattr(limits, "EXPORTS_PER_PROJECT_MAX", 2)
    async with database.transaction() as connection:
        repository = (await backups.get(connection, await add_backup(connection))).repository
        await connection.execute("UPDATE nodes SET status = jsonb_set(status, '{inventory,images,0,kind}', '\"disk\"')")
        for number in range(3):
            await add_vm(connection, f"vm-{number}", "a")

    async def asked(work: Callable[[Connection], Awaitable[object]]) -> bool:
        try:
            await database.transact(work)
        except Unavailable as refusal:
            assert "of project default" in str(refusal) or "exports of project" in str(refusal)
            return False
        return True

    async def all_at_once(make: Callable[[Connection, str], Awaitable[object]]) -> int:
        works = (lambda connection, vm=f"vm-{number}": make(connection, vm) for number in range(3))
        return sum(await asyncio.gather(*(asked(work) for work in works)))

    assert await all_at_once(lambda connection, vm: backups.create(connection, vm, repository, "ann")) == 2
    assert await all_at_once(lambda connection, vm: exports.create(connection, vm, "ann")) == 2


async def test_an_import_that_does_not_go_on_gives_its_place_to_others(database: Database) -> None:
    async with database.transaction() as connection:
        await add_node(connection, "host-a")
        for name in ("stalled", "slow", "never-ending"):
            await imports.create(connection, "default", ImportSpec(name, Source.UPLOAD, "", 1 << 30), "host-a", "ann")
        await connection.execute(
            "UPDATE imports SET progressed_at = now() - interval '25 h' WHERE spec ->> 'name' = 'stalled'"
        )
        await connection.execute(
            "UPDATE imports SET created_at = now() - interval '8 days' WHERE spec ->> 'name' = 'never-ending'"
        )
        await garbage.COLLECTORS["imports that stall"](connection)
        left = await imports.working(connection, "host-a")
        assert [import_.spec.name for import_ in left.rows] == ["slow"]


def test_consoles_of_one_project_leave_room_for_others() -> None:
    slots = Slots(SlotLimits(4, 2, 1))
    with slots.taken_for("greedy on host-a", ""), slots.taken_for("greedy on host-a", ""):
        with pytest.raises(Full) as full, slots.taken_for("greedy on host-a", ""):
            pass
        assert full.value.own
        with slots.taken_for("greedy on host-b", ""), slots.taken_for("modest on host-a", ""):
            with pytest.raises(Full) as full, slots.taken_for("other", ""):
                pass
            assert not full.value.own
    assert slots.taken == 0
    assert limits.CONSOLES_PER_PROJECT_MAX < limits.CONSOLE_CHANNELS_PER_NODE_MAX
