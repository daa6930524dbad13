"""The WAL of databases in a repository: each segment a snapshot, also the one that is not full yet.

Snapshots are found by their tags: of the database's cluster (PostgreSQL's system identifier), of the file, and until
when it holds all that was committed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import struct
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from novacron.backup import disks, index
from novacron.backup.errors import Damaged, RepositoryError
from novacron.backup.locks import RepositoryLock
from novacron.backup.repository import CONFIG_NAME, Repository
from novacron.backup.snapshot import BackupSnapshot, File, decode_snapshot
from novacron.backup.storage import Kind
from novacron.local import database_wal
from novacron.local.database_wal import Branch, WalFile

DIRECTORY, TAG = "database-wal", "novacron-wal"
"""Of its snapshots: the directory in them, and the tag by which they are found."""
CLUSTER, FILE, UNTIL = "cluster-", "file-", "until-"
"""How further tags of them begin."""
BEFORE_ALL = datetime.fromtimestamp(0, UTC)
SMALL_BYTES_MAX = 64 << 20
"""Of a base backup's manifest."""
HISTORY_BYTES_MAX = 1 << 20
START = re.compile(r"START WAL LOCATION: [0-9A-F]+/[0-9A-F]+ \(file ([0-9A-F]{24})\)")


class BaseBackup(NamedTuple):
    """Of which cluster a base backup is, and from where to where its own WAL goes."""

    cluster: str
    first_segment: str
    timeline: int
    """At its end."""
    stop: int
    """LSN at which it is consistent."""
    segment_bytes: int
    major_version: str


class _WalRange(msgspec.Struct):
    timeline: int = msgspec.field(name="Timeline")
    end: str = msgspec.field(name="End-LSN")


class _Manifest(msgspec.Struct):
    ranges: list[_WalRange] = msgspec.field(name="WAL-Ranges")


class WalArchive:
    """The WAL files of one cluster in a repository. Whoever writes is the only one who does."""

    def __init__(self, repository: Repository, cluster: str) -> None:
        """Read what is there. Raises RepositoryError."""
        self.cluster = cluster
        self._repository = repository
        self._known_index = set[str]()
        self._configuration = repository.storage.read(Kind.CONFIG, CONFIG_NAME)
        self.files = dict[str, WalFile]()
        """By their names; of a segment that is there in full, no part."""
        self._replaced = list[str]()
        for id, made in repository.snapshots():
            file = wal_file(id, made)
            if file is not None and CLUSTER + cluster in (made.tags or ()):
                self._take(file)

    def _take(self, file: WalFile) -> None:
        """Take a file in; the snapshots that it replaces go with the next ``store``."""
        whole = self.files.get(file.name.removesuffix(database_wal.PARTIAL))
        former = self.files.get(file.name)
        if database_wal.is_partial(file.name) and whole is not None:
            self._replaced.append(file.snapshot)
            return
        if former is not None and former.until > file.until:
            file, former = former, file
        if former is not None:
            self._replaced.append(former.snapshot)
        self.files[file.name] = file
        partial = self.files.pop(file.name + database_wal.PARTIAL, None)
        if partial is not None:
            self._replaced.append(partial.snapshot)

    def store(self, paths: list[Path], until: datetime) -> None:
        """Store files, in order; ``until``: all that was committed before is in them. Raises RepositoryError, OSError.

        Only the last segment says so: whoever reads between, or ends this, finds no time that the next was to hold.
        """
        segments = [path for path in paths if not database_wal.HISTORY.match(path.name)]
        last, former = (segments or paths)[-1:], min(self.until, until)
        self._check_present()
        with RepositoryLock(self._repository, exclusive=False):
            self._refresh()
            stored = [self._store(path, until if path in last else former) for path in paths]
            self._check_present()
            for file in stored:
                self._take(file)
            while self._replaced:
                self._repository.storage.remove(Kind.SNAPSHOT, self._replaced[-1])
                self._replaced.pop()

    def _check_present(self) -> None:
        """Raise RepositoryError if the repository is not there any more: on a disk that was unmounted, what is written
        would land below."""
        if self._repository.storage.read(Kind.CONFIG, CONFIG_NAME) != self._configuration:
            raise RepositoryError("another repository has taken the place of this one")

    def is_same(self, path: Path) -> bool:
        """Say whether the repository has just this content under the file's name. Raises RepositoryError, OSError."""
        ids = list[bytes]()
        with path.open("rb") as file:
            while block := file.read(disks.BLOCK_BYTES):
                ids.append(hashlib.sha256(block).digest())
        return content(self._repository, self.files[path.name]).ids() == ids

    @property
    def until(self) -> datetime:
        """All that was committed before is in the files that are here."""
        return max((file.until for file in self.files.values()), default=BEFORE_ALL)

    def _store(self, path: Path, until: datetime) -> WalFile:
        with path.open("rb") as file:
            stored = disks.write_stream(self._repository, file.read, os.fstat(file.fileno()).st_size)
        tags = [TAG, CLUSTER + self.cluster, FILE + path.name, UNTIL + until.astimezone(UTC).isoformat()]
        return WalFile(path.name, self._repository.save_snapshot(DIRECTORY, {path.name: stored}, tags), until)

    def _refresh(self) -> None:
        """Learn what the repository has. Index files only come, unless somebody has pruned."""
        names = set(self._repository.storage.names(Kind.INDEX))
        if self._known_index and self._known_index <= names:
            for name in names - self._known_index:
                for pack, blobs in index.decode(self._repository.load_unpacked(Kind.INDEX, name), name):
                    self._repository.index.add_pack(pack, blobs)
        else:
            self._repository.read_index()
        self._known_index = names

    def remove_before(self, first_segment: str, segment_bytes: int) -> int:
        """Take the snapshots of segments out that come before one; return how many. Raises RepositoryError."""
        first = database_wal.number_of(first_segment, segment_bytes)
        names = database_wal.superseded(self.files, first, segment_bytes)
        for name in names:
            self._repository.storage.remove(Kind.SNAPSHOT, self.files.pop(name).snapshot)
        return len(names)


