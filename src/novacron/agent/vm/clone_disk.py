"""How a VM's disk comes from that of another VM on this node. Each step may be interrupted, and done again.

A linked clone shares what its source had written: the source's layer becomes read-only, with hard links in both VMs'
directories, and both write into new layers of their own. The file system counts the references.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from novacron.agent.host.clock import finished_in_thread
from novacron.agent.vm.directory import DISK_LAYER, STATE, VmDirectory, next_name, shared_name
from novacron.agent.vm.hypervisor import VirtualMachine
from novacron.disk import overlay
from novacron.disk.files import is_plain, make_durable, open_plain
from novacron.disk.overlay import OverlayFailed
from novacron.disk.overlay import Snapshots as InFile
from novacron.model import limits
from novacron.model.encryption import DataKey
from novacron.qemu import block, confine
from novacron.qemu.monitor import MonitorFailed

COPY = "copy.qcow2"
"""What QEMU copies its layer into, in the source's directory."""
SMALL_BYTES_MAX = 4 << 20
"""Of what is not a disk: variables of the firmware, and what a TPM remembers."""
UNFINISHED = "clone.qcow2"
"""The layer of a clone that lacks something yet."""


async def share(source: VirtualMachine, clone: VmDirectory, lock: asyncio.Lock, key: DataKey | None) -> None:
    """Give ``clone`` what ``source`` has written so far, shared. ``lock`` keeps everybody else from its disk; ``key``
    is that of an encrypted one.

    Raises OverlayFailed, MonitorFailed, OSError.
    """
    await asyncio.to_thread(clone.make)
    async with source.copying, lock:
        if (source.directory / DISK_LAYER).exists():
            await _freeze(source, key)
            size = overlay.size_bytes(source.directory / DISK_LAYER)
            await asyncio.to_thread(_link_shared, source, clone)
            await overlay.create_blank(clone.path / UNFINISHED, size, key)
    await asyncio.to_thread(_finish, source, clone)


async def copy(
    source: VirtualMachine, clone: VmDirectory, lock: asyncio.Lock, key: DataKey | None,
    around: block.Around = contextlib.nullcontext, planner: block.Planner = block.all_of_it,
) -> None:  # fmt: skip
    """Give ``clone`` what ``source`` has written so far, copied; a source that runs goes on meanwhile.

    ``lock`` keeps a source from being started; ``key`` is that of an encrypted disk, and of its copy; the moment that
    is copied of one that runs lies within ``around``, and ``planner`` says what of it is copied. Raises OverlayFailed,
    MonitorFailed, OSError.
    """
    await asyncio.to_thread(clone.make)
    path = source.directory / DISK_LAYER
    async with source.copying:
        if path.exists():
            if source.monitor is not None and source.pid is not None:
                await _copy_running(source, clone, key, around, planner)
            else:
                async with lock:
                    if source.pid is not None:
                        raise MonitorFailed("its source has just been started")
                    await overlay.copy(path, clone.path / UNFINISHED)
                await _forget_snapshots(clone, key)
            await asyncio.to_thread(_link_shared, source, clone)
    await asyncio.to_thread(_finish, source, clone)


async def abandon(machine: VirtualMachine) -> None:
    """End a copy that an earlier agent began. Raises MonitorFailed, TimeoutError, OSError."""
    if machine.monitor is not None:
        await block.clear_copy(machine.monitor)
    await asyncio.to_thread((machine.directory / COPY).unlink, missing_ok=True)  # of a large file it takes seconds


async def _forget_snapshots(clone: VmDirectory, key: DataKey | None) -> None:
    """A copy has its source's, which mean nothing here."""
    uid = clone.uid()
    clone.give(UNFINISHED)

    def wrap(command: list[str]) -> list[str]:
        return command if uid is None else confine.confined(command, confine.Account(uid))

    inside = InFile(clone.path / UNFINISHED, wrap, key)
    for name in await inside.names():
        await inside.delete(name)


