"""Repositories that restic itself checks and reads; damage is found and named."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import Mock

import msgspec
import pytest

from novacron.backup import disks, locks
from novacron.backup.disks import BLOCK_BYTES, DiskReader, Extent
from novacron.backup.errors import Damaged, Locked, NotStored, RepositoryError, WrongKey
from novacron.backup.key_file import ScryptCost
from novacron.backup.locks import RepositoryLock
from novacron.backup.pack import ID_BYTES, BlobType
from novacron.backup.repository import Repository, new_password
from novacron.backup.snapshot import File
from novacron.backup.storage import FILE_BYTES_MAX, DirectoryStorage, Kind, Storage
from tests.support.repositories import check_packs
from tests.waiting import until

PASSWORD = new_password()
SIZE = (6 << 20) + 12345


def _restic(root: Path, *arguments: str) -> bytes:
    """Run restic on a repository; return what it prints. Raises AssertionError."""
    done = subprocess.run(
        ["restic", "--no-cache", "-q", "-r", str(root), *arguments], capture_output=True, check=False,
        env={**os.environ, "RESTIC_PASSWORD": PASSWORD.decode()},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def _create(storage: Storage) -> Repository:
    return Repository.create(storage, PASSWORD, ScryptCost(1 << 10, 8, 1))


def _disk(path: Path, seed: int) -> Path:
    """Make a disk with data, zeros and holes."""
    rng = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(SIZE)
        for at in range(0, 4 << 20, 1 << 20):
            file.seek(at)
            file.write(rng.randbytes(200_000) + bytes(100_000) + b"text " * 20_000)
    return path


def _backup(
    repository: Repository, path: Path, changed: list[Extent] | None = None, before: File | None = None
) -> tuple[disks.Written, str]:
    with path.open("rb") as file:
        size = path.stat().st_size
        extents = list(disks.data_extents(file.fileno(), size)) if changed is None else changed
        written = disks.write_disk(repository, disks.reader_of(file.fileno()), size, extents, before)
    return written, repository.save_snapshot("web", {"disk-0.raw": written.file}, ["vm=web"])


def _restored(repository: Repository, file: File, path: Path) -> bytes:
    with path.open("wb") as out:
        disks.restore_disk(repository, file, out.fileno())
    return path.read_bytes()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_restic_reads_what_was_written_also_increments(tmp_path: Path) -> None:
    disk, storage = _disk(tmp_path / "disk", 1), DirectoryStorage(tmp_path / "r")
    repository = _create(storage)
    first, first_id = _backup(repository, disk)
    before = disk.read_bytes()
    written = (BLOCK_BYTES * 3 + 17, 10), (SIZE - 5, 5), (5 << 20, BLOCK_BYTES)
    with disk.open("r+b") as device:
        for offset, length in written:
            device.seek(offset)
            device.write(os.urandom(length))
    repository = Repository.open(storage, PASSWORD)
    stored = sum(path.stat().st_size for path in storage.root.rglob("*") if path.is_file())
    second, second_id = _backup(repository, disk, list(written), first.file)
    assert second.read_bytes == 2 * BLOCK_BYTES + SIZE % BLOCK_BYTES
    assert sum(path.stat().st_size for path in storage.root.rglob("*") if path.is_file()) - stored < 250_000

    _restic(storage.root, "check", "--read-data")
    assert _digest(_restic(storage.root, "dump", first_id, "/web/disk-0.raw")) == _digest(before)
    assert _digest(_restic(storage.root, "dump", second_id, "/web/disk-0.raw")) == _digest(disk.read_bytes())
    _restic(storage.root, "forget", "--prune", first_id)

    repository = Repository.open(storage, PASSWORD)
    assert [name for name, _ in repository.snapshots()] == [second_id]
    (made,) = (made for _, made in repository.snapshots())
    file = repository.content(made).files["disk-0.raw"]
    assert _restored(repository, file, tmp_path / "again") == disk.read_bytes()
    assert (tmp_path / "again").stat().st_blocks * 512 < SIZE - (1 << 20), "zeros are holes"
    reader = DiskReader(repository, file)
    assert reader.read(BLOCK_BYTES - 7, 2 * BLOCK_BYTES) == disk.read_bytes()[BLOCK_BYTES - 7 : 3 * BLOCK_BYTES - 7]
    assert reader.read(SIZE - 3, 100) == disk.read_bytes()[-3:]
    assert list(check_packs(repository)) == []


def test_what_restic_wrote_is_read_here(tmp_path: Path) -> None:
    root = tmp_path / "r"
    _create(DirectoryStorage(root))
    (tmp_path / "folder").mkdir()
    disk = _disk(tmp_path / "folder" / "disk", 2)
    _restic(root, "backup", str(tmp_path / "folder"))
    repository = Repository.open(DirectoryStorage(root), PASSWORD)
    assert len(list(repository.snapshots())) == 1 and list(check_packs(repository)) == []
    written, _ = _backup(repository, disk)
    assert _restored(repository, written.file, tmp_path / "again") == disk.read_bytes()
    _restic(root, "check", "--read-data")


def test_a_disk_that_grows_is_stored_from_what_was_before(tmp_path: Path) -> None:
    disk, storage = tmp_path / "disk", DirectoryStorage(tmp_path / "r")
    disk.write_bytes(os.urandom(4 * BLOCK_BYTES))
    repository = _create(storage)
    first, _ = _backup(repository, disk)
    os.truncate(disk, 6 * BLOCK_BYTES + 100)
    second, id = _backup(repository, disk, [], first.file)
    assert second.read_bytes == 100
    assert _restic(storage.root, "dump", id, "/web/disk-0.raw") == disk.read_bytes()
    with pytest.raises(ValueError, match="must be read completely"):
        _backup(repository, disk, [], File(7 * BLOCK_BYTES, bytes(7 * ID_BYTES)))
    with pytest.raises(NotStored, match="no longer in the repository"):
        _backup(repository, disk, [(0, 10)], File(4 * BLOCK_BYTES, bytes(4 * ID_BYTES)))


def _flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("kind", [Kind.PACK, Kind.INDEX, Kind.SNAPSHOT, Kind.CONFIG])
@pytest.mark.parametrize(
    "damage", [_flip, lambda content: content[:-1], lambda content: b""], ids=["flipped", "short", "empty"]
)
def test_damage_is_found_and_named(tmp_path: Path, kind: Kind, damage: Callable[[bytes], bytes]) -> None:
    storage = DirectoryStorage(tmp_path / "r")
    _backup(_create(storage), _disk(tmp_path / "disk", 3))
    paths = sorted(path for path in (storage.root / kind).rglob("*") if path.is_file()) or [storage.root / kind]
    paths[0].chmod(0o600)
    paths[0].write_bytes(damage(paths[0].read_bytes()))
    with pytest.raises(Damaged) as found:
        repository = Repository.open(storage, PASSWORD)
        list(repository.snapshots())
        for error in check_packs(repository):
            raise error
    assert paths[0].name in str(found.value) or "configuration" in str(found.value)


def test_what_is_larger_than_it_may_be_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever keeps the directory, or has the key, may say any length."""
    storage = DirectoryStorage(tmp_path / "r")
    repository = _create(storage)
    written, id = _backup(repository, _disk(tmp_path / "disk", 3))
    config = storage.root / "config"
    os.truncate(config, FILE_BYTES_MAX + 1)
    with pytest.raises(Damaged, match=f"config in {storage.root} exceeds the size limit of such files"):
        storage.read(Kind.CONFIG, "config")
    block = next(block for block in written.file.ids() if block in repository.index)
    made = dict(repository.snapshots())[id]
    monkeypatch.setattr("novacron.backup.repository.ENTRIES_MAX", 0)
    with pytest.raises(Damaged, match="more than 0 entries"):
        repository.content(made)
    reads = Mock()
    monkeypatch.setattr(storage, "read", reads)
    place = repository.index.find(block)
    assert place is not None
    monkeypatch.setattr(repository.index, "find", lambda _: place._replace(blob=place.blob._replace(length=1 << 31)))
    with pytest.raises(Damaged, match="exceeds the size limit of blobs"):
        repository.load(BlobType.DATA, block)
    with pytest.raises(Damaged, match="exceeds the size limit of blobs"):
        list(disks.pieces(repository, {block: [0]}))
    reads.assert_not_called()


