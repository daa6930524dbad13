"""Backup policies: what users ask for, and which VMs each covers."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import asyncpg
import msgspec

from novacron.model import limits
from novacron.model.backup_policy import (
    PROBLEMS_MAX,
    BackupPolicy,
    BackupPolicySpec,
    PolicyProblem,
)
from novacron.model.errors import Conflict, InvalidInput, NotFound, PreconditionFailed
from novacron.store import backup_repositories, events, projects
from novacron.store.backup_calendar import promise_s
from novacron.store.database import Connection
from novacron.store.rows import object_of

IS_ENABLED = "p.spec -> 'enabled' = 'true'"
COVERS = (
    f"p.project = v.project AND v.proof_of = '' AND {IS_ENABLED}"
    " AND ((p.spec -> 'vms' = '[]' AND p.spec -> 'tags' = '[]') OR p.spec -> 'vms' ? v.id"
    " OR v.tags ?| ARRAY(SELECT jsonb_array_elements_text("
    "CASE WHEN jsonb_typeof(p.spec -> 'tags') = 'array' THEN p.spec -> 'tags' ELSE '[]' END)))"
)
"""Policy ``p`` covers VM ``v``."""
VMS_MAX = 1000
"""VMs that one statement looks at."""
RESETS = frozenset({"schedule", "time_zone", "enabled", "vms", "tags"})
"""What a change of makes earlier times of the schedule count no more."""


def _policy(row: asyncpg.Record | None) -> BackupPolicy:
    return object_of(BackupPolicy, row)


class NewPolicy(NamedTuple):
    """A policy that is to be created. The repository in its spec is an id, as its VMs are."""

    project: str
    name: str
    spec: BackupPolicySpec


async def create(connection: Connection, new: NewPolicy, actor: str) -> BackupPolicy:
    """Store a new policy. Raises NotFound, Conflict, InvalidInput."""
    await projects.lock_usage(connection, new.project)
    count = await connection.fetchval("SELECT count(*) FROM backup_policies WHERE project = $1", new.project)
    if count >= limits.BACKUP_POLICIES_PER_PROJECT_MAX:
        raise Conflict(f"project {new.project} has {count} backup policies", hint="delete one: novacron backup policy")
    promise, into_name = await _checked(connection, new.project, new.spec)
    try:
        row = await connection.fetchrow(
            "INSERT INTO backup_policies (id, name, spec, repository, repository_name, promise_s, project)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING *",
            f"policy-{secrets.token_hex(8)}", new.name, msgspec.to_builtins(new.spec), new.spec.repository, into_name,
            promise, new.project,
        )  # fmt: skip
    except asyncpg.UniqueViolationError:
        raise Conflict(f"a backup policy named {new.name!r} exists", field="name", hint="choose another name") from None
    policy = _policy(row)
    await _record(connection, policy, "Created", f"{new.spec.schedule}, into {into_name}", actor)
    return policy


async def _checked(connection: Connection, project: str, spec: BackupPolicySpec) -> tuple[int, str]:
    """Return what a spec promises, and the name of its repository. Raises NotFound, InvalidInput."""
    promise = promise_s(spec, await connection.fetchval("SELECT now()"))
    into = await backup_repositories.get(connection, spec.repository, lock=True)
    if into.project != project:
        raise InvalidInput(
            f"backup repository {into.name} belongs to project {into.project}", field="repository",
            hint=f"novacron --project {project} backup repository create NAME",
        )  # fmt: skip
    if spec.vms:
        of_project = await connection.fetchval(
            "SELECT count(*) FROM vms WHERE project = $1 AND id = ANY($2)", project, list(spec.vms)
        )
        if of_project != len(set(spec.vms)):
            raise InvalidInput(
                f"some of the VMs are not in project {project}", field="vms", hint="see: novacron vm list"
            )
    return promise, into.name


async def get(connection: Connection, id: str, *, lock: bool = False) -> BackupPolicy:
    """Return the policy with this id. Raises NotFound."""
    query = "SELECT * FROM backup_policies WHERE id = $1" + (" FOR UPDATE" if lock else "")
    row = await connection.fetchrow(query, id)
    if row is None:
        raise NotFound(f"there is no backup policy {id!r}", hint="see: novacron backup policy list")
    return _policy(row)


async def configure(
    connection: Connection, id: str, changes: dict[str, Any], if_match: int | None, actor: str
) -> BackupPolicy:
    """Change what a policy does. Raises NotFound, PreconditionFailed, InvalidInput."""
    before = await get(connection, id, lock=True)
    if if_match is not None and if_match != before.revision:
        raise PreconditionFailed(
            f"backup policy {before.name} is at revision {before.revision}, not {if_match}", field="If-Match",
            hint="read it again, look at what changed, and repeat",
        )  # fmt: skip
    spec = msgspec.structs.replace(before.spec, **changes)
    if "vms" not in changes:  # those that were deleted are named no more
        there = await connection.fetch("SELECT id FROM vms WHERE id = ANY($1)", list(spec.vms))
        spec = msgspec.structs.replace(spec, vms=tuple(vm for vm in spec.vms if vm in {row["id"] for row in there}))
        if before.spec.vms and not spec.vms and not spec.tags:
            raise InvalidInput(
                f"all VMs of backup policy {before.name} were deleted: an empty list would mean all VMs",
                field="vms", hint="set vms in this change: to other VMs, or to an empty list for all",
            )  # fmt: skip
    promise, into_name = await _checked(connection, before.project, spec)
    resets = any(getattr(before.spec, field) != getattr(spec, field) for field in RESETS)
    row = await connection.fetchrow(
        "UPDATE backup_policies SET spec = $2, repository = $3, repository_name = $4, promise_s = $5,"
        " effective_from = CASE WHEN $6 THEN now() ELSE effective_from END, problems = '[]', problem_count = 0"
        " WHERE id = $1 RETURNING *",
        id, msgspec.to_builtins(spec), spec.repository, into_name, promise, resets,
    )  # fmt: skip
    policy = _policy(row)
    changed = [field for field in spec.__struct_fields__ if getattr(before.spec, field) != getattr(spec, field)]
    await _record(connection, policy, "Configured", ", ".join(changed) or "nothing changed", actor)
    return policy


async def run(connection: Connection, id: str, actor: str) -> BackupPolicy:
    """Have all VMs of a policy backed up now. Raises NotFound, Conflict."""
    policy = await get(connection, id, lock=True)
    if not policy.spec.enabled:
        raise Conflict(
            f"backup policy {policy.name} is disabled", hint=f"novacron backup policy set {policy.name} --enabled"
        )
    row = await connection.fetchrow("UPDATE backup_policies SET run_at = now() WHERE id = $1 RETURNING *", id)
    await _record(connection, policy, "RunAsked", "a backup of each of its VMs", actor)
    return _policy(row)


async def delete(connection: Connection, id: str, actor: str) -> BackupPolicy:
    """Delete a policy; its backups are kept. Raises NotFound."""
    policy = await get(connection, id, lock=True)
    await connection.execute("DELETE FROM backup_policies WHERE id = $1", id)
    await _record(connection, policy, "Deleted", "its backups are kept", actor)
    return policy


async def enabled(connection: Connection) -> Sequence[str]:
    """Return the ids of all policies that do something."""
    rows = await connection.fetch(f"SELECT id FROM backup_policies p WHERE {IS_ENABLED} ORDER BY created_at, id")
    return [row["id"] for row in rows]


class CoveredVm(NamedTuple):
    """A VM that a policy covers and did not back up since a moment."""

    id: str
    name: str
    node: str | None
    created_at: datetime
    asked_at: datetime | None
    failed_at: Sequence[datetime]
    """When its backups that failed were asked for, newest first."""


class CoveredVms(NamedTuple):
    """Some of the VMs that a policy covers, in the order of their ids."""

    waiting: Sequence[CoveredVm]
    """Those of them for which it asked for no backup since a moment."""
    last: str
    """The last one that was looked at; empty: there are no more."""


async def covered_after(
    connection: Connection, policy: BackupPolicy, id: str, moment: datetime, failed_max: int
) -> CoveredVms:
    """Return the next VMs behind this one that wait for a backup since ``moment``. A backup that failed does not
    count."""
    rows = await connection.fetch(
        "WITH covered AS MATERIALIZED (SELECT v.id, v.name, v.node, v.created_at FROM backup_policies p"
        f"  JOIN vms v ON {COVERS} WHERE p.id = $1 AND v.id > $2 AND NOT v.deleting AND v.lost_on IS NULL"
        "  ORDER BY v.id LIMIT $5),"
        " asked AS (SELECT vm, max(created_at) AS at FROM backups WHERE policy = $1 AND phase <> 'failed'"
        "  AND vm IN (SELECT id FROM covered) GROUP BY vm)"
        " SELECT c.id, c.name, c.node, c.created_at, asked.at AS asked_at, asked.at IS NULL OR asked.at < $3 AS waits,"
        " ARRAY(SELECT created_at FROM backups b WHERE b.policy = $1 AND b.vm = c.id AND b.phase = 'failed'"
        "  ORDER BY created_at DESC LIMIT $4) AS failed_at"
        " FROM covered c LEFT JOIN asked ON asked.vm = c.id ORDER BY c.id",
        policy.id, id, moment, failed_max, VMS_MAX,
    )  # fmt: skip
    waiting = [
        CoveredVm(row["id"], row["name"], row["node"], row["created_at"], row["asked_at"], row["failed_at"])
        for row in rows if row["waits"]
    ]  # fmt: skip
    return CoveredVms(waiting, rows[-1]["id"] if len(rows) == VMS_MAX else "")


async def set_problems(connection: Connection, policy: BackupPolicy, problems: Sequence[PolicyProblem]) -> None:
    """Store which VMs of a policy can't be backed up, and say so of those of which it is new."""
    named = tuple(problems[:PROBLEMS_MAX])
    if (policy.problems, policy.problem_count) == (named, len(problems)):
        return
    await connection.execute(
        "UPDATE backup_policies SET problems = $2, problem_count = $3 WHERE id = $1",
        policy.id, msgspec.to_builtins(named), len(problems),
    )  # fmt: skip
    before = {(problem.vm, problem.error) for problem in policy.problems}
    await events.record_all(connection, [
        events.NewEvent("vm", problem.vm, problem.vm_name, "BackupNotAsked",
                        f"backup policy {policy.name}: {problem.error}", project=policy.project)
        for problem in named if (problem.vm, problem.error) not in before
    ])  # fmt: skip


