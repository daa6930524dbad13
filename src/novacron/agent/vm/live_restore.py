"""A VM that runs from a backup at once: what its disk lacks, QEMU reads from its repository, through this agent.

Its own layer is empty at first, and says of itself that it is not whole (``RESTORING``). Below it is the backup's disk,
which the agent offers over NBD; a job of QEMU's copies that into the layer, and what the guest reads first. Once
the layer says of every block what it is, the mark goes, and nothing of the VM is in the repository any more.

It may be interrupted at any step. While the agent is away QEMU waits, and then the guest stands still until the next
agent offers the disk again. A QEMU that has ended is started on the same layer, which has all that its guest wrote.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeAlias

from novacron import private_file
from novacron.agent.actions import Action, doing
from novacron.agent.repositories import directory
from novacron.agent.repositories.contents import KeptContent
from novacron.agent.repositories.directory import Purpose
from novacron.agent.repositories.live_disk import LiveDisk, reader_of_image
from novacron.agent.repositories.threads import Stalled, Stopped, WorkStopped, in_thread, never
from novacron.agent.vm import firmware_state, restored_disk
from novacron.agent.vm.context import VmContext
from novacron.agent.vm.directory import DISK_LAYER, RESTORE_SOCKET, RESTORING, NoAccount
from novacron.agent.vm.firmware_state import BadState
from novacron.agent.vm.hypervisor import MachineFailed
from novacron.agent.vm.keys import KeyMissing
from novacron.agent.vm.restore_pace import SPEED_MIN, next_speed
from novacron.backup import disks
from novacron.backup.content_cipher import ContentCipher
from novacron.backup.disks import Read
from novacron.backup.errors import RepositoryError
from novacron.backup.places import Place
from novacron.disk import nbd, overlay
from novacron.disk.errors import Unacceptable
from novacron.disk.files import make_durable, sync
from novacron.disk.nbd_service import NbdService
from novacron.disk.overlay import OverlayFailed
from novacron.disk.qemu_img import ImgFailed
from novacron.disk.written_extents import written_extents
from novacron.dwcp.backoff import Backoff
from novacron.model.backup_source import BackupSource
from novacron.model.encryption import DataKey
from novacron.model.guest_reports import RestoreProgress
from novacron.model.vm import CloneOf, VmState
from novacron.model.waiting import WaitCode, code_of
from novacron.qemu import restore
from novacron.qemu.monitor import Monitor, MonitorFailed
from novacron.qemu.restore import GuestReads, RestoreStatus
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

LAYER = "restored.qcow2"
"""The VM's own layer, until it is in its place."""
LOOK_S = 0.5
AWAY_S = 3.0
"""For how long a repository may not answer before anybody hears of it."""
RETRY_S_MIN, RETRY_S_MAX = 2.0, 60.0
EXPECTED = (
    Unacceptable, RepositoryError, OverlayFailed, ImgFailed, BadState, NoAccount, KeyMissing, MachineFailed,
    MonitorFailed, Stalled, WorkStopped, OSError, TimeoutError,
)  # fmt: skip


_Make: TypeAlias = Callable[[Read | None], LiveDisk]
"""Makes what reads a disk, given what reads an image that is much like it."""


