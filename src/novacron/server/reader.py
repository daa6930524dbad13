"""Reads what one connected node says. The reader itself waits for nothing: what has to be stored is queued."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import msgspec
from websockets.asyncio.server import ServerConnection

from novacron import pki
from novacron.byte_budget import ByteBudget
from novacron.model import limits
from novacron.model.database_mark import DatabaseMark
from novacron.model.errors import NovaError, Unavailable
from novacron.server.desired_state import DesiredStateSender
from novacron.server.heartbeats import Heartbeats
from novacron.server.images import ImageUpkeep
from novacron.server.observations import Observations
from novacron.server.questions import Questions
from novacron.server.reports import Reports
from novacron.server.session import NodeSession
from novacron.store import conditions, nodes, owned
from novacron.store.database import Database
from novacron.store.leases import Beat
from novacron.supervise import Rarely, until_one_ends
from novacron.telemetry import logs, traces
from novacron.telemetry.values import counter
from novacron.wire import codec
from novacron.wire import messages as wire

log = logs.get(__name__)

MESSAGES = counter("novacron_link_messages_total")
SKIPPED = counter("novacron_link_skipped_messages_total")

SEEN_MAX = 16
"""Other nodes that one heartbeat tells of."""


class Takers(msgspec.Struct, frozen=True):
    """What takes the messages of nodes; shared by all connections."""

    database: Database
    authority: pki.Authority
    clock: Callable[[], float]
    questions: Questions
    images: ImageUpkeep
    desired_state: DesiredStateSender
    heartbeats: Heartbeats
    observations: Observations
    reports: Reports
    log_now: Rarely
    """When to log of a kind of message that it is skipped."""
    mark: Callable[[], DatabaseMark | None] = lambda: None
    """Return what nodes are to remember of the database."""


class _Report(NamedTuple):
    """A report that waits to be stored, after what the node said before of its VMs."""

    message: wire.Message
    size_bytes: int
    observed: asyncio.Future[None] | None


class Reader:
    """Reads one node's messages until the connection ends."""

    def __init__(self, session: NodeSession, takers: Takers) -> None:
        self._session = session
        self._takers = takers
        self._heartbeat: wire.Heartbeat | None = None
        self._heartbeat_came = asyncio.Event()
        self._reports: asyncio.Queue[_Report] = asyncio.Queue(limits.LINK_QUEUE_MAX)
        self._budget = ByteBudget(limits.REPORT_QUEUE_BYTES_MAX)

    async def run(self, socket: ServerConnection) -> None:
        """Take what the node says. Raises NovaError when the node has to connect again, and ConnectionClosed."""
        await until_one_ends(self._read(socket), self._store_reports(), self._store_heartbeats())

    async def _read(self, socket: ServerConnection) -> None:
        async for raw in socket:
            if self._session.unstored is not None:  # everything is said again over the next connection
                raise self._session.unstored
            try:
                message = codec.decode_from_agent(raw if isinstance(raw, bytes) else raw.encode())
            except codec.Undecodable as error:
                self._skip("undecodable", error.kind, error)
                continue
            kind = type(message).__name__
            MESSAGES.add(kind)
            with self._skipping_defects(kind), self._span(message):
                self._take(message, len(raw))

    @contextlib.contextmanager
    def _skipping_defects(self, kind: str) -> Iterator[None]:
        """Skip a message that can't be taken, so that those after it are. Raises Unavailable."""
        try:
            yield
        except Unavailable:  # nothing is wrong with the message: it is said again over the next connection
            raise
        except NovaError as error:
            self._skip("refused", kind, error)
        except Exception as error:
            self._skip("defect", kind, error)

    def _skip(self, reason: str, kind: str, error: Exception) -> None:
        SKIPPED.add(reason)
        if self._takers.log_now.due(f"{reason} {kind}"):
            defect = error if reason == "defect" else None
            log.error("a message of a node was skipped", node=self._session.node, kind=kind, reason=reason,
                      error=str(error), exc_info=defect)  # fmt: skip

    def _span(self, message: wire.Message) -> contextlib.AbstractContextManager[object]:
        if not message.trace:
            return nullcontext()
        name = f"server hears {type(message).__name__}"
        return traces.span(name, parent=message.trace, node=self._session.node)

    def _take(self, message: wire.Message, size_bytes: int) -> None:
        """Take a message without waiting. Raises Unavailable when the node says more than can be stored."""
        session, takers = self._session, self._takers
        match message:
            case wire.Heartbeat():  # one that is overtaken by the next need not be acknowledged
                self._heartbeat = message
                self._heartbeat_came.set()
            case wire.ConsoleOutput(channel=number, data=data):
                if number in session.channels:
                    session.channels[number].feed(data)
            case wire.ConsoleTaken(channel=number, size_bytes=taken_bytes):
                if number in session.channels:
                    session.channels[number].take(taken_bytes)
            case wire.ConsoleClosed(channel=number, reason=reason):
                if number in session.channels:
                    session.channels[number].end(reason)
            case wire.Observed(vm=vm, epoch=epoch, status=status):
                self._reserve(size_bytes)
                stored = takers.observations.add(owned.Report(session.node, vm, epoch, status))
                stored.add_done_callback(lambda _: self._budget.give_back(size_bytes))
                session.watch(stored)
            case wire.Removed(vm=vm):
                takers.desired_state.let_go(session, vm)
                self._queue_report(message, size_bytes)
            case wire.Reply():
                takers.questions.take_reply(session, message)
            case wire.ImageMissing(name=name):
                takers.images.fetch(session.node, name)
            case wire.ImageIdle(name=name, digest=digest):
                takers.images.collect(session.node, name, digest)
            case wire.Stopped(migration=id):
                takers.reports.guest_stopped(id)
            case _:
                self._queue_report(message, size_bytes)

    def _queue_report(self, message: wire.Message, size_bytes: int) -> None:
        """Let a message be stored after what came before it. Raises Unavailable."""
        if self._reports.full():
            raise self._too_fast()
        self._reserve(size_bytes)
        self._reports.put_nowait(_Report(message, size_bytes, self._session.observed))

    def _reserve(self, size_bytes: int) -> None:
        """Count bytes that wait to be stored. Raises Unavailable."""
        if not self._budget.take(size_bytes):
            raise self._too_fast()

    def _too_fast(self) -> Unavailable:
        return Unavailable(f"node {self._session.node} reports faster than the server can store")

    async def _store_reports(self) -> None:
        """Store what was reported, in its order. Raises Unavailable when everything has to be said again."""
        while True:
            message, size_bytes, observed = await self._reports.get()
            self._budget.give_back(size_bytes)
            if observed is not None:  # what the node said before is stored before
                await observed
            with self._skipping_defects(type(message).__name__), self._span(message):
                if isinstance(message, wire.RenewCertificate):
                    await self._renew_certificate(message.csr)
                elif isinstance(message, wire.AuthoritiesTrusted):
                    await self._trusts(message.authorities)
                else:
                    await self._takers.reports.store(self._session.node, message)
                    if isinstance(message, wire.InventoryChanged):
                        self._session.inventory = message.inventory

    async def _renew_certificate(self, csr: bytes) -> None:
        session, authority = self._session, self._takers.authority
        certificate = authority.issue_node(csr, session.node, session.key_hash)
        await session.send(wire.CertificateIssued(certificate, authority.pem))
        session.certificate_ends_at_s = pki.expires_at_s(certificate)
        session.certificate_authority = authority.marks[0]
        async with self._takers.database.transaction() as connection:
            await nodes.certified(
                connection, session.node, session.certificate_ends_at_s, session.certificate_authority
            )
            await conditions.refresh(connection, session.node)

    async def _trusts(self, authorities: Sequence[str]) -> None:
        async with self._takers.database.transaction() as connection:
            await nodes.trusting(connection, self._session.node, authorities)

    async def _store_heartbeats(self) -> None:
        while True:
            await self._heartbeat_came.wait()
            self._heartbeat_came.clear()
            assert self._heartbeat is not None
            with self._span(self._heartbeat):
                await self._store_heartbeat(self._heartbeat)

    async def _store_heartbeat(self, heartbeat: wire.Heartbeat) -> None:
        """Store a heartbeat, and only then acknowledge it. Raises Conflict when the node has to begin anew."""
        session, takers = self._session, self._takers
        mark = takers.mark()  # before: it says no more than what the heartbeat is stored after
        skew_s = session.clock.differs(heartbeat.clock, time.time())
        seen = tuple((peer.name, peer.silent) for peer in heartbeat.seen[:SEEN_MAX] if peer.name in session.watched)
        hears_until = session.beats.hears_until(heartbeat.acknowledged)
        await takers.heartbeats.store(
            Beat(session.node, session.generation, hears_until, heartbeat.steady_s, heartbeat.voters, seen)
        )
        if skew_s is not None:
            async with takers.database.transaction() as connection:
                await nodes.skewed(connection, session.node, skew_s)
                await conditions.refresh(connection, session.node)
            session.clock.stored_s = skew_s
        session.beats.acknowledge(heartbeat.number, heartbeat.acknowledged, takers.clock())
        await session.send(wire.Beaten(heartbeat.number, mark))
