"""``novacron agent``: runs this host's VMs as the control plane says, and keeps them running without it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec

from novacron import pki, private_file, service_manager
from novacron.agent import identity as identities
from novacron.agent.backup_files import BackupFiles
from novacron.agent.backups import VmBackups
from novacron.agent.control.consoles import ConsoleRequests
from novacron.agent.control.dispatch import Dispatcher, Parts
from novacron.agent.control.link import LinkClient, Renamed
from novacron.agent.control.peers import PeerWatch
from novacron.agent.control.queries import Subjects
from novacron.agent.control.transfers import Transfers
from novacron.agent.fair_turns import FairTurns
from novacron.agent.host import host_identity
from novacron.agent.host import inventory as inventories
from novacron.agent.host.clock import SystemClock
from novacron.agent.host.conditions import HostConditions
from novacron.agent.host.database_mark import RememberedMark
from novacron.agent.host.lease import NodeLease
from novacron.agent.host.loads import Loads
from novacron.agent.host.networks import GuestPlace, NodeNetworks
from novacron.agent.host.passthrough import Passthrough
from novacron.agent.host.presence import AgentLives, Presence
from novacron.agent.host.revoked_keys import RevokedKeys
from novacron.agent.host.volumes import NodeVolumes, Pools
from novacron.agent.identity import Identity, JoinOffer
from novacron.agent.images import copies
from novacron.agent.images.exports import VmExports
from novacron.agent.images.imports import ImageImports
from novacron.agent.images.watcher import ImageWatcher
from novacron.agent.migration.known_pages import KnownPages, LocalVm
from novacron.agent.migration.services import NodeServices
from novacron.agent.migration.transport import DwcpTransport
from novacron.agent.observe.metrics import AgentMetrics
from novacron.agent.replicas.storage import ReplicaStorage
from novacron.agent.replication.receiver import ReplicaReceivers
from novacron.agent.replication.sender import ReplicaSenders
from novacron.agent.repositories.prune import RepositoryPrunes
from novacron.agent.settings import AgentSettings
from novacron.agent.vm.console import Consoles
from novacron.agent.vm.context import VmContext
from novacron.agent.vm.journal import Journal, Record
from novacron.agent.vm.leftovers import Leftovers
from novacron.agent.vm.machine import QemuHypervisor
from novacron.agent.vm.port_forward import PortForwards
from novacron.agent.vm.start_queue import StartQueue
from novacron.agent.worker import Worker
from novacron.backup.locks import survive_hangups
from novacron.dwcp.admittance import Admittance
from novacron.dwcp.connection import ConnectionPool
from novacron.dwcp.listener import Listener
from novacron.model.errors import InvalidInput
from novacron.model.node import Inventory
from novacron.model.ownership import Claim
from novacron.model.token import JoinTicket
from novacron.net import tap
from novacron.qemu import userfaults
from novacron.qemu.lease_guard import boot_id
from novacron.state_lock import FolderInUse, FolderLock
from novacron.supervise import FewTasks, supervise
from novacron.telemetry import logs, traces
from novacron.telemetry import process as telemetry
from novacron.wire import messages as wire

log = logs.get(__name__)

CONSOLE_LOGS_CHECK_S = 2.0
LOADS_S = 30.0
LOOK_AROUND_S = 10.0
REMNANT_PAUSES_S = 0.0, 10.0, 60.0
ASIDE_MAX = 32
STARTS_AT_ONCE = 4
"""QEMUs of a node that start at once; more only wait for each other."""
DISKS_AT_ONCE, DISKS_OF_A_PROJECT = 4, 3
"""Disks that are copied or come out of backups at once, and at most of one project."""
SWITCH_INTERVAL_S = 0.0005
"""DWCP's threads mostly work without the interpreter's lock: they should not wait for it long."""


class Agent:
    """One node."""

    def __init__(
        self,
        settings: AgentSettings,
        identity: Identity,
        inventory: Inventory,
        host: NodeServices,
        renewed: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._host = host
        self._workers: dict[str, Worker] = {}
        self._tasks = asyncio.TaskGroup()
        self._peers = PeerWatch(
            settings.state_dir / "peers.json", identity.name, host.connections, host.lease, host.clock,
            self._lease_over,
        )  # fmt: skip
        self._link = LinkClient(identity, self._hello, self._receive, self._lost, self._peers.heartbeat, renewed)
        host.send = self._link.send
        places, overlay = (settings.state_dir, settings.images_dir), host.networks.routing.refused_frames.condition
        self._conditions = HostConditions(places, self._peers.reach, overlay, self._link.send)
        self._console_requests = ConsoleRequests(
            Consoles(settings.vms_dir, self._pid_of, self._link.send_bulk),
            PortForwards(self._place_of, self._link.send_bulk),
            self._link.send,
        )
        self._aside = FewTasks("aside", ASIDE_MAX)
        self._images = ImageWatcher(settings, host, inventory, self._images_in_use)
        self._volumes = NodeVolumes(host.storage_pools, host.images, self._link.send)
        self._transfers = Transfers(settings, host, self._workers, self._images.rescan)
        backups = VmBackups(settings, self._find_vm, self._link.send)
        self._prunes = RepositoryPrunes(settings, backups.queues)
        self._backup_files = BackupFiles(settings)
        subjects = Subjects(
            ImageImports(settings, self._link.send, self._images.rescan),
            VmExports(settings, self._find_vm, self._link.send),
            backups,
            self._backup_files,
            self._prunes,
            ReplicaSenders(host, self._find_vm, self._link.send),
            ReplicaReceivers(host, self._link.send),
            host,
            self._workers,
            self._images.rescan,
            AgentMetrics(host, self._workers, lambda: self._link.connected),
        )
        self._dispatcher = Dispatcher(
            Parts(
                host, self._workers, self._add, self._peers, self._volumes, self._console_requests,
                self._transfers, subjects,
            ),
            self._tasks,
        )  # fmt: skip
        host.run_in_background = self._start_aside
        host.neighbours = self._neighbours
        host.find_vm = self._find_vm
        host.networks.owns = self._owns
        host.networks.on_closed = self._interfaces_changed
        host.networks.problems.send = self._link.send
        host.listener.on_knock = self._knocked
        host.listener.vitals = lambda: msgspec.msgpack.encode(self._peers.vitals())

    async def run(self) -> None:
        """Work until cancelled. VMs go on running afterwards. Raises Renamed, in a group."""
        works: dict[str, Callable[[], Awaitable[None]]] = {
            "peers": self._peers.run,
            "revoked-keys": self._host.revoked.run,
            "conditions": self._conditions.run,
            "networks": self._host.networks.run,
            "images": self._images.run,
            "volumes": self._volumes.run,
            "console-logs": self._watch_console_logs,
            "loads": self._measure_loads,
            "neighbours": self._look_around,
            "process": telemetry.watch,
            "statements": self._dispatcher.retry,
            "remnants": self._remove_remnants,
            "watchdog": service_manager.keep_alive,
        }
        if self._settings.bridge is not None or self._images.inventory.networks:
            works["netlink"] = _load_netlink
        try:
            async with self._tasks as tasks:
                for vm, record in self._host.journal.load().items():
                    if record.held.claim is not Claim.NONE or record.damaged or (self._settings.vms_dir / vm).exists():
                        self._add(vm, record)
                tasks.create_task(supervise("link", self._link.run, passes=(Renamed,)), name="link")
                for name, work in works.items():
                    tasks.create_task(supervise(name, work), name=name)
                service_manager.tell(service_manager.READY)
        finally:
            service_manager.tell(service_manager.STOPPING)
            for few in (
                self._aside,
                self._transfers,
                self._dispatcher,
                self._console_requests,
                self._prunes,
                self._backup_files,
            ):
                await few.end()

    async def _remove_remnants(self) -> None:
        """Remove what earlier agents left, and what they had begun and ends a little later, such as a QEMU's start."""
        for pause_s in REMNANT_PAUSES_S:
            await asyncio.sleep(pause_s)
            await asyncio.to_thread(Leftovers(self._settings).remove_remnants)

    def _add(self, vm: str, record: Record) -> Worker:
        worker = self._workers[vm] = Worker(vm, record, self._host)
        self._tasks.create_task(self._work(worker), name=f"worker-{vm}")
        return worker

    async def _work(self, worker: Worker) -> None:
        await supervise("worker", worker.run)
        if self._workers.get(worker.vm) is worker:
            del self._workers[worker.vm]

    def _pid_of(self, vm: str) -> int | None:
        worker = self._workers.get(vm)
        return None if worker is None else worker.machine.pid

    def _place_of(self, vm: str) -> GuestPlace | None:
        return None if self._pid_of(vm) is None else self._host.networks.place_of(vm)

    def _find_vm(self, vm: str) -> VmContext | None:
        worker = self._workers.get(vm)
        return None if worker is None else worker.context

    def _interfaces_changed(self, vms: set[str]) -> None:
        """Let the status of VMs say that interfaces are closed, or no longer."""
        for vm in vms & self._workers.keys():
            self._workers[vm].wake()

    def _owns(self, vm: str) -> bool:
        worker = self._workers.get(vm)
        return worker is not None and worker.context.owns()

    def _neighbours(self) -> list[LocalVm]:
        return [neighbour for worker in self._workers.values() if (neighbour := worker.neighbour()) is not None]

    def _images_in_use(self) -> list[str]:
        return [image for worker in self._workers.values() for image in worker.context.image_names()]

    def _start_aside(self, work: Coroutine[Any, Any, None]) -> None:
        self._aside.start(work)

    def _knocked(self, session: str, peer: str) -> None:
        for worker in self._workers.values():
            worker.on_unexpected_session(session, peer)

    def _hello(self) -> wire.Hello:
        self._host.lease.rule.connected()
        for worker in self._workers.values():
            worker.resync()
        self._conditions.resync()
        self._host.networks.problems.resync()
        held = tuple(worker.held() for worker in self._workers.values())
        return wire.Hello(
            wire.PROTOCOL, self._images.inventory, held, self._host.database_mark.mark, boot_id(), knows_unreadable=True
        )

    def _receive(self, message: wire.Message) -> None:
        self._dispatcher.take(message)

    def _lease_over(self) -> None:
        """Orders of before may be outdated: treat highly available VMs as others' until the server confirms."""
        for worker in self._workers.values():
            worker.on_lease_lost()
        self._link.restart()

    def _lost(self) -> None:
        self._dispatcher.forget()
        self._console_requests.close_all()

    async def _look_around(self) -> None:
        """Know what pages of running VMs there are here before a VM comes that has the same ones."""
        while True:
            await asyncio.sleep(LOOK_AROUND_S)
            await self._host.pages.survey(self._neighbours())

    async def _measure_loads(self) -> None:
        """Tell the server what VMs use of the processors."""
        loads = Loads()
        while True:
            pids = [(vm, worker.machine.pid) for vm, worker in self._workers.items()]
            running = [(vm, pid) for vm, pid in pids if pid is not None]
            used = await asyncio.to_thread(loads.look, running)
            if used:
                self._link.send(wire.Measured(tuple(used)))
            await asyncio.sleep(LOADS_S)

    async def _watch_console_logs(self) -> None:
        """Keep what guests print within limits, however fast they do, and encrypt it where their disks are."""
        while True:
            await asyncio.sleep(CONSOLE_LOGS_CHECK_S)
            contexts = [worker.context for worker in self._workers.values()]
            await asyncio.to_thread(_keep_console_logs, contexts)


