"""The variables of a VM's UEFI firmware: a file that QEMU writes, encrypted (LUKS) where the VM's disk is."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

from novacron import private_file
from novacron.agent.vm.directory import VmDirectory
from novacron.disk import luks
from novacron.disk.files import is_plain, make_durable, sync
from novacron.model.encryption import DataKey
from novacron.qemu import firmware

ENCRYPT_S_MAX = 120.0


async def have(home: VmDirectory, begins: Path | bytes, key: DataKey | None) -> None:
    """Have the variables, ``begins`` if the VM has none yet. Those that lie there as they are, because an earlier agent
    wrote them so, become encrypted. Raises ImgFailed, OSError."""
    path = home.path / firmware.NVRAM
    if key is None:
        if not path.exists():
            await asyncio.to_thread(_begin, path, begins)
    elif not is_plain(path) or not await asyncio.to_thread(luks.is_encrypted, path):
        await _encrypt(path, path if is_plain(path) else begins, key)
    home.give(firmware.NVRAM)


def _begin(path: Path, begins: Path | bytes) -> None:
    scratch = path.with_suffix(".new")
    if isinstance(begins, Path):
        shutil.copyfile(begins, scratch)
    else:
        scratch.write_bytes(begins)
    scratch.rename(path)


async def _encrypt(path: Path, source: Path | bytes, key: DataKey) -> None:
    """Make an encrypted file of a plain one, or of what is in memory, whole or not at all."""
    scratch = path.with_suffix(".new")
    await asyncio.to_thread(scratch.unlink, missing_ok=True)
    content = source if isinstance(source, bytes) else await asyncio.to_thread(source.read_bytes)
    memory = private_file.in_memory(firmware.NVRAM, content)
    try:
        await luks.encrypt(Path(f"/proc/{os.getpid()}/fd/{memory}"), scratch, key, ENCRYPT_S_MAX)
    finally:
        os.close(memory)
    await sync(scratch)
    await asyncio.to_thread(scratch.rename, path)
    await asyncio.to_thread(make_durable, path.parent)
