"""One simulated host: its disk and its QEMUs, and the agents that live on it one after another.

The workers, the dispatcher, the journal, the lease, the watch over peers and both sides of migrations are the
product's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import AsyncMock, Mock, patch

from cryptography import x509

from novacron import pki
from novacron.agent import identity as identities
from novacron.agent.control.dispatch import Dispatcher, Parts
from novacron.agent.control.peers import PeerWatch
from novacron.agent.fair_turns import FairTurns
from novacron.agent.host import host_identity
from novacron.agent.host.database_mark import RememberedMark
from novacron.agent.host.host_identity import HostIdentity
from novacron.agent.host.lease import NodeLease
from novacron.agent.host.networks import NodeNetworks
from novacron.agent.host.presence import AgentLives, Presence
from novacron.agent.host.volumes import Pools
from novacron.agent.migration.known_pages import KnownPages
from novacron.agent.migration.services import NodeServices
from novacron.agent.replicas.storage import ReplicaStorage
from novacron.agent.settings import AgentSettings
from novacron.agent.vm.hypervisor import Hypervisor
from novacron.agent.vm.journal import Journal, Record
from novacron.agent.vm.leftovers import Leftovers
from novacron.agent.vm.start_queue import StartQueue
from novacron.agent.worker import Worker
from novacron.disk.images import LocalImage
from novacron.dwcp.connection import ConnectionPool
from novacron.model.errors import InvalidInput, NovaError
from novacron.model.node import AcceleratorKind, ImageInfo
from novacron.model.ownership import Claim
from novacron.qemu import lease_guard
from novacron.qemu.monitor import MonitorFailed
from novacron.qemu.running import RunningQemu
from novacron.wire import messages as wire
from tests.simulation.machine import SimulatedHypervisor, SimulatedQemu
from tests.simulation.peers import SimulatedPool
from tests.simulation.transport import SimulatedListener, SimulatedTransport

if TYPE_CHECKING:
    from tests.simulation.world import World

IMAGE = ImageInfo("tiny", "0", 1, "kernel")
DISK_IMAGE = ImageInfo("disk", "1", 1, "disk", disk_bytes=1 << 20)
IMAGES = {
    IMAGE.name: LocalImage(IMAGE, Path("images"), None, None, ""),
    DISK_IMAGE.name: LocalImage(DISK_IMAGE, Path("images"), None, None, "", disk=Path("disk.raw")),
}
STARTS_AT_ONCE = 4
NO_PAGES = Mock(
    spec=KnownPages, prepare=AsyncMock(), keep=AsyncMock(), forget=AsyncMock(),
    for_arrival=AsyncMock(return_value=[]), for_disk=AsyncMock(return_value=[]),
    checkpoint_elsewhere=AsyncMock(return_value={}), of_image=AsyncMock(return_value=[]), store=Mock(),
)  # fmt: skip
NO_PART = Mock()
"""Stands for what is not simulated; made once, because that takes as long as much of a history."""


class Death(StrEnum):
    """When an agent is killed: at its next write to the journal, before that is done or just after it."""

    BEFORE_WRITE = "before-write"
    AFTER_WRITE = "after-write"


class MortalJournal(Journal):
    """The real journal of an agent that may be killed while it writes."""

    def __init__(self, directory: Path, agent: AgentProcess) -> None:
        super().__init__(directory)
        self._agent = agent

    def store(self, vm: str, record: Record) -> None:
        agent = self._agent
        if agent.dies is Death.BEFORE_WRITE:
            agent.alive = False
        if not agent.alive:
            raise OSError("the agent was killed")
        super().store(vm, record)
        if record.held.claim is Claim.RELEASED:
            agent.host.promised.add((vm, record.held.epoch))
        if agent.dies is Death.AFTER_WRITE:
            agent.alive = False
            raise OSError("the agent was killed")


class AgentProcess:
    """One life of a host's agent. Once it is not ``alive``, nothing that it still does has an effect."""

    def __init__(self, host: SimulatedHost, settings: AgentSettings, presence: Presence) -> None:
        self.host, self.alive = host, True
        self._presence = presence
        self.dies: Death | None = None
        self.workers: dict[str, Worker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        world = host.world
        self.services = NodeServices(
            settings=settings,
            identity=cast(Any, None),
            journal=MortalJournal(settings.journal_dir, self),
            listener=cast(Any, SimulatedListener()),
            images=dict(IMAGES),
            accelerator=AcceleratorKind.TCG,
            cpu=None,
            endpoint=f"{host.name}:1",
            connections=NO_PART,
            transport=SimulatedTransport(self),
            pages=NO_PAGES,
            find_vm=lambda _: None,
            neighbours=list,
            run_in_background=_drop,
            storage_pools=Pools(settings),
            start_queue=StartQueue(STARTS_AT_ONCE, gather_s=0),
            disk_turns=FairTurns(STARTS_AT_ONCE),
            clock=world.clock,
            lease=NodeLease(settings.lease_path, world.clock.monotonic),
            database_mark=RememberedMark(settings.database_mark_path),
            revoked=NO_PART,
            networks=NodeNetworks(settings),
            hypervisor=cast(Hypervisor, None),
            replicas=ReplicaStorage(settings.replicas_dir),
            send=self.say,
        )
        self.services.hypervisor = SimulatedHypervisor(self)
        pool = cast(ConnectionPool, SimulatedPool(world, host.name))
        self.peers = PeerWatch(
            settings.state_dir / "peers.json", host.name, pool, self.services.lease, world.clock, self._lease_over
        )
        self.dispatcher = Dispatcher(
            Parts(self.services, self.workers, self._add, self.peers, NO_PART, NO_PART, NO_PART, NO_PART),
            cast(Any, None),
        )
        if world.leased:
            self._begin(self.peers.run(), "peers")
        for vm, record in self.services.journal.load().items():
            if record.held.claim is not Claim.NONE or record.damaged or (settings.vms_dir / vm).exists():
                self._add(vm, record)

    def check_alive(self) -> None:
        """Raise MonitorFailed once it was killed."""
        if not self.alive:
            raise MonitorFailed("the agent was killed")

    def say(self, message: wire.Message) -> None:
        """Say something to the server."""
        if self.alive and self.host.is_connected_one():
            self.host.world.network.to_server(self.host.name, message)

    def _add(self, vm: str, record: Record) -> Worker:
        worker = self.workers[vm] = Worker(vm, record, self.services)
        self._begin(self._work(worker), vm)
        return worker

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=f"{self.host.name}-{name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def hello(self) -> tuple[wire.HeldVm, ...]:
        """The link begins anew, as ``agent.main`` does it: return what is said of VMs."""
        self.services.lease.rule.connected()
        for worker in self.workers.values():
            worker.resync()
        return tuple(worker.held() for worker in self.workers.values())

    def _lease_over(self) -> None:
        """As ``agent.main`` does it."""
        for worker in self.workers.values():
            worker.on_lease_lost()
        self.host.end_link()

    async def _work(self, worker: Worker) -> None:
        await worker.run()
        if self.workers.get(worker.vm) is worker:
            del self.workers[worker.vm]

    async def bury(self) -> None:
        """Take what is left of a killed agent away."""
        self.alive = False
        self._presence.release()
        await self.dispatcher.end()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result


class Hardware:
    """What agents on one host share, whatever folders they work with."""

    def __init__(self, name: str, system: str = "") -> None:
        self.name = name
        """Also what tells this start of the host from others': it does not change here when a host crashes."""
        self.identity = HostIdentity(system=system or name)
        """Hosts that were installed from one image may have the same."""
        self.qemus: dict[int, SimulatedQemu] = {}


class SimulatedHost:
    """What outlives an agent; ``directory``, its state folder, outlives the host's crashes too. ``hardware``: a copy of
    the state folder of node ``name`` is on that; no agent works with it yet."""

    def __init__(self, world: World, name: str, directory: Path, hardware: Hardware | None = None) -> None:
        self.world, self.name, self.directory = world, name, directory
        self.hardware = hardware or Hardware(name)
        self.original: Path | None = None
        """The state folder in whose place a copy of it is used."""
        self.promised: set[tuple[str, int]] = set()
        """VMs, and the epochs at which it has promised not to run them, of which its state folder knows."""
        self.refusal = ""
        """Why the agent does not begin."""
        self.is_dismissed = False
        """The server says that it is no node any more; it has to join again."""
        self.off_until_s = 0.0
        """Until then nobody starts it."""
        self._agent: AgentProcess | None = None
        self._key_hashes: dict[bytes, str] = {}
        if hardware is not None:
            return
        key = pki.new_key()
        self.key_hash = self.key_hash_of(key)
        self.keep_identity(key, self.world.authority)
        self._check_hardware()
        settings = self._settings(identities.owner_of(self.world.authority.pem, name))
        self._begin_agent(settings, self._be_present(settings.owner))

    @property
    def qemus(self) -> dict[int, SimulatedQemu]:
        """The QEMUs on this host."""
        return self.hardware.qemus

    @property
    def agent(self) -> AgentProcess:
        assert self._agent is not None, self.refusal
        return self._agent

    @property
    def works(self) -> bool:
        """Say whether an agent works."""
        return self._agent is not None and self._agent.alive

    @property
    def has_died(self) -> bool:
        """Say whether the agent has killed itself at a write."""
        return self._agent is not None and not self._agent.alive

    def keep_identity(self, key: pki.Key, authority: pki.Authority) -> None:
        """Have a certificate for a key in the state folder."""
        where = self.directory / "identity"
        certificate = authority.issue_node(pki.certificate_request(key, self.name), self.name)
        for file, content in (
            ("node.key", pki.key_pem(key)), ("node.crt", certificate), ("ca.crt", authority.pem),
            ("identity.json", b'{"link_url": "wss://server"}'),
        ):  # fmt: skip
            pki.write_secret(where / file, content)

    def is_certified(self) -> bool:
        """Say whether the server accepts this node's certificate."""
        certificate = (self.directory / "identity" / "node.crt").read_bytes()
        return pki.validity(certificate).objection(self.world.clock.time()) is None

    def let_certificate_end(self) -> None:
        """Have a certificate that has ended."""
        directory = self.world.directory / "authority"
        earlier = pki.Authority.open(directory, lambda: self.world.clock.time() - 2 * pki.NODE_DAYS * 86_400)
        self.keep_identity(pki.load_key(self.directory / "identity" / "node.key"), earlier)
        self.end_link()

    async def rejoin(self) -> None:
        """Get another certificate, as ``novacron agent --rejoin`` does. Raises NovaError."""
        key = pki.load_key(self.directory / "identity" / "node.key")
        await self.world.join(self.name, self.key_hash_of(key))
        self.keep_identity(key, self.world.authority)
        self.is_dismissed = False

    @property
    def own_key_hash(self) -> str:
        """Return the hash of the key that is in the state folder."""
        written = (self.directory / "identity" / "node.key").read_bytes()
        if written not in self._key_hashes:
            self._key_hashes[written] = self.key_hash_of(pki.load_key(self.directory / "identity" / "node.key"))
        return self._key_hashes[written]

    def key_hash_of(self, key: pki.Key) -> str:
        return pki.key_hash(x509.load_pem_x509_csr(pki.certificate_request(key, self.name)))

    @property
    def is_off(self) -> bool:
        return self.world.clock.now_s < self.off_until_s

    async def switch_off(self, seconds: float) -> None:
        """The host loses its power, and gets it back so much later."""
        self.off_until_s = self.world.clock.now_s + seconds
        self.lose_power()
        await self.end_agent()

    def qemus_of(self, vm: str) -> list[RunningQemu]:
        """Return the QEMUs on this host that run a VM."""
        return [qemu.describe() for qemu in self.qemus.values() if qemu.vm == vm]

    def is_connected_one(self) -> bool:
        """Say whether it is this host that the server knows under the node's name, if one is connected."""
        return self.world.place(self.name) is self

    def end_link(self) -> None:
        """Its agent drops its link to the server."""
        if self.is_connected_one():
            self.world.link_ends(self.name)

    def lease_holds(self) -> bool:
        """Say what the lease guard says: it reads what the agent wrote."""
        return self._lease_holds(self.agent.services.settings.lease_path)

    def _lease_holds(self, path: Path) -> bool:
        return lease_guard.valid(str(path), self.world.clock.monotonic())

    def guard(self) -> None:
        """End what ends with the lease, if that is over."""
        for qemu in list(self.qemus.values()):
            if qemu.kept and not self._lease_holds(qemu.lease_path):
                qemu.end(tells=True)

    def _settings(self, owner: str) -> AgentSettings:
        return AgentSettings(self.directory, self.directory.parent / "images", self.name, owner=owner)

    def _begin_agent(self, settings: AgentSettings, presence: Presence) -> None:
        try:
            self._agent = AgentProcess(self, settings, presence)
        except BaseException:
            presence.release()
            raise

    def _check_hardware(self) -> None:
        """Raises InvalidInput."""
        with patch.object(host_identity, "of_this_host", lambda: self.hardware.identity):
            host_identity.check(self._settings("").host_path)

    def say_moved(self) -> None:
        """Somebody says that the state folder was moved to this host for good, as ``agent --state-moved`` does."""
        with patch.object(host_identity, "of_this_host", lambda: self.hardware.identity):
            host_identity.note(self._settings("").host_path)

    def _be_present(self, owner: str) -> Presence:
        """Raises InvalidInput."""
        try:
            return Presence(owner if self.hardware.name == self.name else f"{owner} on {self.hardware.name}")
        except AgentLives as error:
            raise InvalidInput(str(error), field="state-dir") from None

    async def begin_agent(self) -> None:
        """Start an agent, as ``agent.main`` does; ``refusal`` says why it can't begin."""
        if self.is_off:
            return
        self.is_dismissed = False  # it asks again
        self.directory.mkdir(parents=True, exist_ok=True)
        identity = identities.load(self.directory / "identity")
        settings = self._settings(identities.owner_of(self.world.authority.pem, self.name))
        leftovers = Leftovers(
            settings, lambda: [qemu.describe() for qemu in self.qemus.values()], lambda _: [], self._quit
        )
        self.refusal = ""
        presence: Presence | None = None
        try:
            self._check_hardware()
            presence = self._be_present(settings.owner)
            if identity is None:
                leftovers.check()
                await self._join()
            await leftovers.settle()
        except NovaError as error:
            self.refusal = str(error)
            if presence is not None:
                presence.release()
            return
        self._begin_agent(settings, presence)

    async def _join(self) -> None:
        """Join as this host's node, with a new key. Raises NovaError."""
        key = pki.new_key()
        await self.world.join(self.name, self.key_hash_of(key))
        self.keep_identity(key, self.world.authority)

    async def _quit(self, pid: int) -> None:
        self.qemus[pid].end(tells=False)

    async def end_agent(self) -> None:
        """Kill the agent. A QEMU that was loading ends: nobody feeds it any more."""
        if self._agent is None:
            return
        await self._agent.bury()
        self._agent = None
        self.end_link()
        for qemu in list(self.qemus.values()):
            qemu.on_event = None
            if qemu.outgoing is not None:
                qemu.outgoing.cut()
                qemu.outgoing = None
            if qemu.run_state == "inmigrate":
                qemu.end(tells=False)

    async def crash_agent(self) -> None:
        """Kill the agent; its successor begins at once."""
        await self.end_agent()
        await self.begin_agent()

    def lose_power(self) -> None:
        """End every QEMU."""
        for qemu in list(self.qemus.values()):
            qemu.end(tells=False)

    async def crash(self) -> None:
        """The host loses its power, and starts again."""
        self.lose_power()
        await self.crash_agent()

    async def end(self) -> None:
        await self.end_agent()
        self.lose_power()


def _drop(work: Coroutine[Any, Any, None]) -> None:
    work.close()