async def _copy_running(
    source: VirtualMachine, clone: VmDirectory, key: DataKey | None, around: block.Around, planner: block.Planner
) -> None:
    assert source.monitor is not None
    await block.clear_copy(source.monitor)
    scratch = source.directory / COPY
    try:
        await overlay.create_blank(scratch, await block.size_bytes(source.monitor), key)
        source.home.give(COPY)
        await block.copy(source.monitor, COPY, _id_of(key), around, planner)
        await asyncio.to_thread(scratch.replace, clone.path / UNFINISHED)
    finally:
        await asyncio.to_thread(scratch.unlink, missing_ok=True)  # of a large file it takes seconds


def _link_shared(source: VirtualMachine, clone: VmDirectory) -> None:
    for path in source.home.shared():
        with contextlib.suppress(FileExistsError):
            os.link(path, clone.path / path.name)


def _finish(source: VirtualMachine, clone: VmDirectory) -> None:
    """Take over what else a VM consists of; the layer comes last, and says that all is there."""
    for name, place in STATE.items():
        kept = source.directory / place
        if name != DISK_LAYER and not name.startswith("shared-") and is_plain(kept):
            (clone.path / place).parent.mkdir(mode=0o700, exist_ok=True)
            with open_plain(kept) as read, (clone.path / place).open("wb") as written:
                written.write(read.read(SMALL_BYTES_MAX))
    if (clone.path / UNFINISHED).exists():
        (clone.path / UNFINISHED).rename(clone.path / DISK_LAYER)
    make_durable(clone.path)


def _id_of(key: DataKey | None) -> str:
    return "" if key is None else key.id


async def _freeze(machine: VirtualMachine, key: DataKey | None) -> None:
    """Put an empty layer over what the VM has written. Raises OverlayFailed, MonitorFailed, OSError."""
    await settle(machine, _id_of(key))
    number = len(machine.home.shared()) + 1
    if number > limits.SHARED_LAYERS_MAX:
        raise OverlayFailed(f"it shares {limits.SHARED_LAYERS_MAX} layers already: make a full clone")
    layer = machine.directory / DISK_LAYER
    await overlay.create_blank(machine.directory / next_name(number), overlay.size_bytes(layer), key)
    machine.home.give(next_name(number))
    await settle(machine, _id_of(key))


async def settle(machine: VirtualMachine, key: str) -> None:
    """Finish what was begun, perhaps by an earlier agent. ``key`` is the id of that with which the VM's disk is
    encrypted; empty: it is not. Raises MonitorFailed, OSError."""
    layer = machine.directory / DISK_LAYER
    candidates = machine.home.next_layers()
    begun = next((path for path in candidates if layer.exists() and not path.samefile(layer)), None)
    if begun is None:
        return
    number = len([path for path in machine.home.shared() if not path.samefile(layer)])
    if machine.monitor is not None and machine.pid is not None:
        await block.put_over(machine.monitor, number + 1, begun.name, key)
    sharing = asyncio.to_thread(_share, layer, machine.directory / shared_name(number), begun)
    await finished_in_thread(asyncio.ensure_future(sharing))
    for path in candidates:
        if path != begun:
            await asyncio.to_thread(path.unlink)
    await asyncio.to_thread(make_durable, machine.directory)


def _share(layer: Path, shared: Path, begun: Path) -> None:
    """Let a VM's own layer be one that others may have, and what is over it the own one. Raises OSError."""
    with contextlib.suppress(FileExistsError):
        os.link(layer, shared)
    os.chown(shared, os.geteuid(), os.getegid())
    shared.chmod(0o400)
    scratch = layer.with_name("link.new")
    scratch.unlink(missing_ok=True)
    os.link(begun, scratch)
    scratch.rename(layer)


def made(directory: Path) -> bool:
    """Say whether a clone has its disk."""
    return (directory / DISK_LAYER).exists()
