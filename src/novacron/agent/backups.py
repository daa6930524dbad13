"""Backups of this node's VMs: made, read back and taken out of their repositories, one after the other.

The disk is copied at one moment into a scratch directory of this node, as for an export, so a repository that is slow
or gone never holds up the guest. A confined tool puts its layers together; what is in the repository already is not
written again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from novacron.agent.actions import Action, doing
from novacron.agent.host.stoppable import in_thread
from novacron.agent.images.named_work import NamedWork
from novacron.agent.repositories import contents, directory
from novacron.agent.repositories.contents import Stopped
from novacron.agent.settings import AgentSettings
from novacron.agent.vm import clone_disk, firmware_state
from novacron.agent.vm.context import VmContext
from novacron.agent.vm.directory import DISK_LAYER, UIDS_MAX, NoAccount, VmDirectory
from novacron.agent.vm.firmware_state import BadState
from novacron.agent.vm.hypervisor import MachineFailed, VirtualMachine
from novacron.backup.errors import Damaged, NotStored, RepositoryError
from novacron.disk import convert, overlay
from novacron.disk.errors import Unacceptable
from novacron.disk.overlay import OverlayFailed
from novacron.dwcp.backoff import Backoff
from novacron.model.backup import BackupMode, BackupPhase, BackupResult
from novacron.model.image import ImageFormat
from novacron.model.waiting import WaitCode, code_of
from novacron.qemu.confine import Account, confined
from novacron.qemu.guest import GuestSilent
from novacron.qemu.monitor import MonitorFailed
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

SPARE_BYTES = 1 << 30
"""What a backup leaves free of the node's file system."""
DELETE_S_MIN, DELETE_S_MAX = 5.0, 600.0
"""Between attempts to take a backup out of a repository."""
EXPECTED = (
    Unacceptable, OverlayFailed, MonitorFailed, MachineFailed, NoAccount, BadState, RepositoryError, OSError,
    TimeoutError,
)  # fmt: skip


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
        self._one_by_one = asyncio.Lock()
        self._made: dict[str, wire.BackupStands] = {}
        """Reports of backups that were made, until the server has heard them."""

    def tell(self, desired: tuple[wire.BackupWanted, ...], tasks: asyncio.TaskGroup) -> None:
        """Work on these and no others; what is asked of one anew ends what was asked before."""
        named = {_key(backup): backup for backup in desired}
        self._made = {key: report for key, report in self._made.items() if key in named}
        self._work.tell(named, tasks)

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
            async with self._one_by_one:
                if backup.phase is BackupPhase.VERIFYING:
                    return await self._verify(backup)
                result = await self._make(backup)
                return wire.BackupStands(backup.id, backup.phase, BackupPhase.KEPT, result)
        except EXPECTED as error:
            log.warning("work on a backup failed", backup=backup.id, phase=backup.phase, error=str(error))
            why = str(error) or type(error).__name__
            return wire.BackupStands(backup.id, backup.phase, ends, error=why, code=code_of(error))
        except Exception as error:  # a defect met with one must not take the agent away
            log.exception("defect in a backup", backup=backup.id, phase=backup.phase)
            why = f"its agent has a defect: {type(error).__name__}; see its log"
            return wire.BackupStands(backup.id, backup.phase, ends, error=why, code=WaitCode.STEP_FAILED)
        finally:
            if backup.phase is BackupPhase.MAKING:
                await asyncio.to_thread(_remove, self._scratch_of(backup))

    def _scratch_of(self, backup: wire.BackupWanted) -> Path:
        return self._scratch / _key(backup)

    # making

    async def _make(self, backup: wire.BackupWanted) -> BackupResult:
        """Have a backup in its repository, whole or not at all. Raises those of EXPECTED."""
        with doing(Action.BACKUP, trace=backup.trace, vm=backup.vm, backup=backup.id):
            earlier = await in_thread(functools.partial(self._made_before, backup))
            if earlier is not None:
                return earlier
            disk, home, quiesced = await self._disk_of(backup)
            beside = backup.description, await asyncio.to_thread(firmware_state.pack, home)
            kept, written_bytes = await in_thread(functools.partial(self._store, backup, disk, beside))
        return BackupResult(
            kept.snapshot, BackupMode.FULL, contents.READ_ALL, quiesced, kept.disk_bytes, kept.read_bytes,
            written_bytes,
        )  # fmt: skip

    def _made_before(self, backup: wire.BackupWanted, _stopped: Stopped) -> BackupResult | None:
        """Return a backup that an earlier agent made, which could not report it."""
        repository, _ = self._open(backup, begin=backup.begins)
        snapshot = contents.find(repository, backup.id)
        if snapshot is None:
            return None
        why = "it was made before its agent was restarted: what it read and wrote was not counted"
        size = contents.disk_bytes(repository, snapshot)
        return BackupResult(snapshot, BackupMode.FULL, why, disk_bytes=size)

    def _store(
        self, backup: wire.BackupWanted, disk: Path, beside: contents.Beside, stopped: Stopped
    ) -> tuple[contents.KeptDisk, int]:
        repository, storage = self._open(backup, begin=False)
        kept = contents.store(repository, backup.id, disk, beside, stopped)
        return kept, storage.written_bytes

    async def _disk_of(self, backup: wire.BackupWanted) -> tuple[Path, Path, bool]:
        """Return the VM's disk as it was at one moment, as a raw file, the directory with the state of its firmware at
        that moment, and whether the guest was quiesced."""
        vm = self._find_vm(backup.vm)
        if vm is None:
            raise Unacceptable("the VM is not here any more", WaitCode.VM_GONE)
        await vm.wait_until_known()
        image = vm.image()
        if image.disk is None or vm.spec().encryption_key:
            raise Unacceptable("the VM has no disk that can be backed up")
        home = VmDirectory(self._scratch_of(backup), None)
        await asyncio.to_thread(_remove, home.path)
        quiesce = _Quiesce(vm.machine, wanted=vm.guest.known is not None)
        await clone_disk.copy(vm.machine, home, vm.lock, None, quiesce.around)
        layer, disk = home.path / DISK_LAYER, home.path / contents.DISK
        if not layer.exists():  # it has never run
            await overlay.create_blank(layer, vm.disk_bytes(image), None)
        user = convert.ToolUser(
            lambda command: command if self._uid is None else confined(command, Account(self._uid)), self._uid
        )
        await convert.flatten([image.disk, *home.shared(), layer], disk, SPARE_BYTES, user, ImageFormat.RAW)
        await asyncio.to_thread(layer.unlink)  # the disk takes its room
        return disk, home.path, quiesce.done

    # what was made

    async def _verify(self, backup: wire.BackupWanted) -> wire.BackupStands:
        def read(stopped: Stopped) -> str:
            repository, _ = self._open(backup, begin=False)
            try:
                contents.verify(repository, backup.snapshot, stopped)
            except (Damaged, NotStored) as error:
                return str(error)
            return ""

        with doing(Action.VERIFY_BACKUP, trace=backup.trace, vm=backup.vm, backup=backup.id):
            try:
                wrong = await in_thread(read)
            except Damaged as error:  # its index, or its key
                wrong = str(error)
        phase = BackupPhase.DAMAGED if wrong else BackupPhase.KEPT
        code = WaitCode.FILE_LOST if wrong else ""
        return wire.BackupStands(backup.id, backup.phase, phase, error=wrong, code=code)

    async def _delete(self, backup: wire.BackupWanted) -> None:
        """Take a backup out of its repository; tried again until that works, or the server names it no more."""

        def remove(_stopped: Stopped) -> None:
            if backup.begins and not directory.root_of(self._settings, backup.repository).exists():
                return  # nothing was ever written
            repository, _ = self._open(backup, begin=False)
            contents.forget(repository, backup.id)

        backoff = Backoff(DELETE_S_MIN, DELETE_S_MAX)
        while True:
            try:
                async with self._one_by_one:
                    with doing(Action.DELETE_BACKUP, trace=backup.trace, vm=backup.vm, backup=backup.id):
                        await in_thread(remove)
                self._send(wire.BackupStands(backup.id, backup.phase, BackupPhase.DELETING))
                return
            except EXPECTED as error:
                why = str(error) or type(error).__name__
                self._send(
                    wire.BackupStands(backup.id, backup.phase, BackupPhase.DELETING, error=why, code=code_of(error))
                )
            await asyncio.sleep(backoff.next_s())

    def _open(self, backup: wire.BackupWanted, *, begin: bool) -> directory.Opened:
        """Raises Unacceptable, RepositoryError, OSError."""
        root = directory.root_of(self._settings, backup.repository)
        if backup.key is None:
            raise Unacceptable(
                "the server can't unwrap the key of its repository: see the server's log", WaitCode.STEP_FAILED
            )
        return directory.open_repository(root, backup.key, begin=begin)


def _key(backup: wire.BackupWanted) -> str:
    """Return what tells work on a backup from other work on it."""
    return f"{backup.id}.{backup.phase}"


class _Quiesce:
    """Has a guest write out what it has and stop writing for a moment, if its agent does it within its time."""

    def __init__(self, machine: VirtualMachine, *, wanted: bool) -> None:
        self.done = False
        self._machine, self._wanted = machine, wanted

    @contextlib.asynccontextmanager
    async def around(self) -> AsyncIterator[None]:
        if not self._wanted:
            yield
            return
        try:
            try:
                await self._machine.guest.freeze()
                self.done = True
            except GuestSilent as error:
                log.warning("a guest is backed up without being quiesced", vm=self._machine.id, error=str(error))
            yield
        finally:
            try:
                await self._machine.guest.thaw()
            except GuestSilent as error:
                log.warning("a guest may not write to its disks", vm=self._machine.id, error=str(error))


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
