"""Content of encrypted VMs in a repository: read with the project's key, and with nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from novacron.agent.backups import check_content_key
from novacron.agent.repositories import contents, directory
from novacron.agent.repositories.contents import DiskCopy, KeptContent
from novacron.agent.repositories.threads import never
from novacron.backup.content_cipher import ContentCipher
from novacron.backup.disks import BLOCK_BYTES, ZERO_ID, DiskReader
from novacron.backup.errors import Damaged
from novacron.backup.repository import Repository
from novacron.backup.snapshot import File
from novacron.disk.errors import Unacceptable
from novacron.model.backup_source import BackupSource
from novacron.model.firmware_state import FirmwareState
from novacron.platform_key import new_key

VM, KEY, OTHER = "vm-1", new_key(), new_key()
BESIDE = (b'{"name": "web"}', FirmwareState(nvram=b"MARKER of the firmware"))
MARKER = b"MARKER of the guest"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return directory.open_repository(tmp_path / "repo-0123456789abcdef", new_key(), begin=True).repository


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk with data, a hole, zeros that are written, and an end that is no whole block."""
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.write(MARKER.ljust(BLOCK_BYTES, b"."))
        file.write(os.urandom(BLOCK_BYTES))
        file.seek(9 * BLOCK_BYTES)
        file.write(bytes(BLOCK_BYTES) + os.urandom(BLOCK_BYTES // 2))
    return path


def fetched(kept: KeptContent) -> bytes:
    target = bytearray(kept.disk.size)

    def write(offset: int, content: bytes) -> None:
        target[offset : offset + len(content)] = content

    kept.fetch_disk(write, never)
    return bytes(target)


def kept_file(repository: Repository, snapshot: str, name: str) -> File:
    made = next(made for id, made in repository.snapshots() if id == snapshot)
    return repository.content(made).files[name]


def read_all(repository: Repository, file: File) -> bytes:
    return DiskReader(repository, file).read(0, file.size)


def test_what_is_stored_shows_nothing_without_the_projects_key(repository: Repository, disk: Path) -> None:
    kept = contents.store(repository, ("backup-1", VM), DiskCopy(disk, cipher=ContentCipher(KEY)), BESIDE, never)
    for name in (contents.SEALED_DISK, contents.SEALED_FIRMWARE):
        assert b"MARKER" not in read_all(repository, kept_file(repository, kept.snapshot, name))
    content = KeptContent(repository, kept.snapshot, ContentCipher(KEY))
    assert fetched(content) == disk.read_bytes() and content.firmware == BESIDE[1]
    assert list(kept_file(repository, kept.snapshot, contents.SEALED_DISK).ids()).count(ZERO_ID) == 8, "holes stay"
    contents.verify(repository, kept.snapshot, never)
    with pytest.raises(Damaged, match=f"can't be decrypted with {OTHER.id}"):
        KeptContent(repository, kept.snapshot, ContentCipher(OTHER))


def test_what_did_not_change_is_not_stored_again(repository: Repository, disk: Path) -> None:
    cipher = ContentCipher(KEY)
    first = contents.store(repository, ("backup-1", VM), DiskCopy(disk, cipher=cipher), BESIDE, never)
    with disk.open("r+b") as file:
        file.seek(BLOCK_BYTES)
        file.write(os.urandom(4096))
    known = contents.look(repository, "backup-2", VM, {first.snapshot}, never, KEY.id)
    assert known.earlier is not None and known.earlier.backup == "backup-1"
    copy = DiskCopy(disk, ((BLOCK_BYTES, 4096),), known.earlier, cipher)
    second = contents.store(repository, ("backup-2", VM), copy, BESIDE, never)
    before, after = (list(kept_file(repository, kept.snapshot, contents.SEALED_DISK).ids()) for kept in (first, second))
    assert [number for number, (a, b) in enumerate(zip(before, after, strict=True)) if a != b] == [1]
    assert fetched(KeptContent(repository, second.snapshot, cipher)) == disk.read_bytes()


def test_a_disk_that_is_kept_in_another_way_is_no_parent_and_is_not_restored(
    repository: Repository, disk: Path, tmp_path: Path
) -> None:
    sealed = contents.store(repository, ("backup-1", VM), DiskCopy(disk, cipher=ContentCipher(KEY)), BESIDE, never)
    plain = contents.store(repository, ("backup-2", VM), DiskCopy(disk), BESIDE, never)
    points = {sealed.snapshot, plain.snapshot}

    def parent(key_id: str) -> str:
        found = contents.look(repository, "backup-3", VM, points, never, key_id).earlier
        return "" if found is None else found.snapshot

    assert (parent(KEY.id), parent(""), parent(OTHER.id)) == (sealed.snapshot, plain.snapshot, "")
    with pytest.raises(Damaged, match="is encrypted with a project's key, but should not be"):
        contents.restore(repository, sealed.snapshot, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    with pytest.raises(Damaged, match="is not encrypted, but should be"):
        KeptContent(repository, plain.snapshot, ContentCipher(KEY))
    assert contents.disk_bytes(repository, sealed.snapshot) == disk.stat().st_size


def test_equal_blocks_at_different_places_differ() -> None:
    cipher, block = ContentCipher(KEY), os.urandom(BLOCK_BYTES)
    assert cipher.seal(1, block) == ContentCipher(KEY).seal(1, block) != cipher.seal(2, block)
    for content in (block, b"\0" * 100 + block[100:], bytes(BLOCK_BYTES), block[:512]):
        assert cipher.open(3, cipher.seal(3, content)) == content
    with pytest.raises(Damaged, match="can't be decrypted"):
        cipher.open_file("a", cipher.seal_file("b", b"content"))


def test_a_backup_is_made_with_the_key_of_its_vm_and_no_other() -> None:
    check_content_key(None, "")
    check_content_key(KEY, KEY.id)
    for given, needed, words in (
        (None, KEY.id, f"encrypted with {KEY.id}, which was erased"),
        (OTHER, KEY.id, f"encrypted with {KEY.id}, which was erased"),
        (KEY, "", "its content is not encrypted on this node"),
    ):
        with pytest.raises(Unacceptable, match=words):
            check_content_key(given, needed)


def test_an_earlier_agent_finds_no_key_for_a_disk_that_it_would_write_in_the_clear() -> None:
    class EarlierSource(msgspec.Struct):
        repository: str
        key: str
        snapshot: str

    source = BackupSource("repo-0123456789abcdef", "", "5" * 64, "", KEY.id)
    assert msgspec.json.decode(msgspec.json.encode(source), type=EarlierSource).key == ""
    assert source.opened_by == KEY.id
