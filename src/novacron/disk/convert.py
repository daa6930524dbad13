"""Disks in foreign formats, turned into raw ones by ``qemu-img``, which a hostile file may take over: so it runs as a
user that owns these two files and nothing else, within limits of memory, time and size."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from novacron.disk import qemu_img
from novacron.disk.errors import Unacceptable
from novacron.disk.files import sync
from novacron.disk.qemu_img import ImgFailed, Invocation, Wrap
from novacron.model.image import ImageFormat
from novacron.model.waiting import WaitCode

MEMORY_BYTES_MAX = 2 << 30
CPU_S_MAX = 3600
FILES_MAX = 64
LIMITS = [f"--as={MEMORY_BYTES_MAX}", f"--cpu={CPU_S_MAX}", f"--nofile={FILES_MAX}", "--core=0"]
CONVERT_S_MAX = 2 * 3600.0
CHECK_LEAKS = 3
"""Exit status of ``qemu-img check`` when nothing but space is lost."""
REPLAYED_BYTES_MAX = 4 << 30
"""What may come of a VHDX's log: its blocks, at their places."""
VHDX_HEADERS, VHDX_LOG_AT = (64 << 10, 128 << 10), 48
DRIVERS = {ImageFormat.VHD: "vpc"}
"""QEMU's names of formats, where they differ from ours."""


class ToolUser(NamedTuple):
    """Whom the tool runs as."""

    wrap: Wrap
    """Makes a command run as that user."""
    uid: int | None
    """The owner of the files that it may write; None: this process's user."""


class _Opened(NamedTuple):
    """A disk as the tool gets it: a name, and the files that are behind it."""

    name: str
    descriptors: tuple[int, ...]


async def convert(
    source: Path, format: ImageFormat, target: Path, size_bytes: int | None, spare_bytes: int, user: ToolUser
) -> None:
    """Write the disk in ``source`` to ``target`` as a raw one of ``size_bytes``, or of the size that the tool reads in
    its header if None. At least ``spare_bytes`` of the file system stay free.

    Raises Unacceptable when the file is damaged or too large, OSError.
    """
    with contextlib.ExitStack() as stack:
        readable = _open(source, os.O_RDONLY, user.uid, stack)
        opened = _Opened(_named(readable, format), (readable,))
        if format is ImageFormat.QCOW2:
            await _check(opened, user.wrap)
        if format is ImageFormat.VHDX and has_log(readable):
            opened = await _replayed(readable, target.with_name("replayed"), spare_bytes, user, stack)
        if size_bytes is None:
            size_bytes = await _size(opened, user.wrap)
        writable = _open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, user.uid, stack)
        os.ftruncate(writable, size_bytes)
        arguments = [
            *("convert", "-q", "-n", "--target-is-zero", "-W", "-m", "8", "-t", "writeback", "-O", "raw"),
            *(opened.name, f"/proc/self/fd/{writable}"),
        ]
        free = (await asyncio.to_thread(shutil.disk_usage, target)).free
        invocation = Invocation(user.wrap, [*LIMITS, f"--fsize={size_bytes}"], (*opened.descriptors, writable))
        await _run(arguments, invocation, lambda: _lack_of_room(target, spare_bytes, free))
        await sync(target)


async def flatten(
    layers: list[Path], target: Path, spare_bytes: int, user: ToolUser, format: ImageFormat = ImageFormat.QCOW2
) -> None:
    """Write a disk, whose lowest layer is raw and whose others are qcow2, to ``target`` as one compressed qcow2, or a
    raw file with holes; at least ``spare_bytes`` of the file system stay free. Raises Unacceptable, OSError."""
    with contextlib.ExitStack() as stack:
        node: dict[str, object] | None = None
        descriptors = []
        for number, path in enumerate(layers):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            stack.callback(os.close, descriptor)
            descriptors.append(descriptor)
            let_read(descriptor, user.uid)
            file = {"driver": "file", "filename": f"/proc/self/fd/{descriptor}", "locking": "off"}
            above: dict[str, object] = {"driver": "qcow2" if number else "raw", "read-only": True, "file": file}
            node = above if node is None else {**above, "backing": node}
        writable = _open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, user.uid, stack)
        arguments = [
            *("convert", "-q", *(("-c",) if format is ImageFormat.QCOW2 else ()), "-W", "-m", "4"),
            *("-t", "writeback", "-O", format.value),
            *(f"json:{json.dumps(node)}", f"/proc/self/fd/{writable}"),
        ]
        free = (await asyncio.to_thread(shutil.disk_usage, target)).free
        invocation = Invocation(user.wrap, LIMITS, (*descriptors, writable))
        await _run(arguments, invocation, lambda: _lack_of_room(target, spare_bytes, free))
        await sync(target)


def let_read(descriptor: int, owner: int | None) -> None:
    """Let the tool's group read a file that stays its owner's."""
    status = os.fstat(descriptor)
    if owner is not None and not status.st_mode & 0o004 and status.st_gid != owner:
        os.fchown(descriptor, -1, owner)
        os.fchmod(descriptor, status.st_mode & 0o777 | 0o040)


