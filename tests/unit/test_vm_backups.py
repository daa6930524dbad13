"""Backups of VMs in a repository: stored, read back, damaged, taken out; and the states that a backup goes through."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import msgspec
import pytest

from novacron.agent.host.stoppable import in_thread
from novacron.agent.repositories import contents, directory
from novacron.agent.repositories.contents import Stopped, WorkStopped
from novacron.agent.settings import AgentSettings
from novacron.backup.disks import BLOCK_BYTES
from novacron.backup.errors import Damaged, NotStored, RepositoryError, WrongKey
from novacron.backup.repository import Repository
from novacron.backup.storage import Kind
from novacron.disk.errors import Unacceptable
from novacron.model.backup import TRANSITIONS, WORKING, Backup, BackupPhase, check_transition
from novacron.model.encryption import DataKey
from novacron.model.errors import IllegalState
from novacron.model.firmware_state import FirmwareState
from novacron.platform_key import new_key

REPOSITORY = "repo-0123456789abcdef"
BESIDE = (b'{"name": "web"}', FirmwareState(nvram=b"variables"))


def never() -> bool:
    return False


@pytest.fixture(scope="module")
def key() -> DataKey:
    return new_key()


@pytest.fixture
def repository(tmp_path: Path, key: DataKey) -> Repository:
    return directory.open_repository(tmp_path / REPOSITORY, key, begin=True)[0]


def disk_of(tmp_path: Path, *, blocks: int = 40) -> Path:
    """Return a disk with random blocks, a hole, and an end that is no whole block."""
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.write(os.urandom(3 * BLOCK_BYTES))
        file.seek(blocks * BLOCK_BYTES)
        file.write(os.urandom(BLOCK_BYTES // 2))
    return path


def test_a_disk_comes_back_as_it_was_with_what_was_stored_beside_it(repository: Repository, tmp_path: Path) -> None:
    disk, back = disk_of(tmp_path), tmp_path / "back"
    kept = contents.store(repository, "backup-1", disk, BESIDE, never)
    assert contents.restore(repository, kept.snapshot, back, never) == BESIDE[1]
    assert back.read_bytes() == disk.read_bytes()
    assert kept.disk_bytes == disk.stat().st_size and kept.read_bytes < 6 * BLOCK_BYTES, "holes are not read"
    assert contents.find(repository, "backup-1") == kept.snapshot
    contents.verify(repository, kept.snapshot, never)


def test_a_second_backup_writes_what_changed(tmp_path: Path, key: DataKey) -> None:
    disk = disk_of(tmp_path)
    repository, before = directory.open_repository(tmp_path / REPOSITORY, key, begin=True)
    contents.store(repository, "backup-1", disk, BESIDE, never)
    assert before.written_bytes > 3 * BLOCK_BYTES
    with disk.open("r+b") as file:
        file.seek(BLOCK_BYTES)
        file.write(os.urandom(4096))
    again, after = directory.open_repository(tmp_path / REPOSITORY, key, begin=False)
    contents.store(again, "backup-2", disk, BESIDE, never)
    assert BLOCK_BYTES // 2 < after.written_bytes < 2 * BLOCK_BYTES


def test_damage_is_found_wherever_it_is(repository: Repository, tmp_path: Path) -> None:
    kept = contents.store(repository, "backup-1", disk_of(tmp_path), BESIDE, never)
    packs = sorted((tmp_path / REPOSITORY / "data").glob("*/*"), key=lambda pack: pack.stat().st_size)
    content = bytearray(packs[-1].read_bytes())
    content[len(content) // 2] ^= 1
    packs[-1].chmod(0o600)
    packs[-1].write_bytes(content)
    with pytest.raises(Damaged):
        contents.verify(repository, kept.snapshot, never)
    packs[-1].unlink()
    with pytest.raises(RepositoryError):
        contents.verify(repository, kept.snapshot, never)


def test_a_backup_that_was_taken_out_is_not_found_and_others_stay(repository: Repository, tmp_path: Path) -> None:
    disk = disk_of(tmp_path)
    first = contents.store(repository, "backup-1", disk, BESIDE, never)
    second = contents.store(repository, "backup-2", disk, BESIDE, never)
    contents.forget(repository, "backup-1")
    assert contents.find(repository, "backup-1") is None
    contents.verify(repository, second.snapshot, never)
    with pytest.raises(NotStored, match="not in the repository any more"):
        contents.verify(repository, first.snapshot, never)


def test_work_that_nobody_wants_any_more_ends_and_leaves_no_backup(repository: Repository, tmp_path: Path) -> None:
    ended = threading.Event()
    ended.set()
    with pytest.raises(WorkStopped):
        contents.store(repository, "backup-1", disk_of(tmp_path), BESIDE, ended.is_set)
    assert list(repository.storage.names(Kind.SNAPSHOT)) == []
    kept = contents.store(repository, "backup-1", disk_of(tmp_path), BESIDE, never)
    for read in (
        lambda: contents.verify(repository, kept.snapshot, ended.is_set),
        lambda: contents.restore(repository, kept.snapshot, tmp_path / "back", ended.is_set),
    ):
        with pytest.raises(WorkStopped):
            read()


async def test_work_in_a_thread_is_over_when_its_task_is() -> None:
    began, over = threading.Event(), threading.Event()

    def work(stopped: Stopped) -> None:
        began.set()
        while not stopped():
            pass
        over.set()

    task = asyncio.create_task(in_thread(work))
    assert await asyncio.to_thread(began.wait, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert over.is_set()


def test_a_repository_is_not_begun_where_one_should_be(tmp_path: Path, key: DataKey) -> None:
    with pytest.raises(Unacceptable, match="mounted"):
        directory.open_repository(tmp_path / REPOSITORY, key, begin=False)
    assert list(tmp_path.iterdir()) == []


def test_nodes_that_begin_a_repository_at_once_share_it(tmp_path: Path, key: DataKey) -> None:
    root, ids = tmp_path / REPOSITORY, list[str]()
    threads = [
        threading.Thread(target=lambda: ids.append(directory.open_repository(root, key, begin=True)[0].id))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 3 and len(set(ids)) == 1
    assert [path.name for path in tmp_path.iterdir()] == [REPOSITORY], "nothing is left over"


def test_a_repository_opens_with_its_own_key_only(repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(WrongKey):
        directory.open_repository(tmp_path / REPOSITORY, new_key(), begin=True)


@pytest.mark.parametrize("name", ["../../etc", "repo-1", "", "repo-0123456789abcdef/x"])
def test_no_other_directory_than_a_repositorys_is_used(tmp_path: Path, name: str) -> None:
    settings = AgentSettings(tmp_path, tmp_path, "host-a", backup_dir=tmp_path)
    with pytest.raises(Unacceptable, match="no id of a repository"):
        directory.root_of(settings, name)


def test_a_node_without_a_directory_for_backups_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unacceptable, match="--backup-dir"):
        directory.root_of(AgentSettings(tmp_path, tmp_path, "host-a"), REPOSITORY)


def test_a_backup_is_verified_only_once_it_is_kept_and_ends_with_its_deletion() -> None:
    assert set(TRANSITIONS) == set(BackupPhase)
    assert all(BackupPhase.DELETING in then for phase, then in TRANSITIONS.items() if phase is not BackupPhase.DELETING)
    assert {BackupPhase.MAKING, BackupPhase.VERIFYING, BackupPhase.DELETING} == WORKING
    backup = msgspec.convert(
        {
            "id": "backup-1", "vm": "vm-1", "vm_name": "web", "repository": REPOSITORY, "repository_name": "nightly",
            "node": "a", "spec": {"image": "disk", "vcpus": 1, "memory_mib": 128, "power": "running"},
            "phase": "making", "result": {}, "excluded_volumes": [], "verified_at": None, "error": "", "revision": 1,
            "created_at": "2026-01-01T00:00:00Z", "finished_at": None,
        },
        Backup,
    )  # fmt: skip
    with pytest.raises(IllegalState, match="is making, and can't become verifying"):
        check_transition(backup, BackupPhase.VERIFYING)
