"""Exports: of a VM's disk and all that is below it, one file; kept until the server does not name it any more.

The disk is copied at one moment, as for a clone, and the copy is then written as one compressed qcow2 file by
a tool that owns nothing else: what a guest's QEMU left in a header leads nowhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from novacron.agent.actions import Action, doing
from novacron.agent.fair_turns import FairTurns
from novacron.agent.images.named_work import NamedWork
from novacron.agent.settings import AgentSettings
from novacron.agent.vm import clone_disk, firmware_state
from novacron.agent.vm.context import VmContext
from novacron.agent.vm.directory import DISK_LAYER, UIDS_MAX, NoAccount, VmDirectory
from novacron.agent.vm.firmware_state import BadState
from novacron.agent.vm.hypervisor import MachineFailed
from novacron.disk import convert, overlay
from novacron.disk.errors import Unacceptable
from novacron.disk.files import make_durable
from novacron.disk.overlay import OverlayFailed
from novacron.model.export import ExportPhase
from novacron.model.firmware_state import FirmwareState
from novacron.model.waiting import WaitCode, code_of
from novacron.qemu.confine import Account, confined
from novacron.qemu.monitor import MonitorFailed
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

PART = ".part"
SPARE_BYTES = 1 << 30
"""What an export leaves free of the file system."""


class VmExports:
    """All exports of this node."""

    def __init__(
        self, settings: AgentSettings, find_vm: Callable[[str], VmContext | None], send: Callable[[wire.Message], None]
    ) -> None:
        self._directory = settings.exports_dir
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._uid = None if settings.uid_base is None else settings.uid_base + UIDS_MAX - 1
        self._find_vm = find_vm
        self._send = send
        self._exports = NamedWork("export", self._see_to, self._remove_others)
        self._one_by_one = FairTurns(1)

    def tell(
        self, desired: tuple[wire.ExportWanted, ...], tasks: asyncio.TaskGroup, unreadable: Collection[str] = ()
    ) -> None:
        """Keep, or make, these and no others but those that are unreadable."""
        self._exports.tell({export.id: export for export in desired}, tasks, unreadable)

    def _remove_others(self, is_kept: Callable[[str], bool]) -> None:
        for path in self._directory.iterdir():
            if not is_kept(path.name.partition(".")[0]):
                _remove(path)

    def read(self, id: str, offset: int, bytes_max: int) -> bytes:
        """Return a piece of an export. Raises OSError."""
        descriptor = os.open(self._path(id), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return os.pread(descriptor, bytes_max, offset)
        finally:
            os.close(descriptor)

    def read_firmware_state(self, id: str) -> FirmwareState:
        """Return what the VM's firmware and TPM remembered. Raises OSError."""
        return msgspec.msgpack.decode(self._state(id).read_bytes(), type=FirmwareState)

    def _state(self, id: str) -> Path:
        return self._directory / f"{id}.firmware"

    def _path(self, id: str) -> Path:
        return self._directory / f"{id}.qcow2"

    async def _see_to(self, export: wire.ExportWanted) -> None:
        try:
            report = await self._have(export)
        except (
            Unacceptable, OverlayFailed, MonitorFailed, MachineFailed, NoAccount, BadState, OSError,
            TimeoutError,
        ) as error:  # fmt: skip
            log.warning("a VM could not be exported", vm=export.vm, error=str(error))
            await asyncio.to_thread(self._clear, export.id)
            why = str(error) or type(error).__name__
            report = wire.ExportStands(export.id, ExportPhase.FAILED, error=why, code=code_of(error))
        except Exception as error:  # a defect met with one must not take the agent away
            log.exception("defect in an export", vm=export.vm)
            why = f"internal error in its agent: {type(error).__name__}; see its log"
            report = wire.ExportStands(export.id, ExportPhase.FAILED, error=why, code=WaitCode.STEP_FAILED)
        if report is not None:
            self._send(report)

    async def _have(self, export: wire.ExportWanted) -> wire.ExportStands | None:
        """Have an export's file and return what to report of it, if anything.

        Raises Unacceptable, OverlayFailed, MonitorFailed, MachineFailed, NoAccount, BadState, OSError, TimeoutError.
        """
        path = self._path(export.id)
        if export.phase is ExportPhase.READY:
            if not path.exists():
                raise Unacceptable("its file is gone", WaitCode.FILE_LOST)
            return None
        vm = self._find_vm(export.vm)
        async with self._one_by_one.turn("" if vm is None else vm.name_and_project()[1]):
            if not path.exists():
                with doing(Action.EXPORT, trace=export.trace, vm=export.vm, export=export.id):
                    await self._make(export, path)
            digest = await asyncio.to_thread(_sha256, path)
            disk_bytes = await asyncio.to_thread(overlay.size_bytes, path)
        log.info("exported", vm=export.vm, export=export.id)
        return wire.ExportStands(export.id, ExportPhase.READY, path.stat().st_size, disk_bytes, digest)

    def _clear(self, id: str) -> None:
        for path in self._directory.glob(f"{id}.*"):
            _remove(path)

    async def _make(self, export: wire.ExportWanted, path: Path) -> None:
        """Have the file at ``path``, whole or not at all."""
        vm = self._find_vm(export.vm)
        if vm is None:
            raise Unacceptable("the VM is no longer on this node", WaitCode.VM_GONE)
        await vm.wait_until_known()
        await asyncio.to_thread(self._clear, export.id)
        scratch = VmDirectory(self._directory / f"{export.id}{PART}", None)
        image = vm.image()
        assert image.disk is not None
        if vm.spec().encryption_key or image.encryption_key:
            raise Unacceptable("its disk or its image is encrypted, and an export would not be")
        await clone_disk.copy(vm.machine, scratch, vm.lock, None)
        layer = scratch.path / DISK_LAYER
        if not layer.exists():  # it has never run
            await overlay.create_blank(layer, vm.disk_bytes(image), None)
        target = path.with_suffix(".new")
        await convert.flatten(
            [image.disk, *scratch.shared(), layer], target, SPARE_BYTES,
            convert.ToolUser(
                lambda command: command if self._uid is None else confined(command, Account(self._uid)), self._uid
            ),
        )  # fmt: skip
        await asyncio.to_thread(self._finish, export.id, scratch.path, target, path)

    def _finish(self, id: str, scratch: Path, target: Path, path: Path) -> None:
        """Let an export be seen of which everything is there. Raises BadState, OSError."""
        os.chown(target, os.geteuid(), os.getegid())
        state = firmware_state.pack(scratch)
        self._state(id).touch(0o600)
        self._state(id).write_bytes(msgspec.msgpack.encode(state))
        target.rename(path)
        make_durable(self._directory)
        _remove(scratch)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
