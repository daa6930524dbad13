"""Chains the audit log, signs its heads, sends it elsewhere, and cuts off what is older than is to be kept.

Requests do nothing for it: records are linked after they are committed, by the one process that leads this controller.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Protocol

from novacron.audit_chain.entries import ChainEntry
from novacron.audit_chain.heads import SigningKey
from novacron.control.objects import Objects
from novacron.model.audit import AuditedRequest, AuditOutcome
from novacron.store import audit, audit_chain, audit_sinks
from novacron.store.database import Connection, Database
from novacron.store.events import SYSTEM
from novacron.telemetry import logs
from novacron.telemetry.values import counter, gauge

log = logs.get(__name__)

BATCHES_MAX = 20
"""Batches that one pass links; the next pass goes on."""
HEAD_S, HEAD_RECORDS_MAX = 300.0, 10_000
"""A head is signed so long, or so many records, after the last one, if there is anything new."""
SEGMENTS_MAX = 50
"""Segments that one pass cuts off."""
CUT_SLACK_S = 24 * 3600.0
"""What is too old is cut off about once a day."""
SEND_MAX, SENDS_MAX = 200, 10
"""Records that are sent at once, and how often in a pass."""


class Sink(Protocol):
    """Where records are sent, in their order, as soon as they are linked."""

    name: str

    async def send(self, chain: Sequence[ChainEntry]) -> None:
        """Send entries, or raise OSError: then they are sent again later."""


class AuditChain:
    """The controller of the audit log."""

    def __init__(self, key: SigningKey, server: str, retention_s: float, sinks: Sequence[Sink] = ()) -> None:
        """``server``: whose key it is. ``sinks``: the chain itself is the queue of what waits for them."""
        self._key, self._server, self._retention_s = key, server, retention_s
        self._sinks = {f"sink {sink.name}": sink for sink in sinks}
        self._begun = False

    async def step(self, database: Database, objects: Objects) -> None:
        if not self._begun:
            await self._begin(database)
            self._begun = True

        async def reconcile(key: str) -> None:
            match key:
                case "chain":
                    await self._link(database)
                case "retention":
                    await self._cut(database)
                case _:
                    await self._send(database, self._sinks[key])

        await objects.each(["chain", "retention", *self._sinks], reconcile)

    async def _begin(self, database: Database) -> None:
        async with database.transaction() as connection:
            if await audit_chain.begin_again_after_restore(connection):
                log.warning("the database counts its transactions anew: the audit chain goes on from its last record")

    async def _link(self, database: Database) -> None:
        async with database.connection() as connection:
            linked = audit_chain.BATCH_MAX if await audit_chain.waits(connection) else 0
        for _ in range(BATCHES_MAX):
            if linked < audit_chain.BATCH_MAX:
                break
            async with database.transaction() as connection:
                linked = await audit_chain.link(connection)
            counter("novacron_audit_chained_records_total").add(count=linked)
        async with database.connection() as connection:
            gauge("novacron_audit_unchained_seconds").set(await audit_chain.oldest_unchained_s(connection))
            due = await audit_chain.head_due(connection, HEAD_S, HEAD_RECORDS_MAX)
        if due:
            await self._sign(database)

    async def _sign(self, database: Database) -> None:
        async with database.transaction() as connection:
            if await audit_chain.register(connection, self._key, self._server):
                await self._record(connection, "register_audit_key", self._key.id, "signs heads of the audit log")
            head = await audit_chain.sign(connection, self._key)
        # In the log, too, which is often kept where administrators of the database have no say.
        log.info("audit head", seq=head.seq, hash=head.hash, key=head.key, signature=head.signature)

    async def _cut(self, database: Database) -> None:
        async with database.connection() as connection:
            if not await audit_chain.due_for_cut(connection, self._retention_s, CUT_SLACK_S):
                return
        removed = 0
        for _ in range(SEGMENTS_MAX):
            async with database.transaction() as connection:
                count = await audit_chain.cut(connection, self._retention_s)
            removed += count
            if not count:
                break
        if removed:
            days = f"{self._retention_s / 86_400:g}"
            async with database.transaction() as connection:
                await self._record(connection, "cut_audit_log", None, f"{removed} records older than {days} days")

    async def _send(self, database: Database, sink: Sink) -> None:
        for _ in range(SENDS_MAX):
            async with database.connection() as connection:
                after = await audit_sinks.sent(connection, sink.name)
                waiting = await audit_chain.read(connection, after, SEND_MAX)
            if waiting:
                await sink.send(waiting)
                async with database.transaction() as connection:
                    await audit_sinks.advance(connection, sink.name, waiting[-1].seq)
                counter("novacron_audit_sent_records_total").add(sink.name, count=len(waiting))
            if len(waiting) < SEND_MAX:
                return

    async def _record(self, connection: Connection, action: str, object: str | None, detail: str) -> None:
        await audit.add(connection, [AuditedRequest(
            actor=SYSTEM, user_id=None, token=None, address="", method="", path=f"server {self._server}",
            action=action, object=object, outcome=AuditOutcome.DONE, status=200, detail=detail,
            request_id=secrets.token_hex(8),
        )])  # fmt: skip
