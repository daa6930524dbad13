"""The directory of one repository on this node: opened, or begun, whole or not at all."""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
from pathlib import Path
from typing import TypeAlias

from novacron.agent.settings import AgentSettings
from novacron.backup.errors import NotStored
from novacron.backup.key_file import ScryptCost
from novacron.backup.repository import Repository
from novacron.backup.storage import DirectoryStorage, Kind
from novacron.disk.errors import Unacceptable
from novacron.model.encryption import DataKey
from novacron.model.waiting import WaitCode

COST = ScryptCost(1 << 12, 8, 1)
"""Of a guess at a password: these are 32 random bytes, which nobody guesses at any cost."""
REPOSITORY = re.compile(r"repo-[0-9a-f]{16}\Z")


class CountingStorage(DirectoryStorage):
    """Counts what is written."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.written_bytes = 0

    def write(self, kind: Kind, name: str, content: bytes) -> None:
        super().write(kind, name, content)
        self.written_bytes += len(content)


def root_of(settings: AgentSettings, repository: str) -> Path:
    """Return a repository's directory. Raises Unacceptable."""
    if not REPOSITORY.match(repository):
        raise Unacceptable(f"{repository!r} is no id of a repository", WaitCode.STEP_FAILED)
    if settings.backup_dir is None:
        raise Unacceptable(
            f"node {settings.name} makes no backups: start its agent with --backup-dir", WaitCode.FILE_LOST
        )
    return settings.backup_dir / repository


Opened: TypeAlias = tuple[Repository, CountingStorage]


def open_repository(root: Path, key: DataKey, *, begin: bool) -> Opened:
    """Open a repository; ``begin``: make it, where there is none. Raises Unacceptable, RepositoryError, OSError."""
    if not (root / Kind.CONFIG.value).exists():
        if not begin:
            raise Unacceptable(f"the repository is not in {root}: is {root.parent} mounted?", WaitCode.FILE_LOST)
        _begin(root, key)
    storage = CountingStorage(root)
    try:
        return Repository.open(storage, key.passphrase()), storage
    except NotStored as error:
        raise Unacceptable(f"the repository in {root} is not whole: {error}", WaitCode.FILE_LOST) from error


def _begin(root: Path, key: DataKey) -> None:
    """Make a repository, if no other node that shares the directory is faster."""
    scratch = root.with_name(f".{root.name}.{secrets.token_hex(4)}")
    try:
        scratch.mkdir(mode=0o700)
        Repository.create(DirectoryStorage(scratch), key.passphrase(), COST)
        with contextlib.suppress(FileExistsError, NotADirectoryError):
            _rename(scratch, root)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _rename(scratch: Path, root: Path) -> None:
    """Raises FileExistsError where there is something already."""
    try:
        scratch.rename(root)
    except OSError as error:
        if root.is_dir():
            raise FileExistsError(str(root)) from error
        raise
