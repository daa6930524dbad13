"""How drills went: the last runs of each, and no more."""

from __future__ import annotations

import secrets

import msgspec

from novacron.model.drill import DrillRun, RecordDrill
from novacron.store import events
from novacron.store.database import Connection
from novacron.store.rows import object_of

KEPT = 36
"""Runs of each drill: three years of monthly ones."""


async def record(connection: Connection, run: RecordDrill, actor: str) -> DrillRun:
    """Keep how a run went; forget the oldest ones of the same drill."""
    id = f"drill-{secrets.token_hex(8)}"
    row = await connection.fetchrow(
        "INSERT INTO drills (id, drill, verdict, started_at, ended_at, recorded_by, version, machine, measured,"
        " promised, steps, error) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) RETURNING *",
        id, run.drill, run.verdict, run.started_at, run.ended_at, actor, run.version, run.machine,
        msgspec.to_builtins(run.measured), msgspec.to_builtins(run.promised), msgspec.to_builtins(run.steps),
        run.error,
    )  # fmt: skip
    await connection.execute(
        "DELETE FROM drills WHERE id IN"
        " (SELECT id FROM drills WHERE drill = $1 ORDER BY ended_at DESC, id DESC OFFSET $2)",
        run.drill, KEPT,
    )  # fmt: skip
    said = f"drill {run.drill} {run.verdict}" + (f": {run.error}" if run.error else "")
    reason = "DrillFailed" if run.error else "DrillPassed"
    await events.record(connection, events.NewEvent("drill", id, run.drill, reason, said, actor))
    return object_of(DrillRun, row)
