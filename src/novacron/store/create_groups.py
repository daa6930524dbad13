"""New VMs of several requests in one statement.

Whoever creates a VM holds the row that counts what its project uses until the transaction has reached the disk, so that
creates in one project take turns. Requests that arrive while a statement is under way therefore share the next one, as
commits share a write to disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import asyncpg
import msgspec

from novacron.model.errors import NovaError
from novacron.model.vm import Vm
from novacron.store import audit, deferred_writes, events, idempotency, new_vms
from novacron.store.database import OVERTAKEN, Database
from novacron.telemetry import logs

log = logs.get(__name__)

AT_ONCE_MAX = 64
"""VMs in one statement."""
WAITING_MAX = 1000
"""Requests that wait for their statement; those beyond are done one by one."""

INSERT_ARGUMENTS = 11
CLAIM_ARGUMENTS = 5


def _of_done(table: deferred_writes.Table, after: int) -> str:
    """Return an insert of the log lines of those VMs that were created."""
    columns = ", ".join(table.columns)
    insert = deferred_writes.numbered(table.insert, after)
    return f"{insert} AS added ({columns}) WHERE added.object IN (SELECT done.id FROM done)"


_LOGGED = INSERT_ARGUMENTS + CLAIM_ARGUMENTS
_AUDITED = _LOGGED + len(events.EVENTS.columns)
_STATUS = f"${_AUDITED + len(audit.AUDIT.columns) + 1}"
CREATE = f"""
    WITH turn AS MATERIALIZED (
        SELECT claim.* FROM {
    deferred_writes.numbered("unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::jsonb[])", INSERT_ARGUMENTS)
} AS claim (vm, token, key, request, headers)
        WHERE claim.key IS NULL OR {idempotency.TRY_TURN} AND NOT EXISTS (
            SELECT FROM idempotency used WHERE used.token = claim.token AND used.key = claim.key)
    ),
    done AS ({new_vms.INSERT.replace(deferred_writes.IN_TURN, "new.id IN (SELECT turn.vm FROM turn)")}),
    logged AS ({_of_done(events.EVENTS, _LOGGED)}),
    audited AS ({_of_done(audit.AUDIT, _AUDITED)}),
    answered AS ({idempotency.store_vms(_STATUS)})
    SELECT done.*, answered.body AS answer_body
    FROM done JOIN turn ON turn.vm = done.id
    LEFT JOIN answered ON answered.token = turn.token AND answered.key = turn.key
"""
"""Creates those VMs whose key nobody holds or has used, whose name is free and whose project is as it was known."""


class QuickCreate(NamedTuple):
    """What one request creates."""

    vm: new_vms.QuickVm
    audit: Sequence[object]
    """Its row of the audit log."""
    claim: idempotency.KeyClaim | None
    headers: dict[str, str]
    """Of its answer, besides the ETag."""


class Created(NamedTuple):
    """The new VM, and its JSON."""

    vm: Vm
    body: bytes


class _Waiting(NamedTuple):
    create: QuickCreate
    done: asyncio.Future[Created | None]


class CreateGroups:
    """Creates VMs, those of one project in one statement at a time."""

    def __init__(self, database: Database, status: int = 201) -> None:
        """``status``: of the answers that are stored."""
        self._database, self._status = database, status
        self._waiting: dict[str, list[_Waiting]] = {}
        self._running: dict[str, asyncio.Task[None]] = {}

    async def create(self, create: QuickCreate) -> Created | None:
        """Store a VM with its key, answer, event and audit record; None, and nothing has changed, where that takes a
        transaction of its own: the name or key is taken or in use, or the project has changed. Raises Unavailable."""
        project = create.vm.of.project
        waiting = self._waiting.setdefault(project, [])
        if len(waiting) >= WAITING_MAX:
            return None
        done: asyncio.Future[Created | None] = asyncio.get_running_loop().create_future()
        waiting.append(_Waiting(create, done))
        if project not in self._running:
            self._running[project] = asyncio.create_task(self._run(project))
        return await done

    async def _run(self, project: str) -> None:
        """Store what waits for a project until nothing does."""
        try:
            while group := self._take(project):
                try:
                    created = await self._store([waiting.create for waiting in group])
                except Exception as error:
                    log.warning("creates are done one by one", project=project, count=len(group), error=str(error))
                    _fail(group, error)
                    continue
                for waiting in group:
                    if not waiting.done.done():
                        waiting.done.set_result(created.get(waiting.create.vm.of.id))
        finally:
            del self._running[project]
            for waiting in self._waiting.pop(project, ()):
                waiting.done.cancel()

    def _take(self, project: str) -> list[_Waiting]:
        """Return the requests of the next statement, of which no two have one key or name."""
        group, later, keys = list[_Waiting](), list[_Waiting](), set[object]()
        for waiting in self._waiting[project]:
            if waiting.done.done():  # its request is gone
                continue
            claim, name = waiting.create.claim, waiting.create.vm.of.name
            own = {name, *(() if claim is None else ((claim.token, claim.key),))}
            if len(group) >= AT_ONCE_MAX or own & keys:
                later.append(waiting)
            else:
                group.append(waiting)
                keys |= own
        self._waiting[project] = later
        return group

    async def _store(self, creates: Sequence[QuickCreate]) -> dict[str, Created]:
        """Store VMs of one project; return those that were created, by id."""
        try:
            async with self._database.connection() as connection:
                rows = await connection.fetch(CREATE, *self._arguments(creates))
        except (*OVERTAKEN, asyncpg.UniqueViolationError):
            return {}  # each tries again by itself
        return {row["id"]: _created(row) for row in rows}

    def _arguments(self, creates: Sequence[QuickCreate]) -> list[object]:
        first = creates[0].vm
        rows = new_vms.arguments_of([create.vm.row for create in creates], first.of.project, first.quota)
        claims = [
            (create.vm.of.id, None, None, None, create.headers) if create.claim is None
            else (create.vm.of.id, create.claim.token, create.claim.key, create.claim.request, create.headers)
            for create in creates
        ]  # fmt: skip
        logged = events.rows_of([create.vm.event for create in creates])
        columns: tuple[Sequence[Sequence[object]], ...] = (claims, logged, [create.audit for create in creates])
        return [*rows, *(list(column) for part in columns for column in zip(*part, strict=True)), self._status]


def _created(row: asyncpg.Record) -> Created:
    vm = msgspec.convert(dict(row), Vm)
    return Created(vm, row["answer_body"] or msgspec.json.encode(vm))


def _fail(group: Sequence[_Waiting], error: Exception) -> None:
    for waiting in group:
        if waiting.done.done():
            continue
        if isinstance(error, NovaError):  # the database is away
            waiting.done.set_exception(error)
        else:  # it may be the fault of one of them: each tries by itself
            waiting.done.set_result(None)
