"""Files on a disk that may be hostile, read without the host's kernel: ``grub-fstest``, of GRUB, knows ext2 to ext4,
XFS, Btrfs, NTFS, FAT, ISO 9660 and others, partition tables, LVM and RAID, and only reads.

It runs as its caller chooses, within limits. Source: GRUB's manual, "Filesystem syntax and semantics".
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from novacron import child_environment
from novacron.disk.errors import Unacceptable
from novacron.disk.qemu_img import Wrap, unchanged
from novacron.model.backup_files import BackupEntry, BackupFileSystem, BackupListing, FileSystemName
from novacron.model.errors import InvalidInput

TOOL, DISK = "grub-fstest", "loop0"
TIME_S_MAX = 60.0
LIMITS = ("--as=1073741824", "--cpu=60", "--fsize=0", "--nofile=64", "--core=0")
OUTPUT_BYTES_MAX = 4 << 20
ERROR_BYTES_MAX = 300
ENTRIES_MAX = 10_000
SYSTEM = re.compile(r"^\s*(?:Device|Partition) (\S+): Filesystem type ([^\s,]+)(.*)\Z")
LABEL, UUID = re.compile(r" - Label `(.*?)'(?: - |,|\Z)"), re.compile(r"UUID ([0-9A-Za-z:.-]{4,64})")
SIZE = re.compile(r"Total size ([0-9]{1,15})KiB")
ENTRY = re.compile(r"^(DIR|[0-9]{1,20}) +([0-9]{14}) (.*)\Z", re.DOTALL)
TIMELESS = re.compile(r"^(?=.{12})(DIR|[0-9]{1,12}) *()(?<=^.{12})(.*)\Z", re.DOTALL)
"""An entry of a file system that keeps no times."""
OWN = frozenset(("procfs", "hostfs"))


class FileSystemReader(NamedTuple):
    """What reads a disk."""

    path: Path
    """Of the disk. No other user can put anything else there."""
    wrap: Wrap = unchanged
    """Makes the tool's command one of another user's, who may read it."""
    has_ended: Callable[[], bool] = lambda: False
    """Says whether the disk is gone."""


async def systems(reader: FileSystemReader) -> list[BackupFileSystem]:
    """Return the file systems that the disk has. Raises Unacceptable."""
    output, errors = await _run(reader, ["ls", "--", "-l"])
    if DISK not in output.decode(errors="replace"):
        raise Unacceptable(f"the disk can't be read: {errors or 'it is shorter than it should be'}")
    return read_systems(output.decode(errors="replace"))


async def listing(reader: FileSystemReader, system: str, path: str) -> BackupListing:
    """Return a directory. Raises InvalidInput, Unacceptable."""
    directory, name = parent(path)
    if name:
        entry = await _entry(reader, system, directory, name)
        if not entry.is_directory:
            return BackupListing(system, path, (entry,))
    entries = await _entries(reader, system, path)
    return BackupListing(system, path, tuple(entries[:ENTRIES_MAX]), truncated=len(entries) > ENTRIES_MAX)


async def read(reader: FileSystemReader, system: str, path: str, offset: int, bytes_max: int) -> tuple[bytes, bool]:
    """Return a piece of a file, and whether there is nothing behind it. Raises InvalidInput, Unacceptable."""
    directory, name = parent(path)
    entry = await _entry(reader, system, directory, name) if name else None
    if entry is None or entry.is_directory:
        raise InvalidInput(f"{path} is a directory", field="path", hint="choose a file in it")
    length = min(bytes_max, entry.size_bytes - offset)
    if length <= 0:
        return b"", True
    command = ["-s", str(offset), "-n", str(length), "cat", _at(system, path)]
    output, errors = await _run(reader, command, bytes_max=length)
    if len(output) != length:
        raise Unacceptable(f"{path} can't be read: {errors or 'the file system ends in the middle of it'}")
    return output, offset + length == entry.size_bytes


async def _entry(reader: FileSystemReader, system: str, directory: str, name: str) -> BackupEntry:
    entries = await _entries(reader, system, directory)
    for entry in entries:
        if entry.name == name:
            return entry
    path = f"{directory.rstrip('/')}/{name}"
    raise InvalidInput(f"{path} is not in file system {system}", field="path", hint=f"see what is in {directory}")


async def _entries(reader: FileSystemReader, system: str, path: str) -> list[BackupEntry]:
    output, errors = await _run(reader, ["ls", "--", "-l", _at(system, path.rstrip("/") + "/")])
    if errors and not output.strip():
        raise Unacceptable(f"{system}:{path} can't be read: {errors}")
    return read_entries(output.decode(errors="replace"))


def _at(system: str, path: str) -> str:
    """Return how GRUB calls a place on the disk."""
    device = system if "/" in system else DISK if system == "disk" else f"{DISK},{system}"
    return f"({device}){path}"


async def _run(reader: FileSystemReader, command: list[str], bytes_max: int = OUTPUT_BYTES_MAX) -> tuple[bytes, str]:
    """Return what the tool printed, cut off, and its first error; its exit status says nothing. Raises Unacceptable."""
    options, rest = (command[:4], command[4:]) if command[0].startswith("-") else ([], command)
    arguments = ["prlimit", *LIMITS, "--", TOOL, *options, str(reader.path), *rest]
    try:
        process = await asyncio.create_subprocess_exec(
            *reader.wrap(arguments), stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=child_environment.clean(),
        )  # fmt: skip
    except OSError as error:
        raise Unacceptable(f"can't run {TOOL}: {error}; install grub-common") from error
    assert process.stdout is not None and process.stderr is not None
    try:
        async with asyncio.timeout(TIME_S_MAX):
            output, errors = await asyncio.gather(
                _read(process.stdout, bytes_max), _read(process.stderr, ERROR_BYTES_MAX)
            )
    except TimeoutError:
        raise Unacceptable(f"{TOOL} took longer than {TIME_S_MAX:.0f} s: the file system may be damaged") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        status = await process.wait()
    words = printable(errors.decode(errors="replace").partition("\n")[0]).removeprefix(f"{TOOL}: error: ")
    if status == 127:
        raise Unacceptable(f"{TOOL} is not on this node: apt-get install grub-common")
    return output, words


async def _read(stream: asyncio.StreamReader, bytes_max: int) -> bytes:
    """Return what comes, up to a limit."""
    parts, size = [], 0
    while size < bytes_max and (part := await stream.read(min(65536, bytes_max - size))):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def parent(path: str) -> tuple[str, str]:
    """Return the directory of a path, and the name in it; the root's name is empty."""
    clean = "/" + "/".join(part for part in path.split("/") if part)
    directory, _, name = clean.rpartition("/")
    return directory or "/", name


