"""Pages that a node keeps for sessions to come: files, in folders by project, with a limit in bytes.

    ROOT/PROJECT/KIND-NAME/index    magic, key check, count, digests, SHA-256 of all that
    ROOT/PROJECT/KIND-NAME/pages    the pages, in the order of their digests

Nothing read from them is believed before its digest was checked (see ``Decoder``).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from novacron import private_file
from novacron.dwcp.page_codec import DIGEST_BYTES, PageHash
from novacron.dwcp.page_ring import PAGE

MAGIC = b"NVPAGES3"
HEAD = struct.Struct("!8s16sQ")
SUM_BYTES = 32
NAME = re.compile(r"^[a-z0-9][a-z0-9:.-]{0,127}\Z")
ZERO_PAGE = bytes(PAGE)


class FileBase:
    """Pages in a file, in the order of their digests."""

    sealed = True

    def __init__(self, kind: str, name: str, path: Path, digests: Sequence[bytes]) -> None:
        self.kind, self.name, self.digests = kind, name, digests
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, index: int, count: int) -> bytes:
        return os.pread(self._file, count * PAGE, index * PAGE)

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.close(self._file)


class ScatteredBase:
    """Pages that lie about in something that can be read at any place. ``places`` are (offset, length); what is
    shorter than a page is filled up with zeros."""

    def __init__(
        self, kind: str, name: str, read: Callable[[int, int], bytes], places: Sequence[tuple[int, int]],
        digests: Sequence[bytes], *, sealed: bool,
    ) -> None:  # fmt: skip
        self.kind, self.name, self.digests, self.sealed = kind, name, digests, sealed
        self._read, self._places = read, places

    def read(self, index: int, count: int) -> bytes:
        places = self._places[index : index + count]
        first, last = places[0], places[-1]
        if last[0] - first[0] == (count - 1) * PAGE and all(length == PAGE for _, length in places[:-1]):
            return self._read(first[0], last[0] + last[1] - first[0]).ljust(count * PAGE, b"\0")
        return b"".join(self._read(*place).ljust(PAGE, b"\0") for place in places)


class StoredIndex(NamedTuple):
    """Digests in a file, in the order of the pages."""

    digests: list[bytes]
    sum: str
    """Tells it from every other."""


def index_of(hash: PageHash, digests: Sequence[bytes]) -> bytes:
    """Return an index as it is stored."""
    body = HEAD.pack(MAGIC, hash.digest(b"key check"), len(digests)) + b"".join(digests)
    return body + hashlib.sha256(body).digest()


def parse_index(raw: bytes, hash: PageHash) -> StoredIndex | None:
    """Return what an index holds, or None for one that is damaged, or made with another key."""
    body = raw[:-SUM_BYTES]
    if len(body) < HEAD.size or hashlib.sha256(body).digest() != raw[-SUM_BYTES:]:
        return None
    magic, check, count = HEAD.unpack_from(body)
    if magic != MAGIC or check != hash.digest(b"key check") or len(body) != HEAD.size + count * DIGEST_BYTES:
        return None
    digests = [body[at : at + DIGEST_BYTES] for at in range(HEAD.size, len(body), DIGEST_BYTES)]
    return StoredIndex(digests, raw[-SUM_BYTES:].hex())


def read_index(path: Path, hash: PageHash) -> StoredIndex | None:
    """Return what an index in a file holds; None if it is not there, too."""
    try:
        return parse_index(path.read_bytes(), hash)
    except OSError:
        return None


class PageStore:
    """A node's page stores, together at most ``bytes_max``; the least lately used go first."""

    def __init__(self, root: Path, bytes_max: int) -> None:
        self.root = root
        self._bytes_max = bytes_max

    def _directory(self, project: str, kind: str, name: str) -> Path:
        for part in (project, kind, name):
            if not NAME.match(part):
                raise ValueError(f"{part!r} can't name a page store")
        return self.root / project / f"{kind}-{name}"

    def save(self, project: str, kind: str, name: str, hash: PageHash, pages: Iterable[bytes]) -> int:
        """Keep ``pages``, each distinct one that is not zero once, in place of what is there; return their number.

        What there is no room for is not kept. Raises OSError when the disk is full; then what was there is gone.
        """
        target = self._directory(project, kind, name)
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.drop(project, kind, name)
        digests: dict[bytes, None] = {}
        limit = self._bytes_max // PAGE
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=target.parent) as scratch:
            work = Path(scratch) / "store"
            work.mkdir()
            with (work / "pages").open("wb") as file:
                for page in pages:
                    digest = hash.digest(page)
                    if digest in digests or page == ZERO_PAGE:
                        continue
                    if len(digests) >= limit:
                        break
                    digests[digest] = None
                    file.write(page)
            (work / "index").write_bytes(index_of(hash, list(digests)))
            self._make_room(len(digests) * (PAGE + DIGEST_BYTES))
            work.rename(target)
        return len(digests)

    def load(
        self, project: str, kind: str, name: str, hash: PageHash, others: Sequence[PageHash] = ()
    ) -> FileBase | None:
        """Return a store as a base, or None; a damaged one is removed. One that was kept with another key, one of
        ``others``, gets a new index."""
        directory = self._directory(project, kind, name)
        if not directory.exists():
            return None
        index = read_index(directory / "index", hash) or _indexed_anew(directory, hash, others)
        if index is None:
            self.drop(project, kind, name)
            return None
        with contextlib.suppress(OSError):
            os.utime(directory)
        try:
            return FileBase(kind, _name(kind, index), directory / "pages", index.digests)
        except OSError:
            return None

    def raw_index(self, project: str, kind: str, name: str) -> bytes | None:
        """Return the index of a store as it is in its file, or None if there is none."""
        try:
            return (self._directory(project, kind, name) / "index").read_bytes()
        except OSError:
            return None

    def save_index(self, project: str, kind: str, name: str, hash: PageHash, raw: bytes) -> None:
        """Keep another node's index, without pages. Raises ValueError for what is none; OSError."""
        if parse_index(raw, hash) is None:
            raise ValueError("no index of this project's pages came")
        directory = self._directory(project, kind, name)
        self.drop(project, kind, name)
        self._make_room(len(raw))
        directory.mkdir(parents=True, mode=0o700)
        (directory / "index").write_bytes(raw)

    def load_index(self, project: str, kind: str, name: str, of_kind: str, hash: PageHash) -> dict[str, list[bytes]]:
        """Return digests by the name that a base of kind ``of_kind`` with this index has where its pages are."""
        index = read_index(self._directory(project, kind, name) / "index", hash)
        return {} if index is None else {_name(of_kind, index): index.digests}

    def names(self, project: str, kind: str) -> list[str]:
        """Return the names of the stores of one kind, the newest first."""
        if not NAME.match(project):
            raise ValueError(f"{project!r} can't name a page store")
        stores = sorted((self.root / project).glob(f"{kind}-*"), key=_age, reverse=True)
        return [path.name.removeprefix(f"{kind}-") for path in stores]

    def drop(self, project: str, kind: str, name: str) -> None:
        shutil.rmtree(self._directory(project, kind, name), ignore_errors=True)

    def used_bytes(self) -> int:
        return sum(size for _, size, _ in self._stores())

    def _stores(self) -> Iterator[tuple[float, int, Path]]:
        for directory in self.root.glob("*/[!.]*-*"):
            with contextlib.suppress(OSError):
                size = sum(file.stat().st_size for file in directory.iterdir())
                yield directory.stat().st_mtime, size, directory

    def _make_room(self, size: int) -> None:
        stores = sorted(self._stores())
        used = sum(each for _, each, _ in stores)
        for _, each, directory in stores:
            if used + size <= self._bytes_max:
                return
            shutil.rmtree(directory, ignore_errors=True)
            used -= each

    def clean(self) -> None:
        """Remove what an earlier process left half made."""
        for scratch in self.root.glob("*/.saving-*"):
            shutil.rmtree(scratch, ignore_errors=True)


def _indexed_anew(directory: Path, hash: PageHash, others: Sequence[PageHash]) -> StoredIndex | None:
    """Return an index of a store's pages that is made with this key, if the one that it has is good with another."""
    if not any(read_index(directory / "index", other) for other in others):
        return None
    try:
        with (directory / "pages").open("rb") as file:
            raw = index_of(hash, [hash.digest(page) for page in iter(lambda: file.read(PAGE), b"")])
        private_file.write(directory / "index", raw)
    except OSError:
        return None
    return parse_index(raw, hash)


def _name(kind: str, index: StoredIndex) -> str:
    return f"{kind}:{index.sum}"


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
