"""Files of other makers, brought in by the product's own code: a disk by an agent's image imports, with their limits
and their confinement; a package by the client that reads it and by those imports.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import re
import subprocess
import tarfile
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from novacron.agent.images.imports import DISK, ImageImports
from novacron.agent.settings import AgentSettings
from novacron.client import ovf
from novacron.client.archive_format import ArchivedVm, read
from novacron.client.errors import ArchiveError
from novacron.client.ovf_package import DiskPart, check_piece
from novacron.disk.blocks import data_ranges
from novacron.disk.images import DISK_ALIGNMENT, MANIFEST, Manifest
from novacron.model import limits
from novacron.model.image import ImageFormat, ImportPhase, ImportSpec, Source
from novacron.wire import messages as wire
from novacron.wire.images import ImportWanted

UID_BASE = 1_879_048_192
"""First of the user numbers of VMs, as of an agent that is started without naming others."""
BLANK_BYTES = 1 << 20
"""Size of a disk that is made for a descriptor that does not say it."""
BLANK_BYTES_MAX = 1 << 30
"""The largest disk that is made for a descriptor that came without it, and brought in."""

FILE_SIZE = re.compile(rb"""(<(?:[\w-]+:)?File\b[^>]*?)\s(?:[\w-]+:)?size\s*=\s*["'][0-9]*["']""")
"""What a descriptor says of the size of a file, before that."""


class Taken(NamedTuple):
    """A disk that came in: SHA-256 of its raw content, and its size."""

    content: str
    size_bytes: int


class Refused(NamedTuple):
    """Why a file did not come in, as the user reads it."""

    why: str


class ImportedDisk(NamedTuple):
    outcome: Taken | Refused
    raw: Path | None
    """The raw disk, until the next one comes in."""


class Agent:
    """Image imports of an agent without a server: each import is granted the disk that it asks for."""

    def __init__(self, directory: Path, tasks: asyncio.TaskGroup) -> None:
        self._images, self._tasks = directory / "images", tasks
        self._images.mkdir(parents=True, exist_ok=True)
        uid_base = UID_BASE if os.geteuid() == 0 else None
        settings = AgentSettings(directory / "state", self._images, "samples", uid_base=uid_base)
        self._imports = ImageImports(settings, self._said, self._arrived)
        self._wanted: ImportWanted | None = None
        self._ended: asyncio.Future[str] | None = None

    async def _arrived(self) -> None:
        """An agent looks at its images then; here the file itself is looked at."""

    def _said(self, message: wire.Message) -> None:
        if not isinstance(message, wire.ImportStands) or self._wanted is None or message.id != self._wanted.id:
            return
        if message.phase is ImportPhase.CONVERTING and message.disk_bytes > self._wanted.disk_bytes:
            self._tell(ImportWanted(self._wanted.id, self._wanted.spec, disk_bytes=message.disk_bytes))
        elif message.phase in (ImportPhase.DONE, ImportPhase.FAILED) and self._ended and not self._ended.done():
            self._ended.set_result(message.error)

    def _tell(self, wanted: ImportWanted | None) -> None:
        self._wanted = wanted
        self._imports.tell(() if wanted is None else (wanted,), self._tasks)

    async def take(
        self, pieces: tuple[DiskPart, ...], format: ImageFormat | None = None, sha256: str | None = None
    ) -> ImportedDisk:
        """Bring the disk in some bytes in, as if they were uploaded. Raises OSError."""
        size_bytes = sum(piece.size_bytes for piece in pieces)
        if not 0 < size_bytes <= limits.IMAGE_FILE_BYTES_MAX:
            return ImportedDisk(Refused(f"size_bytes: {size_bytes} is not what an upload may have"), None)
        self._ended = asyncio.get_running_loop().create_future()
        name = f"sample-{uuid.uuid4().hex}"
        wanted = ImportWanted(name, ImportSpec(name, Source.UPLOAD, "", size_bytes, sha256, format))
        self._tell(wanted)
        offset = 0
        try:
            for data in (data for piece in pieces for data in piece.read()):
                if self._ended.done():
                    break
                offset = await self._imports.take(name, offset, data)
            error = await self._ended
        finally:
            self._tell(None)
        if error:
            return ImportedDisk(Refused(error), None)
        directory = self._images / name
        described = _manifest(directory).disk
        assert described is not None, "an import makes a disk"
        return ImportedDisk(Taken(described.sha256, described.size_bytes), directory / DISK)

    def forget(self, disk: ImportedDisk) -> None:
        """Remove a disk that came in."""
        if disk.raw is not None:
            for file in disk.raw.parent.iterdir():
                file.unlink()
            disk.raw.parent.rmdir()


@contextlib.asynccontextmanager
async def agent(directory: Path) -> AsyncIterator[Agent]:
    """Yield an agent that works in a directory, for as long as the block runs."""
    async with asyncio.TaskGroup() as tasks:
        yield Agent(directory, tasks)


def _manifest(directory: Path) -> Manifest:
    return msgspec.json.decode((directory / MANIFEST).read_bytes(), type=Manifest)


def whole(file: Path) -> tuple[DiskPart, ...]:
    return (DiskPart(file, 0, file.stat().st_size),)


class ReadPackage(NamedTuple):
    """A package as it was read. ``vm``: None when the files of its disks were not there and not made."""

    machine: ovf.OvfMachine
    vm: ArchivedVm | None
    built: bool = False
    """Its disks did not come with it: they are blank."""

    def vm_fields(self) -> tuple[dict[str, object], tuple[str, ...], tuple[str, ...]]:
        """Return the fields of the VM, its MAC addresses, and what it is said to lose."""
        if self.vm is None:
            return self.machine.fields, self.machine.macs, self.machine.dropped
        return dict(self.vm.fields), self.vm.macs, self.vm.dropped


def read_package(file: Path, directory: Path) -> ReadPackage:
    """Read an OVA, or a descriptor: with the disks beside it, or else with blank ones, made in ``directory``.

    Raises ArchiveError, OSError.
    """
    if file.suffix.lower() != ".ovf":
        vm = read(file)
        return ReadPackage(ovf.parse(_descriptor(file)), vm)
    machine = ovf.parse(file.read_bytes())
    try:
        return ReadPackage(machine, read(file))
    except ArchiveError as error:
        if "lacks" not in str(error) or file.with_suffix(".mf").exists():
            raise
    if sum(disk.size_bytes for disk in machine.disks) > BLANK_BYTES_MAX:
        return ReadPackage(machine, None)
    copy = directory / "package.ovf"
    copy.write_bytes(FILE_SIZE.sub(rb"\1", file.read_bytes()))
    for disk in machine.disks:
        if disk.href is not None:
            _make_blank(directory, disk.href, disk)
    return ReadPackage(machine, read(copy), built=True)


def _descriptor(file: Path) -> bytes:
    with tarfile.open(file, "r:") as archive:
        name = next(name for name in archive.getnames() if name.lower().endswith(".ovf"))
        opened = archive.extractfile(name)
        assert opened is not None, "the product has read it"
        return opened.read()


def _make_blank(directory: Path, href: str, disk: ovf.OvfDisk) -> None:
    """Make the file of a disk: a blank one of its capacity, as VMware exports it, compressed and in pieces if so."""
    made, target = directory / "blank", directory / href
    command = ["qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=streamOptimized"]
    subprocess.run([*command, str(made), str(disk.size_bytes or BLANK_BYTES)], check=True)
    data = gzip.compress(made.read_bytes()) if href.endswith(".gz") else made.read_bytes()
    made.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    if disk.chunk_bytes is None:
        target.write_bytes(data)
        return
    for number, at in enumerate(range(0, len(data), disk.chunk_bytes)):
        target.with_name(f"{target.name}.{number:09d}").write_bytes(data[at : at + disk.chunk_bytes])


async def take_disks(agent: Agent, package: ReadPackage) -> list[Taken | Refused]:
    """Bring the disks of a package in, as the client does, and return what came of each. One that was made blank and is
    not blank any more, or has another size, is refused here. Raises OSError."""
    assert package.vm is not None, "the caller looked"
    outcomes: list[Taken | Refused] = []
    for archived, disk in zip((package.vm.disk, *package.vm.further_disks), package.machine.disks, strict=True):
        if not archived.pieces:
            outcomes.append(Taken("", archived.size_bytes))
            continue
        try:
            for piece in archived.pieces if archived.sha256 is None else ():
                check_piece(piece)
        except ArchiveError as error:
            outcomes.append(Refused(str(error)))
            continue
        format = None if archived.format is None else ImageFormat(archived.format)
        came = await agent.take(archived.pieces, format, archived.sha256)
        outcomes.append(_blank(came, disk) if package.built else came.outcome)
        agent.forget(came)
    return outcomes


def _blank(came: ImportedDisk, disk: ovf.OvfDisk) -> Taken | Refused:
    """Return what came of a disk that was made blank, of its capacity."""
    if came.raw is None or isinstance(came.outcome, Refused):
        return came.outcome
    expected = disk.size_bytes or BLANK_BYTES
    expected += -expected % DISK_ALIGNMENT
    with came.raw.open("rb") as raw:
        empty = not list(data_ranges(raw.fileno(), came.outcome.size_bytes))
    if came.outcome.size_bytes != expected or not empty:
        return Refused(f"a blank disk of {expected} bytes became one of {came.outcome.size_bytes} (empty: {empty})")
    return came.outcome