class LiveRestore:
    """That of one VM, if it is restored so."""

    def __init__(self, context: VmContext) -> None:
        self._context = context
        self._home = context.machine.home
        self._work: asyncio.Task[None] | None = None
        self._is_served = False
        self._left: list[threading.Thread] = []
        self._speed = SPEED_MIN
        self._limit: int | None = None
        self._reads: GuestReads | None = None
        self._failed = ""

    def step(self, of: CloneOf) -> bool:
        """See that the VM has what it needs to run, and that the server hears when all of its disk is there; say
        whether it may be started now."""
        context = self._context
        if context.machine.has_disk() and not self._home.is_restoring():
            context.restore, context.repository_away = None, ""
            context.services.send(wire.Cloned(context.vm, context.record.held.epoch))
            return True
        if self._work is None:
            if context.machine.pid is None:
                context.report(VmState.PENDING, f"{of.source_name} is being opened", WaitCode.DISK_BEING_MADE)
            self._work = asyncio.create_task(self._keep_on(of), name=f"restore-{context.vm}")
        return self._is_served

    async def cancel(self) -> None:
        """Offer the disk no more; another one goes on from here."""
        work = self._work
        if work is not None:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _keep_on(self, of: CloneOf) -> None:
        """Restore it, however often that takes."""
        assert of.backup is not None
        self._limit = of.bytes_per_s
        backoff = Backoff(RETRY_S_MIN, RETRY_S_MAX)
        try:
            while True:
                try:
                    await self._restore(of.backup)
                    return
                except EXPECTED as error:
                    self._report_failure(of, str(error) or type(error).__name__, code_of(error))
                except Exception as error:  # a defect must not end it: the guest may wait
                    log.exception("defect in a live restore", vm=self._context.vm)
                    self._report_failure(of, f"internal error in its agent: {error!r}", WaitCode.STEP_FAILED)
                await self._context.services.clock.sleep(backoff.next_s())
        finally:
            self._work, self._is_served = None, False
            self._context.wake()

    def _report_failure(self, of: CloneOf, why: str, code: WaitCode) -> None:
        context, text = self._context, f"its disk can't be read from {of.source_name}: {why}"
        log.warning("a live restore waits", vm=context.vm, error=why)
        self._is_served, context.repository_away = False, text
        if context.machine.pid is None:
            context.report(VmState.FAILED, text, code)
        context.wake()

    async def _restore(self, source: BackupSource) -> None:
        context = self._context
        with doing(Action.RESTORE, trace=context.trace, vm=context.vm, repository=source.repository, live=1):
            async with self._opened(source) as disk:
                listening = self._home.listen(RESTORE_SOCKET)
                size = -(-self._size_bytes(disk) // nbd.ALIGNMENT) * nbd.ALIGNMENT
                service = NbdService(listening, size, disk.read)
                try:
                    self._is_served, context.repository_away = True, ""
                    context.wake()
                    await self._follow(disk)
                finally:
                    self._is_served = False
                    service.close()
                    (self._home.path / RESTORE_SOCKET).unlink(missing_ok=True)
            log.info("a VM is restored while it ran", vm=context.vm, fetched_bytes=disk.fetched_bytes)

    @contextlib.asynccontextmanager
    async def _opened(self, source: BackupSource) -> AsyncIterator[LiveDisk]:
        """Have the backup's disk, and a layer over it that the VM can start with."""
        context, home, key = self._context, self._home, self._context.disk_key()
        restored_disk.check_image(context, key)
        cipher = restored_disk.cipher_of(source, key)
        root = directory.root_of(context.services.settings, source.repository)
        opens = restored_disk.repository_key(context, source)
        kept, make = await in_thread(lambda stopped: _look(root, opens, source.snapshot, cipher, stopped), self._left)
        with contextlib.ExitStack() as opened:
            image = None if cipher is not None or context.image().encryption_key else context.image().disk
            disk = make(None if image is None else _reader(image, opened))
            opened.callback(disk.close)
            await asyncio.to_thread(home.make)
            if not context.machine.has_disk():
                await self._prepare(kept, self._size_bytes(disk), key)
            yield disk

    def _size_bytes(self, disk: LiveDisk) -> int:
        if self._context.machine.has_disk():
            return max(disk.size, overlay.size_bytes(self._home.path / DISK_LAYER))
        return max(disk.size, self._context.disk_bytes(self._context.image()))

    async def _prepare(self, kept: KeptContent, size_bytes: int, key: DataKey | None) -> None:
        """Make the layer, and what else the VM starts with; the layer comes last, and says that all is there."""
        home = self._home
        await asyncio.to_thread((home.path / LAYER).unlink, missing_ok=True)
        remembered = await asyncio.to_thread(firmware_state.unpacked, self._context.spec(), kept.firmware)
        await restored_disk.give_firmware(self._context, remembered)
        await overlay.create_blank(home.path / LAYER, size_bytes, key)
        await asyncio.to_thread(private_file.write, home.path / RESTORING, b"")
        await asyncio.to_thread(make_durable, home.path)
        await restored_disk.give_layer(home, home.path / LAYER)

    async def _follow(self, disk: LiveDisk) -> None:
        """Return once all of the disk is in the VM's own layer, for good."""
        context = self._context
        while True:
            self._note_trouble(disk)
            monitor = context.machine.monitor
            if monitor is not None and context.machine.pid is not None:
                try:
                    if await self._copy_on(monitor, is_away=disk.trouble is not None) and await self._is_whole(monitor):
                        await self._finish()
                        return
                except (MonitorFailed, TimeoutError) as error:  # it may just have ended, or wait for the repository
                    self._log_once(str(error))
            await context.services.clock.sleep(LOOK_S)

    def _note_trouble(self, disk: LiveDisk) -> None:
        context, trouble = self._context, disk.trouble
        is_long = trouble is not None and time.monotonic() - trouble.since > AWAY_S
        words = f"what its disk lacks can't be read from its backup: {trouble.error}" if trouble and is_long else ""
        if bool(words) != bool(context.repository_away):
            context.repository_away = words
            context.wake()

    async def _copy_on(self, monitor: Monitor, *, is_away: bool) -> bool:
        """Have QEMU copy, as fast as its guest leaves room for; say whether it has copied all. Raises MonitorFailed."""
        status = await restore.look(monitor)
        if status.is_copied:
            return True
        if not status.runs:
            self._speed, self._reads = self._slowest(), None
            await restore.begin(monitor, self._speed)
            return False
        self._note_progress(status)
        now = await restore.guest_reads(monitor)
        mean_s = 0.0 if self._reads is None else now.mean_s_since(self._reads)
        speed = self._slowest() if is_away else next_speed(self._speed, mean_s, self._limit)
        self._reads = now
        if speed != self._speed:
            self._speed = speed
            await restore.limit(monitor, speed)
        return False

    def _slowest(self) -> int:
        return SPEED_MIN if self._limit is None else min(SPEED_MIN, self._limit)

    def _note_progress(self, status: RestoreStatus) -> None:
        context, total = self._context, status.total_bytes
        done = status.done_bytes * 100 // total * total // 100 if total else 0
        progress = RestoreProgress(done, total)
        if progress != context.restore:
            context.restore = progress
            context.wake()

    async def _is_whole(self, monitor: Monitor) -> bool:
        """Say whether the layer's file itself says of every block what it is, and will after a loss of power: what
        QEMU says of it is in its memory."""
        await restore.write_out(monitor)
        layer = self._home.path / DISK_LAYER
        await sync(layer)
        is_encrypted = self._context.disk_key() is not None
        lacks = await asyncio.to_thread(_lacks, layer, is_encrypted=is_encrypted)
        if lacks:
            raise MonitorFailed(f"QEMU has copied all of the disk, but {lacks} bytes are not in its file")
        return True

    async def _finish(self) -> None:
        def unmark() -> None:
            (self._home.path / RESTORING).unlink()
            make_durable(self._home.path)

        await asyncio.to_thread(unmark)
        self._context.restore, self._context.repository_away = None, ""

    def _log_once(self, error: str) -> None:
        if error != self._failed:
            self._failed = error
            log.warning("a live restore does not go on", vm=self._context.vm, error=error)


def _look(
    root: Place, key: DataKey, snapshot: str, cipher: ContentCipher | None, stopped: Stopped
) -> tuple[KeptContent, _Make]:
    """Open a backup; nobody waits for who reads it later: the server deletes no backup that a VM runs from."""
    opened = directory.open_repository(root, key, begin=False, purpose=Purpose.READ, stopped=stopped)
    try:
        opened.watched(stopped)
        kept = KeptContent(opened.repository, snapshot, cipher)
    finally:
        opened.close()
        opened.storage.stopped = never
    turn = disks.as_it_is if cipher is None else cipher.open
    return kept, lambda image: LiveDisk(opened.repository, kept.disk, turn, image)


def _reader(image: Path, opened: contextlib.ExitStack) -> Read:
    descriptor = os.open(image, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    opened.callback(os.close, descriptor)
    return reader_of_image(disks.reader_of(descriptor), os.fstat(descriptor).st_size)


def _lacks(layer: Path, *, is_encrypted: bool) -> int:
    """Return how many bytes of the disk a layer says nothing of. Raises Unacceptable, OSError."""
    size = overlay.size_bytes(layer)
    with layer.open("rb") as file:
        extents = written_extents(file, size, size // disks.BLOCK_BYTES + 1, is_encrypted=is_encrypted)
    return size - sum(length for _, length in extents)
