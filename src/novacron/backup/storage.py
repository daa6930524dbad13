"""Where a repository's files are: a directory, or whatever object storage holds."""

from __future__ import annotations

import contextlib
import enum
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from novacron.backup.errors import Damaged, NotStored, RepositoryError

NAME = re.compile(r"[0-9a-f]{64}\Z")
FILE_BYTES_MAX = 256 << 20
"""Of a file that is read as a whole: whoever keeps the repository may give it any length. Packs have 16 MiB, restic's
at most 128."""
"""Of every file but the configuration: others are what somebody is about to write, or left."""


class Kind(enum.StrEnum):
    """What a file of a repository is."""

    CONFIG = "config"
    KEY = "keys"
    LOCK = "locks"
    SNAPSHOT = "snapshots"
    INDEX = "index"
    PACK = "data"


class Storage(Protocol):
    """Keeps whole files by kind and name. Its methods block; any thread may call them. They raise RepositoryError."""

    def read(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a file's content, or ``length`` bytes from ``offset`` on; negative: from its end. Raises NotStored,
        Damaged."""

    def write(self, kind: Kind, name: str, content: bytes) -> None:
        """Store a file, whole and durably, or not at all. A file that is there stays as it is."""

    def names(self, kind: Kind) -> Iterator[str]:
        """Yield the names of all files of a kind."""

    def remove(self, kind: Kind, name: str) -> None:
        """Remove a file, if it is there."""


class DirectoryStorage:
    """A repository in a directory, laid out as restic's local backend has it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        try:
            with self._path(kind, name).open("rb") as file:
                file.seek(offset, os.SEEK_SET if offset >= 0 else os.SEEK_END)
                if length is None and os.fstat(file.fileno()).st_size - file.tell() > FILE_BYTES_MAX:
                    raise Damaged(f"{kind}/{name} in {self.root} exceeds the size limit of such files")
                content = file.read(FILE_BYTES_MAX if length is None else length)
        except FileNotFoundError:
            raise NotStored(f"{kind}/{name} is not in {self.root}") from None
        except OSError as error:
            raise RepositoryError(f"{kind}/{name} can't be read from {self.root}: {error.strerror}") from error
        if length is not None and len(content) != length:
            raise Damaged(f"{kind}/{name} in {self.root} is shorter than expected")
        return content

    def write(self, kind: Kind, name: str, content: bytes) -> None:
        path = self._path(kind, name)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                with contextlib.suppress(FileExistsError):
                    os.link(temporary, path)
            finally:
                Path(temporary).unlink()
            _sync_directory(path.parent)
        except OSError as error:
            raise RepositoryError(f"{kind}/{name} can't be written to {self.root}: {error.strerror}") from error

    def names(self, kind: Kind) -> Iterator[str]:
        directory = self.root / kind.value
        parts = sorted(directory.iterdir()) if kind is Kind.PACK and directory.is_dir() else [directory]
        for part in parts:
            if part.is_dir():
                yield from sorted(path.name for path in part.iterdir() if NAME.match(path.name))

    def remove(self, kind: Kind, name: str) -> None:
        try:
            self._path(kind, name).unlink(missing_ok=True)
        except OSError as error:
            raise RepositoryError(f"{kind}/{name} can't be removed from {self.root}: {error.strerror}") from error

    def _path(self, kind: Kind, name: str) -> Path:
        return self.root / path_of(kind, name)


def bytes_max(offset: int, length: int | None) -> int:
    """Return how much may come of a file that is read: whoever keeps the repository answers what it likes."""
    return FILE_BYTES_MAX if length is None else max(length, -offset)


def path_of(kind: Kind, name: str) -> str:
    """Return where restic has a file, below the repository's place, in directories as in buckets."""
    if kind is Kind.CONFIG:
        return kind.value
    return f"{kind}/{name[:2]}/{name}" if kind is Kind.PACK else f"{kind}/{name}"


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