def _keep_console_logs(contexts: list[VmContext]) -> None:
    for context in contexts:
        with contextlib.suppress(OSError):  # looked at again
            context.keep_console_log()


async def _load_netlink() -> None:
    """Load what netlink needs before the first VM starts: that takes a while."""
    await asyncio.to_thread(tap.load)


async def _run(settings: AgentSettings, identity: Identity) -> None:
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()
    assert main is not None
    survive_hangups()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, main.cancel)
    settings.vms_dir.mkdir(parents=True, exist_ok=True)
    context = identity.tls(server=True)
    revoked = RevokedKeys(settings.state_dir / "revoked.json", Admittance(pki.peer_key_hash, identity.trusts))
    listener = Listener(context, pki.peer_name, revoked.admittance)
    pool = ConnectionPool(lambda: identity.tls(server=False), revoked.admittance)
    pages = KnownPages(settings)
    await asyncio.to_thread(pages.store.clean)
    await asyncio.to_thread(copies.clean, settings)
    userfaults.restore(settings.state_dir)
    async with listener.listen(settings.dwcp_host, settings.dwcp_port) as port:
        endpoint = f"{settings.advertise or settings.dwcp_host}:{port}"
        pools, networks = Pools(settings), NodeNetworks(settings)
        inventory, images = await inventories.take(settings, endpoint, pools)
        log.info("agent is up", node=identity.name, accelerator=inventory.accelerator.kind, dwcp=endpoint)
        host = NodeServices(
            settings=settings,
            identity=identity,
            journal=Journal(settings.journal_dir),
            listener=listener,
            images=images,
            accelerator=inventory.accelerator.kind,
            cpu=inventory.cpu,
            endpoint=endpoint,
            connections=pool,
            transport=DwcpTransport(pool, listener, settings),
            pages=pages,
            find_vm=lambda _: None,
            neighbours=list,
            run_in_background=lambda work: work.close(),
            storage_pools=pools,
            start_queue=StartQueue(STARTS_AT_ONCE),
            disk_turns=FairTurns(DISKS_AT_ONCE, DISKS_OF_A_PROJECT),
            clock=SystemClock(),
            lease=NodeLease(settings.lease_path),
            database_mark=RememberedMark(settings.database_mark_path),
            revoked=revoked,
            networks=networks,
            hypervisor=QemuHypervisor(settings, networks, Passthrough()),
            replicas=ReplicaStorage(settings.replicas_dir),
            send=lambda _: None,
        )
        try:
            await Agent(settings, identity, inventory, host, lambda: _use(identity, context, revoked.admittance)).run()
        finally:
            pool.close()


