"""What no snapshot uses goes out of a repository, and nothing else, whenever it is interrupted; restic checks it."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from novacron.backup import disks
from novacron.backup.errors import Damaged, NotStored, RepositoryError
from novacron.backup.key_file import ScryptCost
from novacron.backup.prune import prune
from novacron.backup.repository import Repository, new_password
from novacron.backup.storage import DirectoryStorage, Kind

PASSWORD = new_password()


class EndingStorage(DirectoryStorage):
    """A directory that takes only so many changes."""

    changes_left = 10**9

    def _change(self) -> None:
        if self.changes_left <= 0:
            raise RepositoryError("the process was ended")
        self.changes_left -= 1

    def write(self, kind: Kind, name: str, content: bytes) -> None:
        self._change()
        super().write(kind, name, content)

    def remove(self, kind: Kind, name: str) -> None:
        self._change()
        super().remove(kind, name)


def _store(repository: Repository, contents: list[bytes]) -> str:
    files = {f"f{n}": disks.write_stream(repository, io.BytesIO(content).read, len(content))
             for n, content in enumerate(contents)}  # fmt: skip
    return repository.save_snapshot("d", files, ["kept"])


def _check(root: Path, kept: dict[str, list[bytes]], scratch: Path) -> None:
    """Let restic check a repository, and see that its snapshots are whole."""
    done = subprocess.run(
        ["restic", "--no-cache", "-q", "-r", str(root), "check", "--read-data"], capture_output=True, check=False,
        env={**os.environ, "RESTIC_PASSWORD": PASSWORD.decode()},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    repository = Repository.open(DirectoryStorage(root), PASSWORD)
    found = dict(repository.snapshots())
    assert set(found) == set(kept)
    for id, contents in kept.items():
        files = repository.content(found[id]).files
        for n, content in enumerate(contents):
            with scratch.open("wb") as out:
                disks.restore_disk(repository, files[f"f{n}"], out.fileno())
            assert scratch.read_bytes() == content


def _filled(root: Path) -> tuple[Repository, dict[str, list[bytes]]]:
    """Make a repository of many small packs, with something that no snapshot uses any more in some of them."""
    rng = random.Random(1)
    parts = [rng.randbytes(100_000) for _ in range(12)]
    repository = Repository.create(DirectoryStorage(root), PASSWORD, ScryptCost(1 << 10, 8, 1))
    made = {_store(repository, parts[n : n + 3]): parts[n : n + 3] for n in range(10)}
    for id in list(made)[::2]:
        repository.storage.remove(Kind.SNAPSHOT, id)
        del made[id]
    return repository, made


def _files(root: Path) -> int:
    return sum(path.is_file() for path in root.rglob("*"))


def test_unused_blobs_go_and_small_packs_become_one(tmp_path: Path) -> None:
    repository, kept = _filled(tmp_path / "r")
    before = _files(tmp_path / "r")
    assert prune(repository).removed > 10
    assert len(list(repository.storage.names(Kind.INDEX))) <= 2
    assert len(list(repository.storage.names(Kind.PACK))) == 2, "one of each type"
    assert _files(tmp_path / "r") < before / 2
    _check(tmp_path / "r", kept, tmp_path / "out")
    assert prune(repository) == (0, 0), "nothing is left to do"
    kept[_store(repository, [b"later" * 50_000])] = [b"later" * 50_000]
    _check(tmp_path / "r", kept, tmp_path / "out")


def test_one_that_is_ended_anywhere_loses_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    _, kept = _filled(tmp_path / "r")
    for changes in range(0, 40, 3):
        root = tmp_path / f"r{changes}"
        shutil.copytree(tmp_path / "r", root)
        storage = EndingStorage(root)
        storage.changes_left = changes
        ended = False
        try:
            prune(Repository.open(storage, PASSWORD))
        except RepositoryError:
            ended = True
        _check(root, kept, tmp_path / "out") if changes % 2 == 0 else None
        prune(Repository.open(DirectoryStorage(root), PASSWORD))
        _check(root, kept, tmp_path / "out")
        if not ended:
            return
    raise AssertionError("it never came to its end")


def test_nothing_is_removed_where_a_snapshot_cannot_be_read(tmp_path: Path) -> None:
    repository, _ = _filled(tmp_path / "r")
    snapshot = next((tmp_path / "r/snapshots").iterdir())
    content = snapshot.read_bytes()
    snapshot.chmod(0o600)
    snapshot.write_bytes(content[:-1] + b"x")
    before = _files(tmp_path / "r")
    with pytest.raises(Damaged):
        prune(repository)
    snapshot.write_bytes(content)
    pack = next(repository.storage.names(Kind.PACK))
    (tmp_path / "r/config").rename(tmp_path / "config")
    with pytest.raises(NotStored):
        prune(repository)
    (tmp_path / "config").rename(tmp_path / "r/config")
    assert _files(tmp_path / "r") == before and pack in repository.storage.names(Kind.PACK)
