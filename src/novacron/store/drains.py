"""Drains: which VMs have yet to leave a node that is emptied, or to come back to it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import asyncpg
import msgspec

from novacron.model import limits
from novacron.model.drain import (
    TIME_LIMIT_S_DEFAULT,
    Drain,
    DrainPhase,
    DrainPolicy,
    Stays,
    Why,
    estimate_s,
    is_blocked,
    unfinished,
)
from novacron.model.errors import NotFound
from novacron.model.node import Node
from novacron.model.waiting import WaitCode
from novacron.store import events
from novacron.store.database import Connection
from novacron.store.rows import decode_each, object_of, report_bad_row

RETRY_AFTER_S, RETRY_AFTER_S_MAX = 30.0, 600.0
"""A VM whose move has failed is moved again after this, after twice as long the next time, and so on."""
LEAVE_AFTER_S = 15.0
"""A guest that writes too fast for so long is left where it is, if that is the policy."""
DOWNTIME_MS_MAX = 2000.0
"""A guest that would stand still for longer is left where it is, too."""
COLD_MIB = 64
"""What a VM that does not run counts for, in an estimate."""
ENDS_BY = "clock_timestamp() + make_interval(secs => %s::int)"


def _drain(row: asyncpg.Record | None) -> Drain:
    return object_of(Drain, row)


async def begin(
    connection: Connection, node: str, policy: DrainPolicy, actor: str, time_limit_s: int = TIME_LIMIT_S_DEFAULT
) -> Drain:
    """Begin to empty a node, or go on with that under another policy: what was given up is tried again."""
    row = await connection.fetchrow(
        "UPDATE drains SET policy = $2, given_up = '[]', stays = '[]', phase = 'draining', moved ="
        " CASE WHEN phase IN ('draining', 'blocked') THEN moved ELSE '[]' END, reason = '', reason_code = '',"
        f" time_limit_s = $3, ends_by = {ENDS_BY % '$3'} WHERE node = $1 AND finished_at IS NULL RETURNING *",
        node, policy, time_limit_s,
    )  # fmt: skip
    if row is None:
        row = await connection.fetchrow(
            "INSERT INTO drains (id, node, policy, actor, phase, total, time_limit_s, ends_by)"
            f" SELECT $1, $2, $3, $4, 'draining', count(*), $5, {ENDS_BY % '$5'} FROM vms WHERE node = $2 RETURNING *",
            f"drain-{secrets.token_hex(8)}", node, policy, actor, time_limit_s,
        )  # fmt: skip
    return _drain(row)


async def end(connection: Connection, node: str, *, bring_back: bool) -> Drain | None:
    """A node is taken into use again; what its last drain has moved comes back if that is wanted."""
    row = await connection.fetchrow("SELECT * FROM drains WHERE node = $1 ORDER BY created_at DESC LIMIT 1", node)
    if row is None or (row["finished_at"] is not None and not bring_back):
        return None
    if bring_back:
        row = await connection.fetchrow(
            "UPDATE drains SET phase = 'returning', total = jsonb_array_length(moved), moving = '[]', stays = '[]',"
            " given_up = '[]', estimate_s = NULL, finished_at = NULL, reason = '', reason_code = '',"
            f" ends_by = {ENDS_BY % 'time_limit_s'} WHERE id = $1 RETURNING *",
            row["id"],
        )
    else:
        row = await finish(connection, row["id"], DrainPhase.ENDED)
    return _drain(row)


async def finish(connection: Connection, id: str, phase: DrainPhase) -> asyncpg.Record | None:
    """End a drain."""
    row = await connection.fetchrow(
        "UPDATE drains SET phase = $2, moving = '[]', stays = CASE WHEN $2 = 'drained' THEN '[]' ELSE stays END,"
        " reason = '', reason_code = '', estimate_s = 0, finished_at = clock_timestamp() WHERE id = $1 RETURNING *",
        id, phase,
    )  # fmt: skip
    if row is not None and phase is DrainPhase.DRAINED:
        await _record(connection, row["node"], "Drained", "no VMs are left on it")
    return row


async def fail(connection: Connection, drain: Drain, stays: Sequence[Stays], left: int) -> None:
    """End a drain whose time limit has passed. Moves that are under way go on."""
    reason = f"time limit of {drain.time_limit_s} s: {unfinished(drain.node, tuple(stays), left)}"
    await connection.execute(
        "UPDATE drains SET phase = 'failed', moving = '[]', stays = $2, reason = $3, reason_code = $4,"
        " estimate_s = NULL, finished_at = clock_timestamp() WHERE id = $1",
        drain.id, msgspec.to_builtins(stays), reason, WaitCode.TIME_LIMIT,
    )  # fmt: skip
    await _record(connection, drain.node, "DrainFailed", reason)


async def _record(connection: Connection, node: str, reason: str, message: str) -> None:
    await events.record(connection, events.NewEvent("node", node, node, reason, message))


async def clock(connection: Connection) -> datetime:
    """Return the time that drains go by."""
    now: datetime = await connection.fetchval("SELECT clock_timestamp()")
    return now


async def get(connection: Connection, id: str) -> Drain:
    """Return a drain. Raises NotFound."""
    row = await connection.fetchrow("SELECT * FROM drains WHERE id = $1", id)
    if row is None:
        raise NotFound(f"there is no drain {id!r}", hint="see: novacron node drains")
    return _drain(row)


async def goes_on(connection: Connection, drain: Drain) -> bool:
    """Say whether a drain goes on as it was read, and keep it from ending before this transaction does."""
    row = await connection.fetchrow("SELECT * FROM drains WHERE id = $1 FOR SHARE", drain.id)
    return row is not None and row["finished_at"] is None and _drain(row).leaves is drain.leaves


async def active(connection: Connection) -> list[Drain]:
    """Return the drains that have not ended, oldest first."""
    rows = await connection.fetch("SELECT * FROM drains WHERE finished_at IS NULL ORDER BY created_at")
    return decode_each("drains", rows, _drain)


UNREADABLE = "unreadable"
"""State of a VM whose row can't be decoded: it can't be moved, but it is there."""


class Waiting(msgspec.Struct, frozen=True):
    """A VM that is not where it should be."""

    id: str
    name: str
    state: str
    memory_mib: int
    migration: str | None
    failures: int
    """How often its move has failed since the drain began."""
    failed_s: float | None
    """How long ago it has failed last."""
    error: str | None

    @property
    def cost_mib(self) -> int:
        return self.memory_mib if self.state in ("running", "paused") else COLD_MIB

    @property
    def rests_s(self) -> float:
        """Return how long it is not tried again."""
        if not self.failures or self.failed_s is None:
            return 0.0
        return max(0.0, min(RETRY_AFTER_S * 2.0 ** (self.failures - 1), RETRY_AFTER_S_MAX) - self.failed_s)


WAITING = """
    SELECT v.id, v.name, v.status -> 'state' AS state, v.spec -> 'memory_mib' AS memory_mib, v.migration,
           coalesce(f.failures, 0) AS failures, f.failed_s, f.error
    FROM vms v LEFT JOIN LATERAL (
        SELECT count(*) AS failures,
               extract(epoch FROM clock_timestamp() - max(m.finished_at))::float AS failed_s,
               (array_agg(m.error ORDER BY m.finished_at DESC))[1] AS error
        FROM migrations m WHERE m.vm = v.id AND m.phase IN ('failed', 'aborted') AND m.created_at >= $2
    ) f ON true
    WHERE NOT v.deleting AND """


async def to_leave(connection: Connection, drain: Drain) -> list[Waiting]:
    """Return the VMs that are on a node yet: what takes longest first, so that all is over soonest."""
    rows = await connection.fetch(WAITING + "v.node = $1", drain.node, drain.created_at)
    return _longest_first(rows)


async def to_return(connection: Connection, drain: Drain) -> list[Waiting]:
    """Return the VMs that have left a node and are not back."""
    rows = await connection.fetch(
        WAITING + "v.id = ANY($3) AND v.node <> $1", drain.node, drain.created_at, list(drain.moved)
    )
    return _longest_first(rows)


def _longest_first(rows: Sequence[Any]) -> list[Waiting]:
    return sorted(map(_waiting, rows), key=lambda vm: (-vm.cost_mib, vm.id))


def _waiting(row: asyncpg.Record) -> Waiting:
    try:
        return msgspec.convert(dict(row), Waiting)
    except msgspec.ValidationError as error:  # the drain must not end as if the VM were gone
        report_bad_row("vms", row["id"], error)
        return Waiting(row["id"], row["name"], UNREADABLE, 0, row["migration"], 0, None, None)


async def has_moved(connection: Connection, drain: Drain) -> list[str]:
    """Return the VMs that this drain has moved away, and that nobody has moved on since."""
    rows = await connection.fetch(
        "SELECT DISTINCT ON (m.vm) m.vm FROM migrations m JOIN vms v ON v.id = m.vm"
        " WHERE m.source = $1 AND m.cause = 'drain' AND m.phase = 'completed' AND m.created_at >= $2"
        " AND v.node = m.target ORDER BY m.vm",
        drain.node, drain.created_at,
    )  # fmt: skip
    return [row["vm"] for row in rows]


async def _under_way(connection: Connection, node: str) -> int:
    """Return how many migrations a node has a part in."""
    count: int = await connection.fetchval(
        "SELECT count(*) FROM migrations WHERE finished_at IS NULL AND (source = $1 OR target = $1)", node
    )
    return count


class Hopeless(NamedTuple):
    """A move that does not come to an end, or only with a long downtime."""

    migration: str
    vm: str
    why: str


async def hopeless(connection: Connection, drain: Drain) -> list[Hopeless]:
    """Return the moves whose guests have written too fast for too long: they do not converge, or their downtime would
    be too long."""
    rows = await connection.fetch(
        "SELECT id, vm, progress -> 'forecast' ->> 'reason' AS why,"
        " progress -> 'forecast' -> 'downtime_ms' AS downtime_ms FROM migrations"
        " WHERE finished_at IS NULL AND source = $1 AND cause = 'drain' AND phase = 'transferring'"
        " AND (progress -> 'forecast' -> 'converges' = 'false'"
        " OR progress -> 'forecast' -> 'downtime_ms' > to_jsonb($3::float))"
        " AND progress -> 'elapsed_s' > to_jsonb($2::float)",
        drain.node, LEAVE_AFTER_S, DOWNTIME_MS_MAX,
    )  # fmt: skip
    return [
        Hopeless(row["id"], row["vm"], row["why"] or f"its downtime would be {(row['downtime_ms'] or 0) / 1e3:.1f} s")
        for row in rows
    ]


async def give_up(connection: Connection, drain: Drain, vm: str) -> None:
    """Leave a VM where it is, as far as this drain goes."""
    await connection.execute(
        "UPDATE drains SET given_up = given_up || to_jsonb($2::text) WHERE id = $1 AND policy = 'leave'"
        " AND NOT given_up ? $2",
        drain.id,
        vm,
    )


class DrainProgress(NamedTuple):
    """How far a drain is: VMs that have moved, those that wait, those that can't leave now, and what moved in MiB."""

    moved: list[str]
    waiting: list[Waiting]
    stays: list[Stays]
    done_mib: int
    begun: int = 0
    """Moves that began at this look."""