def _use(identity: Identity, context: ssl.SSLContext, admittance: Admittance) -> None:
    """Let connections with other nodes use, and trust, what this node's files have by now."""
    identity.reload(context)
    admittance.check_anew()


def _ticket(settings: AgentSettings, offer: JoinOffer) -> JoinTicket:
    """Return the ticket with which a host joins. Raises InvalidInput."""
    ticket = offer.ticket()
    if ticket is None:
        raise InvalidInput(
            f"this host has not joined yet (no identity in {settings.identity_dir})",
            field="join",
            hint=f"create a token with: novacron node join-token --node {settings.name} --file FILE,"
            " and pass it with --join @FILE",
        )
    return ticket


def _be_present(owner: str) -> Presence:
    """Make sure that no other agent of this node works on this host. Raises InvalidInput."""
    try:
        return Presence(owner)
    except AgentLives as error:
        raise InvalidInput(str(error), field="state-dir", hint="stop it first") from None


def _begin(settings: AgentSettings, offer: JoinOffer, presence: contextlib.ExitStack) -> tuple[AgentSettings, Identity]:
    """Return this node's identity, joining first if it has none, once nothing of an earlier agent acts on this host.

    What can keep this agent from beginning is looked at first: a token is used up only then. Raises InvalidInput.
    """
    identity = identities.load(settings.identity_dir)
    host_identity.check(settings.host_path)
    if identity is not None:
        identity = identities.renewed_at_start(identity, offer)
        settings = msgspec.structs.replace(settings, owner=identity.owner)
        presence.callback(_be_present(settings.owner).release)
    else:
        ticket = _ticket(settings, offer)
        owner = identities.owner_of(ticket.ca_pem.encode(), settings.name)
        settings = msgspec.structs.replace(settings, owner=owner)
        presence.callback(_be_present(owner).release)
        Leftovers(settings).check()
        identity = identities.join(settings.identity_dir, ticket, settings.name)
    asyncio.run(Leftovers(settings).settle())
    return settings, identity


