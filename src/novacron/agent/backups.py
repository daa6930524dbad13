"""Backups of this node's VMs: made, read back and taken out of their repositories, one after the other in each.

The disk, or what QEMU recorded as written since the last backup, is copied at one moment into a scratch directory of
this node, as for an export, so a repository that is slow or gone never holds up the guest. A confined tool puts its
layers together; what is in the repository already is not written again. A disk that is encrypted stays so on the
node: a confined program hands on what it holds, which is encrypted with the project's key before the repository has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import shutil
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple

from novacron.agent.actions import Action, doing
from novacron.agent.fair_turns import FairTurns
from novacron.agent.images.named_work import NamedWork
from novacron.agent.repositories import contents, directory
from novacron.agent.repositories.contents import DiskCopy, KeptDisk
from novacron.agent.repositories.directory import OpenRepository, Purpose
from novacron.agent.repositories.queues import RepositoryQueue, RepositoryQueues
from novacron.agent.repositories.threads import Stalled, Stopped
from novacron.agent.settings import AgentSettings
from novacron.agent.vm import clone_disk, firmware_state, keys, sealed_copy
from novacron.agent.vm.context import VmContext
from novacron.agent.vm.directory import DISK_LAYER, UIDS_MAX, NoAccount, VmDirectory
from novacron.agent.vm.firmware_state import BadState
from novacron.agent.vm.hypervisor import MachineFailed
from novacron.agent.vm.increments import RECORDED_BYTES_MAX, Increment
from novacron.agent.vm.quiesce import Quiesce
from novacron.agent.vm.sealed_copy import Layers
from novacron.backup.content_cipher import ContentCipher
from novacron.backup.disks import BLOCK_BYTES
from novacron.backup.errors import Damaged, DamagedBlobs, NotStored, RepositoryError
from novacron.backup.places import storage_at
from novacron.backup.storage import Storage
from novacron.disk import convert, overlay
from novacron.disk.errors import Unacceptable
from novacron.disk.overlay import OverlayFailed
from novacron.disk.written_extents import Extent, written_extents
from novacron.dwcp.backoff import Backoff
from novacron.model.backup import BackupMode, BackupPhase, BackupResult
from novacron.model.encryption import DataKey
from novacron.model.firmware_state import FirmwareState
from novacron.model.image import ImageFormat
from novacron.model.waiting import WaitCode, code_of
from novacron.qemu.confine import Account, confined
from novacron.qemu.monitor import MonitorFailed
from novacron.supervise import RESTARTS
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

SPARE_BYTES = 1 << 30
"""What a backup leaves free of the node's file system."""
DELETE_S_MIN, DELETE_S_MAX = 5.0, 600.0
"""Between attempts to take a backup out of a repository."""
EXTENTS_MAX = RECORDED_BYTES_MAX // BLOCK_BYTES
"""Of an increment."""
EXPECTED = (
    Unacceptable, OverlayFailed, MonitorFailed, MachineFailed, NoAccount, BadState, RepositoryError, Stalled, OSError,
    TimeoutError,
)  # fmt: skip


class _Copied(NamedTuple):
    """A VM as it was at one moment, in a scratch directory."""

    open: Callable[[], AbstractAsyncContextManager[DiskCopy]]
    """Has its disk while it is to be stored. Raises OSError."""
    firmware: FirmwareState
    quiesced: bool