async def to_verify(connection: Connection, policy: BackupPolicy) -> Sequence[str]:
    """Return backups of a policy that are to be read back: of each node that does nothing else about backups the one
    that waits longest, and before those the newest one that was never read back."""
    if policy.spec.verify_days is None:
        return []
    rows = await connection.fetch(
        "SELECT due.id FROM nodes n CROSS JOIN LATERAL (SELECT b.id FROM backups b"
        "  WHERE b.policy = $1 AND b.node = n.name AND b.phase = 'kept'"
        "  AND (b.verified_at IS NULL OR b.verified_at < now() - make_interval(days => $2))"
        "  AND NOT (b.error <> '' AND b.verify_asked_at > now() - interval '1 hour')"
        "  ORDER BY b.verified_at NULLS FIRST, b.created_at DESC LIMIT 1) due"
        " WHERE n.status -> 'ready' = 'true'"
        " AND NOT EXISTS (SELECT FROM backups w WHERE w.node = n.name"
        "  AND w.phase IN ('making', 'verifying', 'deleting'))",
        policy.id, policy.spec.verify_days,
    )  # fmt: skip
    return [row["id"] for row in rows]


class KeptBackup(NamedTuple):
    """A backup of a policy that is whole, as far as known."""

    id: str
    vm: str
    created_at: datetime


