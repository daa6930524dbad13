"""Exports: of a VM's disk and all that is below it, one file; kept until the server does not name it any more.

The disk is copied as it is at one moment, as for a clone, and the copy then written down as one qcow2, compressed, by
a tool that owns nothing else: what a guest's QEMU left in a header leads nowhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from novacron.agent.actions import Action, doing
from novacron.agent.settings import Settings
from novacron.agent.vm import clone_disk, firmware_state
from novacron.agent.vm.context import VmContext
from novacron.agent.vm.directory import DISK_LAYER, UIDS_MAX, NoAccount, VmDirectory
from novacron.agent.vm.firmware_state import BadState
from novacron.agent.vm.machine import MachineFailed
from novacron.disk import convert, overlay
from novacron.disk.errors import Unacceptable
from novacron.disk.files import make_durable
from novacron.disk.overlay import OverlayFailed
from novacron.model.export import ExportPhase
from novacron.model.firmware_state import FirmwareState
from novacron.qemu.confine import Account, confined
from novacron.qemu.monitor import MonitorFailed
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

PART = ".part"
SPARE_BYTES = 1 << 30
"""What an export leaves free of the file system."""


class Exports:
    """All exports of this node."""

    def __init__(
        self, settings: Settings, find_vm: Callable[[str], VmContext | None], send: Callable[[wire.Message], None]
    ) -> None:
        self._directory = settings.exports_dir
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._uid = None if settings.uid_base is None else settings.uid_base + UIDS_MAX - 1
        self._find_vm = find_vm
        self._send = send
        self._running: dict[str, asyncio.Task[None]] = {}
        self._told: set[str] = set()
        self._one_by_one = asyncio.Lock()

    def tell(self, wanted: tuple[wire.ExportWanted, ...], tasks: asyncio.TaskGroup) -> None:
        """Keep, or make, these and no others."""
        self._told = {one.id for one in wanted}
        for id, task in self._running.items():
            if id not in self._told:
                task.cancel()
        for path in self._directory.iterdir():
            id = path.name.partition(".")[0]
            if id not in self._told and id not in self._running:
                _remove(path)
        for one in wanted:
            if one.id not in self._running:
                task = self._running[one.id] = tasks.create_task(self._see_to(one), name=f"export-{one.id}")
                task.add_done_callback(lambda _, id=one.id: self._over(id))  # type: ignore[misc]

    def _over(self, id: str) -> None:
        del self._running[id]
        if id not in self._told:  # it was given up when it was all but done
            self._clear(id)

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

    async def _see_to(self, one: wire.ExportWanted) -> None:
        path = self._path(one.id)
        try:
            if one.phase is ExportPhase.READY:
                if not path.exists():
                    raise Unacceptable("its file is gone")
                return
            async with self._one_by_one:
                if not path.exists():
                    with doing(Action.EXPORT, trace=one.trace, vm=one.vm, export=one.id):
                        await self._make(one, path)
                digest, disk_bytes = await asyncio.to_thread(_sha256, path), overlay.size_bytes(path)
            log.info("exported", vm=one.vm, export=one.id)
            stands = wire.ExportStands(one.id, ExportPhase.READY, path.stat().st_size, disk_bytes, digest)
        except asyncio.CancelledError:
            self._clear(one.id)
            raise
        except (
            Unacceptable, OverlayFailed, MonitorFailed, MachineFailed, NoAccount, BadState, OSError,
            TimeoutError,
        ) as error:  # fmt: skip
            log.warning("a VM could not be exported", vm=one.vm, error=str(error))
            self._clear(one.id)
            stands = wire.ExportStands(one.id, ExportPhase.FAILED, error=str(error) or type(error).__name__)
        except Exception as error:  # a defect met with one must not take the agent away
            log.exception("defect in an export", vm=one.vm)
            stands = wire.ExportStands(one.id, ExportPhase.FAILED, error=f"a defect: {type(error).__name__}")
        self._send(stands)

    def _clear(self, id: str) -> None:
        for path in self._directory.glob(f"{id}.*"):
            _remove(path)

    async def _make(self, one: wire.ExportWanted, path: Path) -> None:
        """Have the file at ``path``, whole or not at all."""
        vm = self._find_vm(one.vm)
        if vm is None:
            raise Unacceptable("the VM is not here any more")
        await vm.wait_until_known()
        self._clear(one.id)
        scratch = VmDirectory(self._directory / f"{one.id}{PART}", None)
        image = vm.image()
        assert image.disk is not None
        await clone_disk.copy(vm.machine, scratch, vm.lock)
        layer = scratch.path / DISK_LAYER
        if not layer.exists():  # it has never run
            await overlay.create_blank(layer, vm.disk_bytes(image))
        target = path.with_suffix(".new")
        await convert.flatten(
            [image.disk, *scratch.shared(), layer], target, SPARE_BYTES,
            lambda arguments: arguments if self._uid is None else confined(arguments, Account(self._uid)), self._uid,
        )  # fmt: skip
        os.chown(target, os.geteuid(), os.getegid())
        state = await asyncio.to_thread(firmware_state.pack, scratch.path)
        self._state(one.id).touch(0o600)
        self._state(one.id).write_bytes(msgspec.msgpack.encode(state))
        target.rename(path)
        await asyncio.to_thread(make_durable, self._directory)
        _remove(scratch.path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
