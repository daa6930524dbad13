"""What keeps plans, migrations, proofs, replicas and backup policies waiting has a code, words and an event."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import AsyncMock, patch

import msgspec
import pytest

from novacron.control import plans as plan_controller
from novacron.control.backup_proofs import BackupProofs
from novacron.control.backups import BackupPolicies
from novacron.control.objects import Objects
from novacron.model.backup_policy import BackupPolicySpec
from novacron.model.backup_proof import BackupProof, ProofPhase, ProofProbe
from novacron.model.errors import Conflict, NoCapacity, NovaError, QuotaExceeded
from novacron.model.plan import PlanAction, PlanVm
from novacron.model.waiting import WaitCode
from novacron.store import backup_policies, backup_proofs, backups, migrations, nodes, plans
from novacron.store.backup_policies import CoveredVm, NewPolicy
from novacron.store.database import Connection, Database
from tests.integration.test_hindrances import NOT_CONNECTED, Reason, add_backup, lose_a
from tests.integration.test_hindrances import fleet as fleet
from tests.integration.test_proof_controller import FakeNodes

W = WaitCode
Case = Callable[[Database], Awaitable[Reason]]
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


async def told(connection: Connection, object_: str, reason: str) -> str:
    """Return the newest event of an object with this reason."""
    said = await connection.fetchval(
        "SELECT message FROM events WHERE object = $1 AND reason = $2 ORDER BY id DESC LIMIT 1", object_, reason
    )
    return said or ""


async def add_migration(connection: Connection, **columns: Any) -> None:
    await connection.execute(
        "INSERT INTO migrations (id, vm, vm_name, kind, source, target, epoch, phase, progress, policy, cause, error,"
        " waits_for, finished_at) VALUES ('mig-1', 'web', 'web', 'live', 'a', 'b', 1, $1, '{}', 'throttle', 'request',"
        " $2, $3, CASE WHEN $1 = 'pending' THEN NULL ELSE now() END)",
        columns.get("phase", "pending"), columns.get("error"), columns.get("waits_for"),
    )  # fmt: skip
    await connection.execute("UPDATE vms SET migration = CASE WHEN $1 THEN 'mig-1' END", "phase" not in columns)


# plans


async def planned(connection: Connection, **step: Any) -> str:
    """Begin a run of a plan for VM web, whose step is as given; return the plan's id."""
    plan = await plans.create(connection, "default", "shop", (PlanVm("web"),), "anna")
    await plans.begin(connection, plan.id, PlanAction.SWITCH, "anna")
    await connection.execute(
        "UPDATE plans SET runs = jsonb_set(runs, '{0,steps,0}', runs -> 0 -> 'steps' -> 0 || $1)", step
    )
    return plan.id


async def of_plan(database: Database, id: str) -> Reason:
    """Let the controller look, and return what is said of the plan's step."""
    await plan_controller.step(database, Objects("plans"))
    async with database.connection() as connection:
        run = (await plans.get(connection, id)).runs[0]
        (step,) = run.steps
        return Reason(step.reason_code, step.error, await told(connection, id, step.reason_code))


def plan_is_refused(error: NovaError) -> Case:
    async def case(database: Database) -> Reason:
        async with database.transaction() as connection:
            id = await planned(connection)
        with patch.object(plans, "_start", AsyncMock(side_effect=error)):
            return await of_plan(database, id)

    return case


def plan_has_begun(sql: str = "", began_at: datetime | None = None, **of_step: Any) -> Case:
    """``sql``: what has become of the VM."""

    async def case(database: Database) -> Reason:
        began = began_at or datetime.now(UTC)
        async with database.transaction() as connection:
            id = await planned(connection, phase="starting", began_at=msgspec.to_builtins(began), node="b", **of_step)
            if sql:
                await connection.execute(sql)
        return await of_plan(database, id)

    return case


def plan_moves(**columns: Any) -> Case:
    async def case(database: Database) -> Reason:
        async with database.transaction() as connection:
            await add_migration(connection, **columns)
        return await plan_has_begun(migration="mig-1")(database)

    return case


