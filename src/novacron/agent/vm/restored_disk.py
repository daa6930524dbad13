"""How a VM's disk comes out of a backup: of a VM that has none yet, or in the place of what it has.

It may be interrupted at any step, and is then done again from the beginning.

All of the disk lies in the VM's own layer: what is below it, the disk of its image, does not show through.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from pathlib import Path
from typing import NamedTuple

from novacron import private_file
from novacron.agent.actions import Action, doing
from novacron.agent.host.clock import finished_in_thread
from novacron.agent.repositories import contents, directory
from novacron.agent.repositories.contents import KeptContent
from novacron.agent.repositories.directory import OpenRepository, Purpose
from novacron.agent.repositories.threads import Stopped, in_thread
from novacron.agent.vm import firmware_state, nvram, sealed_copy
from novacron.agent.vm.context import VmContext
from novacron.agent.vm.directory import DISK_LAYER, VmDirectory
from novacron.agent.vm.firmware_state import Remembered
from novacron.backup.content_cipher import ContentCipher
from novacron.backup.places import Place
from novacron.disk import overlay, qemu_img
from novacron.disk.errors import Unacceptable
from novacron.disk.files import make_durable, sync
from novacron.model.backup_source import BackupSource
from novacron.model.encryption import DataKey
from novacron.model.firmware_state import FirmwareState
from novacron.model.waiting import WaitCode
from novacron.qemu.firmware import NVRAM, TPM_FILE

RAW, LAYER = "restored.raw", "restored.qcow2"
"""In the VM's directory, until its disk is whole."""
HALF_DONE, REPLACED = "replacing", "replaced"
"""Which request is being done, and which was done last, to put a backup in the place of the VM's disk."""
CONVERT_S_MAX = 6 * 3600.0


class _Ready(NamedTuple):
    """What a VM is to have, beside what it has."""

    layer: Path
    firmware: Remembered


async def make(context: VmContext, source: BackupSource) -> None:
    """Have the disk of a VM that has none yet, and the state of its firmware, whole or not at all.

    Raises MachineFailed, Unacceptable, RepositoryError, OverlayFailed, ImgFailed, BadState, NoAccount, OSError.
    """
    home = context.machine.home
    await asyncio.to_thread(home.make)
    with doing(Action.RESTORE, trace=context.trace, vm=context.vm, repository=source.repository):
        ready = await _prepare(context, source)
        await give_firmware(context, ready.firmware)
        await give_layer(home, ready.layer)


async def replace(context: VmContext, source: BackupSource, request: str) -> None:
    """Put what a backup has in the place of the disk of a VM that is off, and of the state of its firmware.

    Until ``is_half_done`` says otherwise, nothing of it has changed. Raises what ``make`` does.
    """
    home = context.machine.home
    if context.machine.pid is not None:
        raise Unacceptable("its QEMU is still running", WaitCode.GUEST_HOLDS_IT)
    if home.shared() or home.next_layers():
        raise Unacceptable(
            "its disk has layers that linked clones share: restore the backup to a new VM", WaitCode.STEP_FAILED
        )
    with doing(Action.RESTORE, trace=context.trace, vm=context.vm, repository=source.repository):
        ready = await _prepare(context, source)
        await sync(ready.layer)
        await asyncio.to_thread(_note, home, HALF_DONE, request)
        for name, content in ((NVRAM, ready.firmware.nvram), (TPM_FILE, ready.firmware.tpm)):
            if content is not None:
                await asyncio.to_thread((home.path / name).unlink, missing_ok=True)
        await give_firmware(context, ready.firmware)
        await give_layer(home, ready.layer)
        await asyncio.to_thread(_note, home, REPLACED, request)
        await asyncio.to_thread((home.path / HALF_DONE).unlink, missing_ok=True)
        await asyncio.to_thread(make_durable, home.path)


def is_half_done(home: VmDirectory) -> bool:
    """Say whether a VM has some of a backup, and some of what it had: then it must get all of the backup."""
    return (home.path / HALF_DONE).exists()


def is_replaced(home: VmDirectory, request: str) -> bool:
    """Say whether a VM's disk is what a request asked for."""
    with contextlib.suppress(FileNotFoundError):
        return (home.path / REPLACED).read_text() == request and not is_half_done(home)
    return False


def check_image(context: VmContext, key: DataKey | None) -> None:
    """Raise Unacceptable if the VM's image is encrypted, and its disk would not be. ``key`` is the disk's."""
    if context.image().encryption_key and key is None:
        raise Unacceptable(
            f"its image {context.spec().image} is encrypted and its disk is not: restore the backup to a new VM",
            WaitCode.STEP_FAILED,
        )


def cipher_of(source: BackupSource, key: DataKey | None) -> ContentCipher | None:
    """Return what opens the content of a backup for a disk with this key; None for content and disks without any.
    Raises Unacceptable where they do not fit."""
    if key is None and source.content_key:
        raise Unacceptable(
            f"the backup is encrypted with {source.content_key}, and the disk would not be", WaitCode.STEP_FAILED
        )
    if key is not None and source.content_key not in ("", key.id):
        raise Unacceptable(
            f"the backup is encrypted with {source.content_key}, and the VM's disk with {key.id}", WaitCode.STEP_FAILED
        )
    return ContentCipher(key) if key is not None and source.content_key else None


