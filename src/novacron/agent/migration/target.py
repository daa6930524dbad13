"""The target's part of one VM's migrations: what is received, and what is promised and said about it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from pathlib import Path

from novacron import pki
from novacron.agent.actions import Action, doing
from novacron.agent.host.endpoint import parse_endpoint
from novacron.agent.migration import checkpoint_index, disk_mirror, post_copy
from novacron.agent.migration.services import NodeServices
from novacron.agent.migration.target_stream import Arrival, LoadFailed
from novacron.agent.vm import keys, media
from novacron.agent.vm.context import VmContext
from novacron.agent.vm.devices import opened
from novacron.agent.vm.hypervisor import MachineFailed
from novacron.agent.vm.journal import PostCopy
from novacron.agent.vm.keys import KeyMissing
from novacron.agent.vm.launch import StartRequest
from novacron.agent.vm.media import MediaMissing
from novacron.agent.vm.retries import Retries
from novacron.agent.vm.tenant import tenant_of
from novacron.disk import luks
from novacron.disk.images import LocalImage
from novacron.disk.stream import VolumeInfo
from novacron.dwcp.frames import ErrorCode
from novacron.dwcp.receiver import ReceiveFailed, ReceiveOptions, ReceiveSession
from novacron.model import limits
from novacron.model.encryption import DataKey
from novacron.model.migration import MigrationKind, MigrationPolicy, Side
from novacron.qemu import userfaults
from novacron.qemu.monitor import MonitorFailed
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

LAYER_OVERHEAD = 4 << 20
"""What a layer's file has at most beyond an eighth more than its disk: its tables, and the header of an encrypted
one."""


class MigrationTarget:
    """Receives a VM, as the server says. ``destroy`` removes what an earlier attempt left of it here."""

    def __init__(self, context: VmContext, services: NodeServices, destroy: Callable[[], Awaitable[None]]) -> None:
        self._context = context
        self._services = services
        self._destroy = destroy
        self._retries = Retries(context.vm, "take the rest of a guest's memory", services.clock)
        self._transfer: asyncio.Task[None] | None = None
        self._awaiting: str | None = None
        self._voted: str | None = None
        """The migration for which this node has voted: the guest may run here."""
        self._session: ReceiveSession | None = None

    async def step(self, task: wire.Task, assignment: wire.Assignment) -> None:
        """Do the next step."""
        context = self._context
        send = self._services.send
        moving = context.record.post_copy
        if moving is not None and moving.migration == task.migration:
            send(wire.Voted(task.migration, Side.TARGET, task.epoch))
            return
        if self._transfer is not None:
            if self._awaiting == task.migration:  # the server may not have heard it
                send(wire.TargetReady(task.migration, self._services.endpoint))
            return
        image = self._services.images.get(assignment.spec.image)
        if image is None or not image.is_(assignment.image_digest):
            send(wire.MigrationFailed(task.migration, f"this node holds no image {assignment.spec.image}"))
            return
        try:
            media.find(self._services.images, assignment.spec)
        except MediaMissing as missing:
            send(wire.MigrationFailed(task.migration, str(missing)))
            return
        if not assignment.spec.own_disk:
            image = image.without_disk()
        cold = task.kind is MigrationKind.COLD
        if cold and not disk_mirror.keeps_files(assignment.spec, image, assignment.volumes):
            await self._begin(task, assignment)
            send(wire.TargetReady(task.migration, self._services.endpoint))
            send(wire.Voted(task.migration, Side.TARGET, task.epoch))
            return
        if context.record.migration == task.migration:
            if await self._has_all(
                cold=cold, mirrored=task.kind is MigrationKind.LIVE and bool(self._infos(assignment, image))
            ):
                send(wire.Voted(task.migration, Side.TARGET, task.epoch))
                return
            # An agent before this one may have voted, and the server have decided: what is left goes on its order only.
            send(wire.MigrationFailed(task.migration, "the VM that was being received has ended"))
            return
        await self._destroy()
        await self._begin(task, assignment)
        work = self._receive_stopped(task, assignment, image) if cold else self._load(task, assignment, image)
        self._transfer = asyncio.create_task(work, name=f"load-{context.vm}")

    def _infos(self, assignment: wire.Assignment, image: LocalImage) -> list[VolumeInfo]:
        return disk_mirror.disks_of(image, assignment.spec.disk_bytes(image.info.disk_bytes), assignment.volumes)

    def _paths(self, assignment: wire.Assignment) -> dict[str, Path]:
        """Return where the volumes that come with a VM are to be. Raises OSError."""
        return {
            volume.id: self._services.storage_pools.path(volume.pool, volume.id)
            for volume in assignment.volumes
            if volume.moves
        }

    async def _has_all(self, *, cold: bool, mirrored: bool) -> bool:
        """Say whether an earlier agent received everything: memory may be there before the disk is."""
        machine = self._context.machine
        if cold:
            return disk_mirror.has_arrived(machine.directory)
        if await machine.status() not in ("paused", "shutdown"):
            return False
        return not mirrored or disk_mirror.are_whole(machine)

    async def _begin(self, task: wire.Task, assignment: wire.Assignment) -> None:
        await self._context.store(
            migration=task.migration, machine=assignment.machine, cpu=assignment.cpu, reboots=assignment.reboots,
            resets=assignment.resets, hardware_renewals=assignment.hardware_renewals,
            booted_once_at=assignment.booted_once_at, halted_at_start=assignment.halted_at_start, crashes=0,
            anew_asked=None,
        )  # fmt: skip

    async def _ready(self, task: wire.Task) -> None:
        self._awaiting = task.migration
        self._services.send(wire.TargetReady(task.migration, self._services.endpoint))

    async def _loaded(self, task: wire.Task, follows: bool) -> None:
        self._context.arrived_by = task.migration
        if follows:
            await self._context.store(post_copy=PostCopy(task.migration, Side.TARGET, task.peer))
        self._voted = task.migration
        log.info("everything is loaded", vm=self._context.vm, migration=task.migration, memory_follows=follows)
        self._services.send(wire.Voted(task.migration, Side.TARGET, task.epoch))

    async def _terms(self, assignment: wire.Assignment, image: LocalImage, *, of_disk: bool) -> ReceiveOptions:
        host, tenant = self._services, tenant_of(assignment)
        if of_disk:
            layers = await host.replicas.newest_layers(self._context.vm)
            bases = await host.pages.for_disk(self._context.vm, image, tenant, layers)
        else:
            bases = await host.pages.for_arrival(self._context.vm, image, tenant, host.neighbours())
        return ReceiveOptions(
            tenant.key, host.settings.rings_dir, bases, host.settings.outage_s, encrypted=tenant.encrypted
        )

    async def _load(self, task: wire.Task, assignment: wire.Assignment, image: LocalImage) -> None:
        context = self._context
        host = self._services
        try:
            context.exit_expected = False
            with (
                doing(Action.RECEIVE, trace=task.trace, vm=context.vm, migration=task.migration, source=task.peer),
                host.listener.announce(task.migration, task.peer),
            ):
                await self._load_all(task, assignment, image)
            if self.awaits_memory:
                await context.store(post_copy=None)
            if task.warm is not None:  # it may go back, and then has to wait for no handshake
                host.connections.warm(parse_endpoint(task.warm), pki.node_host(task.peer), 1)
            tenant = tenant_of(assignment)
            host.run_in_background(checkpoint_index.learn(host, context.vm, tenant, task, context.owns))
            await host.pages.forget(context.vm, tenant)
        except (LoadFailed, ReceiveFailed, MachineFailed, OSError) as error:
            if self._may_run_here(task):
                log.warning("a guest's memory does not arrive at the moment", vm=context.vm, error=str(error))
            else:
                await self._fail(task, error)
        except Exception as error:  # a defect met with one VM must not leave its migration hanging
            log.exception("defect while receiving a VM", vm=context.vm, migration=task.migration)
            if not self._may_run_here(task):
                await self._fail(task, MachineFailed(f"internal error in its agent: {error!r}"))
        finally:
            self._end()

    async def _load_all(self, task: wire.Task, assignment: wire.Assignment, image: LocalImage) -> None:
        """Receive memory, and disks before or with it. Raises LoadFailed, ReceiveFailed, MachineFailed, OSError."""
        context, host = self._context, self._services
        infos, paths = self._infos(assignment, image), self._paths(assignment)
        if task.kind is MigrationKind.WARM:
            await self._receive_files(task, assignment, image)
            infos = []  # nothing is written to them any more
        else:
            volume_keys = _volume_keys(assignment)
            await disk_mirror.make_room(paths, infos, volume_keys)
            paths = {id: path for id, path in paths.items() if id not in volume_keys}
        host.networks.arrives(context.vm)
        starting = asyncio.create_task(
            context.machine.start(
                StartRequest(
                    assignment,
                    image,
                    host.accelerator,
                    assignment.machine,
                    lambda: opened(host.storage_pools, assignment.volumes),
                    incoming=True,
                    media=media.find(self._services.images, assignment.spec),
                )
            )
        )
        may = userfaults.allowed(host.settings.state_dir) if task.policy is MigrationPolicy.POST_COPY else nullcontext()
        try:
            with may:
                terms = await self._terms(assignment, image, of_disk=False)
                with host.listener.expect(task.migration, task.peer, terms) as session:
                    await starting
                    if not infos:
                        await self._load_from(task, session, None)
                    else:
                        terms = await self._terms(assignment, image, of_disk=True)
                        name = disk_mirror.session_of(task.migration)
                        with host.listener.expect(name, task.peer, terms) as disk:
                            await self._load_from(task, session, disk_mirror.Coming(disk, image, infos, paths))
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)

    def _may_run_here(self, task: wire.Task) -> bool:
        """The guest may be here alone: this node has voted, or the guest awaits memory. Nothing may end it then."""
        return self.awaits_memory or self._voted == task.migration

    @property
    def awaits_memory(self) -> bool:
        """The guest is here, or all but here, and some of its memory is not."""
        moving = self._context.record.post_copy
        return moving is not None and moving.side is Side.TARGET

    def on_unexpected_session(self, session: str, peer: str) -> None:
        """Somebody would begin a session that is not expected: if it is the source, its last one is over."""
        moving = self._context.record.post_copy
        if self._session is None or moving is None or not self.awaits_memory:
            return
        if (session, peer) == (post_copy.session_of(moving), moving.peer):
            self._session.fail("its sender begins anew", ErrorCode.REPLACED)

    def resume(self) -> None:
        """Go on with memory that does not come any more by itself."""
        if self.awaits_memory and self._transfer is None:
            self._transfer = asyncio.create_task(self._pull(), name=f"pull-{self._context.vm}")

    async def _pull(self) -> None:
        context = self._context
        moving = context.record.post_copy
        assert moving is not None
        try:
            with doing(Action.PULL, trace=context.trace, vm=context.vm, migration=moving.migration, source=moving.peer):
                await self._services.transport.take_rest(context.machine, moving)
            await context.store(post_copy=None)
            self._retries.reset()
            log.info("a guest's memory has arrived", vm=context.vm, migration=moving.migration)
        except (MonitorFailed, OSError) as error:
            await self._retries.pause_after(error)
        except Exception as error:  # a defect must neither end the worker nor make a busy loop
            await self._retries.pause_after_defect(error)
        finally:
            self._end()

    async def _load_from(self, task: wire.Task, session: ReceiveSession, disk: disk_mirror.Coming | None) -> None:
        context = self._context
        self._session = session
        await self._services.transport.load(
            Arrival(
                machine=context.machine,
                session=session,
                disk=disk,
                post_copies=task.policy is MigrationPolicy.POST_COPY,
                changed=context.migration_changed,
                ready=lambda: self._ready(task),
                loaded=lambda follows: self._loaded(task, follows),
            )
        )

    async def _receive_stopped(self, task: wire.Task, assignment: wire.Assignment, image: LocalImage) -> None:
        """Receive a VM that does not run."""
        context = self._context
        try:
            with doing(Action.RECEIVE, trace=task.trace, vm=context.vm, migration=task.migration, source=task.peer):
                await self._receive_files(task, assignment, image)
            await self._services.pages.forget(context.vm, tenant_of(assignment))
            self._services.send(wire.Voted(task.migration, Side.TARGET, task.epoch))
        except (ReceiveFailed, OSError) as error:
            await self._fail(task, error)
        except Exception as error:  # a defect met with one VM must not leave its migration hanging
            log.exception("defect while receiving a VM", vm=context.vm, migration=task.migration)
            await self._fail(task, MachineFailed(f"internal error in its agent: {error!r}"))
        finally:
            self._end()

    async def _receive_files(self, task: wire.Task, assignment: wire.Assignment, image: LocalImage) -> None:
        """Receive what a VM whose guest does not run consists of, but for memory. Raises ReceiveFailed, OSError."""
        if not disk_mirror.keeps_files(assignment.spec, image, assignment.volumes):
            return
        context = self._context
        size = assignment.spec.disk_bytes(image.info.disk_bytes)
        kept = limits.SNAPSHOTS_PER_VM_MAX * (size + (assignment.spec.memory_mib << 20))
        bytes_max = size + size // 8 + LAYER_OVERHEAD + kept
        terms = await self._terms(assignment, image, of_disk=True)
        with self._services.listener.expect(disk_mirror.session_of(task.migration), task.peer, terms) as session:
            await self._ready(task)
            paths = self._paths(assignment)
            volumes = {
                volume.id: (paths[volume.id], luks.file_bytes(volume.size_mib << 20, volume.encryption_key))
                for volume in assignment.volumes
                if volume.moves
            }
            await disk_mirror.receive_state(session, context.machine.directory, image, bytes_max, volumes)

    async def _fail(self, task: wire.Task, error: Exception) -> None:
        context = self._context
        log.warning("migration failed at the target", vm=context.vm, migration=task.migration, error=str(error))
        context.exit_expected = True
        self._services.networks.does_not_arrive(context.vm)
        await context.machine.destroy()
        self._services.send(wire.MigrationFailed(task.migration, str(error) or type(error).__name__))

    def _end(self) -> None:
        self._awaiting = self._session = None
        self._transfer = None
        self._context.wake()

    async def cancel(self) -> None:
        """Stop receiving, if anything is being received."""
        transfer = self._transfer
        if transfer is not None:
            self._services.networks.does_not_arrive(self._context.vm)
            transfer.cancel()
            await asyncio.gather(transfer, return_exceptions=True)


def _volume_keys(assignment: wire.Assignment) -> dict[str, DataKey]:
    """Return the keys of encrypted volumes that come with a VM while it runs, by their ids. Raises MachineFailed."""
    volume_keys = {}
    for volume in assignment.volumes:
        if not volume.moves or not volume.encryption_key:
            continue
        if volume.read_only:
            raise MachineFailed(
                f"volume {volume.id} is encrypted and read-only, so QEMU can't migrate it while the guest runs:"
                " migrate the VM with --warm, or stopped"
            )
        try:
            key = keys.volume_key(assignment, volume)
        except KeyMissing as error:
            raise MachineFailed(str(error)) from error
        assert key is not None
        volume_keys[volume.id] = key
    return volume_keys