async def plan_is_stopped(database: Database) -> Reason:
    async with database.transaction() as connection:
        id = await planned(connection)
        await plans.stop(connection, id, "anna")
    async with database.connection() as connection:
        stopped = (await plans.get(connection, id)).runs[0].steps[0]
        assert await told(connection, id, "PlanStopped"), "the event says by whom"
    return Reason(stopped.reason_code, stopped.error, stopped.error)


# migrations


async def migration_is_queued(database: Database) -> Reason:
    why = "node b has 2 migrations in progress"
    async with database.transaction() as connection:
        await add_migration(connection)
        for words in (why, "node b has 3 migrations in progress", why):
            await migrations.share(connection, {}, {"mig-1": words})
    async with database.connection() as connection:
        count = await connection.fetchval("SELECT count(*) FROM events WHERE reason = 'MigrationQueued'")
        assert count == 1, "one event when it begins"
        now = await migrations.get(connection, "mig-1")
        return Reason(W.MIGRATION_QUEUED, now.waits_for or "", await told(connection, "web", W.MIGRATION_QUEUED))


# proofs


async def proved(database: Database, phase: ProofPhase, vm: str = "", since: datetime | None = None) -> None:
    async with database.transaction() as connection:
        await add_backup(connection)
        proof = BackupProof(phase, ProofProbe(), LONG_AGO, since or datetime.now(UTC), vm)
        await connection.execute("UPDATE backups SET phase = 'kept', proof = $1", msgspec.to_builtins(proof))


async def of_proof(database: Database, *, ended: bool = False) -> Reason:
    await BackupProofs(FakeNodes("a")).step(database, Objects("proofs"))
    async with database.connection() as connection:
        proof = (await backups.get(connection, "backup-1")).proof
        assert proof is not None
        event = await told(connection, "web", "BackupNotProved" if ended else proof.reason_code)
    return Reason(proof.reason_code, proof.error, event)


def proof_is_refused(error: NovaError) -> Case:
    async def case(database: Database) -> Reason:
        await proved(database, ProofPhase.WAITING)
        with patch.object(backup_proofs, "begin", AsyncMock(side_effect=error)):
            return await of_proof(database)

    return case


def proof_restores(reason: str = "", code: str = "", *, since: datetime | None = None, vm: str = "web") -> Case:
    """The VM that is made for it is web, or gone."""

    async def case(database: Database) -> Reason:
        await proved(database, ProofPhase.RESTORING, vm, since)
        async with database.transaction() as connection:
            status = {"state": "pending", "reason": reason, "reason_code": code}
            await connection.execute("UPDATE vms SET status = status || $1, proof_of = 'backup-1'", status)
        return await of_proof(database, ended=since is not None or vm != "web")

    return case


# backup policies


def policy_is_refused(error: NovaError) -> Case:
    async def case(database: Database) -> Reason:
        async with database.transaction() as connection:
            await add_backup(connection)
            await connection.execute(
                "INSERT INTO project_keys (id, project_id, wrapped) VALUES ('key-0123456789abcdef', 'default', 'x')"
            )
            await connection.execute("UPDATE backup_repositories SET key = 'key-0123456789abcdef'")
            new = NewPolicy("default", "daily", BackupPolicySpec(repository="repo-1"))
            policy = await backup_policies.create(connection, new, "anna")
        web, now = CoveredVm("web", "web", "a", LONG_AGO, None, ()), datetime.now(UTC)
        with patch.object(backups, "create", AsyncMock(side_effect=error)):
            due = [(web, now - timedelta(days=1))]
            problems = await BackupPolicies(0.0)._ask_for(database, policy, due, now)
        async with database.transaction() as connection:
            await backup_policies.set_problems(connection, policy, problems)
        async with database.connection() as connection:
            (problem,) = (await backup_policies.get(connection, policy.id)).problems
            return Reason(problem.reason_code, problem.error, await told(connection, "web", "BackupNotAsked"))

    return case


