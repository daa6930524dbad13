"""Backups of the platform's own database: PostgreSQL's base backups, in a repository of restic's format.

Each is whole, with the changes that came while it was made (WAL), and its manifest. Blocks that did not change since an
earlier one are in the repository once. See PostgreSQL's manual, "Continuous Archiving and Point-in-Time Recovery".
"""

from __future__ import annotations

import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from novacron import private_file
from novacron.backup import disks
from novacron.backup.errors import NotStored, RepositoryError
from novacron.backup.locks import RepositoryLock
from novacron.backup.places import Place, storage_at
from novacron.backup.repository import Repository, new_password
from novacron.backup.snapshot import BackupSnapshot, File
from novacron.child_environment import POSTGRES, clean
from novacron.local.database_connection import DatabaseConnection
from novacron.local.postgres import PostgresFailed, programs

DIRECTORY, TAG = "database", "novacron-database"
"""Of its snapshots: the directory in them, and the tag by which they are found."""
SCHEDULED = "novacron-scheduled"
"""A further tag, of those that the server makes by itself and removes again."""
PASSWORD_FILE = "backup.password"  # noqa: S105 its name
ID_SHOWN = 8


class BackupFailed(Exception):
    """Nothing was backed up or restored: says why, and what to do."""


class BackupPlace(NamedTuple):
    """Where backups are, and the file with what opens them."""

    repository: Place
    password_file: Path


class DatabaseBackup(NamedTuple):
    """One backup of the database."""

    id: str
    at: datetime
    host: str
    files: int
    size_bytes: int
    scheduled: bool
    """The server made it by itself, and removes it again."""


def backup(place: BackupPlace, url: str, *, create: bool = False, scheduled: bool = False) -> DatabaseBackup:
    """Back the database up while it is in use. ``create``: make the repository, and its password, if there is none;
    ``scheduled``: it may be removed once it is old.

    Raises BackupFailed.
    """
    with explained(), _locked(_open(place, create=create)) as repository:
        server = DatabaseConnection.of(url)
        command = [
            str(programs() / "pg_basebackup"), "--pgdata=-", "--format=tar", "--wal-method=fetch", "--checkpoint=fast",
            "--no-password", f"--dbname={server.url}",
        ]  # fmt: skip
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=said, stdin=subprocess.DEVNULL,
                env=clean({**server.secrets, "PGAPPNAME": "novacron-backup"}, prefix=POSTGRES),
            )  # fmt: skip
            try:
                assert process.stdout is not None
                id = _store(repository, process, [TAG, SCHEDULED] if scheduled else [TAG])
            finally:
                process.kill()
                process.wait()
                assert process.stdout is not None
                process.stdout.close()
            if id is None:
                said.seek(0)
                words = said.read().decode(errors="replace").strip()[-1500:]
                raise BackupFailed(f"PostgreSQL made no backup: {words or 'its answer ended early'}")
        return next(made for made in stored_backups(repository) if made.id == id)


def _store(repository: Repository, process: subprocess.Popen[bytes], tags: list[str]) -> str | None:
    """Store what ``pg_basebackup`` sends; return the snapshot's id, or None if it fails: then there is no snapshot."""
    files, folders = dict[str, File](), list[str]()
    try:
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            for member in archive:
                path = member.name.removeprefix("./")
                if member.isdir() and path:
                    folders.append(path)
                elif member.isfile():
                    content = archive.extractfile(member)
                    assert content is not None
                    files[path] = disks.write_stream(repository, content.read, member.size)
                elif not member.isdir():
                    raise BackupFailed(
                        f"{path} is not a file: a database with tablespaces in other places can't be backed up this way"
                    )
    except tarfile.TarError:
        return None
    if process.wait() != 0 or "backup_manifest" not in files:
        return None
    return repository.save_snapshot(DIRECTORY, files, tags, folders)