def _lock(directory: Path) -> FolderLock:
    """Make sure that one agent at a time works with ``directory``. Raises InvalidInput."""
    try:
        return FolderLock(directory)
    except FolderInUse as error:
        raise InvalidInput(str(error), field="state-dir") from None


def run(settings: AgentSettings, join: str | None) -> None:
    """Run an agent in this process until it is stopped. Raises InvalidInput when it can't begin."""
    offer = identities.offered(join)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    logs.set_up("agent", os.environ.get("NOVACRON_LOG_LEVEL", "info"))
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.umask(private_file.UMASK)
    with contextlib.ExitStack() as held:
        held.callback(_lock(settings.state_dir).release)
        settings, identity = _begin(settings, offer, held)
        traces.set_up("agent", identity.name)
        held.callback(traces.close)
        try:
            if _until_renamed(settings, identity):
                os.execv(sys.executable, sys.orig_argv)  # noqa: S606 (as it was started)
        except asyncio.CancelledError:
            log.info("agent stopped; its VMs go on")


def _until_renamed(settings: AgentSettings, identity: Identity) -> bool:
    """Run until this node is renamed. Raises CancelledError when it is stopped."""
    import uvloop

    renamed = False
    try:
        uvloop.run(_run(settings, identity))
    except* Renamed:
        log.info("this node was renamed: its agent restarts", was=identity.name)
        renamed = True
    return renamed