def wal_file(id: str, made: BackupSnapshot) -> WalFile | None:
    """Return which WAL file a snapshot holds; None: it holds something else."""
    tags = made.tags or []
    if TAG not in tags:
        return None
    name = next((tag.removeprefix(FILE) for tag in tags if tag.startswith(FILE)), "")
    until = next((tag.removeprefix(UNTIL) for tag in tags if tag.startswith(UNTIL)), "")
    with contextlib.suppress(ValueError):
        at = datetime.fromisoformat(until)
        if at.tzinfo is not None and database_wal.is_wal(name):
            return WalFile(name, id, at)
    return None


def content(repository: Repository, file: WalFile) -> File:
    """Return a WAL file's content as the repository has it. Raises NotStored, Damaged."""
    files = repository.content(snapshot_of(repository, file.snapshot)).files
    if list(files) != [file.name]:
        raise Damaged(f"the snapshot {file.snapshot[:8]} does not hold {file.name}, as its tag says")
    return files[file.name]


def base_backup(repository: Repository, made: BackupSnapshot) -> BaseBackup:
    """Read what a base backup says of itself. Raises NotStored, Damaged."""
    files = repository.content(made).files
    try:
        label = _small(repository, files["backup_label"]).decode(errors="replace")
        manifest = msgspec.json.decode(_small(repository, files["backup_manifest"]), type=_Manifest)
        control = _small(repository, files["global/pg_control"])
        version = _small(repository, files["PG_VERSION"]).decode(errors="replace").strip()
        (cluster,) = struct.unpack_from("<Q", control)
        started, last = START.search(label), manifest.ranges[-1]
        assert started is not None
        segments = [path for path in files if database_wal.SEGMENT.match(path.removeprefix("pg_wal/"))]
        return BaseBackup(
            str(cluster), started[1], last.timeline, database_wal.lsn(last.end), files[segments[0]].size, version
        )  # fmt: skip
    except (KeyError, IndexError, AssertionError, ValueError, struct.error, msgspec.MsgspecError):
        raise Damaged("the backup does not contain the files of a PostgreSQL base backup") from None


def _small(repository: Repository, file: File, limit: int = SMALL_BYTES_MAX) -> bytes:
    if file.size > limit:
        raise Damaged(f"a file of {file.size} bytes is too large")
    return disks.DiskReader(repository, file).read(0, file.size)


def newest_timeline(files: Mapping[str, WalFile], at_least: int) -> int:
    return max([at_least, *(database_wal.timeline_of(name) for name in files)])


def history(repository: Repository, files: Mapping[str, WalFile], timeline: int) -> list[Branch]:
    """Return a timeline and those that it came from. Raises NotStored, Damaged."""
    file = files.get(database_wal.history_name(timeline))
    text = "" if file is None else _small(repository, content(repository, file), HISTORY_BYTES_MAX).decode(
        errors="replace")  # fmt: skip
    try:
        return database_wal.branches(timeline, text)
    except ValueError as error:
        raise Damaged(f"the history of timeline {timeline} is damaged: {error}") from None


def snapshot_of(repository: Repository, id: str) -> BackupSnapshot:
    return decode_snapshot(repository.load_unpacked(Kind.SNAPSHOT, id), id)


def base_of(repository: Repository, id: str) -> BaseBackup:
    """Read what a base backup says of itself. Raises NotStored, Damaged."""
    return base_backup(repository, snapshot_of(repository, id))


def cluster_of(repository: Repository, id: str) -> str | None:
    """Return of which cluster a base backup is; None: it does not say."""
    try:
        return base_of(repository, id).cluster
    except Damaged:
        return None


def remove_snapshot(repository: Repository, id: str) -> None:
    repository.storage.remove(Kind.SNAPSHOT, id)
