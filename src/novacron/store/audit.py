"""The audit log: every change and every refusal, by whom, from where, and what came of it. Rows are only added."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from novacron.model.audit import ApiCall, AuditedRequest, AuditRecord
from novacron.store import deferred_writes
from novacron.store.database import Connection

AUDIT = deferred_writes.Table(
    "audit",
    {
        "actor": "text", "user_id": "text", "token": "text", "address": "text", "method": "text", "path": "text",
        "action": "text", "object": "text", "name": "text", "project": "text", "outcome": "text", "status": "int",
        "detail": "text", "request_id": "text",
    },
)  # fmt: skip


COLUMNS = ", ".join(AuditRecord.__struct_fields__)


def rows_of(requests: Sequence[AuditedRequest]) -> list[Sequence[object]]:
    """Return what was asked as rows of its table."""
    return [[getattr(request, column) for column in AUDIT.columns] for request in requests]


async def add(connection: Connection, requests: Sequence[AuditedRequest]) -> None:
    """Add what was asked, and what came of it; in the transaction of the change, if there was one."""
    await deferred_writes.add(connection, AUDIT, rows_of(requests))


class Filters(msgspec.Struct, frozen=True):
    """What to look for; None: anything."""

    actor: str | None = None
    object: str | None = None
    project: str | None = None
    action: str | None = None
    outcome: str | None = None
    address: str | None = None
    since: datetime | None = None
    until: datetime | None = None


async def search(connection: Connection, filters: Filters, before: int | None, limit: int) -> list[AuditRecord]:
    """Return records, newest first, older than the one with id ``before``."""
    terms, values = ["true"], list[Any]()

    def where(term: str, value: object) -> None:
        if value is not None:
            values.append(value)
            terms.append(term.format(f"${len(values)}"))

    where("actor = {}", filters.actor)
    where("(object = {0} OR name = {0})", filters.object)
    where("project = {}", filters.project)
    where("action = {}", filters.action)
    where("outcome = {}", filters.outcome)
    where("address = {}", filters.address)
    where("at >= {}", filters.since)
    where("at < {}", filters.until)
    where("id < {}", before)
    values.append(limit)
    rows = await connection.fetch(
        f"SELECT {COLUMNS} FROM audit WHERE {' AND '.join(terms)} ORDER BY id DESC LIMIT ${len(values)}", *values
    )
    return [msgspec.convert(dict(row), AuditRecord) for row in rows]


async def add_calls(connection: Connection, calls: Sequence[ApiCall]) -> None:
    """Add calls to the API's log."""
    await connection.copy_records_to_table(
        "api_log",
        records=[
            (c.at, c.request_id, c.method, c.route, c.status, c.duration_ms, c.user_name, c.address) for c in calls
        ],
        columns=["at", "request_id", "method", "route", "status", "duration_ms", "user_name", "address"],
    )


async def calls(
    connection: Connection, user: str | None, route: str | None, errors: bool, since: datetime | None, limit: int
) -> list[ApiCall]:
    """Return calls, newest first."""
    rows = await connection.fetch(
        "SELECT * FROM api_log WHERE ($1::text IS NULL OR user_name = $1) AND ($2::text IS NULL OR route = $2)"
        " AND (NOT $3 OR status >= 400) AND ($4::timestamptz IS NULL OR at >= $4) ORDER BY at DESC LIMIT $5",
        user, route, errors, since, limit,
    )  # fmt: skip
    return [msgspec.convert(dict(row), ApiCall) for row in rows]


async def prune_calls(connection: Connection, older_than_s: float) -> None:
    """Forget calls that are older than this."""
    await connection.execute("DELETE FROM api_log WHERE at < now() - make_interval(secs => $1)", float(older_than_s))
