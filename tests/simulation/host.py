"""One simulated host: its disk and its QEMUs, and the agents that live on it one after another.

The workers, the dispatcher, the journal, the lease, the watch over peers and both sides of migrations are the
product's.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Coroutine
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import AsyncMock, Mock

from novacron.agent.control.dispatch import Dispatcher, Parts
from novacron.agent.control.peers import PeerWatch
from novacron.agent.host.lease import NodeLease
from novacron.agent.host.networks import NodeNetworks
from novacron.agent.host.volumes import Pools
from novacron.agent.migration.known_pages import KnownPages
from novacron.agent.migration.services import NodeServices
from novacron.agent.settings import AgentSettings
from novacron.agent.vm.hypervisor import Hypervisor
from novacron.agent.vm.journal import Journal, Record
from novacron.agent.vm.start_queue import StartQueue
from novacron.agent.worker import Worker
from novacron.disk.images import LocalImage
from novacron.dwcp.connection import ConnectionPool
from novacron.model.node import AcceleratorKind, ImageInfo
from novacron.model.ownership import Claim
from novacron.qemu import lease_guard
from novacron.qemu.monitor import MonitorFailed
from novacron.wire import messages as wire
from tests.simulation.machine import SimulatedHypervisor, SimulatedQemu
from tests.simulation.peers import SimulatedPool
from tests.simulation.transport import SimulatedListener, SimulatedTransport

if TYPE_CHECKING:
    from tests.simulation.world import World

IMAGE = ImageInfo("tiny", "0", 1, "kernel")
STARTS_AT_ONCE = 4


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
        if agent.dies is Death.AFTER_WRITE:
            agent.alive = False
            raise OSError("the agent was killed")


class AgentProcess:
    """One life of a host's agent. Once it is not ``alive``, nothing that it still does has an effect."""

    def __init__(self, host: SimulatedHost) -> None:
        self.host, self.alive = host, True
        self.dies: Death | None = None
        self.workers: dict[str, Worker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        settings = AgentSettings(host.directory, host.directory / "images", host.name)
        world = host.world
        pages = Mock(
            spec=KnownPages, prepare=AsyncMock(), keep=AsyncMock(), forget=AsyncMock(),
            for_arrival=AsyncMock(return_value=[]), for_disk=AsyncMock(return_value=[]),
            checkpoint_elsewhere=AsyncMock(return_value={}), of_image=AsyncMock(return_value=[]), store=Mock(),
        )  # fmt: skip
        self.services = NodeServices(
            settings=settings,
            identity=cast(Any, None),
            journal=MortalJournal(settings.journal_dir, self),
            listener=cast(Any, SimulatedListener()),
            images={IMAGE.name: LocalImage(IMAGE, settings.images_dir, None, None, "")},
            accelerator=AcceleratorKind.TCG,
            cpu=None,
            endpoint=f"{host.name}:1",
            connections=Mock(),
            transport=SimulatedTransport(self),
            pages=pages,
            find_vm=lambda _: None,
            neighbours=list,
            run_in_background=_drop,
            storage_pools=Pools(settings),
            start_queue=StartQueue(STARTS_AT_ONCE, gather_s=0),
            clock=world.clock,
            lease=NodeLease(settings.lease_path, world.clock.monotonic),
            networks=NodeNetworks(settings),
            hypervisor=cast(Hypervisor, None),
            send=self._send,
        )
        self.services.hypervisor = SimulatedHypervisor(self)
        none = Mock()
        pool = cast(ConnectionPool, SimulatedPool(world, host.name))
        self.peers = PeerWatch(
            settings.state_dir / "peers.json", host.name, pool, self.services.lease, world.clock, self._lease_over
        )
        self.dispatcher = Dispatcher(
            Parts(self.services, self.workers, self._add_worker, self.peers, none, none, none, none), cast(Any, None)
        )
        if world.leased:
            self._begin(self.peers.run(), "peers")
        for vm, record in self.services.journal.load().items():
            if record.held.claim is not Claim.NONE or (settings.vms_dir / vm).exists():
                self._add(vm, record)

    def check_alive(self) -> None:
        """Raise MonitorFailed once it was killed."""
        if not self.alive:
            raise MonitorFailed("the agent was killed")

    def _send(self, message: wire.Message) -> None:
        if self.alive:
            self.host.world.network.to_server(self.host.name, message)

    def _add_worker(self, vm: str) -> Worker:
        return self._add(vm, self.services.journal.load_one(vm))

    def _add(self, vm: str, record: Record) -> Worker:
        worker = self.workers[vm] = Worker(vm, record, self.services)
        self._begin(self._work(worker), vm)
        return worker

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=f"{self.host.name}-{name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def hello(self) -> None:
        """The link begins anew, as ``agent.main`` does it."""
        self.services.lease.rule.connected()
        for worker in self.workers.values():
            worker.resync()

    def _lease_over(self) -> None:
        """As ``agent.main`` does it."""
        for worker in self.workers.values():
            worker.on_lease_lost()
        self.host.world.link_ends(self.host.name)

    async def _work(self, worker: Worker) -> None:
        await worker.run()
        if self.workers.get(worker.vm) is worker:
            del self.workers[worker.vm]

    async def bury(self) -> None:
        """Take what is left of a killed agent away."""
        self.alive = False
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result


class SimulatedHost:
    """What outlives an agent; ``directory`` outlives the host's crashes too."""

    def __init__(self, world: World, name: str, directory: Path) -> None:
        self.world, self.name, self.directory = world, name, directory
        self.qemus: dict[str, SimulatedQemu] = {}
        directory.mkdir(parents=True)
        self.agent = AgentProcess(self)

    def lease_holds(self) -> bool:
        """Say what the lease guard says: it reads what the agent wrote."""
        return lease_guard.valid(str(self.agent.services.settings.lease_path), self.world.clock.monotonic())

    def guard(self) -> None:
        """End what ends with the lease, if that is over."""
        if not self.lease_holds():
            for qemu in list(self.qemus.values()):
                if qemu.kept:
                    qemu.end(tells=True)

    async def crash_agent(self) -> None:
        """Kill the agent; its successor begins at once. A QEMU that was loading ends: nobody feeds it any more."""
        await self.agent.bury()
        self.world.link_ends(self.name)
        for qemu in list(self.qemus.values()):
            qemu.on_event = None
            if qemu.outgoing is not None:
                qemu.outgoing.cut()
                qemu.outgoing = None
            if qemu.run_state == "inmigrate":
                qemu.end(tells=False)
        self.agent = AgentProcess(self)

    async def crash(self) -> None:
        """The host loses its power, and starts again."""
        for qemu in list(self.qemus.values()):
            qemu.end(tells=False)
        await self.crash_agent()

    async def end(self) -> None:
        await self.agent.bury()
        shutil.rmtree(self.directory)


def _drop(work: Coroutine[Any, Any, None]) -> None:
    work.close()