async def _prepare(context: VmContext, source: BackupSource) -> _Ready:
    """Have all that a VM is to get, and change nothing of what it has."""
    home, key = context.machine.home, context.disk_key()
    check_image(context, key)
    raw, layer = home.path / RAW, home.path / LAYER
    for left in (raw, layer):
        await asyncio.to_thread(left.unlink, missing_ok=True)
    if key is None:
        state = await _have_plain(context, source, raw, layer)
    else:
        state = await _have_encrypted(context, source, layer, key)
    return _Ready(layer, await asyncio.to_thread(firmware_state.unpacked, context.spec(), state))


async def _have_plain(context: VmContext, source: BackupSource, raw: Path, layer: Path) -> FirmwareState:
    """Have a layer that is not encrypted, with what a backup has that is not encrypted either."""
    cipher_of(source, None)
    root, key = directory.root_of(context.services.settings, source.repository), repository_key(context, source)
    try:
        image = None if context.image().encryption_key else context.image().disk
        state = await in_thread(functools.partial(_fetch, root, key, source.snapshot, raw, image), [])
        await overlay.create_blank(layer, raw.stat().st_size, None)
        await qemu_img.run(
            ["convert", "-q", "-n", "-W", "-t", "writeback", "-f", "raw", "-O", "qcow2", str(raw), str(layer)],
            CONVERT_S_MAX,
        )
        await _cover(layer, context.image().disk)
    finally:
        await asyncio.to_thread(raw.unlink, missing_ok=True)
    return state


async def _have_encrypted(context: VmContext, source: BackupSource, layer: Path, key: DataKey) -> FirmwareState:
    """Have an encrypted layer with what a backup has; nothing of it lies on the disk in the clear, at no time."""
    cipher = cipher_of(source, key)
    root, opens = directory.root_of(context.services.settings, source.repository), repository_key(context, source)
    repository = await in_thread(functools.partial(_open, root, opens), [])
    try:

        def look(stopped: Stopped) -> KeptContent:
            repository.watched(stopped)
            return KeptContent(repository.repository, source.snapshot, cipher)

        kept = await in_thread(look, [])
        await overlay.create_blank(layer, kept.disk.size, key)
        image = context.image()
        async with sealed_copy.writing(layer, key) as writer:

            def fetch(stopped: Stopped) -> None:
                if image.disk is not None:  # which does not show through where the disk has zeros
                    writer.zero(0, min(kept.disk.size, image.info.disk_bytes))
                kept.fetch_disk(writer.write, repository.watched(stopped))
                writer.flush()

            await in_thread(fetch, [])
    finally:
        repository.let_go()
        await in_thread(repository.close_watched, [])
    return kept.firmware


async def give_firmware(context: VmContext, remembered: Remembered) -> None:
    home = context.machine.home
    await asyncio.to_thread(firmware_state.give_tpm, home, remembered.tpm)
    if remembered.nvram is not None:
        await nvram.have(home, remembered.nvram, context.disk_key())


async def give_layer(home: VmDirectory, layer: Path) -> None:
    def put() -> None:
        layer.rename(home.path / DISK_LAYER)
        home.give(DISK_LAYER)
        make_durable(home.path)

    await sync(layer)
    await finished_in_thread(asyncio.ensure_future(asyncio.to_thread(put)))


def _note(home: VmDirectory, name: str, request: str) -> None:
    private_file.write(home.path / name, request.encode())
    make_durable(home.path)


async def _cover(layer: Path, image: Path | None) -> None:
    """Have a layer say of all blocks at which the image differs what they are, also where that is zeros."""
    if image is not None:
        await qemu_img.run(
            ["rebase", "-q", "-f", "qcow2", "-t", "writeback", "-F", "raw", "-b", str(image), str(layer)],
            CONVERT_S_MAX,
        )  # fmt: skip


def repository_key(context: VmContext, source: BackupSource) -> DataKey:
    """Return what opens a repository. Raises Unacceptable."""
    for key in context.assigned().keys:
        if key.id == source.opened_by:
            return key
    raise Unacceptable("the server can't unwrap the key of its repository: see the server's log", WaitCode.STEP_FAILED)


def _open(root: Place, key: DataKey, stopped: Stopped) -> OpenRepository:
    return directory.open_repository(root, key, begin=False, purpose=Purpose.READ, stopped=stopped)


def _fetch(
    root: Place, key: DataKey, snapshot: str, raw: Path, image: Path | None, stopped: Stopped
) -> FirmwareState:  # fmt: skip
    repository = _open(root, key, stopped)
    try:
        return contents.restore(repository.repository, snapshot, raw, image, stopped)
    finally:
        repository.close()