# replicas


async def replica_loses_its_node(database: Database) -> Reason:
    async with database.transaction() as connection:
        await connection.execute(
            "INSERT INTO replicas (id, vm, vm_name, node, site, phase, rpo_s, points_kept, project)"
            " VALUES ('replica-1', 'web', 'web', 'b', 'default', 'following', 30, 3, 'default')"
        )
        await connection.execute("UPDATE replicas SET node = 'a'")
        await connection.execute("UPDATE vms SET node = 'b'")
        await lose_a(connection)
        row = await connection.fetchrow("SELECT error, reason_code FROM replicas")
        assert row is not None
        said = Reason(row["reason_code"], row["error"], row["error"])
        await connection.execute("UPDATE node_leases SET renewed_at = now() WHERE node = 'a'")
        await nodes.mark_lost(connection, ["a"], 16.0)
        assert await connection.fetchval("SELECT reason_code FROM replicas") == "", "its node is back"
    return said


NO_ROOM, NO_QUOTA, NO = NoCapacity("node b is full"), QuotaExceeded("2 VMs are all"), Conflict("it is being cloned")
LOST = 'UPDATE vms SET status = status || \'{"state": "pending", "reason": "waits", "reason_code": "NodeLost"}\''
CASES: dict[tuple[str, WaitCode], tuple[Case, str]] = {
    ("replica", W.NODE_LOST): (replica_loses_its_node, NOT_CONNECTED),
    ("migration", W.MIGRATION_QUEUED): (migration_is_queued, "has 2 migrations in progress"),
    ("plan", W.UNPLACED): (plan_is_refused(NO_ROOM), "node b is full"),
    ("plan", W.QUOTA_EXCEEDED): (plan_is_refused(NO_QUOTA), "2 VMs are all"),
    ("plan", W.REFUSED): (plan_is_refused(NO), "being cloned"),
    ("plan", W.NODE_LOST): (plan_has_begun(LOST), "waits"),
    ("plan", W.MIGRATION_QUEUED): (plan_moves(waits_for="node b has 2 moves under way"), "2 moves under way"),
    ("plan", W.MOVE_FAILED): (plan_moves(phase="failed", error="the link was cut"), "the link was cut"),
    ("plan", W.VM_GONE): (plan_has_begun("DELETE FROM vms"), "was deleted"),
    ("plan", W.TIME_LIMIT): (plan_has_begun(LOST, LONG_AGO), "not running within 600 s: waits"),
    ("plan", W.ABORTED): (plan_is_stopped, "stopped by anna"),
    ("proof", W.UNPLACED): (proof_is_refused(NO_ROOM), "node b is full"),
    ("proof", W.QUOTA_EXCEEDED): (proof_is_refused(NO_QUOTA), "2 VMs are all"),
    ("proof", W.REFUSED): (proof_is_refused(NO), "being cloned"),
    ("proof", W.DISK_BEING_MADE): (proof_restores("its disk is being created", W.DISK_BEING_MADE), "is being created"),
    ("proof", W.VM_GONE): (proof_restores(vm="vm-gone"), "its VM was deleted"),
    ("proof", W.TIME_LIMIT): (proof_restores(since=LONG_AGO), "was not created in time"),
    ("backup-policy", W.NODE_LOST): (policy_is_refused(backups.NodeAway("node a is not ready")), "is not ready"),
    ("backup-policy", W.QUOTA_EXCEEDED): (policy_is_refused(NO_QUOTA), "2 VMs are all"),
    ("backup-policy", W.REFUSED): (policy_is_refused(NO), "being cloned"),
}


@pytest.mark.parametrize(("kind", "code"), CASES)
async def test_what_keeps_a_run_waiting_has_a_code_words_and_an_event(
    fleet: Database,
    kind: str,
    code: WaitCode,
) -> None:
    case, words = CASES[kind, code]
    said = await case(fleet)
    assert (said.code, words in said.words, words in said.event) == (code, True, True), said
