"""Backups of VMs in a repository: stored, read back, damaged, taken out; and the states that a backup goes through."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from novacron.agent.fair_turns import FairTurns
from novacron.agent.repositories import contents, directory, threads
from novacron.agent.repositories.contents import DiskCopy
from novacron.agent.repositories.directory import OpenRepository, Purpose
from novacron.agent.repositories.queues import RepositoryQueue, RepositoryQueues
from novacron.agent.repositories.threads import Stalled, Stopped, WorkStopped, in_thread, never
from novacron.agent.settings import AgentSettings
from novacron.backup.disks import BLOCK_BYTES
from novacron.backup.errors import Damaged, DamagedBlobs, NotStored, RepositoryError, WrongKey
from novacron.backup.index import RepositoryIndex
from novacron.backup.repository import Repository
from novacron.backup.storage import Kind
from novacron.disk.errors import Unacceptable
from novacron.model.backup import TRANSITIONS, WORKING, Backup, BackupPhase, check_transition
from novacron.model.encryption import DataKey
from novacron.model.errors import IllegalState
from novacron.model.firmware_state import FirmwareState
from novacron.platform_key import new_key
from tests.waiting import eventually

REPOSITORY = "repo-0123456789abcdef"
VM = "vm-1"
BESIDE = (b'{"name": "web"}', FirmwareState(nvram=b"variables"))


@pytest.fixture(scope="module")
def key() -> DataKey:
    return new_key()


@pytest.fixture
def opened(tmp_path: Path, key: DataKey) -> Iterator[OpenRepository]:
    repository = directory.open_repository(tmp_path / REPOSITORY, key, begin=True)
    yield repository
    repository.close()


@pytest.fixture
def repository(opened: OpenRepository) -> Repository:
    return opened.repository


def look(repository: Repository, backup: str, points: frozenset[str] = frozenset()) -> contents.BackupState:
    return contents.look(repository, backup, VM, points, never)


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
    kept = contents.store(repository, ("backup-1", VM), DiskCopy(disk), BESIDE, never)
    assert contents.restore(repository, kept.snapshot, back) == BESIDE[1]
    assert back.read_bytes() == disk.read_bytes()
    assert kept.disk_bytes == disk.stat().st_size and kept.read_bytes < 6 * BLOCK_BYTES, "holes are not read"
    assert look(repository, "backup-1").made == kept.snapshot
    contents.verify(repository, kept.snapshot, never)


@pytest.mark.parametrize("image_blocks", [10, 64])
def test_what_the_image_on_this_host_has_is_not_fetched(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_blocks: int
) -> None:
    """The disk began as a smaller image, or was cut off; it has changed in one block, and zeros in another."""
    image, disk, back = tmp_path / "image", tmp_path / "disk", tmp_path / "back"
    image.write_bytes(os.urandom(image_blocks * BLOCK_BYTES))
    size = 40 * BLOCK_BYTES + BLOCK_BYTES // 2
    content = bytearray(image.read_bytes()[:size].ljust(size, b"\0"))
    content[3 * BLOCK_BYTES : 4 * BLOCK_BYTES] = os.urandom(BLOCK_BYTES)
    content[5 * BLOCK_BYTES : 6 * BLOCK_BYTES] = bytes(BLOCK_BYTES)
    disk.write_bytes(content)
    kept = contents.store(repository, ("backup-1", VM), DiskCopy(disk), BESIDE, never)
    fetched = []
    monkeypatch.setattr(contents.log, "info", lambda _words, **said: fetched.append(said["fetched_bytes"]))
    contents.restore(repository, kept.snapshot, back, image)
    assert back.read_bytes() == bytes(content)
    assert BLOCK_BYTES <= fetched[0] < 3 * BLOCK_BYTES, "the block that changed, and the end, which is no whole block"


def test_an_image_that_is_not_the_disks_changes_nothing(repository: Repository, tmp_path: Path) -> None:
    disk, image, back = disk_of(tmp_path), tmp_path / "image", tmp_path / "back"
    image.write_bytes(os.urandom(50 * BLOCK_BYTES + 17))
    kept = contents.store(repository, ("backup-1", VM), DiskCopy(disk), BESIDE, never)
    assert contents.restore(repository, kept.snapshot, back, image) == BESIDE[1]
    assert back.read_bytes() == disk.read_bytes()
    with pytest.raises(WorkStopped):
        contents.restore(repository, kept.snapshot, tmp_path / "again", image, lambda: True)


def test_a_second_backup_writes_what_changed(tmp_path: Path, key: DataKey, opened: OpenRepository) -> None:
    disk = disk_of(tmp_path)
    repository, before, _ = opened
    contents.store(repository, ("backup-1", VM), DiskCopy(disk), BESIDE, never)
    assert before.written_bytes > 3 * BLOCK_BYTES
    with disk.open("r+b") as file:
        file.seek(BLOCK_BYTES)
        file.write(os.urandom(4096))
    again = directory.open_repository(tmp_path / REPOSITORY, key, begin=False)
    contents.store(again.repository, ("backup-2", VM), DiskCopy(disk), BESIDE, never)
    assert BLOCK_BYTES // 2 < again.storage.written_bytes < 2 * BLOCK_BYTES
    again.close()


def test_damage_is_found_wherever_it_is(repository: Repository, tmp_path: Path) -> None:
    kept = contents.store(repository, ("backup-1", VM), DiskCopy(disk_of(tmp_path)), BESIDE, never)
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


@pytest.mark.parametrize("damage", ["flipped", "short", "gone"])
def test_damaged_blocks_are_stored_again_and_the_earlier_backup_is_whole_then(
    repository: Repository, tmp_path: Path, key: DataKey, damage: str
) -> None:
    disk = disk_of(tmp_path)
    first = contents.store(repository, ("backup-1", VM), DiskCopy(disk), BESIDE, never)
    pack = max((tmp_path / REPOSITORY / "data").glob("*/*"), key=lambda pack: pack.stat().st_size)
    pack.chmod(0o600)
    content = bytearray(pack.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        pack.unlink()
    else:
        pack.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    with pytest.raises(DamagedBlobs) as found:
        contents.verify(repository, first.snapshot, never)
    assert found.value.packs == {bytes.fromhex(pack.name)}
    assert look(repository, "backup-2", frozenset({first.snapshot})).earlier is not None, "it is counted on so far"
    for _ in range(2):  # whoever was ended does it again
        repository.replace_packs(found.value.packs)
    assert pack.exists() is (damage != "gone"), "it may be one of reading only"
    assert look(repository, "backup-2", frozenset({first.snapshot})).earlier is None
    with pytest.raises(DamagedBlobs, match="is not in the repository"):
        contents.verify(repository, first.snapshot, never)
    second = contents.store(repository, ("backup-2", VM), DiskCopy(disk), BESIDE, never)
    with contextlib.closing(directory.open_repository(tmp_path / REPOSITORY, key, begin=False)) as again:
        for kept in (first, second):
            contents.verify(again.repository, kept.snapshot, never)


def test_a_backup_that_was_taken_out_is_not_found_and_others_stay(repository: Repository, tmp_path: Path) -> None:
    disk = disk_of(tmp_path)
    first = contents.store(repository, ("backup-1", VM), DiskCopy(disk), BESIDE, never)
    second = contents.store(repository, ("backup-2", VM), DiskCopy(disk), BESIDE, never)
    contents.forget(repository, "backup-1")
    assert not look(repository, "backup-1").made
    contents.verify(repository, second.snapshot, never)
    with pytest.raises(NotStored, match="no longer in the repository"):
        contents.verify(repository, first.snapshot, never)


def test_work_that_nobody_wants_any_more_ends_and_leaves_no_backup(opened: OpenRepository, tmp_path: Path) -> None:
    repository = opened.repository
    ended = threading.Event()
    ended.set()
    with pytest.raises(WorkStopped):
        contents.store(repository, ("backup-1", VM), DiskCopy(disk_of(tmp_path)), BESIDE, ended.is_set)
    assert list(repository.storage.names(Kind.SNAPSHOT)) == []
    kept = contents.store(repository, ("backup-1", VM), DiskCopy(disk_of(tmp_path)), BESIDE, never)
    opened.watched(ended.is_set)
    for read in (
        lambda: contents.verify(repository, kept.snapshot, ended.is_set),
        lambda: contents.restore(repository, kept.snapshot, tmp_path / "back"),
    ):
        with pytest.raises(WorkStopped):
            read()


def test_the_latest_of_the_backups_that_are_asked_for_is_found_if_it_is_whole(
    repository: Repository, tmp_path: Path
) -> None:
    disk = DiskCopy(disk_of(tmp_path))
    first, second = (contents.store(repository, (f"backup-{n}", VM), disk, BESIDE, never).snapshot for n in (1, 2))
    other = contents.store(repository, ("backup-3", "vm-2"), disk, BESIDE, never)
    lie = frozenset({other.snapshot, "backup-3", "vm-2"})
    assert look(repository, "backup-4", lie).earlier is None, "another VM's disk"
    assert look(repository, "backup-4") == contents.BackupState(has_earlier=True)
    assert not contents.look(repository, "backup-4", "vm-3", frozenset(), never).has_earlier
    for points in ({first, second}, {"backup-1", "backup-2"}):
        found = look(repository, "backup-4", frozenset(points)).earlier
        assert found is not None and (found.snapshot, found.backup) == (second, "backup-2")
    repository.index = RepositoryIndex()
    assert look(repository, "backup-4", frozenset({second})).earlier is None


async def test_a_repository_that_hangs_fails_its_own_work_and_nothing_else() -> None:
    queues, hangs, began = RepositoryQueues(), threading.Event(), threading.Event()
    queues.of("repo-a").stall_s_max = 0.2

    def hang(_stopped: Stopped) -> None:
        began.set()
        hangs.wait(60)

    async with queues.of("repo-a").turn("acme"):
        with pytest.raises(Stalled, match="did not answer"):
            await queues.of("repo-a").run(hang)
        with pytest.raises(Stalled, match="has not answered yet"):
            await queues.of("repo-a").run(lambda _stopped: 1)
        async with queues.of("repo-b").turn("acme"):
            assert await queues.of("repo-b").run(lambda _stopped: 2) == 2
    queues.keep(())
    assert not queues.of("repo-a").idle, "it is remembered for as long as it hangs"
    hangs.set()
    await eventually(lambda: queues.of("repo-a").idle, "it answers again")
    queues.of("repo-a").stall_s_max = 60
    assert await queues.of("repo-a").run(lambda _stopped: 3) == 3


async def test_slow_work_that_goes_on_is_not_stalled(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, looked = 0.0, threading.Event()

    def monotonic() -> float:
        looked.set()
        return now_s

    def work(stopped: Stopped) -> str:
        nonlocal now_s
        for _ in range(5):
            stopped()
            now_s += 250
            looked.clear()
            assert looked.wait(60)
        return "done"

    monkeypatch.setattr(threads, "time", SimpleNamespace(monotonic=monotonic))
    monkeypatch.setattr(threads, "LOOK_S", 0.001)
    assert await in_thread(work, [], stall_s_max=300) == "done"


async def test_a_repository_that_is_opened_too_late_is_closed_again(tmp_path: Path, key: DataKey) -> None:
    root, go_on, queue = (
        tmp_path / REPOSITORY,
        threading.Event(),
        RepositoryQueue(FairTurns(1), stall_s_max=0.2),
    )

    def opening(_stopped: Stopped) -> OpenRepository:
        go_on.wait(60)
        return directory.open_repository(root, key, begin=True)

    with pytest.raises(Stalled):
        async with queue.opened(opening):
            pass
    go_on.set()
    await eventually(lambda: queue.idle and (root / "locks").is_dir(), "its thread has ended")
    assert list((root / "locks").iterdir()) == []


async def test_whoever_deletes_waits_for_those_who_write_and_is_told_whom(
    opened: OpenRepository, tmp_path: Path, key: DataKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "LOCK_S_MAX", 0.1)
    monkeypatch.setattr(directory, "LOCK_TO_DELETE_S_MAX", 0.1)
    monkeypatch.setattr(directory, "LOCK_PAUSES_S", (0.01, 0.02))
    root = tmp_path / REPOSITORY
    with pytest.raises(Unacceptable, match="for shared use since"):
        directory.open_repository(root, key, begin=False, purpose=Purpose.DELETE)
    directory.open_repository(root, key, begin=False).close()
    opened.close()
    alone = directory.open_repository(root, key, begin=False, purpose=Purpose.DELETE)
    with pytest.raises(Unacceptable, match="exclusively since"):
        directory.open_repository(root, key, begin=False)
    alone.close()
    assert list((root / "locks").iterdir()) == []


async def test_work_in_a_thread_is_over_when_its_task_is() -> None:
    began, over, left = threading.Event(), threading.Event(), list[threading.Thread]()

    def work(stopped: Stopped) -> None:
        began.set()
        while not stopped():
            pass
        over.set()

    task = asyncio.create_task(in_thread(work, left))
    assert await asyncio.to_thread(began.wait, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert over.is_set() and left == []


def test_a_repository_is_not_begun_where_one_should_be(tmp_path: Path, key: DataKey) -> None:
    with pytest.raises(Unacceptable, match="mounted"):
        directory.open_repository(tmp_path / REPOSITORY, key, begin=False)
    assert list(tmp_path.iterdir()) == []


def test_nodes_that_begin_a_repository_at_once_share_it(tmp_path: Path, key: DataKey) -> None:
    root, ids = tmp_path / REPOSITORY, list[str]()

    def begin() -> None:
        begun = directory.open_repository(root, key, begin=True)
        ids.append(begun.repository.id)
        begun.close()

    beginning = [threading.Thread(target=begin) for _ in range(3)]
    for thread in beginning:
        thread.start()
    for thread in beginning:
        thread.join()
    assert len(ids) == 3 and len(set(ids)) == 1
    assert [path.name for path in tmp_path.iterdir()] == [REPOSITORY], "nothing is left over"


def test_a_repository_opens_with_its_own_key_only(repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(WrongKey):
        directory.open_repository(tmp_path / REPOSITORY, new_key(), begin=True)


@pytest.mark.parametrize("name", ["../../etc", "repo-1", "", "repo-0123456789abcdef/x"])
def test_no_other_directory_than_a_repositorys_is_used(tmp_path: Path, name: str) -> None:
    settings = AgentSettings(tmp_path, tmp_path, "host-a", backup_dir=tmp_path)
    with pytest.raises(Unacceptable, match="not a repository id"):
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