def read_systems(text: str) -> list[BackupFileSystem]:
    """Return the file systems that a listing of devices names."""
    systems = []
    for line in text.splitlines():
        if (match := SYSTEM.match(line)) is None or match[2] in OWN:
            continue
        name = "disk" if match[1] == DISK else match[1].removeprefix(f"{DISK},")
        if not _is_name(name):
            continue
        label, uuid, size = LABEL.search(match[3]), UUID.search(match[3]), SIZE.search(match[3])
        systems.append(
            BackupFileSystem(
                name, match[2], printable(label[1]) if label else "", uuid[1] if uuid else "",
                int(size[1]) << 10 if size else 0,
            )
        )  # fmt: skip
    return sorted(systems, key=lambda system: system.name)


def read_entries(text: str) -> list[BackupEntry]:
    """Return the entries that a listing of a directory names."""
    entries, last = dict[str, BackupEntry](), ""
    for line in text.split("\n"):
        if (match := ENTRY.match(line) or TIMELESS.match(line)) is None:
            if line:  # the rest of a name with a line feed
                entries.pop(last, None)
            continue
        is_directory = match[1] == "DIR"
        name = match[3].removesuffix("/") if is_directory else match[3]
        if name in (".", "..", "") or "/" in name or printable(name) != name:
            continue  # no file is called so, or it can't be asked for
        last, size_bytes = name, 0 if is_directory else int(match[1])
        entries.setdefault(name, BackupEntry(name, is_directory, size_bytes, _time(match[2])))
    return sorted(entries.values(), key=lambda entry: entry.name)


def printable(text: str) -> str:
    return "".join(character for character in text if ord(character) >= 32 and ord(character) != 127)


def _time(text: str | None) -> datetime | None:
    try:
        return None if text is None else datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return None


def _is_name(text: str) -> bool:
    try:
        msgspec.convert(text, FileSystemName)
    except msgspec.ValidationError:
        return False
    return True
