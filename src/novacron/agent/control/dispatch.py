"""What the server's messages set in motion on this node. Nothing here waits: there is one reader of the link."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping

import msgspec

from novacron.agent.control import queries
from novacron.agent.control.consoles import ConsoleRequests
from novacron.agent.control.peers import PeerWatch
from novacron.agent.control.queries import Subjects
from novacron.agent.control.transfers import Transfers
from novacron.agent.host.volumes import NodeVolumes
from novacron.agent.migration.services import NodeServices
from novacron.agent.vm.journal import Record
from novacron.agent.worker import Worker
from novacron.supervise import FewTasks, Rarely
from novacron.telemetry import logs
from novacron.telemetry.values import counter
from novacron.wire import messages as wire

log = logs.get(__name__)

MESSAGES = counter("novacron_agent_messages_total")
SKIPPED = counter("novacron_agent_skipped_messages_total")

QUESTIONS_MAX = 64
UNTAKEN_RETRY_S = 5.0


class Parts(msgspec.Struct, frozen=True):
    """The parts of the agent that messages are for."""

    host: NodeServices
    workers: MutableMapping[str, Worker]
    add_worker: Callable[[str, Record], Worker]
    """Begin to look after a VM of which this is remembered."""
    peers: PeerWatch
    volumes: NodeVolumes
    consoles: ConsoleRequests
    transfers: Transfers
    subjects: Subjects


class Dispatcher:
    """Gives each message to the part of the agent that it is for."""

    def __init__(self, parts: Parts, tasks: asyncio.TaskGroup) -> None:
        """``tasks`` owns imports and exports."""
        self._parts = parts
        self._tasks = tasks
        self._questions = FewTasks("question", QUESTIONS_MAX)
        self._untaken: dict[str, wire.Statement] = {}
        """Statements that met a defect, to be taken again."""
        self._arriving: dict[str, wire.Statement] = {}
        """What was said last of VMs whose records are being read."""
        self._reading = FewTasks("records", 1)
        self._log_now = Rarely()

    async def end(self) -> None:
        await self._questions.end()
        await self._reading.end()

    def take(self, message: wire.Message) -> None:
        """Take a message of the server."""
        MESSAGES.add(type(message).__name__)
        parts = self._parts
        match message:
            case wire.Desired(statements=statements, whole=whole):
                self._take_statements(statements, whole=whole)
            case wire.Beaten(number=number, database=mark):
                parts.host.lease.beaten(number)
                parts.host.database_mark.take(mark)
            case wire.Peers():
                parts.peers.tell(message)
            case wire.Revoked(keys=keys):
                parts.host.revoked.tell(keys)
            case wire.Imports(imports=imports, unreadable=unreadable):
                parts.subjects.imports.tell(imports, self._tasks, unreadable)
            case wire.Exports(exports=exports, unreadable=unreadable):
                parts.subjects.exports.tell(exports, self._tasks, unreadable)
            case wire.Backups(backups=backups, unreadable=unreadable):
                parts.subjects.backups.tell(backups, self._tasks, unreadable)
            case wire.Replicas(sent=sent, unreadable=unreadable):
                parts.subjects.sent_replicas.tell(sent, self._tasks, unreadable)
                parts.subjects.kept_replicas.tell(message, self._tasks)
            case wire.Networks(networks=networks, hosts=hosts):
                parts.host.networks.tell(networks, hosts)
            case wire.Volumes(volumes=volumes):
                parts.volumes.tell(volumes)
            case wire.Ask():
                if not self._questions.start(self._answer(message)):
                    parts.host.send(wire.Answered(message.ask, error="it has too many requests in progress"))
            case wire.ConsoleOpen():
                parts.consoles.open(message)
            case wire.ConsoleInput(channel=channel, data=data):
                parts.consoles.write(channel, data)
            case wire.ConsoleTaken(channel=channel, size_bytes=size_bytes):
                parts.consoles.take(channel, size_bytes)
            case wire.ConsoleClose(channel=channel):
                parts.consoles.close(channel)
            case wire.ProbeExpected() | wire.ProbeWanted() | wire.CopyExpected() | wire.CopyWanted():
                parts.transfers.begin(message)

    async def _answer(self, message: wire.Ask) -> None:
        self._parts.host.send(await queries.answer(message, self._parts.subjects))

    def _take_statements(self, statements: tuple[wire.Statement, ...], *, whole: bool) -> None:
        for statement in statements:
            self._take_statement(statement)
        stated = {statement.vm for statement in statements}
        for vm in self._parts.workers.keys() - stated if whole else ():
            log.warning("the server says nothing of a VM that is here; it is left alone", vm=vm)
            self._parts.workers[vm].contradict()

    def _take_statement(self, statement: wire.Statement) -> None:
        """Tell a VM's worker; a defect met with one VM is tried again later, and holds up no other."""
        vm, parts = statement.vm, self._parts
        try:
            worker = parts.workers.get(vm)
            if worker is not None and not worker.finished:
                worker.set_desired(statement)
            elif vm in self._arriving or parts.host.journal.knows(vm):
                self._arriving[vm] = statement
                self._read_records()
            else:
                parts.add_worker(vm, Record()).set_desired(statement)
            self._untaken.pop(vm, None)
        except Exception:
            self._leave(statement)

    def _leave(self, statement: wire.Statement) -> None:
        """What a statement asks for met a defect."""
        self._untaken[statement.vm] = statement
        SKIPPED.add("defect")
        if self._log_now.due(statement.vm):
            log.exception("a VM's desired state can't be applied; trying again", vm=statement.vm)

    def _read_records(self) -> None:
        if not self._reading.full:
            self._reading.start(self._let_arrive())

    async def _let_arrive(self) -> None:
        """Begin to look after VMs of which the journal knows something: a damaged record is written anew, which the
        lease's heartbeats must not wait for."""
        while self._arriving:
            vm = next(iter(self._arriving))
            try:
                record = await asyncio.to_thread(self._parts.host.journal.load_one, vm)
                if vm in self._arriving:  # the link is still there
                    self._parts.add_worker(vm, record).set_desired(self._arriving[vm])
                self._arriving.pop(vm, None)
            except Exception:
                statement = self._arriving.pop(vm, None)
                if statement is not None:
                    self._leave(statement)

    async def retry(self) -> None:
        """Take again, now and then, what met a defect, until cancelled."""
        while True:
            await asyncio.sleep(UNTAKEN_RETRY_S)
            for statement in list(self._untaken.values()):
                self._take_statement(statement)

    def forget(self) -> None:
        """The link is gone: the next connection says everything again."""
        self._untaken.clear()
        self._arriving.clear()
        self._parts.host.replicas.forget()
