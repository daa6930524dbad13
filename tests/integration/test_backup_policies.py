"""Backup policies: the real controller and PostgreSQL ask for what is due, once, and one bad object stops no other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from novacron.control.backups import BackupPolicies
from novacron.control.objects import Objects
from novacron.model import limits
from novacron.model.backup import Backup, BackupPhase, BackupResult
from novacron.model.backup_policy import BackupPolicy, BackupPolicySpec, BackupSummary
from novacron.model.errors import Conflict, InvalidInput
from novacron.model.vm import Vm
from novacron.retention import Keep
from novacron.store import backup_policies, backup_repositories, backups, vms
from novacron.store.backup_policies import NewPolicy
from novacron.store.backup_repositories import NewRepository
from novacron.store.database import Database
from tests.support.stored_fleet import KEY, add_node, add_vm

DAY = timedelta(days=1)


@pytest.fixture
async def fleet(database: Database) -> Database:
    """Nodes a and b, each with a running VM, web on a and db on b, and a repository."""
    async with database.transaction() as connection:
        for name, vm in (("a", "web"), ("b", "db")):
            await add_node(connection, name)
            await add_vm(connection, vm, at=name)
        await connection.execute(
            "UPDATE nodes SET status = jsonb_set(status, '{inventory,images,0,disk_bytes}', '1048576')"
        )
        await backup_repositories.create(connection, NewRepository("default", "nightly", KEY, 7), "test")
    return database


async def add_policy(database: Database, name: str = "nightly", **fields: Any) -> BackupPolicy:
    """Create a policy whose schedule has had a time since it counts."""
    async with database.transaction() as connection:
        repository = await connection.fetchval("SELECT id FROM backup_repositories WHERE name = 'nightly'")
        spec = BackupPolicySpec(**{"repository": repository, "schedule": "hourly", "jitter_s": 0, **fields})
        policy = await backup_policies.create(connection, NewPolicy("default", name, spec), "test")
        await connection.execute("UPDATE backup_policies SET effective_from = now() - interval '2 days'")
        await connection.execute("UPDATE vms SET created_at = now() - interval '9 days'")
        return await backup_policies.get(connection, policy.id)


async def step(database: Database, patience_s: float = 0) -> None:
    objects = Objects("backups")
    await BackupPolicies(patience_s).step(database, objects)
    objects.end_pass()
    assert objects.due_in_s() is None, "nothing failed"


async def all_backups(database: Database) -> list[Backup]:
    async with database.connection() as connection:
        rows = await connection.fetch("SELECT id FROM backups ORDER BY vm_name, created_at")
        return [await backups.get(connection, row["id"]) for row in rows]


async def end(database: Database, backup: Backup, error: str = "") -> None:
    """Let a node report how a backup ended."""
    phase = BackupPhase.FAILED if error else BackupPhase.KEPT
    result = None if error else BackupResult("5" * 64, disk_bytes=1 << 20)
    async with database.transaction() as connection:
        said = backups.BackupReport(backup.id, backup.phase, phase, result, error)
        await backups.report(connection, backup.node, said)


async def vm_of(database: Database, id: str) -> Vm:
    async with database.connection() as connection:
        return await vms.get(connection, id)


async def add_kept(database: Database, policy: BackupPolicy, vm: str, *ages: timedelta) -> list[str]:
    """Store backups that were kept so long ago; return their ids."""
    ids = []
    async with database.transaction() as connection:
        for age in ages:
            backup = await backups.create(connection, vm, policy.spec.repository, "test", policy=policy)
            await connection.execute(
                "UPDATE backups SET phase = 'kept', created_at = now() - $2::interval, verified_at = now()"
                " WHERE id = $1",
                backup.id, age,
            )  # fmt: skip
            ids.append(backup.id)
    return ids


async def test_each_vm_is_backed_up_once_for_each_time_of_the_schedule(fleet: Database) -> None:
    policy = await add_policy(fleet)
    for _ in range(3):
        await step(fleet)
    made = await all_backups(fleet)
    assert [(backup.vm, backup.node, backup.policy) for backup in made] == [
        ("db", "b", policy.id), ("web", "a", policy.id),
    ]  # fmt: skip
    for backup in made:
        await end(fleet, backup)
    await step(fleet)
    assert len(await all_backups(fleet)) == 2
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE backups SET created_at = created_at - interval '1 hour'")
    await step(fleet)
    assert len(await all_backups(fleet)) == 4, "the next time has come"


async def test_a_policy_covers_the_vms_that_it_names_and_those_with_its_tags_and_no_others(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        await add_vm(connection, "other", at="a")
        await connection.execute("UPDATE vms SET tags = '[\"gold\"]' WHERE id = 'web'")
    await add_policy(fleet, vms=("db",), tags=("gold", "silver"))
    await step(fleet)
    assert {backup.vm for backup in await all_backups(fleet)} == {"db", "web"}
    assert (await vm_of(fleet, "other")).backups.policies == ()
    assert (await vm_of(fleet, "web")).backups.policies == ("nightly",)


async def test_a_policy_that_is_new_or_disabled_backs_nothing_up(fleet: Database) -> None:
    policy = await add_policy(fleet)
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE backup_policies SET effective_from = now()")
    await step(fleet)
    assert await all_backups(fleet) == []
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE backup_policies SET effective_from = now() - interval '2 days'")
        await backup_policies.configure(connection, policy.id, {"enabled": False}, None, "test")
        with pytest.raises(Conflict, match="disabled"):
            await backup_policies.run(connection, policy.id, "test")
    await step(fleet)
    assert await all_backups(fleet) == []


async def test_a_run_that_is_asked_for_backs_all_vms_up_now_and_once(fleet: Database) -> None:
    policy = await add_policy(fleet)
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE backup_policies SET effective_from = now()")
        await backup_policies.run(connection, policy.id, "test")
    await step(fleet)
    await step(fleet)
    assert [backup.vm for backup in await all_backups(fleet)] == ["db", "web"]


async def test_a_backup_that_failed_is_tried_again_and_its_failures_do_not_pile_up(fleet: Database) -> None:
    await add_policy(fleet, vms=("web",))
    for _ in range(8):
        await step(fleet)
        for backup in await all_backups(fleet):
            if backup.phase is BackupPhase.MAKING:
                await end(fleet, backup, error="the repository is full")
        async with fleet.transaction() as connection:
            await connection.execute("UPDATE backups SET created_at = created_at - interval '2 hours'")
    await step(fleet)
    failed = [backup for backup in await all_backups(fleet) if backup.phase is BackupPhase.FAILED]
    assert len(failed) == 5


async def test_what_cant_be_backed_up_says_so_and_keeps_no_other_vm_waiting(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        await add_vm(connection, "bad", at="a", power="teleport")
        await add_vm(connection, "secret", at="a", encryption_key="key-fedcba9876543210")
        await connection.execute("UPDATE nodes SET status = status || '{\"ready\": false}' WHERE name = 'b'")
    policy = await add_policy(fleet)
    await step(fleet)
    await step(fleet)
    assert {backup.vm for backup in await all_backups(fleet)} == {"web"}
    async with fleet.connection() as connection:
        shown = await backup_policies.get(connection, policy.id)
        said = await connection.fetch("SELECT object FROM events WHERE reason = 'BackupNotAsked' ORDER BY object")
    problems = {problem.vm: problem.error for problem in shown.problems}
    assert shown.problem_count == 3 and set(problems) == {"bad", "secret", "db"}
    assert "was erased" in problems["secret"] and "not ready" in problems["db"] and "internal error" in problems["bad"]
    assert [row["object"] for row in said] == ["bad", "db", "secret"], "once each"
    async with fleet.transaction() as connection:
        await connection.execute("DELETE FROM vms WHERE id IN ('bad', 'secret')")
        await connection.execute("UPDATE nodes SET status = status || '{\"ready\": true}' WHERE name = 'b'")
    await step(fleet)
    async with fleet.connection() as connection:
        assert (await backup_policies.get(connection, policy.id)).problem_count == 0


async def test_a_vm_that_is_just_not_ready_is_no_problem_yet(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE vms SET status = status || '{\"state\": \"starting\"}' WHERE id = 'web'")
    policy = await add_policy(fleet)
    await step(fleet, patience_s=1e9)
    async with fleet.connection() as connection:
        assert (await backup_policies.get(connection, policy.id)).problem_count == 0


async def test_a_node_gets_no_more_backups_than_may_wait_for_it_and_others_get_theirs(
    fleet: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BACKUPS_PER_NODE_MAX", 2)
    async with fleet.transaction() as connection:
        for number in range(4):
            await add_vm(connection, f"a-{number}", at="a")
    policy = await add_policy(fleet)
    await step(fleet)
    assert sorted(backup.node for backup in await all_backups(fleet)) == ["a", "a", "b"]
    async with fleet.connection() as connection:
        assert (await backup_policies.get(connection, policy.id)).problem_count == 0, "their turn comes"
    for backup in await all_backups(fleet):
        await end(fleet, backup)
    await step(fleet)
    assert sorted(backup.node for backup in await all_backups(fleet)) == ["a"] * 4 + ["b"]


async def test_a_policy_that_cant_be_read_stops_no_other_policy(fleet: Database) -> None:
    bad = await add_policy(fleet, "bad")
    await add_policy(fleet, "good", vms=("web",))
    async with fleet.transaction() as connection:
        await connection.execute(
            'UPDATE backup_policies SET spec = spec || \'{"tags": 7, "schedule": 1}\' WHERE id = $1', bad.id
        )
    objects = Objects("backups")
    await BackupPolicies(0).step(fleet, objects)
    assert objects.failure(bad.id) is not None
    assert [backup.vm for backup in await all_backups(fleet)] == ["web"]
    assert (await vm_of(fleet, "web")).backups.policies == ("good",)


async def test_backups_that_no_rule_keeps_are_deleted_and_those_of_others_stay(fleet: Database) -> None:
    policy = await add_policy(fleet, keep=Keep(last=2))
    kept = await add_kept(fleet, policy, "web", timedelta(0), DAY)
    old = await add_kept(fleet, policy, "web", 2 * DAY, 3 * DAY)
    only = await add_kept(fleet, policy, "db", 30 * DAY)
    async with fleet.transaction() as connection:
        by_hand = await backups.create(connection, "web", policy.spec.repository, "somebody")
        await connection.execute("UPDATE backups SET phase = 'kept' WHERE id = $1", by_hand.id)
    await step(fleet)
    phases = {backup.id: backup.phase for backup in await all_backups(fleet)}
    assert all(phases[id] is BackupPhase.DELETING for id in old)
    assert all(phases[id] in (BackupPhase.KEPT, BackupPhase.VERIFYING) for id in (*kept, *only, by_hand.id))


async def test_each_backup_is_read_back_one_at_a_time_on_each_node_and_again_later(fleet: Database) -> None:
    policy = await add_policy(fleet, verify_days=7)
    first, second = await add_kept(fleet, policy, "web", timedelta(0), timedelta(minutes=1))
    (other,) = await add_kept(fleet, policy, "db", timedelta(0))
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE backups SET verified_at = NULL")

    async def verifying() -> set[str]:
        return {backup.id for backup in await all_backups(fleet) if backup.phase is BackupPhase.VERIFYING}

    await step(fleet)
    assert await verifying() == {first, other}, "the newest one first"
    for backup in await all_backups(fleet):
        if backup.phase is BackupPhase.VERIFYING:
            await end(fleet, backup)
    await step(fleet)
    assert await verifying() == {second}
    await end(fleet, next(backup for backup in await all_backups(fleet) if backup.id == second))
    await step(fleet)
    assert await verifying() == set()
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE backups SET verified_at = now() - interval '8 days' WHERE id = $1", other)
    await step(fleet)
    assert await verifying() == {other}


async def test_a_vm_shows_how_old_its_newest_backup_is_and_when_that_is_too_old(fleet: Database) -> None:
    policy = await add_policy(fleet, vms=("web",), max_age_s=7200)
    await step(fleet)
    before = (await vm_of(fleet, "web")).backups
    assert before.policies == ("nightly",) and before.newest_at is None
    assert before.late_at is not None and before.late_at < datetime.now(UTC), "two days without a backup"
    assert (await vm_of(fleet, "db")).backups == BackupSummary()
    (backup,) = await all_backups(fleet)
    await end(fleet, backup)
    after = (await vm_of(fleet, "web")).backups
    assert after.newest_at == backup.created_at and after.late_at == backup.created_at + timedelta(seconds=7200)
    async with fleet.transaction() as connection:
        await backup_policies.delete(connection, policy.id, "test")
    await step(fleet)
    assert (await vm_of(fleet, "web")).backups.late_at is None


async def test_a_repository_that_a_policy_needs_is_not_forgotten(fleet: Database) -> None:
    policy = await add_policy(fleet)
    async with fleet.transaction() as connection:
        with pytest.raises(Conflict, match="backup policy nightly"):
            await backup_repositories.delete(connection, policy.spec.repository, "test")


async def test_a_change_that_would_cover_all_vms_by_accident_is_refused(fleet: Database) -> None:
    policy = await add_policy(fleet, vms=("web",))
    async with fleet.transaction() as connection:
        await connection.execute("DELETE FROM vms WHERE id = 'web'")
        with pytest.raises(InvalidInput, match="all VMs"):
            await backup_policies.configure(connection, policy.id, {"jitter_s": 60}, None, "test")


async def test_a_policy_whose_named_vms_are_gone_backs_nothing_else_up(fleet: Database) -> None:
    await add_policy(fleet, vms=("web",))
    async with fleet.transaction() as connection:
        await connection.execute("DELETE FROM vms WHERE id = 'web'")
    await step(fleet)
    assert await all_backups(fleet) == []