def test_restic_reads_what_was_damaged_and_stored_again(tmp_path: Path) -> None:
    disk, storage = _disk(tmp_path / "disk", 4), DirectoryStorage(tmp_path / "r")
    written, first = _backup(_create(storage), disk)
    repository = Repository.open(storage, PASSWORD)
    place = repository.index.find(next(iter(written.file.ids())))
    assert place is not None
    path = storage.root / "data" / place.pack.hex()[:2] / place.pack.hex()
    path.chmod(0o600)
    with path.open("r+b") as pack:
        pack.seek(place.blob.offset + place.blob.length // 2)
        pack.write(os.urandom(8))
    repository.replace_packs({place.pack})
    _, second = _backup(repository, disk)
    for id in (first, second):
        assert _restic(storage.root, "dump", id, "/web/disk-0.raw") == disk.read_bytes()
    _restic(storage.root, "check", "--read-data")


def test_another_password_opens_nothing_and_a_repository_is_made_once(tmp_path: Path) -> None:
    storage = DirectoryStorage(tmp_path / "r")
    with pytest.raises(NotStored):
        Repository.open(storage, PASSWORD)
    _create(storage)
    with pytest.raises(WrongKey):
        Repository.open(storage, new_password())
    with pytest.raises(RepositoryError, match="the repository already exists"):
        _create(storage)


def test_a_write_that_fails_leaves_the_snapshots_of_before_whole(tmp_path: Path) -> None:
    class Full(DirectoryStorage):
        """Takes three packs, and then no more."""

        packs = 0

        def write(self, kind: Kind, name: str, content: bytes) -> None:
            if kind is Kind.PACK:
                Full.packs += 1
                if Full.packs > 3:
                    raise RepositoryError("no space left on device")
            super().write(kind, name, content)

    disk, storage = _disk(tmp_path / "disk", 4), Full(tmp_path / "r")
    _, id = _backup(_create(storage), disk)
    large = tmp_path / "large"
    large.write_bytes(os.urandom(40 << 20))
    with pytest.raises(RepositoryError, match="no space left"):
        _backup(Repository.open(storage, PASSWORD), large)
    Full.packs = -100
    _restic(storage.root, "check", "--read-data")
    assert _restic(storage.root, "dump", id, "/web/disk-0.raw") == disk.read_bytes()
    _, id = _backup(Repository.open(storage, PASSWORD), large)
    assert _restic(storage.root, "dump", id, "/web/disk-0.raw") == large.read_bytes()


@pytest.fixture
def writing_restic(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A restic that has its repository locked, because it waits for what it is to back up."""
    _create(DirectoryStorage(tmp_path / "r"))
    process = subprocess.Popen(
        ["restic", "--no-cache", "-q", "-r", str(tmp_path / "r"), "backup", "--stdin"], stdin=subprocess.PIPE,
        env={**os.environ, "RESTIC_PASSWORD": PASSWORD.decode()},
    )  # fmt: skip
    until(lambda: any((tmp_path / "r" / "locks").glob("*")), "restic has locked it", 60)
    yield process
    process.kill()
    process.communicate()


def test_restic_and_its_locks_are_respected_until_they_are_stale(
    tmp_path: Path, writing_restic: subprocess.Popen[bytes]
) -> None:
    repository = Repository.open(DirectoryStorage(tmp_path / "r"), PASSWORD)
    with RepositoryLock(repository, exclusive=False):
        pass
    with pytest.raises(Locked, match=f"process {writing_restic.pid} on"):
        RepositoryLock(repository, exclusive=True)
    writing_restic.kill()
    writing_restic.wait()
    assert len(list(locks.locks(repository))) == 1
    (tmp_path / "r" / "locks" / f"{'0' * 64}-tmp-1").write_bytes(b"what restic was about to write")
    with RepositoryLock(repository, exclusive=True):
        assert len(list(locks.locks(repository))) == 1, "its lock was taken away"
    assert list(locks.locks(repository)) == []


def test_restic_deletes_nothing_while_a_backup_is_made(tmp_path: Path) -> None:
    repository = _create(DirectoryStorage(tmp_path / "r"))
    with RepositoryLock(repository, exclusive=False), pytest.raises(AssertionError, match="already locked by PID"):
        _restic(tmp_path / "r", "prune")
    _restic(tmp_path / "r", "prune")
    with RepositoryLock(repository, exclusive=True), pytest.raises(AssertionError, match="already locked exclusively"):
        _restic(tmp_path / "r", "backup", str(tmp_path / "r" / "config"))


def test_a_lock_ends_by_its_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = _create(DirectoryStorage(tmp_path / "r"))
    elsewhere = locks.LockFile(datetime.now(UTC), True, "elsewhere", "root", 1)
    for minutes, is_held in ((29, True), (31, False), (-120, True)):
        elsewhere.time = datetime.now(UTC) - timedelta(minutes=minutes)
        name = repository.save_unpacked(Kind.LOCK, msgspec.json.encode(elsewhere))
        if is_held:
            with pytest.raises(Locked, match="on elsewhere has locked the repository exclusively"):
                RepositoryLock(repository, exclusive=False)
            repository.storage.remove(Kind.LOCK, name)
        else:
            RepositoryLock(repository, exclusive=False).release()
    assert list(locks.locks(repository)) == []


def test_a_lock_is_renewed_while_it_is_held_and_counts_for_nothing_once_it_can_not_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "REFRESH_S", 0.01)
    repository = _create(DirectoryStorage(tmp_path / "r"))
    with RepositoryLock(repository, exclusive=True) as lock:
        first = {name for name, _ in locks.locks(repository)}
        until(lambda: not first & {name for name, _ in locks.locks(repository)}, "it was renewed", 60)
        lock.check()
        lock.abandon()
        monkeypatch.setattr(locks, "LOST_AFTER_S", -1.0)
        with pytest.raises(Locked, match="could not be renewed"):
            lock.check()


def test_whoever_begins_a_repository_second_is_told_so_and_leaves_no_key(tmp_path: Path) -> None:
    class Raced(DirectoryStorage):
        """Somebody else is faster, between the key and the configuration."""

        def write(self, kind: Kind, name: str, content: bytes) -> None:
            if kind is Kind.CONFIG:
                _create(DirectoryStorage(self.root))
            super().write(kind, name, content)

    with pytest.raises(RepositoryError, match="another process created the repository at the same time"):
        Repository.create(Raced(tmp_path / "r"), new_password(), ScryptCost(1 << 10, 8, 1))
    assert len(list((tmp_path / "r" / "keys").iterdir())) == 1
    _restic(tmp_path / "r", "check")
