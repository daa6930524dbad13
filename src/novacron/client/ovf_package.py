"""The files of an OVF package (DMTF DSP0243): members of an OVA, or files beside a descriptor; and their checksums.

Names in a package are hostile: members of an archive are compared and never opened, files beside a descriptor must lie
in its directory or below it, behind no link. They are compared as they are written, and as URLs: ``my%20disk``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from novacron.client.errors import ArchiveError
from novacron.client.ovf import OvfDisk

CHUNKS_MAX = 4096
READ_BYTES = 1 << 20
ALGORITHMS = {"SHA1": "sha1", "SHA256": "sha256", "SHA512": "sha512"}
"""DSP0243 1.0 wrote SHA-1, 1.1 SHA-256; 2.1 allows SHA-512."""
LINE = re.compile(r"\s*(SHA-?\d+)\s*\((.{1,1024})\)\s*=\s*([0-9a-fA-F]+)\s*")


class Checksum(NamedTuple):
    algorithm: str
    """As hashlib calls it."""
    hexadecimal: str


class DiskPart(NamedTuple):
    """Bytes of a file that are all, or the next part, of a disk."""

    file: Path
    offset: int
    size_bytes: int
    checksum: Checksum | None = None

    def read(self) -> Iterator[bytes]:
        """Yield its bytes. Raises OSError."""
        remaining = self.size_bytes
        with self.file.open("rb") as file:
            file.seek(self.offset)
            while remaining and (data := file.read(min(READ_BYTES, remaining))):
                remaining -= len(data)
                yield data


def checksums(manifest: bytes) -> dict[str, Checksum]:
    """Return what a manifest says of each file. Raises ArchiveError for lines and algorithms that are not known: what
    can't be checked must not pass as checked."""
    stated = {}
    for line in manifest.decode("utf-8", "replace").splitlines():
        if not line.strip():
            continue
        match = LINE.fullmatch(line)
        if match is None or (algorithm := match[1].replace("-", "").upper()) not in ALGORITHMS:
            raise ArchiveError(f"the package's manifest has a line that can't be checked: {line[:80]!r}")
        stated[match[2]] = Checksum(ALGORITHMS[algorithm], match[3].lower())
    return stated


def check_descriptor(name: str, text: bytes, stated: Mapping[str, Checksum]) -> None:
    """Raise ArchiveError when a descriptor is not the one that the manifest means."""
    checksum = stated.get(name)
    if checksum is not None and hashlib.new(checksum.algorithm, text).hexdigest() != checksum.hexadecimal:
        raise ArchiveError(f"{name} is damaged: its checksum is not the one in the package's manifest")


def check_piece(piece: DiskPart) -> None:
    """Read a piece and raise ArchiveError when its checksum is not the one in the manifest."""
    if piece.checksum is None:
        return
    digest = hashlib.new(piece.checksum.algorithm)
    for data in piece.read():
        digest.update(data)
    if digest.hexdigest() != piece.checksum.hexadecimal:
        raise ArchiveError(f"a disk in {piece.file} is damaged: its checksum is not the one in the package's manifest")


def disk_pieces(disk: OvfDisk, files: Mapping[str, DiskPart], package: Path) -> tuple[DiskPart, ...]:
    """Return where a disk's bytes are, in order; none for a blank disk. Raises ArchiveError when one is missing."""
    if disk.href is None:
        return ()
    first = "" if disk.chunk_bytes is None else ".000000000"
    href = next((name for name in _spellings(disk.href) if name + first in files), disk.href)
    if disk.chunk_bytes is None:
        if href not in files:
            raise ArchiveError(f"{package} lacks the disk {href!r} of its VM")
        return (files[href],)
    pieces: list[DiskPart] = []
    while (piece := files.get(f"{href}.{len(pieces):09d}")) is not None:
        if pieces and pieces[-1].size_bytes != disk.chunk_bytes:
            raise ArchiveError(f"piece {len(pieces) - 1} of {href!r} in {package} was cut off")
        if len(pieces) == CHUNKS_MAX:
            raise ArchiveError(f"the disk {href!r} in {package} has more than {CHUNKS_MAX} pieces")
        pieces.append(piece)
    if not pieces:
        raise ArchiveError(f"{package} lacks the pieces of the disk {href!r}: {href}.000000000 and so on")
    return tuple(pieces)


def _spellings(href: str) -> tuple[str, ...]:
    """Return the names that a file may have: a descriptor names it by a URL, or should."""
    return (href, unquote(href))


def files_beside(descriptor: Path, disks: tuple[OvfDisk, ...], stated: Mapping[str, Checksum]) -> dict[str, DiskPart]:
    """Return the files of disks in a descriptor's directory or below it. Raises ArchiveError for names that lead
    elsewhere."""
    files: dict[str, DiskPart] = {}
    for href in (disk.href for disk in disks if disk.href is not None):
        if not _is_below(href):
            raise ArchiveError(f"the disk {href[:80]!r} is not beside {descriptor}: put it there, and name it so")
        for name in filter(_is_below, _spellings(href)):
            files |= _files_named(descriptor.parent, name, stated)
    return files


def _is_below(name: str) -> bool:
    return not re.search(r"[\\\0]", name) and all(part not in ("", ".", "..") for part in name.split("/"))


def _files_named(directory: Path, name: str, stated: Mapping[str, Checksum]) -> dict[str, DiskPart]:
    """Return a file below a directory, or the pieces of one."""
    *folders, last = name.split("/")
    for folder in folders:
        directory /= folder
        if directory.is_symlink() or not directory.is_dir():
            return {}
    files = {}
    for path in directory.iterdir():
        piece = path.name.removeprefix(f"{last}.")
        if (path.name == last or re.fullmatch("[0-9]{9}", piece)) and path.is_file() and not path.is_symlink():
            known_as = "/".join((*folders, path.name))
            files[known_as] = DiskPart(path, 0, path.stat().st_size, stated.get(known_as))
    return files
