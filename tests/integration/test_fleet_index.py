"""Placement from the fleet in memory: real PostgreSQL, a real feed, and an index that lags behind."""

from __future__ import annotations

import asyncio

from novacron.control.objects import Objects
from novacron.control.placement import PlacementController
from novacron.store import migrations
from novacron.store.database import Database
from novacron.store.feed import Feed, FeedSnapshot
from novacron.store.fleet_index import FleetIndex
from tests.support.stored_fleet import add_node, add_vm, nodes_of_vms


async def indexed(database: Database) -> FleetIndex:
    """Return an index of what there is now, which hears of nothing that comes later."""
    index = FleetIndex()
    async for item in Feed(database.url, 0).batches():
        assert isinstance(item, FeedSnapshot)
        index.clear()
        for change in item.batch.changes:
            index.changed(change)
        break
    return index


async def test_an_index_that_lags_behind_overfills_no_node(database: Database) -> None:
    async with database.transaction() as connection:
        await add_node(connection, "a")  # takes 4096 MiB
        await add_node(connection, "b")
    index = await indexed(database)
    async with database.transaction() as connection:  # the index hears of none of these
        await add_vm(connection, "there", "a", memory_mib=4000)
        await connection.execute("UPDATE nodes SET spec = spec || '{\"cordoned\": true}' WHERE name = 'b'")
        await add_vm(connection, "new", memory_mib=2048)
        await add_vm(connection, "small", memory_mib=64)
    await PlacementController(index).step(database, Objects("placement"))
    assert await nodes_of_vms(database) == {"there": "a", "new": None, "small": "a"}


async def test_the_index_places_vms_side_by_side_and_never_beyond_what_a_node_has(database: Database) -> None:
    async with database.transaction() as connection:
        await add_node(connection, "a")
        await add_node(connection, "b")
        for number in range(10):
            await add_vm(connection, f"vm-{number}", memory_mib=1024)
    index, other = await indexed(database), await indexed(database)
    await asyncio.gather(
        PlacementController(index).step(database, Objects("placement")),
        PlacementController(other).step(database, Objects("placement")),
    )
    places = list((await nodes_of_vms(database)).values())
    assert (places.count("a"), places.count("b"), places.count(None)) == (4, 4, 2)


async def test_a_move_is_chosen_from_the_index_and_checked_in_its_transaction(database: Database) -> None:
    async with database.transaction() as connection:
        for name in "abc":
            await add_node(connection, name)
        await add_vm(connection, "vm", "a", memory_mib=1024)
        await add_vm(connection, "on-c", "c", memory_mib=64)
    index = await indexed(database)
    async with database.transaction() as connection:
        await connection.execute("UPDATE nodes SET spec = spec || '{\"cordoned\": true}' WHERE name = 'b'")
    async with database.transaction() as connection:
        move = await migrations.create(connection, "vm", migrations.MoveRequest(actor="test"), index)
    assert move.target == "c", "b is better, but cordoned by now"
