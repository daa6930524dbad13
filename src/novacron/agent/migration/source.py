"""The source's part of one VM's migrations: what is sent, and what is promised and said about it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from novacron import pki
from novacron.agent.actions import Action, doing
from novacron.agent.host.endpoint import parse_endpoint
from novacron.agent.migration import checkpoint_index, disk_mirror
from novacron.agent.migration.disk_mirror import Leaving
from novacron.agent.migration.outgoing import OutgoingMigration
from novacron.agent.migration.phases import SourcePhase
from novacron.agent.migration.pre_copy import TransferFailed
from novacron.agent.migration.services import NodeServices
from novacron.agent.migration.session_opening import SessionOpener
from novacron.agent.vm.context import VmContext
from novacron.agent.vm.directory import DISK_LAYER
from novacron.agent.vm.hypervisor import MachineFailed
from novacron.agent.vm.retries import Retries
from novacron.disk import overlay
from novacron.disk.images import LocalImage
from novacron.disk.overlay import OverlayFailed
from novacron.dwcp.page_codec import Base
from novacron.dwcp.sender import Sender, SendFailed, SendOptions
from novacron.model.migration import MigrationKind, Side
from novacron.qemu import transfer
from novacron.qemu.monitor import MonitorFailed
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)


class MigrationSource:
    """Sends a VM away, as the server says."""

    def __init__(self, context: VmContext, services: NodeServices) -> None:
        self._context = context
        self._services = services
        self._transfer: asyncio.Task[None] | None = None
        self._migration: OutgoingMigration | None = None
        """The migration that this agent sent last, or sends now."""
        self._opener = SessionOpener(services.connections, self._options, services.clock)
        self._memory_moves = False
        self._failure: str | None = None
        self._retries = Retries(context.vm, "serve the rest of a guest's memory", services.clock)

    async def step(self, task: wire.Task) -> bool:
        """Do the next step; say whether QEMU must be left alone meanwhile."""
        context = self._context
        if task.endpoint is None:
            early = task.kind is MigrationKind.LIVE and context.record.migration != task.migration
            if task.warm is not None and early and not self._has_disks():  # their mirror comes first
                self._opener.begin_early(task, task.warm)
            return False
        if self._transfer is not None:
            if self._migration is not None and not self._migration.ended:
                self._migration.limit(task.rate_bytes_per_s)
            return True
        if context.record.post_copy is not None:
            moving = context.record.post_copy
            await self.fail(task.migration, f"the VM's memory is still on its way here from node {moving.peer}")
            return False
        if context.record.migration == task.migration:
            # It was begun before and nothing was promised: it is lost, and the guest goes on here.
            why = self._failure or "the agent restarted while it was sending"
            self._services.send(wire.MigrationFailed(task.migration, why))
            return False
        run_state = await context.machine.status()
        try:
            _check_run_state(task, run_state)
            image = self._image_to_send(cold=task.kind is not MigrationKind.LIVE)
        except TransferFailed as error:
            await self.fail(task.migration, str(error))
            return False
        return await self._start(task, image, run_state)

    async def _start(self, task: wire.Task, image: LocalImage | None, run_state: str) -> bool:
        """Begin the migration; say whether QEMU must be left alone meanwhile."""
        context = self._context
        if task.kind is MigrationKind.WARM and run_state == "running":
            await context.machine.execute("stop")
            self._services.send(wire.Stopped(task.migration))
        if task.kind is MigrationKind.COLD and image is None:
            migration = self._begin(task)
            migration.enter(SourcePhase.COPYING)  # of nothing: the VM has no files
            await migration.promise(memory_follows=False)
            migration.end()
            return True
        await context.store(migration=task.migration)
        self._failure = None
        self._transfer = asyncio.create_task(self._send(task, image), name=f"send-{context.vm}")
        return True

    def _has_layer(self) -> bool:
        return (self._context.machine.directory / DISK_LAYER).exists()

    def _has_disks(self) -> bool:
        return self._has_layer() or any(volume.moves for volume in self._context.volumes())

    def _image_to_send(self, *, cold: bool) -> LocalImage | None:
        """Return the image of a VM of which more than memory is to be sent, else None. Raises TransferFailed."""
        context = self._context
        try:
            image = context.image()
        except MachineFailed as error:
            if self._has_disks():
                raise TransferFailed(f"the VM's disk can't be sent: {error}") from error
            return None
        if cold:
            return image if disk_mirror.keeps_files(context.spec(), image, context.volumes()) else None
        return image if disk_mirror.disks_of(image, context.disk_bytes(image), context.volumes()) else None

    def _begin(self, task: wire.Task) -> OutgoingMigration:
        self._migration = OutgoingMigration(task, self._context, self._opener)
        return self._migration

    async def _options(self) -> SendOptions:
        checkpoint = await self._services.pages.checkpoint_elsewhere(self._context.vm, self._context.tenant())
        return self._options_with(await self._bases(of_disk=False), checkpoint)

    def _options_with(self, bases: list[Base], checkpoint: dict[str, list[bytes]]) -> SendOptions:
        tenant, settings = self._context.tenant(), self._services.settings
        return SendOptions(
            tenant.key,
            settings.rings_dir,
            bases,
            settings.outage_s,
            settings.streams,
            checkpoint_digests=checkpoint,
            encrypted=tenant.encrypted,
        )

    async def _bases(self, *, of_disk: bool) -> list[Base]:
        """Return the bases whose digests the peer need not announce."""
        context = self._context
        with contextlib.suppress(OSError, MachineFailed):
            pages, image = self._services.pages, context.image()
            return await (pages.of_disk if of_disk else pages.of_image)(image, context.tenant())
        return []

    async def _send(self, task: wire.Task, image: LocalImage | None) -> None:
        context = self._context
        migration = self._begin(task)
        try:
            with doing(Action.SEND, trace=task.trace, vm=context.vm, migration=task.migration, target=task.peer):
                await self._send_all(migration, image)
        except (TransferFailed, SendFailed, OverlayFailed, OSError, TimeoutError) as error:
            log.warning("migration failed at the source", vm=context.vm, migration=task.migration, error=str(error))
            self._report_failure(task, str(error) or type(error).__name__)
        except Exception as error:  # a defect met with one VM must not take the others' worker away
            log.exception("defect while sending a VM", vm=context.vm, migration=task.migration)
            self._report_failure(task, f"internal error in its agent: {error!r}")
        finally:
            migration.end()
            self._transfer = None
            context.wake()

    def _report_failure(self, task: wire.Task, why: str) -> None:
        self._failure = why
        self._services.send(wire.MigrationFailed(task.migration, why))

    async def _send_all(self, migration: OutgoingMigration, image: LocalImage | None) -> None:
        context, task = self._context, migration.task
        if image is None:
            await self._send_memory(migration)
            return
        assert task.endpoint is not None
        options = self._options_with(await self._bases(of_disk=True), {})
        session = disk_mirror.session_of(task.migration)
        address, peer = parse_endpoint(task.endpoint), pki.node_host(task.peer)
        sender = Sender(address, peer, session, self._services.connections, options)
        async with sender:
            if task.kind is not MigrationKind.LIVE:
                await self._send_stopped(migration, sender, image)
            else:
                parts = disk_mirror.parts_of(context.machine, image, context.disk_bytes(image), context.volumes())
                migration.disk = Leaving(context.machine, sender, parts)
                await self._send_memory(migration)
        if task.kind is MigrationKind.WARM:
            await self._send_memory(migration)

    async def _send_memory(self, migration: OutgoingMigration) -> None:
        migration.limit(migration.rate_now())
        await self._services.transport.send(migration)
        await self._give_rest()

    @property
    def serves_memory(self) -> bool:
        """The guest has left, and its memory is still here, or may be."""
        moving = self._context.record.post_copy
        return moving is not None and moving.side is Side.SOURCE

    def resume(self) -> None:
        """Go on with memory that an earlier agent was giving to a guest that has left."""
        if self.serves_memory and self._transfer is None:
            self._transfer = asyncio.create_task(self._serve(), name=f"serve-{self._context.vm}")

    async def _serve(self) -> None:
        try:
            with doing(Action.SERVE, trace=self._context.trace, vm=self._context.vm):
                await self._give_rest()
            self._retries.reset()
        except (MonitorFailed, OSError) as error:
            await self._retries.pause_after(error)
        except Exception as error:  # a defect must neither end the worker nor make a busy loop
            await self._retries.pause_after_defect(error)
        finally:
            self._transfer = None
            self._context.wake()

    async def _give_rest(self) -> None:
        """Return when a guest that was let go needs no more of its memory here."""
        context = self._context
        moving = context.record.post_copy
        if moving is not None and self.serves_memory:
            await self._services.transport.give_rest(context.machine, moving)
            await context.store(post_copy=None)

    async def take_guest_back(self) -> None:
        """The migration ended before the switch: the guest goes on here, where all of its memory still is."""
        await self._services.transport.cancel(self._context.machine)  # as long as its connection lives
        await self.cancel()
        await self._context.store(post_copy=None)

    async def _send_stopped(self, migration: OutgoingMigration, sender: Sender, image: LocalImage) -> None:
        """Send what a VM whose guest does not run consists of, but for memory."""
        migration.enter(SourcePhase.COPYING)
        directory = self._context.machine.directory
        await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
        if image.disk is not None and not (directory / DISK_LAYER).exists():  # it has never run
            size = self._context.disk_bytes(image)
            await overlay.create(directory / DISK_LAYER, image.disk, size, self._context.disk_key())
        sender.limit(migration.rate_now())
        pools = self._services.storage_pools
        volumes = {volume.id: pools.path(volume.pool, volume.id) for volume in self._context.volumes() if volume.moves}
        await disk_mirror.send_state(directory, sender, image, volumes)
        if migration.task.kind is MigrationKind.COLD:
            await migration.promise(memory_follows=False)

    def has_sent_all(self, migration: str) -> bool:
        """Say whether this agent, and none before it, has sent everything."""
        sent = self._migration
        return sent is not None and sent.promised and sent.task.migration == migration

    def send_checkpoint_index(self) -> None:
        """Send the checkpoint index to the node that the VM went to."""
        context, services, sent = self._context, self._services, self._migration
        if sent is not None and sent.promised:
            services.run_in_background(checkpoint_index.tell(services, context.vm, context.tenant(), sent.task))

    async def fail(self, migration: str, why: str) -> None:
        """This side can't go on."""
        await self.cancel()
        self._services.send(wire.MigrationFailed(migration, why))

    async def cancel(self) -> None:
        """Stop the transfer, if any; the guest goes on here unless a promise was given."""
        await self._opener.close()
        transfer = self._transfer
        if transfer is not None:
            transfer.cancel()
            await asyncio.gather(transfer, return_exceptions=True)

    def on_event(self, name: str, data: dict[str, Any]) -> None:
        """Notice that the guest stands still because its memory moves."""
        if name == "MIGRATION":
            self._memory_moves = data["status"] in ("active", transfer.POST_COPY)
        if name == "STOP" and self._migration is not None and not self._migration.ended and self._memory_moves:
            self._migration.guest_stopped()


def _check_run_state(task: wire.Task, run_state: str) -> None:
    """Raise TransferFailed unless the guest is in a state that the migration needs."""
    states = ("absent",) if task.kind is MigrationKind.COLD else ("running", "paused")
    if run_state not in states:
        needs = "stopped" if task.kind is MigrationKind.COLD else "running"
        raise TransferFailed(f"the VM is {run_state}, a {task.kind} migration needs it {needs}")