async def kept_backups(
    connection: Connection, policy: BackupPolicy, after_vm: str, vms_max: int
) -> Sequence[KeptBackup]:
    """Return the kept backups of the next VMs, in the order of their ids, that have several of a policy."""
    rows = await connection.fetch(
        "SELECT b.id, b.vm, b.created_at FROM backups b WHERE b.policy = $1 AND b.phase IN ('kept', 'verifying')"
        " AND b.vm IN (SELECT vm FROM backups WHERE policy = $1 AND vm > $2 AND phase IN ('kept', 'verifying')"
        "  GROUP BY vm HAVING count(*) > 1 ORDER BY vm LIMIT $3) ORDER BY b.vm",
        policy.id, after_vm, vms_max,
    )  # fmt: skip
    return [KeptBackup(*row.values()) for row in rows]


async def old_failures(connection: Connection, policy: BackupPolicy, kept: int, count_max: int) -> Sequence[str]:
    """Return failed backups of a policy beyond the newest ``kept`` of each VM."""
    rows = await connection.fetch(
        "SELECT id FROM (SELECT id, row_number() OVER (PARTITION BY vm ORDER BY created_at DESC) AS number"
        "  FROM backups WHERE policy = $1 AND phase = 'failed') failed WHERE number > $2 LIMIT $3",
        policy.id, kept, count_max,
    )  # fmt: skip
    return [row["id"] for row in rows]


async def _record(connection: Connection, policy: BackupPolicy, reason: str, message: str, actor: str) -> None:
    new = events.NewEvent("backup-policy", policy.id, policy.name, reason, message, actor, project=policy.project)
    await events.record(connection, new)
