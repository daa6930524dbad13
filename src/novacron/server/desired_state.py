"""What nodes are told of what is to be on them: everything when they connect, then of what changes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import asyncpg

from novacron.model.errors import NovaError, Unavailable
from novacron.server import node_statements
from novacron.server.cpu_baseline import CpuBaselines
from novacron.server.network_audience import NetworkAudience
from novacron.server.session import NodeSession
from novacron.store import nodes
from novacron.store.database import LOST, Database
from novacron.store.feed import Change
from novacron.telemetry import logs
from novacron.telemetry.values import counter
from novacron.wire import messages as wire

log = logs.get(__name__)

ANEW_MAX = 6
"""For so many nodes everything is read at once, at most: the database's connections are for others, too."""
TOUCHED_GATHER_S = 0.003
"""What of VMs changes within it is read together."""
DEFECT_RETRY_S = 5.0


class DesiredStateSender:
    """Tells all connected nodes, ``sessions``, by name."""

    def __init__(
        self, database: Database, sessions: Mapping[str, NodeSession], page_key: node_statements.PageKey
    ) -> None:
        self._database = database
        self._sessions = sessions
        self._page_key = page_key
        self._network_audience = NetworkAudience()
        self._cpu_baselines = CpuBaselines()
        self._reading = asyncio.Semaphore(ANEW_MAX)
        self._holders: dict[str, set[NodeSession]] = {}
        """Who holds something of each VM, or owns it."""
        self._touched: set[str] = set()
        self._some_touched = asyncio.Event()

    def changed(self, change: Change) -> None:
        """Wake the sessions that a change concerns."""
        self._network_audience.changed(change, self._sessions)
        if change.kind == "vm":
            owner = None if change.body is None else self._sessions.get(change.body["node"])
            if owner is not None:
                self.hold(owner, change.key)
            if change.key in self._holders:
                self._touch(change.key)
        elif change.kind == "migration" and change.body is not None:
            for node in (change.body["source"], change.body["target"]):
                self._wake(node)
        elif change.kind == "export" and change.body is None:  # its node is not said any more
            self._wake_all()
        elif change.kind in ("import", "volume", "export") and change.body is not None:
            self._wake(change.body["node"])
        elif change.kind == "node":
            for node in self._cpu_baselines.changed(change):
                if node in self._sessions:
                    self._sessions[node].sent_state.basis = None

    def resync(self) -> None:
        """The feed was away: everything that there is is heard of anew, from here on."""
        self._cpu_baselines.reset()
        self._wake_all()

    def _wake(self, node: str) -> None:
        if node in self._sessions:
            self._sessions[node].look_anew()

    def _wake_all(self) -> None:
        for session in self._sessions.values():
            session.look_anew()

    def hold(self, session: NodeSession, vm: str) -> None:
        """Something of a VM is on a node, or is to be."""
        self._holders.setdefault(vm, set()).add(session)
        session.held.add(vm)

    def let_go(self, session: NodeSession, vm: str) -> None:
        """Nothing of a VM is on a node any more, or the node is not connected."""
        session.held.discard(vm)
        session.sent_state.forget(vm)
        holders = self._holders.get(vm, set())
        holders.discard(session)
        if not holders:
            self._holders.pop(vm, None)

    def _touch(self, *vms: str) -> None:
        self._touched.update(vms)
        self._some_touched.set()

    async def tell(self, session: NodeSession) -> None:
        """Tell a node, for as long as it is connected, what has changed for it."""
        last: dict[type[wire.Message], wire.Message] = {}
        sent_state = session.sent_state
        while True:
            await sent_state.wake.wait()
            sent_state.wake.clear()
            try:
                if sent_state.anew and self._cpu_baselines.known:  # if not, the feed's beginning wakes all
                    counter("novacron_link_readings_total").add("all")
                    async with self._reading:
                        told = await self._read_anew(session)
                    await self._tell_anew(session, told, last)
                found, sent_state.statements = sent_state.differ(sent_state.statements, whole=False), []
                if found:
                    counter("novacron_link_statements_total").add(count=len(found))
                    await session.send(wire.Desired(found, whole=False))
            except Unavailable as error:
                log.warning("can't tell a node what to do", node=session.node, error=str(error))
                session.look_anew()
                await asyncio.sleep(1)
            except Exception:  # a defect: it is tried again, and seen in the log, rather than never told anything
                log.exception("defect while sent_state a node what to do", node=session.node)
                session.look_anew()
                await asyncio.sleep(DEFECT_RETRY_S)

    async def _read_anew(self, session: NodeSession) -> tuple[wire.Message, ...]:
        sent_state = session.sent_state
        sent_state.anew, sent_state.statements = False, []
        sent_state.reads += 1
        try:
            async with self._database.transaction(isolation="repeatable_read") as connection:
                node = await nodes.get(connection, session.node)
                sent_state.basis = basis = node_statements.NodeBasis(
                    self._cpu_baselines.common(node.status.inventory), node.spec.passthrough
                )
                return await node_statements.messages(connection, session.node, session.held, self._page_key, basis)
        finally:
            sent_state.reads += 1

    async def _tell_anew(
        self, session: NodeSession, told: tuple[wire.Message, ...], last: dict[type[wire.Message], wire.Message]
    ) -> None:
        sent_state = session.sent_state
        first, sent_state.begun = not sent_state.begun, True
        for message in told:
            if isinstance(message, wire.Desired):
                for statement in message.statements:
                    self.hold(session, statement.vm)
                found = sent_state.differ(message.statements, whole=True)
                counter("novacron_link_statements_total").add(count=len(found))
                if found or first:
                    await session.send(wire.Desired(found, whole=first))
                continue
            if isinstance(message, wire.Networks):
                session.networks = frozenset(one.name for one in message.networks)
            if last.get(type(message)) != message:
                await session.send(message)
                last[type(message)] = message

    async def run(self) -> None:
        """Read how VMs that have changed are to be, for all nodes at once, and let each be told."""
        while True:
            await self._some_touched.wait()
            await asyncio.sleep(TOUCHED_GATHER_S)
            self._some_touched.clear()
            touched, self._touched = self._touched, set()
            counter("novacron_link_readings_total").add("changed")
            begun = {session: session.sent_state.reads for vm in touched for session in self._holders.get(vm, ())}
            try:
                async with self._database.transaction(isolation="repeatable_read") as connection:
                    some = await node_statements.VmReadings.read(connection, list(touched))
            except (NovaError, asyncpg.PostgresError, *LOST) as error:
                log.warning("nodes can't be told of what has changed", vms=len(touched), error=str(error))
                self._touch(*touched)
                await asyncio.sleep(1)
                continue
            except Exception:  # a defect met with one VM: each node's own sent_state meets it, or does not
                log.exception("defect while reading what has changed", vms=len(touched))
                for session in begun:
                    session.look_anew()
                continue
            for vm in touched:
                for session in self._holders.get(vm, ()):
                    self._say(session, vm, some, begun.get(session, -1))

    def _say(self, session: NodeSession, vm: str, some: node_statements.VmReadings, begun: int) -> None:
        sent_state = session.sent_state
        if begun != sent_state.reads or begun % 2:  # everything was read meanwhile, perhaps later than this
            self._touch(vm)
            return
        basis = sent_state.basis
        statement = None if basis is None else some.on(session.node, vm, self._page_key, basis)
        if statement is None:
            session.look_anew()
        else:
            sent_state.statements.append(statement)
            sent_state.wake.set()
