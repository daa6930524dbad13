"""The files of an OVF package (DMTF DSP0243): members of an OVA, or files beside a descriptor.

Names in a package are hostile: members of an archive are compared and never opened, files beside a descriptor must lie
in its directory or below it, behind no link. However they are written, they are compared in their plain form.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from novacron.client.errors import ArchiveError
from novacron.client.ovf import OvfDisk
from novacron.client.ovf_manifest import PIECE, Checksum, PackageManifest, plain, spellings

CHUNKS_MAX = 4096
READ_BYTES = 1 << 20


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


def check_piece(piece: DiskPart) -> None:
    """Read a piece and raise ArchiveError when its checksum is not the one in the manifest."""
    if piece.checksum is None:
        return
    digest = hashlib.new(piece.checksum.algorithm)
    for data in piece.read():
        digest.update(data)
    if digest.hexdigest() != piece.checksum.hexadecimal:
        raise ArchiveError(f"a disk in {piece.file} is damaged: its checksum is not the one in the package's manifest")


def disk_pieces(
    disk: OvfDisk, files: Mapping[str, DiskPart], package: Path, manifest: PackageManifest | None
) -> tuple[DiskPart, ...]:
    """Return where a disk's bytes are, in order; none for a blank disk. ``files``: by their plain names.

    Raises ArchiveError when one is missing, shorter than the descriptor says, or not named by the manifest.
    """
    if disk.href is None:
        return ()
    first = "" if disk.chunk_bytes is None else ".000000000"
    href = next((name for name in spellings(disk.href) if name + first in files), plain(disk.href))
    if disk.chunk_bytes is None and href not in files:
        raise ArchiveError(f"{package} lacks the disk {href!r} of its VM")
    names = [href] if disk.chunk_bytes is None else _piece_names(href, disk.chunk_bytes, files, package)
    if manifest is not None:
        _check_named(href, names, files, package, manifest)
    pieces = tuple(files[name] for name in names)
    _check_size(disk, href, pieces, package)
    return pieces


def _piece_names(href: str, chunk_bytes: int, files: Mapping[str, DiskPart], package: Path) -> list[str]:
    """Return the names of a disk's pieces, in order. Raises ArchiveError when one is missing or was cut off."""
    numbers = sorted(int(name[-9:]) for name in files if name != href and _is_part(name, href))
    if not numbers:
        raise ArchiveError(f"{package} lacks the pieces of the disk {href!r}: {href}.000000000 and so on")
    if len(numbers) > CHUNKS_MAX:
        raise ArchiveError(f"the disk {href!r} in {package} has more than {CHUNKS_MAX} pieces")
    names = [f"{href}.{number:09d}" for number in range(len(numbers))]
    missing = next((name for name in names if name not in files), None)
    if missing is not None:
        raise ArchiveError(f"{package} lacks the piece {missing!r} of a disk")
    for number, name in enumerate(names[:-1]):
        if files[name].size_bytes != chunk_bytes:
            raise ArchiveError(f"piece {number} of {href!r} in {package} was cut off")
    return names


def _check_named(
    href: str, names: list[str], files: Mapping[str, DiskPart], package: Path, manifest: PackageManifest
) -> None:
    """Raise ArchiveError when a manifest lacks a file of a disk, or names a piece that is not there."""
    for name in names:
        if files[name].checksum is None:
            raise ArchiveError(
                f"the manifest of {package} does not name {name!r}, so that can't be checked: fetch the package again,"
                " or remove the manifest if you trust the package without it"
            )
    if manifest.pieces_of(href) > len(names):
        raise ArchiveError(f"{package} lacks a piece of a disk that its manifest names: {href}.{len(names):09d}")


def _check_size(disk: OvfDisk, href: str, pieces: tuple[DiskPart, ...], package: Path) -> None:
    """Raise ArchiveError when a disk's file is shorter than its descriptor says.

    A longer one is none that was cut off: oVirt writes how much storage it takes. Where a manifest has the checksum of
    the one file, that decides.
    """
    size_bytes = sum(piece.size_bytes for piece in pieces)
    checked = disk.chunk_bytes is None and all(piece.checksum is not None for piece in pieces)
    if disk.file_bytes is not None and size_bytes < disk.file_bytes and not checked:
        raise ArchiveError(
            f"the disk {href!r} in {package} is cut off: it has {size_bytes} bytes, and the descriptor says"
            f" {disk.file_bytes} (ovf:size); fetch it again"
        )


def files_beside(descriptor: Path, disks: tuple[OvfDisk, ...], manifest: PackageManifest | None) -> dict[str, DiskPart]:
    """Return the files of disks in a descriptor's directory or below it, by their plain names. Raises ArchiveError for
    names that lead elsewhere."""
    files: dict[str, DiskPart] = {}
    for href in (disk.href for disk in disks if disk.href is not None):
        if not _is_below(plain(href)):
            raise ArchiveError(f"the disk {href[:80]!r} was not found next to {descriptor}")
        for name in filter(_is_below, spellings(href)):
            files |= _files_named(descriptor.parent, name, manifest)
    return files


def _is_below(name: str) -> bool:
    return not re.search(r"[\\\0]", name) and all(part not in ("", ".", "..") for part in name.split("/"))


def _files_named(directory: Path, name: str, manifest: PackageManifest | None) -> dict[str, DiskPart]:
    """Return a file below a directory, or the pieces of one."""
    *folders, last = name.split("/")
    for folder in folders:
        there = next((path for path in sorted(directory.iterdir()) if plain(path.name) == folder), None)
        if there is None or there.is_symlink() or not there.is_dir():
            return {}
        directory = there
    files = {}
    for path in sorted(directory.iterdir()):
        own = plain(path.name)
        if _is_part(own, last) and path.is_file() and not path.is_symlink():
            known_as = "/".join((*folders, own))
            checksum = manifest.of(known_as) if manifest is not None else None
            files[known_as] = DiskPart(path, 0, path.stat().st_size, checksum)
    return files


def _is_part(name: str, disk: str) -> bool:
    """Say whether a file of this name is a disk, or a piece of it."""
    piece = PIECE.search(name)
    return name == disk or (piece is not None and name.removesuffix(piece[0]) == disk)