async def report(connection: Connection, drain: Drain, progress: DrainProgress) -> None:
    """Store how far a drain is, if that has changed."""
    passed_s: float = await connection.fetchval(
        "SELECT extract(epoch FROM clock_timestamp() - created_at)::float FROM drains WHERE id = $1", drain.id
    )
    now = _reported(drain, progress)
    if now == drain:  # the controller is woken by what it writes here
        return
    rest_s = estimate_s(progress.done_mib, sum(vm.cost_mib for vm in progress.waiting), passed_s)
    await connection.execute(
        "UPDATE drains SET total = $2, moved = $3, moving = $4, stays = $5, estimate_s = $6, phase = $7, reason = $8,"
        " reason_code = $9 WHERE id = $1",
        drain.id, now.total, now.moved, now.moving, msgspec.to_builtins(now.stays), rest_s, now.phase, now.reason,
        now.reason_code,
    )  # fmt: skip
    if now.phase is DrainPhase.BLOCKED and drain.phase is not DrainPhase.BLOCKED:
        await _record(connection, drain.node, "DrainBlocked", now.reason)


def _reported(drain: Drain, progress: DrainProgress) -> Drain:
    """Return a drain as it is after one look."""
    moving = tuple(vm.id for vm in progress.waiting if vm.migration is not None)
    blocked = is_blocked(len(moving) + progress.begun, len(progress.waiting), len(progress.stays))
    phase = drain.phase
    if drain.leaves:
        phase = DrainPhase.BLOCKED if blocked else DrainPhase.DRAINING
    return msgspec.structs.replace(
        drain,
        total=max(drain.total, len(progress.moved) + len(progress.waiting)),
        moved=tuple(progress.moved),
        moving=moving,
        stays=tuple(progress.stays),
        phase=phase,
        reason=unfinished(drain.node, tuple(progress.stays), len(progress.waiting)) if blocked else "",
        reason_code=WaitCode.BLOCKED if blocked else "",
    )


async def blocked(connection: Connection, drain: Drain, vm: Waiting, why: Why) -> None:
    """Record why a VM can't leave."""
    await events.record(
        connection, events.NewEvent("vm", vm.id, vm.name, "DrainBlocked", why.words, events.DRAIN_OF + drain.node)
    )


async def slots(connection: Connection, node: Node) -> int:
    """Return how many more migrations a drain may ask for: those that may begin now, and those that are to wait."""
    return max(0, node.migrations_at_once + limits.DRAIN_AHEAD - await _under_way(connection, node.name))
