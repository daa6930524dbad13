"""Sends nodes their desired state: all of it when they connect, then what changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import asyncpg
import msgspec

from novacron.model.errors import NovaError, Unavailable
from novacron.model.ownership import Order
from novacron.server import node_statements
from novacron.server.cpu_baseline import CpuBaselines
from novacron.server.network_audience import NetworkAudience
from novacron.server.session import NodeSession
from novacron.store import nodes
from novacron.store.database import LOST, Database
from novacron.store.feed import Change
from novacron.supervise import Rarely
from novacron.telemetry import logs
from novacron.telemetry.values import counter
from novacron.wire import messages as wire

log = logs.get(__name__)

ANEW_MAX = 6
"""For how many nodes all is read at the same time, so that connections remain for others."""
TOUCHED_GATHER_S = 0.003
"""What of VMs changes within it is read together."""
RETRY_S, DEFECT_RETRY_S = 1.0, 5.0
KIND_RETRY_S = 60.0
"""After which all is read again where a defect was met with one kind of it."""


class DesiredStateSender:
    """Tells all connected nodes, ``sessions``, by name."""

    def __init__(
        self, database: Database, sessions: Mapping[str, NodeSession], secrets: node_statements.Secrets,
        prove: Callable[[str, Order], str] = lambda vm, order: "",
    ) -> None:  # fmt: skip
        """``prove`` returns the proof of an order about a VM."""
        self._database = database
        self._sessions = sessions
        self._secrets = secrets
        self._prove = prove
        self._network_audience = NetworkAudience()
        self._cpu_baselines = CpuBaselines()
        self._log_now = Rarely()
        self._reading = asyncio.Semaphore(ANEW_MAX)
        self._holders: dict[str, set[NodeSession]] = {}
        """Who holds something of each VM, or owns it."""
        self._replicas: dict[str, tuple[Any, ...]] = {}
        """What nodes are told of each replica; the last two are its VM and its node."""
        self._facts: dict[str, tuple[Any, ...]] = {}
        """What of each VM they depend on; the first is its node."""
        self._endpoints: dict[str, str | None] = {}
        self._touched: set[str] = set()
        self._some_touched = asyncio.Event()

    def changed(self, change: Change) -> None:
        """Wake the sessions that a change concerns."""
        self._network_audience.changed(change, self._sessions)
        match change.kind, change.body:
            case "vm", body:
                self._vm_changed(change.key, body)
            case "unreconciled-vm", {"proven": False}:
                pass  # nobody is told anything else for it
            case "unreconciled-vm", _:
                self._touch(change.key.partition(".")[0])
                self.wake_all()
            case "export" | "backup", None:  # its node is not said any more
                self.wake_all()
            case "node", body:
                self._endpoint_changed(change.key, body)
                for node in self._cpu_baselines.changed(change):
                    if node in self._sessions:
                        self._sessions[node].sent_state.basis = None
            case "migration", {"source": source, "target": target}:
                self._wake(source)
                self._wake(target)
            case "replica", body:
                self._replica_changed(change.key, body)
            case "import" | "volume" | "export" | "backup", {"node": node}:
                self._wake(node)

    def _replica_changed(self, id: str, body: dict[str, Any] | None) -> None:
        """Wake the nodes of a replica, unless only its points have changed."""
        before = self._replicas.pop(id, None)
        if body is not None:
            stated = (*(body[field] for field in ("phase", "rpo_s", "points_kept")), bool(body["points"]))
            self._replicas[id] = now = (*stated, body["vm"], body["node"])
            if now == before:
                return
        for replica in (before, self._replicas.get(id)):
            if replica is not None:
                self._wake_both(replica)

    def _wake_both(self, replica: tuple[Any, ...]) -> None:
        """Wake who keeps a replica, and who sends its rounds."""
        vm, node = replica[-2:]
        self._wake(node)
        facts = self._facts.get(vm)
        self._wake("" if facts is None else str(facts[0]))

    def _wake_replicas(self, vm: str, body: dict[str, Any] | None) -> None:
        """Wake the nodes that send or keep a VM's replicas, if what they are told of it has changed."""
        before, now = self._facts.pop(vm, None), None
        if body is not None:
            spec = body["spec"]
            self._facts[vm] = now = (
                *(body.get(field) for field in ("node", "migration", "deleting", "unreconciled")),
                body.get("clone_of") is None, spec.get("image"), spec.get("disk_mib"),
            )  # fmt: skip
        if now == before or not self._replicas:
            return
        for replica in [replica for replica in self._replicas.values() if replica[-2] == vm]:
            self._wake_both(replica)
            self._wake("" if before is None else str(before[0]))

    def _endpoint_changed(self, node: str, body: dict[str, Any] | None) -> None:
        """Wake who sends to replicas on a node, if it is reached elsewhere now."""
        inventory = {} if body is None else (body["status"].get("inventory") or {})
        before, self._endpoints[node] = self._endpoints.get(node), inventory.get("dwcp_endpoint")
        if before is not None and before != self._endpoints[node]:
            for replica in [replica for replica in self._replicas.values() if replica[-1] == node]:
                self._wake_both(replica)

    def _vm_changed(self, vm: str, body: dict[str, Any] | None) -> None:
        self._wake_replicas(vm, body)
        node = None if body is None else body["node"]
        owner = None if node is None else self._sessions.get(node)
        if owner is not None:
            self.hold(owner, vm)
        if vm in self._holders:
            self._touch(vm)

    def resync(self) -> None:
        """The feed was interrupted: every object is announced again from here on."""
        self._cpu_baselines.reset()
        for session in self._sessions.values():
            session.sent_state.begin_again()  # the database may be another, of which nodes know more
        self.wake_all()

    def _wake(self, node: str) -> None:
        if node in self._sessions:
            self._sessions[node].look_anew()

    def wake_all(self) -> None:
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
        """Send a node what changes for it, for as long as it is connected."""
        last: dict[type[wire.Message], wire.Message] = {}
        sent_state = session.sent_state
        while True:
            await sent_state.wait()
            try:
                if sent_state.anew and self._cpu_baselines.known:  # if not, the feed's beginning wakes all
                    counter("novacron_link_readings_total").add("all")
                    async with self._reading:
                        messages = await self._read_anew(session)
                    await self._tell_anew(session, messages, last)
                statements = sent_state.differ(self._proven(sent_state.statements), whole=False)
                sent_state.statements = []
                if statements:
                    counter("novacron_link_statements_total").add(count=len(statements))
                    await session.send(wire.Desired(statements, whole=False))
            except Unavailable as error:
                self._say_failed(f"desired state can't be sent to node {session.node}", error)
                session.look_anew()
                await asyncio.sleep(RETRY_S)
            except Exception as error:  # a defect: it is tried again, and logged, rather than never told anything
                self._say_failed(f"desired state can't be sent to node {session.node}", error)
                session.look_anew()
                await asyncio.sleep(DEFECT_RETRY_S)

    async def _read_anew(self, session: NodeSession) -> tuple[wire.Message, ...]:
        sent_state = session.sent_state
        sent_state.anew, sent_state.statements = False, []
        sent_state.reads += 1
        failed = list[str]()
        try:
            async with self._database.transaction(isolation="repeatable_read") as connection:
                node = await nodes.get(connection, session.node)
                sent_state.basis = basis = node_statements.NodeBasis(
                    self._cpu_baselines.common(node.status.inventory), node.spec.passthrough, session.knows_unreadable
                )
                return await node_statements.messages(
                    connection, session.node, session.held, self._secrets, basis, failed
                )
        finally:
            sent_state.reads += 1
            sent_state.look_anew_at = asyncio.get_running_loop().time() + KIND_RETRY_S if failed else None

    async def _tell_anew(
        self,
        session: NodeSession,
        messages: tuple[wire.Message, ...],
        last: dict[type[wire.Message], wire.Message],
    ) -> None:
        """Send the messages that differ from those sent last; ``last`` holds those by type."""
        for message in messages:
            if isinstance(message, wire.Desired):
                await self._tell_statements(session, message)
                continue
            if isinstance(message, wire.Networks):
                session.networks = frozenset(network.name for network in message.networks)
            if last.get(type(message)) != message:
                await session.send(message)
                last[type(message)] = message

    async def _tell_statements(self, session: NodeSession, desired: wire.Desired) -> None:
        sent_state = session.sent_state
        first, sent_state.begun = not sent_state.begun, True
        for statement in desired.statements:
            self.hold(session, statement.vm)
        statements = sent_state.differ(self._proven(desired.statements), whole=True)
        counter("novacron_link_statements_total").add(count=len(statements))
        if statements or first:
            await session.send(wire.Desired(statements, whole=first))

    def _proven(self, statements: Sequence[wire.Statement]) -> list[wire.Statement]:
        """Return statements with what proves, to a server whose database is older, that they were made."""
        return [msgspec.structs.replace(s, proof=self._prove(s.vm, s.order)) for s in statements]

    async def run(self) -> None:
        """Read how VMs that have changed are to be, for all nodes at once, and let each be told."""
        while True:
            await self._some_touched.wait()
            await asyncio.sleep(TOUCHED_GATHER_S)
            self._some_touched.clear()
            touched, self._touched = self._touched, set()
            await self._say_all(touched)

    async def _say_all(self, vms: set[str]) -> None:
        """Read these VMs at once, and let the nodes that hold something of them be told."""
        counter("novacron_link_readings_total").add("changed")
        begun = {session: session.sent_state.reads for vm in vms for session in self._holders.get(vm, ())}
        try:
            async with self._database.transaction(isolation="repeatable_read") as connection:
                readings = await node_statements.VmReadings.read(connection, list(vms), self._secrets)
        except asyncpg.DataError as error:  # of one VM, whose row is no good: each node is told for itself
            self._say_failed("what changed can't be read", error)
            for session in begun:
                session.look_anew()
            return
        except (NovaError, asyncpg.PostgresError, *LOST) as error:
            self._say_failed("what changed can't be read now", error)
            self._touch(*vms)
            await asyncio.sleep(RETRY_S)
            return
        except Exception as error:  # a defect met with one VM: each node's own telling meets it, or does not
            self._say_failed("what changed can't be read", error)
            for session in begun:
                session.look_anew()
            return
        for vm in vms:
            for session in self._holders.get(vm, ()):
                try:
                    self._say(session, vm, readings, begun.get(session, -1))
                except Exception as error:  # a defect met with one VM stops neither the others nor what comes later
                    self._say_failed(f"node {session.node} can't be told of VM {vm}", error)
                    session.look_anew()

    def _say_failed(self, what: str, error: Exception) -> None:
        """Log a failure that is met again until its cause is gone: ever more rarely. Of a defect, say where it is."""
        if self._log_now.due(what):
            is_expected = isinstance(error, (NovaError, asyncpg.PostgresConnectionError, *LOST))
            log.warning(what, error=str(error), exc_info=None if is_expected else error)

    def _say(self, session: NodeSession, vm: str, readings: node_statements.VmReadings, begun: int) -> None:
        sent_state = session.sent_state
        if begun != sent_state.reads or begun % 2:  # everything was read meanwhile, perhaps later than this
            self._touch(vm)
            return
        if vm in readings.unreadable:
            return
        basis = sent_state.basis
        statement = None if basis is None else readings.on(session.node, vm, self._secrets, basis)
        if statement is None:
            session.look_anew()
        else:
            sent_state.statements.append(statement)
            sent_state.wake.set()
