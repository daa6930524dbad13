"""The target's part of one VM's migrations: what is received, and what is promised and said about it."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from novacron import pki
from novacron.agent.actions import Action, doing
from novacron.agent.migration import checkpoint_index, disk_mirror, post_copy, source_stream, target_stream
from novacron.agent.migration.known_pages import Tenant
from novacron.agent.vm.devices import opened
from novacron.agent.vm.journal import PostCopy
from novacron.agent.vm.machine import MachineFailed
from novacron.disk.images import Image
from novacron.disk.stream import VolumeInfo
from novacron.dwcp.receiver import Incoming, ReceiveFailed, Terms
from novacron.model import limits
from novacron.model.migration import Kind, Policy, Side
from novacron.model.ownership import Claim
from novacron.qemu import userfaults
from novacron.qemu.monitor import MonitorFailed
from novacron.telemetry import logs
from novacron.wire import messages as wire

if TYPE_CHECKING:
    from novacron.agent.worker import Worker

log = logs.get(__name__)

AGAIN_S = 2.0
LAYER_OVERHEAD = 1 << 20
"""What a layer's file has at most beyond an eighth more than its disk: its tables."""


class Taking:
    """Receives a VM, as its worker is told."""

    def __init__(self, worker: Worker) -> None:
        self.arriving: str | None = None
        """The migration that brought everything, until the guest goes on here."""
        self._worker = worker
        self._transfer: asyncio.Task[None] | None = None
        self._awaiting: str | None = None
        self._session: Incoming | None = None

    async def step(self, task: wire.Task, wanted: wire.Assignment) -> None:
        """Do the next step."""
        worker = self._worker
        send = worker.host.send
        moving = worker.record.post_copy
        if moving is not None and moving.migration == task.migration:
            send(wire.Voted(task.migration, Side.TARGET, task.epoch))
            return
        if self._transfer is not None:
            if self._awaiting == task.migration:  # the server may not have heard it
                send(wire.TargetReady(task.migration, worker.host.endpoint))
            return
        image = worker.host.images.get(wanted.spec.image)
        if image is None:
            send(wire.MigrationFailed(task.migration, f"this node holds no image {wanted.spec.image}"))
            return
        if not wanted.spec.own_disk:
            image = image.without_disk()
        cold = task.kind is Kind.COLD
        if cold and not disk_mirror.keeps_files(wanted.spec, image, wanted.volumes):
            self._begin(task, wanted)
            send(wire.TargetReady(task.migration, worker.host.endpoint))
            send(wire.Voted(task.migration, Side.TARGET, task.epoch))
            return
        if worker.record.migration == task.migration:
            if await self._has_all(cold=cold, mirrored=task.kind is Kind.LIVE and bool(self._infos(wanted, image))):
                send(wire.Voted(task.migration, Side.TARGET, task.epoch))
                return
            await worker.destroy()
            send(wire.MigrationFailed(task.migration, "the VM that was being received is gone"))
            return
        await worker.destroy()
        self._begin(task, wanted)
        work = self._take_layer(task, wanted, image) if cold else self._load(task, wanted, image)
        self._transfer = asyncio.create_task(work, name=f"load-{worker.vm}")

    def _infos(self, wanted: wire.Assignment, image: Image) -> list[VolumeInfo]:
        return disk_mirror.told_of(image, wanted.spec.disk_bytes(image.info.disk_bytes), wanted.volumes)

    def _paths(self, wanted: wire.Assignment) -> dict[str, Path]:
        """Return where the volumes that come with a VM are to be. Raises OSError."""
        return {one.id: self._worker.host.pools.path(one.pool, one.id) for one in wanted.volumes if one.moves}

    async def _has_all(self, *, cold: bool, mirrored: bool) -> bool:
        """Say whether an earlier agent received everything: memory may be there before the disk is."""
        machine = self._worker.machine
        if cold:
            return disk_mirror.has_arrived(machine.directory)
        if await machine.status() not in ("paused", "shutdown"):
            return False
        return not mirrored or disk_mirror.are_whole(machine)

    def _begin(self, task: wire.Task, wanted: wire.Assignment) -> None:
        self._worker.store(
            migration=task.migration, machine=wanted.machine, cpu=wanted.cpu, reboots=wanted.reboots,
            resets=wanted.resets, halted_at_start=wanted.halted_at_start, crashes=0,
        )  # fmt: skip

    async def _ready(self, task: wire.Task) -> None:
        self._awaiting = task.migration
        self._worker.host.send(wire.TargetReady(task.migration, self._worker.host.endpoint))

    async def _loaded(self, task: wire.Task, follows: bool) -> None:
        self.arriving = task.migration
        if follows:
            self._worker.store(post_copy=PostCopy(task.migration, Side.TARGET, task.peer))
        log.info("everything is loaded", vm=self._worker.vm, migration=task.migration, memory_follows=follows)
        self._worker.host.send(wire.Voted(task.migration, Side.TARGET, task.epoch))

    async def _terms(self, wanted: wire.Assignment, image: Image, *, of_disk: bool) -> Terms:
        host, tenant = self._worker.host, Tenant(wanted.project, wanted.page_key)
        if of_disk:
            bases = await host.pages.for_disk(self._worker.vm, image, tenant)
        else:
            bases = await host.pages.for_arrival(self._worker.vm, image, tenant, host.neighbours())
        return Terms(wanted.page_key, host.settings.rings_dir, bases, host.settings.outage_s)

    async def _load(self, task: wire.Task, wanted: wire.Assignment, image: Image) -> None:
        worker = self._worker
        host = worker.host
        try:
            worker.expected_exit = False
            with (
                doing(Action.RECEIVE, trace=task.trace, vm=worker.vm, migration=task.migration, source=task.peer),
                host.listener.announce(task.migration, task.peer),
            ):
                await self._load_all(task, wanted, image)
            if self.pulls:
                worker.store(post_copy=None)
            if task.warm is not None:  # it may go back, and then has to wait for no handshake
                host.pool.warm(source_stream.address(task.warm), pki.node_host(task.peer), 1)
            tenant = Tenant(wanted.project, wanted.page_key)
            store, settings = host.pages.store, host.settings
            host.aside(checkpoint_index.learn(store, worker.vm, tenant, task, host.listener, settings, self._is_here))
            await host.pages.forget(worker.vm, tenant)
        except (target_stream.LoadFailed, ReceiveFailed, MachineFailed, OSError) as error:
            if self.pulls:
                log.warning("a guest's memory does not come just now", vm=worker.vm, error=str(error))
            else:
                await self._fail(task, error)
        except Exception as error:  # a defect met with one VM must not leave its migration hanging
            log.exception("defect while receiving a VM", vm=worker.vm, migration=task.migration)
            if not self.pulls:
                await self._fail(task, MachineFailed(f"a defect in its agent: {error!r}"))
        finally:
            self._end()

    async def _load_all(self, task: wire.Task, wanted: wire.Assignment, image: Image) -> None:
        """Receive memory, and disks before or with it. Raises LoadFailed, ReceiveFailed, MachineFailed, OSError."""
        worker, host = self._worker, self._worker.host
        infos, paths = self._infos(wanted, image), self._paths(wanted)
        if task.kind is Kind.WARM:
            await self._take_files(task, wanted, image)
            infos = []  # nothing is written to them any more
        else:
            await asyncio.to_thread(disk_mirror.make_room, paths, infos)
        host.networks.arrives(worker.vm)
        starting = asyncio.create_task(
            worker.machine.start(
                wanted,
                image,
                host.accelerator,
                wanted.machine,
                lambda: opened(host.pools, wanted.volumes),
                incoming=True,
            )
        )
        may = userfaults.allowed(host.settings.state_dir) if task.policy is Policy.POST_COPY else nullcontext()
        try:
            with may:
                terms = await self._terms(wanted, image, of_disk=False)
                with host.listener.expect(task.migration, task.peer, terms) as session:
                    await starting
                    if not infos:
                        await self._load_from(task, session, None)
                    else:
                        terms = await self._terms(wanted, image, of_disk=True)
                        name = disk_mirror.session_of(task.migration)
                        with host.listener.expect(name, task.peer, terms) as disk:
                            await self._load_from(task, session, disk_mirror.Coming(disk, image, infos, paths))
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)

    def _is_here(self) -> bool:
        return self._worker.record.held.claim is Claim.OWNER

    @property
    def pulls(self) -> bool:
        """The guest is here, or all but here, and some of its memory is not."""
        moving = self._worker.record.post_copy
        return moving is not None and moving.side is Side.TARGET

    def is_knocked(self, session: str, peer: str) -> None:
        """Somebody would begin a session that is not expected: if it is the source, its last one is over."""
        moving = self._worker.record.post_copy
        if self._session is None or moving is None or not self.pulls:
            return
        if (session, peer) == (post_copy.session_of(moving), moving.peer):
            self._session.fail("its sender begins anew")

    def go_on(self) -> None:
        """Go on with memory that does not come any more by itself."""
        if self.pulls and self._transfer is None:
            self._transfer = asyncio.create_task(self._pull(), name=f"pull-{self._worker.vm}")

    async def _pull(self) -> None:
        worker = self._worker
        moving = worker.record.post_copy
        assert moving is not None
        try:
            with doing(Action.PULL, trace=worker.trace, vm=worker.vm, migration=moving.migration, source=moving.peer):
                await post_copy.take_rest(worker.machine, moving, worker.host.listener, worker.host.settings)
            worker.store(post_copy=None)
            log.info("a guest's memory has come", vm=worker.vm, migration=moving.migration)
        except (MonitorFailed, OSError) as error:
            log.warning("the rest of a guest's memory can't be taken", vm=worker.vm, error=str(error))
            await asyncio.sleep(AGAIN_S)
        finally:
            self._end()

    async def _load_from(self, task: wire.Task, session: Incoming, disk: disk_mirror.Coming | None) -> None:
        worker = self._worker
        self._session = session
        await target_stream.load(
            worker.machine, session, lambda: self._ready(task), worker.migration_changed,
            lambda follows: self._loaded(task, follows), disk, post_copy=task.policy is Policy.POST_COPY,
        )  # fmt: skip

    async def _take_layer(self, task: wire.Task, wanted: wire.Assignment, image: Image) -> None:
        """Receive a VM that does not run."""
        worker = self._worker
        try:
            with doing(Action.RECEIVE, trace=task.trace, vm=worker.vm, migration=task.migration, source=task.peer):
                await self._take_files(task, wanted, image)
            await worker.host.pages.forget(worker.vm, Tenant(wanted.project, wanted.page_key))
            worker.host.send(wire.Voted(task.migration, Side.TARGET, task.epoch))
        except (ReceiveFailed, OSError) as error:
            await self._fail(task, error)
        finally:
            self._end()

    async def _take_files(self, task: wire.Task, wanted: wire.Assignment, image: Image) -> None:
        """Receive what a VM whose guest does not run consists of, but for memory. Raises ReceiveFailed, OSError."""
        if not disk_mirror.keeps_files(wanted.spec, image, wanted.volumes):
            return
        worker = self._worker
        size = wanted.spec.disk_bytes(image.info.disk_bytes)
        kept = limits.SNAPSHOTS_PER_VM_MAX * (size + (wanted.spec.memory_mib << 20))
        bytes_max = size + size // 8 + LAYER_OVERHEAD + kept
        terms = await self._terms(wanted, image, of_disk=True)
        with worker.host.listener.expect(disk_mirror.session_of(task.migration), task.peer, terms) as session:
            await self._ready(task)
            paths = self._paths(wanted)
            volumes = {one.id: (paths[one.id], one.size_mib << 20) for one in wanted.volumes if one.moves}
            await disk_mirror.receive_state(session, worker.machine.directory, image, bytes_max, volumes)

    async def _fail(self, task: wire.Task, error: Exception) -> None:
        worker = self._worker
        log.warning("migration failed at the target", vm=worker.vm, migration=task.migration, error=str(error))
        worker.expected_exit = True
        await worker.machine.destroy()
        worker.host.send(wire.MigrationFailed(task.migration, str(error) or type(error).__name__))

    def _end(self) -> None:
        self._awaiting = self._session = None
        self._transfer = None
        self._worker.wake()

    async def cancel(self) -> None:
        """End what is being received, if anything is."""
        transfer = self._transfer
        if transfer is not None:
            transfer.cancel()
            await asyncio.gather(transfer, return_exceptions=True)
