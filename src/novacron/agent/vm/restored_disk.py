"""How a VM's disk comes out of a backup. It may be interrupted at any step, and is then done again from the beginning.

All of the disk lies in the VM's own layer: what is below it, the disk of its image, does not show through.
"""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path

from novacron.agent.actions import Action, doing
from novacron.agent.repositories import contents, directory
from novacron.agent.repositories.directory import Purpose
from novacron.agent.repositories.threads import Stopped, in_thread
from novacron.agent.vm import firmware_state, nvram
from novacron.agent.vm.context import VmContext
from novacron.agent.vm.directory import DISK_LAYER
from novacron.backup.places import Place
from novacron.disk import overlay, qemu_img
from novacron.disk.errors import Unacceptable
from novacron.disk.files import make_durable, sync
from novacron.model.backup_source import BackupSource
from novacron.model.encryption import DataKey
from novacron.model.firmware_state import FirmwareState
from novacron.model.waiting import WaitCode

RAW, LAYER = "restored.raw", "restored.qcow2"
"""In the VM's directory, until its disk is whole."""
CONVERT_S_MAX = 6 * 3600.0


async def make(context: VmContext, source: BackupSource) -> None:
    """Have the VM's disk and the state of its firmware, whole or not at all.

    Raises MachineFailed, Unacceptable, RepositoryError, OverlayFailed, ImgFailed, BadState, NoAccount, OSError.
    """
    home, image = context.machine.home, context.image().disk
    if context.image().encryption_key:
        raise Unacceptable(
            f"its image {context.spec().image} is encrypted, and a disk can't be restored over it", WaitCode.STEP_FAILED
        )
    home.make()
    key = _key(context, source)
    raw, layer = home.path / RAW, home.path / LAYER
    with doing(Action.RESTORE, trace=context.trace, vm=context.vm, repository=source.repository):
        try:
            for left in (raw, layer):
                await asyncio.to_thread(left.unlink, missing_ok=True)
            root = directory.root_of(context.services.settings, source.repository)
            state = await in_thread(functools.partial(_fetch, root, key, source.snapshot, raw), [])
            await overlay.create_blank(layer, raw.stat().st_size, None)
            await qemu_img.run(
                ["convert", "-q", "-n", "-W", "-t", "writeback", "-f", "raw", "-O", "qcow2", str(raw), str(layer)],
                CONVERT_S_MAX,
            )
            await _cover(layer, image)
            variables = await asyncio.to_thread(firmware_state.unpack, home, context.spec(), state)
            if variables is not None:
                await nvram.have(home, variables, context.disk_key())
            await sync(layer)
            layer.rename(home.path / DISK_LAYER)
            home.give(DISK_LAYER)
            await asyncio.to_thread(make_durable, home.path)
        finally:
            await asyncio.to_thread(raw.unlink, missing_ok=True)


async def _cover(layer: Path, image: Path | None) -> None:
    """Have a layer say of all blocks at which the image differs what they are, also where that is zeros."""
    if image is not None:
        await qemu_img.run(
            ["rebase", "-q", "-f", "qcow2", "-t", "writeback", "-F", "raw", "-b", str(image), str(layer)],
            CONVERT_S_MAX,
        )  # fmt: skip


def _key(context: VmContext, source: BackupSource) -> DataKey:
    for key in context.assigned().keys:
        if key.id == source.key:
            return key
    raise Unacceptable("the server can't unwrap the key of its repository: see the server's log", WaitCode.STEP_FAILED)


def _fetch(root: Place, key: DataKey, snapshot: str, raw: Path, stopped: Stopped) -> FirmwareState:
    repository = directory.open_repository(root, key, begin=False, purpose=Purpose.READ, stopped=stopped)
    try:
        return contents.restore(repository.repository, snapshot, raw)
    finally:
        repository.close()