def verify(place: BackupPlace, id: str | None = None) -> DatabaseBackup:
    """Read a backup back, all of it, and let PostgreSQL check it; the latest if ``id`` is None. Raises BackupFailed."""
    with explained():
        repository = _open(place)
        made = find_stored(repository, id)
    with explained(), tempfile.TemporaryDirectory(prefix="novacron-verify-") as scratch:
        fetch(repository, made, Path(scratch) / "data")
        return made


def fetch(repository: Repository, made: DatabaseBackup, directory: Path) -> None:
    """Write a backup's files into a new directory, and let PostgreSQL check them against their manifest."""
    content = repository.content(dict(repository.snapshots())[made.id])
    directory.mkdir(mode=0o700)
    for path in sorted(content.folders):
        (directory / path).mkdir(mode=0o700, parents=True, exist_ok=True)
    for path, file in content.files.items():
        (directory / path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory / path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            disks.restore_disk(repository, file, descriptor)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    done = subprocess.run(
        [str(programs() / "pg_verifybackup"), "--quiet", str(directory)], capture_output=True, check=False,
        env=clean(),
    )  # fmt: skip
    if done.returncode != 0:
        raise BackupFailed(f"backup {made.id[:ID_SHOWN]} is damaged: {done.stderr.decode(errors='replace')[-1500:]}")


def stored_backups(repository: Repository) -> list[DatabaseBackup]:
    backups = [
        _described(repository, id, made) for id, made in repository.snapshots() if TAG in (made.tags or ())
    ]  # fmt: skip
    return sorted(backups, key=lambda made: made.at)


def _described(repository: Repository, id: str, made: BackupSnapshot) -> DatabaseBackup:
    files = repository.content(made).files
    return DatabaseBackup(
        id, datetime.fromisoformat(made.time), made.hostname, len(files), sum(file.size for file in files.values()),
        SCHEDULED in (made.tags or ()),
    )  # fmt: skip


def find_stored(repository: Repository, id: str | None) -> DatabaseBackup:
    every = stored_backups(repository)
    matching = every[-1:] if id is None else [made for made in every if made.id.startswith(id)]
    if len(matching) != 1:
        what = (
            "the repository contains no database backup"
            if id is None
            else f"{len(matching)} backups have ids that begin with {id!r}"
        )
        raise BackupFailed(f"{what}: see novacron database list")
    return matching[0]


def open_repository(place: BackupPlace, *, create: bool = False) -> Repository:
    """Open the repository; ``create``: make it, and its password, if there is none. Raises BackupFailed,
    RepositoryError."""
    return _open(place, create=create)


def _open(place: BackupPlace, *, create: bool = False) -> Repository:
    """Open the repository. Raises BackupFailed, RepositoryError."""
    storage = storage_at(place.repository)
    try:
        password = place.password_file.read_bytes()
    except FileNotFoundError:
        if not create:
            raise BackupFailed(
                f"there is no {place.password_file}, the repository's password file: give it with --password-file, "
                "or create a repository with --create"
            ) from None
        password = None
    if password is not None:
        try:
            return Repository.open(storage, password.strip())
        except NotStored:
            if not create:
                raise BackupFailed(
                    f"{place.repository} is not a repository: choose another one, or create one with --create"
                ) from None
    if isinstance(place.repository, Path):
        place.repository.mkdir(mode=0o700, parents=True, exist_ok=True)
    if password is None:
        password = new_password()
        private_file.write(place.password_file, password + b"\n")
    return Repository.create(storage, password.strip())


@contextmanager
def _locked(repository: Repository) -> Iterator[Repository]:
    """Keep out whoever deletes; what was deleted before is not relied on. Raises RepositoryError."""
    with RepositoryLock(repository, exclusive=False):
        repository.read_index()
        yield repository


@contextmanager
def explained() -> Iterator[None]:
    """Turn what goes wrong below into BackupFailed."""
    try:
        yield
    except (RepositoryError, PostgresFailed) as error:
        raise BackupFailed(str(error)) from error
    except OSError as error:
        raise BackupFailed(f"{error.filename or 'a file'}: {error.strerror or error}") from error