def _open(path: Path, flags: int, owner: int | None, stack: contextlib.ExitStack) -> int:
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    stack.callback(os.close, descriptor)
    if owner is not None:
        os.fchown(descriptor, owner, owner)
    return descriptor


def _named(descriptor: int, format: ImageFormat) -> str:
    """Return the disk's name for the tool: in this format and without a backing file, regardless of its header."""
    node: dict[str, object] = {"driver": DRIVERS.get(format, format.value), "read-only": True}
    node["file"] = _file(descriptor)
    if format in (ImageFormat.QCOW2, ImageFormat.VMDK):
        node["backing"] = None
    if format is ImageFormat.VHD:
        node["force_size_calc"] = "current_size"  # what its geometry says is less than the disk has
    return f"json:{json.dumps(node)}"


def _lack_of_room(path: Path, spare_bytes: int, before: int) -> str | None:
    free = shutil.disk_usage(path).free
    return f"there is no space for it: {before} bytes were free" if free < spare_bytes else None


def has_log(descriptor: int) -> bool:
    """Say whether a VHDX was not closed: what its writer had begun is in its log ([MS-VHDX], section 2.3)."""
    headers = (os.pread(descriptor, VHDX_LOG_AT + 16, at) for at in VHDX_HEADERS)
    return any(header.startswith(b"head") and any(header[VHDX_LOG_AT:]) for header in headers)


async def _replayed(
    descriptor: int, layer: Path, spare_bytes: int, user: ToolUser, stack: contextlib.ExitStack
) -> _Opened:
    """Return a VHDX as it is once its log was replayed, which goes to a ``layer`` over its file: the file stays as it
    came. Raises Unacceptable, OSError."""
    layer.unlink(missing_ok=True)
    writable = _open(layer, os.O_RDWR | os.O_CREAT | os.O_EXCL, user.uid, stack)
    stack.callback(layer.unlink, missing_ok=True)
    limits = [*LIMITS, f"--fsize={REPLAYED_BYTES_MAX}"]
    size_bytes = str(os.fstat(descriptor).st_size)
    create = ["create", "-q", "-f", "qcow2", f"/proc/self/fd/{writable}", size_bytes]
    await _run(create, Invocation(user.wrap, limits, (writable,)))
    below = {"driver": "raw", "read-only": True, "file": _file(descriptor)}
    over = {"driver": "qcow2", "file": _file(writable), "backing": below}
    node: dict[str, object] = {"driver": "vhdx", "file": over}
    opened = _Opened(f"json:{json.dumps(node)}", (descriptor, writable))
    invocation = Invocation(user.wrap, limits, opened.descriptors)
    free = shutil.disk_usage(layer).free
    lack = functools.partial(_lack_of_room, layer, spare_bytes, free)
    try:
        await qemu_img.run(["check", "-q", "-r", "all", opened.name], CONVERT_S_MAX, invocation, lack)
    except ImgFailed as error:
        if lack() is not None:
            raise Unacceptable(str(error), WaitCode.NO_SPACE) from error
        if error.code != CHECK_LEAKS:
            raise Unacceptable(f"its log of unfinished writes is damaged: {_words(error)}") from error
    reading = {**node, "read-only": True, "file": {**over, "read-only": True}}
    return _Opened(f"json:{json.dumps(reading)}", opened.descriptors)


def _file(descriptor: int) -> dict[str, object]:
    return {"driver": "file", "filename": f"/proc/self/fd/{descriptor}"}


def _words(error: ImgFailed) -> str:
    """Return what the tool said, without the names that it was given."""
    return re.sub(r"'json:\{.*\}'", "the file", str(error), flags=re.DOTALL)


async def _check(opened: _Opened, wrap: Wrap) -> None:
    """Raise Unacceptable when the tool finds a disk's tables damaged. Space that is lost does no harm."""
    arguments = ["check", "-q", "--output", "json", opened.name]
    invocation = Invocation(wrap, [*LIMITS, "--fsize=0"], opened.descriptors)
    try:
        await qemu_img.run(arguments, CONVERT_S_MAX, invocation)
    except ImgFailed as error:
        if error.code != CHECK_LEAKS:
            raise Unacceptable(f"its tables are damaged (qemu-img check): {_words(error)}") from error


async def _size(opened: _Opened, wrap: Wrap) -> int:
    arguments = ["info", "--output", "json", opened.name]
    output = await _run(arguments, Invocation(wrap, [*LIMITS, "--fsize=0"], opened.descriptors))
    try:
        return int(json.loads(output)["virtual-size"])
    except (ValueError, KeyError, TypeError):
        raise Unacceptable("the size of its disk can't be read") from None


async def _run(
    arguments: list[str], invocation: Invocation, stop_reason: Callable[[], str | None] | None = None
) -> bytes:
    try:
        return await qemu_img.run(arguments, CONVERT_S_MAX, invocation, stop_reason)
    except ImgFailed as error:
        full = stop_reason is not None and await asyncio.to_thread(stop_reason) is not None
        said = str(error) if full else f"it can't be read as a disk: {_words(error)}"
        raise Unacceptable(said, WaitCode.NO_SPACE if full else WaitCode.FILE_REFUSED) from error