class VmBackups:
    """All that this node does about backups."""

    def __init__(
        self, settings: AgentSettings, find_vm: Callable[[str], VmContext | None], send: Callable[[wire.Message], None]
    ) -> None:
        self._settings = settings
        self._scratch = settings.backup_scratch_dir
        self._scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._uid = None if settings.uid_base is None else settings.uid_base + UIDS_MAX - 1
        self._find_vm = find_vm
        self._send = send
        self._work = NamedWork("backup", self._see_to, self._remove_others)
        self.queues = RepositoryQueues()
        self._copying = FairTurns(1)
        """One disk at a time is copied on the node."""
        self._made: dict[str, wire.BackupStands] = {}
        """Reports of backups that were made, until the server has heard them."""

    def tell(
        self, desired: tuple[wire.BackupWanted, ...], tasks: asyncio.TaskGroup, unreadable: Collection[str] = ()
    ) -> None:
        """Work on these and no others but those that are unreadable; what is asked of one anew ends what was asked
        before."""
        named = {_key(backup): backup for backup in desired}
        self._made = {key: report for key, report in self._made.items() if key in named or report.id in unreadable}
        self.queues.keep({backup.repository for backup in desired})
        self._work.tell(named, tasks, unreadable)

    def _remove_others(self, is_kept: Callable[[str], bool]) -> None:
        for path in self._scratch.iterdir():
            if not is_kept(path.name):
                _remove(path)

    async def _see_to(self, backup: wire.BackupWanted) -> None:
        if backup.phase is BackupPhase.DELETING:
            await self._delete(backup)
        elif backup.phase is BackupPhase.MAKING:
            if _key(backup) not in self._made:
                self._made[_key(backup)] = await self._report_of(backup)
            self._send(self._made[_key(backup)])
        else:
            self._send(await self._report_of(backup))

    async def _report_of(self, backup: wire.BackupWanted) -> wire.BackupStands:
        """Do what is asked about a backup, and return what became of it."""
        ends = BackupPhase.FAILED if backup.phase is BackupPhase.MAKING else BackupPhase.KEPT
        try:
            queue = self.queues.of(backup.repository)
            async with queue.turn(backup.project):
                if backup.phase is BackupPhase.VERIFYING:
                    return await self._verify(backup, queue)
                result = await self._make(backup, queue)
                return wire.BackupStands(backup.id, backup.phase, BackupPhase.KEPT, result)
        except EXPECTED as error:
            log.warning("work on a backup failed", backup=backup.id, phase=backup.phase, error=str(error))
            why = str(error) or type(error).__name__
            return wire.BackupStands(backup.id, backup.phase, ends, error=why, code=code_of(error))
        except Exception as error:  # a defect met with one must not take the agent away
            log.exception("defect in a backup", backup=backup.id, phase=backup.phase)
            why = f"internal error in its agent: {type(error).__name__}; see its log"
            return wire.BackupStands(backup.id, backup.phase, ends, error=why, code=WaitCode.STEP_FAILED)
        finally:
            if backup.phase is BackupPhase.MAKING:
                await asyncio.to_thread(_remove, self._scratch_of(backup))

    def _scratch_of(self, backup: wire.BackupWanted) -> Path:
        return self._scratch / _key(backup)

    # making

    async def _make(self, backup: wire.BackupWanted, queue: RepositoryQueue) -> BackupResult:
        """Have a backup in its repository, whole or not at all. Raises those of EXPECTED."""
        opening = functools.partial(self._open, backup, Purpose.WRITE)
        with doing(Action.BACKUP, trace=backup.trace, vm=backup.vm, backup=backup.id):
            vm = self._find_vm(backup.vm)
            increment = None if vm is None else Increment(vm.machine, backup.repository, backup.id)
            with contextlib.suppress(MachineFailed):  # what made a backup before may still be reported
                if vm is not None:
                    await vm.wait_until_known()
            points = frozenset[str]() if increment is None else await increment.points()
            async with queue.opened(opening) as repository:
                known = await queue.run(functools.partial(_look, repository, backup, points))
                if known.made:  # by an earlier agent, which could not report it
                    if increment is not None:
                        await increment.keep(known.made)
                    return await queue.run(functools.partial(_result_of, repository, known))
                if vm is None or increment is None:
                    raise Unacceptable("the VM is no longer on this node", WaitCode.VM_GONE)
                increment.expect(known.earlier, is_first=not known.has_earlier and known.earlier is None)
                try:
                    kept, quiesced = await self._store(backup, vm, increment, (repository, queue))
                except BaseException:
                    await increment.give_up()
                    raise
                await increment.keep(kept.snapshot)
        return BackupResult(
            kept.snapshot, BackupMode.FULL if increment.record is None else BackupMode.INCREMENTAL, increment.reason,
            quiesced, kept.disk_bytes, kept.read_bytes, repository.storage.written_bytes,
            "" if increment.record is None or increment.earlier is None else increment.earlier.snapshot,
        )  # fmt: skip

    async def _store(
        self, backup: wire.BackupWanted, vm: VmContext, increment: Increment,
        into: tuple[OpenRepository, RepositoryQueue],
    ) -> tuple[KeptDisk, bool]:  # fmt: skip
        """Copy the VM's disk and store it; return what was stored, and whether the guest was quiesced."""
        async with self._copying.turn(backup.project):
            copied = await self._copy(backup, vm, increment)
        repository, queue = into
        async with copied.open() as disk:

            def store(stopped: Stopped) -> KeptDisk:
                tags, beside = (backup.id, backup.vm), (backup.description, copied.firmware)
                return contents.store(repository.repository, tags, disk, beside, repository.watched(stopped))

            return await queue.run(store), copied.quiesced

    async def _copy(self, backup: wire.BackupWanted, vm: VmContext, increment: Increment) -> _Copied:
        """Copy what is to be read of a VM's disk, as it was at one moment."""
        await vm.wait_until_known()
        image = vm.image()
        if image.disk is None:
            raise Unacceptable("the VM has no disk of its own")
        check_content_key(backup.content_key, vm.spec().encryption_key or image.encryption_key)
        home = VmDirectory(self._scratch_of(backup), None)
        await asyncio.to_thread(_remove, home.path)
        quiesce = Quiesce(vm.machine, wanted=vm.guest.known is not None)
        await clone_disk.copy(vm.machine, home, vm.lock, vm.disk_key(), quiesce.around, increment.plan)
        if not (home.path / DISK_LAYER).exists():  # it has never run
            await overlay.create_blank(home.path / DISK_LAYER, vm.disk_bytes(image), vm.disk_key())
        user = convert.ToolUser(
            lambda command: command if self._uid is None else confined(command, Account(self._uid)), self._uid
        )
        if backup.content_key is not None:
            opening = await self._sealed(backup.content_key, vm, increment, home, user)
        else:
            opening = _at_hand(await self._plain(image.disk, increment, home, user))
        nvram = await sealed_copy.variables(home.path, vm.disk_key(), user)
        return _Copied(opening, await asyncio.to_thread(firmware_state.pack, home.path, nvram), quiesce.done)

    async def _plain(
        self, image: Path, increment: Increment, home: VmDirectory, user: convert.ToolUser
    ) -> DiskCopy:  # fmt: skip
        """Put the layers of a disk together that is not encrypted."""
        layer, disk = home.path / DISK_LAYER, home.path / contents.DISK
        copied = DiskCopy(disk)
        if increment.record is not None and increment.earlier is not None:
            size = increment.earlier.file.size
            changed = await asyncio.to_thread(_written_extents, layer, size, increment.record.dirty_bytes)
            copied = DiskCopy(disk, changed, increment.earlier)
            await convert.convert(layer, ImageFormat.QCOW2, disk, size, SPARE_BYTES, user)
        else:
            layers = [image, *home.shared(), layer]
            await convert.flatten(layers, disk, SPARE_BYTES, user, ImageFormat.RAW)
        await asyncio.to_thread(layer.unlink)  # the disk takes its room
        return copied

    async def _sealed(
        self, key: DataKey, vm: VmContext, increment: Increment, home: VmDirectory, user: convert.ToolUser
    ) -> Callable[[], AbstractAsyncContextManager[DiskCopy]]:  # fmt: skip
        """Return how to have a disk that is encrypted, or whose image is: it never lies here in the clear."""
        layer, image, layer_key = home.path / DISK_LAYER, vm.image(), vm.disk_key()
        changed, earlier = tuple[Extent, ...](), None
        layers = Layers(image.disk, keys.image_key(vm.assigned(), image), (*home.shared(), layer), layer_key)
        if increment.record is not None and increment.earlier is not None:
            earlier, layers = increment.earlier, Layers(None, None, (layer,), layer_key)
            changed = await asyncio.to_thread(
                _written_extents, layer, earlier.file.size, increment.record.dirty_bytes,
                is_encrypted=layer_key is not None,
            )  # fmt: skip

        @contextlib.asynccontextmanager
        async def opened() -> AsyncIterator[DiskCopy]:
            async with sealed_copy.opened(layers, home.path, user) as source:
                yield DiskCopy(source, changed, earlier, ContentCipher(key))

        return opened

    # what was made

    async def _verify(self, backup: wire.BackupWanted, queue: RepositoryQueue) -> wire.BackupStands:
        opening = functools.partial(self._open, backup, Purpose.READ)
        wrong, packs = "", frozenset[bytes]()
        with doing(Action.VERIFY_BACKUP, trace=backup.trace, vm=backup.vm, backup=backup.id):
            try:
                async with queue.opened(opening) as repository:
                    await queue.run(functools.partial(_verify, repository, backup.snapshot))
            except (Damaged, NotStored) as error:  # what was read, its index, or its key
                wrong, packs = str(error), error.packs if isinstance(error, DamagedBlobs) else packs
            if packs:
                wrong += await self._give_up(backup, queue, packs)
        phase = BackupPhase.DAMAGED if wrong else BackupPhase.KEPT
        code = WaitCode.FILE_LOST if wrong else ""
        return wire.BackupStands(backup.id, backup.phase, phase, error=wrong, code=code)

    async def _give_up(self, backup: wire.BackupWanted, queue: RepositoryQueue, packs: frozenset[bytes]) -> str:
        """Have no later backup count on blocks that can't be read back; return what to say of that."""

        def replace(stopped: Stopped) -> None:
            repository = self._open(backup, Purpose.DELETE, stopped)
            try:
                repository.watched(stopped)
                repository.repository.replace_packs(packs)
            finally:
                repository.close()

        try:
            await queue.run(replace)
        except EXPECTED as error:
            log.warning("damaged blocks are still counted on", backup=backup.id, error=str(error))
            return f"; later backups may refer to the damaged blocks: verify it again ({error})"
        return "; the next backup with these blocks stores them again"

    async def _delete(self, backup: wire.BackupWanted) -> None:
        """Take a backup out of its repository; tried again until that works, or the server names it no more."""

        def remove(stopped: Stopped) -> None:
            if backup.begins and not directory.is_begun(self._storage(backup)):
                return  # nothing was ever written
            repository = self._open(backup, Purpose.DELETE, stopped)
            try:
                contents.forget(repository.repository, backup.id)
            finally:
                repository.close()

        queue = self.queues.of(backup.repository)
        backoff = Backoff(DELETE_S_MIN, DELETE_S_MAX)
        while True:
            try:
                async with queue.turn(backup.project):
                    with doing(Action.DELETE_BACKUP, trace=backup.trace, vm=backup.vm, backup=backup.id):
                        await queue.run(remove)
                self._send(wire.BackupStands(backup.id, backup.phase, BackupPhase.DELETING))
                return
            except EXPECTED as error:
                why, code = str(error) or type(error).__name__, code_of(error)
            except Exception as error:  # a defect met with one try must not end the others
                RESTARTS.add("backup")
                log.exception("defect in a backup", backup=backup.id, phase=backup.phase)
                why, code = f"internal error in its agent: {type(error).__name__}; see its log", WaitCode.STEP_FAILED
            self._send(wire.BackupStands(backup.id, backup.phase, BackupPhase.DELETING, error=why, code=code))
            await asyncio.sleep(backoff.next_s())

    def _storage(self, backup: wire.BackupWanted) -> Storage:
        return storage_at(directory.root_of(self._settings, backup.repository))

    def _open(self, backup: wire.BackupWanted, purpose: Purpose, stopped: Stopped) -> OpenRepository:
        """Raises Unacceptable, RepositoryError, OSError, WorkStopped."""
        root = directory.root_of(self._settings, backup.repository)
        if backup.key is None:
            raise Unacceptable(
                "the server can't unwrap the key of its repository: see the server's log", WaitCode.STEP_FAILED
            )
        begin = backup.begins and backup.phase is BackupPhase.MAKING
        return directory.open_repository(root, backup.key, begin=begin, purpose=purpose, stopped=stopped)


