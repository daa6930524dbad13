"""One bad VM, node, migration or drain stops no other: real controllers, real PostgreSQL, a poisoned row first."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from novacron.control import gateways, health, migration, placement
from novacron.control.backups import BackupPolicies
from novacron.control.drain import Drains
from novacron.control.drain import _move as begin_move
from novacron.control.failover import Failover
from novacron.control.objects import BACKOFF_S_MAX, Objects
from novacron.control.placement import BATCH_MAX, PlacementController
from novacron.model.drain import DrainPhase, DrainPolicy
from novacron.model.probe import MoveForeseen
from novacron.store import drains, leases, nodes
from novacron.store.database import Database
from tests.support import two_objects
from tests.support.clock import Clock
from tests.support.stored_fleet import add_backup, add_node, add_vm, nodes_of_vms
from tests.support.two_objects import CASES, ONE_OBJECT, Fails, Nodes
from tests.waiting import eventually

POISON = {"power": "teleport"}
"""Passes every check of the database, and no decoder's."""


@pytest.fixture
async def fleet(database: Database) -> Database:
    """Nodes a, b and c, which are ready and heard."""
    async with database.transaction() as connection:
        for name in "abc":
            await add_node(connection, name)
    return database


async def step_and_finish(controller: Failover | Drains, database: Database) -> None:
    """Make one pass, and wait for all that it starts."""
    objects = Objects("test")
    await controller.step(database, objects)
    await objects.finish()


async def estimate_move(vm: str, source: str, target: str) -> MoveForeseen:
    raise AssertionError("no move is measured here")


