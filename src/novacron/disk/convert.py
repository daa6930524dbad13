"""Disks in foreign formats, turned into raw ones by ``qemu-img``, which a hostile file may take over: so it runs as a
user that owns these two files and nothing else, within limits of memory, time and size."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from novacron.disk import qemu_img
from novacron.disk.errors import Unacceptable
from novacron.disk.qemu_img import ImgFailed, Wrap
from novacron.model.image import Format

MEMORY_BYTES_MAX = 2 << 30
CPU_S_MAX = 3600
FILES_MAX = 64
LIMITS = [f"--as={MEMORY_BYTES_MAX}", f"--cpu={CPU_S_MAX}", f"--nofile={FILES_MAX}", "--core=0"]
CONVERT_S_MAX = 2 * 3600.0
CHECK_LEAKS = 3
"""With what ``qemu-img check`` ends when nothing but space is lost."""
DRIVERS = {Format.VHD: "vpc"}
"""QEMU's names of formats, where they are others."""


async def convert(
    source: Path, format: Format, target: Path, size_bytes: int | None, spare_bytes: int,
    confined: Wrap, owner: int | None,
) -> None:  # fmt: skip
    """Write the disk in ``source`` to ``target`` as it is, raw, of ``size_bytes`` or what the tool says; at least
    ``spare_bytes`` of the file system stay free. ``confined`` makes the command one of the user ``owner``.

    Raises Unacceptable when the file is damaged or too large, OSError.
    """
    with contextlib.ExitStack() as stack:
        readable = _open(source, os.O_RDONLY, owner, stack)
        if format is Format.QCOW2:
            await _check(readable, format, confined)
        if size_bytes is None:
            size_bytes = await _size(readable, format, confined)
        writable = _open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, owner, stack)
        os.ftruncate(writable, size_bytes)
        arguments = [
            *("convert", "-q", "-n", "--target-is-zero", "-W", "-m", "8", "-t", "writeback", "-O", "raw"),
            *(_named(readable, format), f"/proc/self/fd/{writable}"),
        ]
        free = shutil.disk_usage(target).free
        limits = [f"--fsize={size_bytes}"]
        await _run(arguments, limits, (readable, writable), confined, lambda: _room(target, spare_bytes, free))
        os.fsync(writable)


async def flatten(
    layers: list[Path], target: Path, spare_bytes: int, confined: Wrap, owner: int | None
) -> None:  # fmt: skip
    """Write a disk, whose lowest layer is raw and whose others are qcow2, to ``target`` as one compressed qcow2; at
    least ``spare_bytes`` of the file system stay free. Raises Unacceptable, OSError."""
    with contextlib.ExitStack() as stack:
        node: dict[str, object] | None = None
        descriptors = []
        for number, path in enumerate(layers):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            stack.callback(os.close, descriptor)
            descriptors.append(descriptor)
            _let_read(descriptor, owner)
            file = {"driver": "file", "filename": f"/proc/self/fd/{descriptor}", "locking": "off"}
            above: dict[str, object] = {"driver": "qcow2" if number else "raw", "read-only": True, "file": file}
            node = above if node is None else {**above, "backing": node}
        writable = _open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, owner, stack)
        arguments = [
            "convert",
            "-q",
            "-c",
            "-W",
            "-m",
            "4",
            "-t",
            "writeback",
            "-O",
            "qcow2",
            f"json:{json.dumps(node)}",
        ]
        free = shutil.disk_usage(target).free
        await _run(
            [*arguments, f"/proc/self/fd/{writable}"], [], (*descriptors, writable), confined,
            lambda: _room(target, spare_bytes, free),
        )  # fmt: skip
        os.fsync(writable)


def _let_read(descriptor: int, owner: int | None) -> None:
    """Let the tool's group read a file that stays its owner's."""
    found = os.fstat(descriptor)
    if owner is not None and not found.st_mode & 0o004 and found.st_gid != owner:
        os.fchown(descriptor, -1, owner)
        os.fchmod(descriptor, found.st_mode & 0o777 | 0o040)


def _open(path: Path, flags: int, owner: int | None, stack: contextlib.ExitStack) -> int:
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    stack.callback(os.close, descriptor)
    if owner is not None:
        os.fchown(descriptor, owner, owner)
    return descriptor


def _named(descriptor: int, format: Format) -> str:
    """Return how a disk is named to the tool: in this format, and with nothing under it, whatever its header says."""
    node: dict[str, object] = {"driver": DRIVERS.get(format, format.value), "read-only": True}
    node["file"] = {"driver": "file", "filename": f"/proc/self/fd/{descriptor}"}
    if format in (Format.QCOW2, Format.VMDK):
        node["backing"] = None
    if format is Format.VHD:
        node["force_size_calc"] = "current_size"  # what its geometry says is less than the disk has
    return f"json:{json.dumps(node)}"


def _room(path: Path, spare_bytes: int, before: int) -> str | None:
    free = shutil.disk_usage(path).free
    return f"there is no room for it: {before} bytes were free" if free < spare_bytes else None


async def _check(descriptor: int, format: Format, confined: Wrap) -> None:
    """Raise Unacceptable when the tool finds a disk's tables damaged. Space that is lost does no harm."""
    arguments = ["check", "-q", "--output", "json", _named(descriptor, format)]
    limits = [*LIMITS, "--fsize=0"]
    try:
        await qemu_img.run(arguments, CONVERT_S_MAX, wrap=confined, limits=limits, descriptors=(descriptor,))
    except ImgFailed as error:
        if error.code != CHECK_LEAKS:
            raise Unacceptable(f"its tables are damaged (qemu-img check): {error}") from error


async def _size(descriptor: int, format: Format, confined: Wrap) -> int:
    arguments = ["info", "--output", "json", _named(descriptor, format)]
    said = await _run(arguments, ["--fsize=0"], (descriptor,), confined, lambda: None)
    try:
        return int(json.loads(said)["virtual-size"])
    except (ValueError, KeyError, TypeError):
        raise Unacceptable("the size of its disk can't be read") from None


async def _run(
    arguments: list[str], limits: list[str], descriptors: tuple[int, ...], confined: Wrap,
    wrong: Callable[[], str | None],
) -> bytes:  # fmt: skip
    try:
        return await qemu_img.run(
            arguments, CONVERT_S_MAX, wrap=confined, limits=[*LIMITS, *limits], descriptors=descriptors, wrong=wrong
        )
    except ImgFailed as error:
        raise Unacceptable(f"it can't be read as a disk: {error}") from error