def _look(
    repository: OpenRepository, backup: wire.BackupWanted, points: frozenset[str], stopped: Stopped
) -> contents.BackupState:
    key_id = "" if backup.content_key is None else backup.content_key.id
    return contents.look(repository.repository, backup.id, backup.vm, points, repository.watched(stopped), key_id)


def _result_of(repository: OpenRepository, known: contents.BackupState, stopped: Stopped) -> BackupResult:
    repository.watched(stopped)
    why = "it was made before its agent restarted: the bytes that it read and wrote are unknown"
    mode = BackupMode.INCREMENTAL if known.parent else BackupMode.FULL
    size = contents.disk_bytes(repository.repository, known.made)
    return BackupResult(known.made, mode, why, disk_bytes=size, parent=known.parent)


def _verify(repository: OpenRepository, snapshot: str, stopped: Stopped) -> None:
    contents.verify(repository.repository, snapshot, repository.watched(stopped))


def _at_hand(disk: DiskCopy) -> Callable[[], AbstractAsyncContextManager[DiskCopy]]:
    return lambda: contextlib.nullcontext(disk)


def check_content_key(given: DataKey | None, needed: str) -> None:
    """Raise Unacceptable unless the server has sent the key with which a VM's content is encrypted, and no other.
    ``needed`` is its id; empty: it is not encrypted."""
    if (given.id if given is not None else "") == needed:
        return
    if not needed:
        raise Unacceptable(
            "its content is not encrypted on this node, but the server sent a key for it", WaitCode.STEP_FAILED
        )
    raise Unacceptable(
        f"its content is encrypted with {needed}, which was erased, or can't be unwrapped: see the server's log",
        WaitCode.STEP_FAILED,
    )


def _written_extents(
    layer: Path, disk_bytes: int, dirty_bytes: int, *, is_encrypted: bool = False
) -> tuple[Extent, ...]:  # fmt: skip
    """Return what a copy has of what was written. Raises Unacceptable, OSError."""
    with layer.open("rb") as file:
        extents = written_extents(file, disk_bytes, EXTENTS_MAX, is_encrypted=is_encrypted)
    if sum(length for _, length in extents) < dirty_bytes - (-disk_bytes % BLOCK_BYTES):
        raise Unacceptable("the copy of the disk is incomplete: it lacks recent writes", WaitCode.STEP_FAILED)
    return tuple(extents)


def _key(backup: wire.BackupWanted) -> str:
    """Return what tells work on a backup from other work on it."""
    return f"{backup.id}.{backup.phase}"


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