async def test_placement_goes_on_past_a_vm_that_cant_be_decoded_and_tries_it_again(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        await add_vm(connection, "bad", **POISON)
        await add_vm(connection, "good-1")
        await add_vm(connection, "good-2")
    clock = Clock()
    objects = Objects("placement", clock=clock)
    await PlacementController().step(fleet, objects)
    objects.end_pass()
    nodes_of = await nodes_of_vms(fleet)
    assert nodes_of["good-1"] and nodes_of["good-2"] and nodes_of["bad"] is None
    assert objects.failure("bad") is not None and objects.due_in_s() is not None
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE vms SET spec = spec || '{\"power\": \"running\"}' WHERE id = 'bad'")
    await PlacementController().step(fleet, objects)
    objects.end_pass()
    assert (await nodes_of_vms(fleet))["bad"] is None, "it rests"
    clock.now_s += BACKOFF_S_MAX
    await PlacementController().step(fleet, objects)
    assert (await nodes_of_vms(fleet))["bad"] is not None


async def test_more_bad_vms_than_a_batch_has_room_for_stop_no_placement(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        for number in range(BATCH_MAX):
            await add_vm(connection, f"bad-{number}", **POISON)
        await add_vm(connection, "good")
    objects = Objects("placement", clock=Clock())
    for _ in range(2):
        await PlacementController().step(fleet, objects)
        objects.end_pass()
    assert (await nodes_of_vms(fleet))["good"] is not None


async def test_more_vms_without_room_than_a_pass_looks_at_keep_no_younger_one_waiting(
    fleet: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "BATCH_MAX", 3)
    monkeypatch.setattr(placement, "BATCHES_MAX", 2)
    async with fleet.transaction() as connection:
        for number in range(10):
            await add_vm(connection, f"big-{number}", memory_mib=1 << 22)
        await add_vm(connection, "good")
    controller, objects = PlacementController(), Objects("placement", clock=Clock())
    await controller.step(fleet, objects)
    objects.end_pass()
    assert (await nodes_of_vms(fleet))["good"] is None and objects.due_in_s() == 0, "the next pass follows at once"
    await controller.step(fleet, objects)
    objects.end_pass()
    assert (await nodes_of_vms(fleet))["good"] is not None and objects.due_in_s() is None, "all have been looked at"


async def test_vms_of_a_whole_batch_without_room_keep_no_younger_one_waiting(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        for number in range(BATCH_MAX):
            await add_vm(connection, f"big-{number}", memory_mib=1 << 22)
        await add_vm(connection, "good")
    await PlacementController().step(fleet, Objects("placement", clock=Clock()))
    assert (await nodes_of_vms(fleet))["good"] is not None


async def test_placement_goes_on_past_a_vm_that_cant_be_written(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        await add_vm(connection, "bad")
        await add_vm(connection, "good")
        await connection.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'this one is broken'; END $$"
        )
        await connection.execute(
            "CREATE TRIGGER refuse BEFORE UPDATE ON vms FOR EACH ROW WHEN (OLD.id = 'bad') EXECUTE FUNCTION refuse()"
        )
    await PlacementController().step(fleet, Objects("placement"))
    nodes_of = await nodes_of_vms(fleet)
    assert nodes_of["good"] is not None and nodes_of["bad"] is None


async def test_failover_starts_the_others_past_a_vm_that_cant_be_decoded(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        await add_vm(connection, "bad", "a", ha=True, ha_priority=100, **POISON)
        for name in ("good-1", "good-2"):
            await add_vm(connection, name, "a", ha=True, ha_priority=1)
        await connection.execute("UPDATE node_leases SET renewed_at = now() - interval '1 h' WHERE node = 'a'")
    await step_and_finish(Failover(), fleet)
    nodes_of = await nodes_of_vms(fleet)
    assert nodes_of["bad"] == "a" and {nodes_of["good-1"], nodes_of["good-2"]} <= {"b", "c"}


async def test_failover_goes_on_past_a_node_whose_fencing_fails(fleet: Database, monkeypatch: Any) -> None:
    async with fleet.transaction() as connection:
        await add_vm(connection, "bad", "a", ha=True)
        await add_vm(connection, "good", "b", ha=True)
        await connection.execute("UPDATE node_leases SET renewed_at = now() - interval '1 h' WHERE node <> 'c'")

    async def fence(self: Failover, database: Database, node: Any) -> None:
        if node.node == "a":
            raise RuntimeError("a defect")

    monkeypatch.setattr(Failover, "_fence", fence)
    await step_and_finish(Failover(), fleet)
    assert await nodes_of_vms(fleet) == {"bad": "a", "good": "c"}


async def test_nodes_whose_fence_commands_hang_hold_up_no_node_that_is_lost_later(
    fleet: Database, tmp_path: Path
) -> None:
    async with fleet.transaction() as connection:
        for number in range(10):
            await add_node(connection, f"hangs-{number}", ready=False)
            await add_vm(connection, f"waits-{number}", f"hangs-{number}", ha=True)
        await add_vm(connection, "good", "a", ha=True)
        await connection.execute("UPDATE node_leases SET renewed_at = now() - interval '1 h' WHERE node LIKE 'hangs%'")
    program = tmp_path / "fence"
    program.write_text('#!/bin/sh\ncase "$1" in hangs*) exec sleep 600;; esac\n')
    program.chmod(0o755)
    failover, objects = Failover(program), Objects("failover")

    async def moved() -> bool:
        await failover.step(fleet, objects)
        objects.end_pass()
        return (await nodes_of_vms(fleet))["good"] in {"b", "c"}

    try:
        assert not await moved()
        async with fleet.transaction() as connection:
            await connection.execute("UPDATE node_leases SET renewed_at = now() - interval '1 h' WHERE node = 'a'")
        await eventually(moved, "the VM of the node that is lost later starts elsewhere", 25.0)
        nodes_of = await nodes_of_vms(fleet)
        assert all(nodes_of[f"waits-{number}"] == f"hangs-{number}" for number in range(10)), "fencing goes on"
    finally:
        await objects.end()
    async with fleet.connection() as connection:
        cut_off = await connection.fetch("SELECT node FROM node_leases WHERE cut_off")
    assert [row["node"] for row in cut_off] == ["a"]


async def test_a_node_that_is_heard_while_it_is_fenced_does_not_count_as_cut_off(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE node_leases SET renewed_at = now() - interval '5 s' WHERE node = 'a'")
        await leases.fenced(connection, "a", cut_off=True, silent_s=30.0)
        assert not await connection.fetchval("SELECT cut_off FROM node_leases WHERE node = 'a'")
        await leases.fenced(connection, "a", cut_off=True, silent_s=1.0)
        assert await connection.fetchval("SELECT cut_off FROM node_leases WHERE node = 'a'")


async def test_a_drain_moves_the_others_and_does_not_end_while_a_bad_vm_is_there(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        await add_vm(connection, "bad", "a", memory_mib=4096, **POISON)
        await add_vm(connection, "good", "a")
        drain = await drains.begin(connection, "a", DrainPolicy.THROTTLE, "test")
    await step_and_finish(Drains(estimate_move), fleet)
    async with fleet.connection() as connection:
        moved = [row["vm"] for row in await connection.fetch("SELECT vm FROM migrations")]
        now = await drains.get(connection, drain.id)
    assert moved == ["good"] and now.phase is DrainPhase.DRAINING
    assert [(stay.vm, "it can't be moved now" in stay.why) for stay in now.stays] == [("bad", True)]


@pytest.mark.parametrize("bring_back", [False, True])
async def test_a_drain_that_was_ended_begins_no_more_moves(fleet: Database, bring_back: bool) -> None:
    """Its pass had begun before."""
    async with fleet.transaction() as connection:
        await add_vm(connection, "stays", "a")
        drain = await drains.begin(connection, "a", DrainPolicy.THROTTLE, "test")
        (waiting,) = await drains.to_leave(connection, drain)
        await drains.end(connection, "a", bring_back=bring_back)
    assert await begin_move(fleet, drain, waiting, Drains(estimate_move)) is None
    async with fleet.connection() as connection:
        assert not await connection.fetchval("SELECT count(*) FROM migrations")


async def test_a_bad_drain_stops_no_other_drain(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        for name in "ab":
            await add_vm(connection, f"vm-{name}", name)
            await drains.begin(connection, name, DrainPolicy.THROTTLE, "test")
        await connection.execute("UPDATE drains SET policy = 'teleport' WHERE node = 'a'")
    await step_and_finish(Drains(estimate_move), fleet)
    async with fleet.connection() as connection:
        assert await connection.fetchval("SELECT array_agg(vm) FROM migrations") == ["vm-b"]


async def test_a_drain_whose_node_does_not_answer_holds_up_no_later_drain(fleet: Database) -> None:
    async def hang(vm: str, source: str, target: str) -> MoveForeseen:
        await asyncio.Event().wait()
        raise AssertionError

    controller, objects = Drains(hang), Objects("drain")
    async with fleet.transaction() as connection:
        await add_vm(connection, "hangs", "a")
        await drains.begin(connection, "a", DrainPolicy.LEAVE, "test")
    try:
        await controller.step(fleet, objects)
        async with fleet.transaction() as connection:
            await add_vm(connection, "good", "b")
            await drains.begin(connection, "b", DrainPolicy.THROTTLE, "test")
        await controller.step(fleet, objects)

        async def moves() -> bool:
            async with fleet.connection() as connection:
                return bool(await connection.fetchval("SELECT array_agg(vm) FROM migrations") == ["good"])

        await eventually(moves, "the VM of the later drain moves")
    finally:
        await objects.end()


async def test_a_migration_that_cant_be_ended_stops_no_other(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        for name in ("bad", "good-1", "good-2"):
            await add_vm(connection, name, "a")
            await connection.execute(
                "INSERT INTO migrations (id, vm, vm_name, kind, source, target, epoch, phase, progress, created_at)"
                " VALUES ('m-' || $1, $1, $1, 'live', 'a', 'b', 1, 'preparing', '{}', clock_timestamp())",
                name,
            )
            await connection.execute("UPDATE vms SET migration = 'm-' || id WHERE id = $1", name)
        await connection.execute("UPDATE migrations SET moved_at = now() - interval '1 day' WHERE vm <> 'good-2'")
        await connection.execute("UPDATE migrations SET epoch = 7 WHERE vm = 'bad'")
        await connection.execute("UPDATE migrations SET phase = 'pending' WHERE vm = 'good-2'")
    objects = Objects("migration")
    await migration.step(fleet, objects)
    async with fleet.connection() as connection:
        phases = {row["vm"]: row["phase"] for row in await connection.fetch("SELECT vm, phase FROM migrations")}
    assert phases == {"bad": "preparing", "good-1": "failed", "good-2": "preparing"}
    assert "AssertionError" in str(objects.failure("m-bad"))


async def test_a_migration_that_cant_be_decoded_stops_no_other(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        for name in ("bad", "good"):
            await add_vm(connection, name, "a")
            await connection.execute(
                "INSERT INTO migrations (id, vm, vm_name, kind, source, target, epoch, phase, progress, created_at)"
                " VALUES ('m-' || $1, $1, $1, 'live', 'a', 'b', 1, 'pending', '{}', clock_timestamp())",
                name,
            )
        await connection.execute("UPDATE migrations SET policy = 'teleport' WHERE vm = 'bad'")
    await migration.step(fleet, Objects("migration"))
    async with fleet.connection() as connection:
        assert await connection.fetchval("SELECT phase FROM migrations WHERE vm = 'good'") == "preparing"


async def test_a_node_that_cant_be_decoded_gets_nothing_and_stops_nothing(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        await add_node(connection, "Bad", inventory={"cpus": "many"})
        await add_vm(connection, "good")
        await connection.execute(
            "UPDATE node_leases SET renewed_at = now() - interval '1 h' WHERE node IN ('Bad', 'c')"
        )
    await PlacementController().step(fleet, Objects("placement"))
    assert (await nodes_of_vms(fleet))["good"] in {"a", "b", "c"}
    await health.step(fleet, Objects("health"))
    await gateways.step(fleet, Objects("gateways"))
    async with fleet.connection() as connection:
        ready = {node_record.name: node_record.status.ready for node_record in await nodes.all(connection)}
    assert ready == {"a": True, "b": True, "c": False}


BAD_STATUS = 'UPDATE nodes SET status = status || \'{"certificate_ends_at_s": "soon"}\' WHERE name = $1'
DAMAGES = {
    "certificates": BAD_STATUS,
    "conditions": BAD_STATUS,
    "gateways": "UPDATE networks SET spec = spec || '{\"encryption\": 7}' WHERE name = $1",
    "health": BAD_STATUS,
    "plans": "UPDATE plans SET runs = '7' WHERE id = $1",
    "replicas": "UPDATE replicas SET points = '7' WHERE id = $1",
    "backup-proofs": "UPDATE backups SET proof = '7' WHERE id = $1",
    "backups": "UPDATE backup_policies SET spec = spec || '{\"schedule\": 7}' WHERE id = $1",
    "migration": "UPDATE migrations SET progress = '7' WHERE id = $1",
    "drain": "UPDATE drains SET moving = '7' WHERE id = $1",
}
"""A bad row of the first object."""
QUICK = {"certificates", "plans"}
"""Of these: a bad row stopped all others, once."""
ABOVE = {"migration", "placement", "failover", "drain"}
"""Controllers with tests of their own."""


def _mark(*, quick: bool) -> list[pytest.MarkDecorator]:
    return [] if quick else [pytest.mark.slow]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(pytest.param(name, "", id=name, marks=_mark(quick=name not in ABOVE)) for name in CASES),
        *(
            pytest.param(*case, id=f"{case[0]}, bad row", marks=_mark(quick=case[0] in QUICK))
            for case in DAMAGES.items()
        ),
    ],
)
async def test_a_controller_does_the_second_object_where_the_first_one_fails(
    database: Database, monkeypatch: pytest.MonkeyPatch, name: str, damage: str
) -> None:
    fails, asked = Fails(monkeypatch), Nodes()
    async with database.transaction() as connection:
        two = await CASES[name](connection, fails)
        if damage:
            await connection.execute(damage, two.bad)
    controller, objects = two_objects.all_controllers(database, fails, asked)[name]
    await controller.step(database, objects)
    await objects.finish()
    objects.end_pass()
    assert await two_objects.was_done(database, name, two, fails, asked), objects._failures
    bad = {"audit-chain": "sink bad", "rebalance": next(iter(asked.asked), ""), "failover": None}.get(name, two.bad)
    assert damage or bad is None or objects.failure(bad) is not None, "it is tried again, and counted"


def test_no_controller_is_without_a_case(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    controllers = two_objects.all_controllers(database, Fails(monkeypatch), Nodes())
    assert set(controllers) == CASES.keys() | ONE_OBJECT


async def test_a_bad_backup_keeps_no_other_vm_from_being_told_of_its_backups(database: Database) -> None:
    async with database.transaction() as connection:
        await add_backup(connection)
        await add_vm(connection, "other", "a")
        await connection.execute(
            "INSERT INTO backups (id, vm, vm_name, repository, repository_name, node, spec, phase, result, project,"
            " proof) SELECT 'backup-bad', 'other', 'other', repository, repository_name, node, spec, phase, result,"
            " project, jsonb_build_object('phase', 'failed', 'since', 'never') FROM backups"
        )
    await BackupPolicies().step(database, Objects("backups"))
    async with database.connection() as connection:
        said = await connection.fetch("SELECT id FROM vms WHERE backups ->> 'newest_at' IS NOT NULL")
    assert [row["id"] for row in said] == ["web"]
