"""Single files out of backups: what is on their disks is listed and fetched without restoring them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import random
import shutil
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.platform import Platform
from novacron.agent import backup_files
from novacron.agent.backup_files import BackupFiles
from novacron.agent.repositories import contents, directory
from novacron.agent.repositories.contents import DiskCopy
from novacron.agent.repositories.directory import Purpose
from novacron.agent.repositories.threads import never
from novacron.agent.settings import AgentSettings
from novacron.backup.content_cipher import ContentCipher
from novacron.client import ApiError
from novacron.disk.errors import Unacceptable
from novacron.model.encryption import DataKey
from novacron.model.errors import InvalidInput
from novacron.model.firmware_state import FirmwareState
from novacron.wire.questions import ListBackupFiles, ListBackupFileSystems, ReadBackupFile, RepositoryBackup
from tests.integration.test_encryption import import_private
from tests.support.vm_backups import NewRepository, back_up
from tests.support.vms import NewVm
from tests.waiting import eventually

SECTOR, FIRST = 512, 2048
REPOSITORY = f"repo-{'0' * 16}"
UID_BASE = 1_879_048_192

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount, as agents do it")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What lies on the guest's disk."""
    root = tmp_path_factory.mktemp("files")
    (root / "etc" / "deep").mkdir(parents=True)
    (root / "etc" / "hostname").write_text("web\n")
    (root / "etc" / "big").write_bytes(random.Random(7).randbytes((3 << 20) + 17))
    (root / "etc" / "ümläut name").write_text("uml\n")
    (root / "etc" / "empty").touch()
    (root / "etc" / "link").symlink_to("hostname")
    (root / "etc" / "two\nlines").write_text("x")
    (root / "etc" / "way-out").symlink_to("/proc/self/environ")
    return root


@pytest.fixture(scope="module")
def disk(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with two partitions, of which each has an ext4 file system."""
    path, system = tmp_path_factory.mktemp("disk") / "disk.raw", tmp_path_factory.mktemp("disk") / "ext4"
    sectors = (16 << 20) // SECTOR
    with path.open("wb") as file:
        file.truncate((FIRST + 2 * sectors) * SECTOR + 3 * SECTOR)
        entry = struct.Struct("<B3sB3sII")
        file.seek(446)
        for number in range(2):
            file.write(entry.pack(0, b"\0\0\0", 0x83, b"\0\0\0", FIRST + number * sectors, sectors))
        file.seek(510)
        file.write(b"\x55\xaa")
        for number, label in enumerate(("root; rm", "data")):
            system.unlink(missing_ok=True)
            source = ("-d", str(files)) if number == 0 else ()
            subprocess.run(
                ["mkfs.ext4", "-q", "-L", label, *source, str(system), f"{sectors * SECTOR >> 10}k"], check=True
            )
            file.seek((FIRST + number * sectors) * SECTOR)
            file.write(system.read_bytes())
    return path


def test_files_are_fetched_out_of_a_vms_backup_by_command(
    site: Platform, new_vm: NewVm, new_repository: NewRepository, new_name: Callable[[], str], disk: Path, files: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    image = new_name()
    import_private(site, image, disk.read_bytes(), "raw", tmp_path)
    vm = new_vm(image=image, node="host-a", power="stopped")
    site.client.wait("vms", vm["id"], lambda now: now is not None and now["status"]["state"] == "stopped", 60)
    backup = back_up(site, vm, new_repository())
    listed = site.cli("backup", "files", backup["id"]).stdout
    assert "msdos1" in listed and "root; rm" in listed and "msdos2" in listed and "16.0 MiB" in listed
    assert site.cli("backup", "files", backup["id"], "msdos1:/etc").stdout.split("\n")[1].startswith("big")
    fetched = tmp_path / "fetched"
    said = site.cli("backup", "pull", backup["id"], "msdos1:/etc/big", str(fetched)).stdout
    assert f"{(3 << 20) + 17} bytes" in said
    assert fetched.read_bytes() == (files / "etc" / "big").read_bytes() and fetched.stat().st_mode & 0o077 == 0
    asked = f"/api/v1/backups/{backup['id']}/file?file_system=msdos1&path=/etc/hostname&offset=1"
    assert base64.b64decode(site.client.request("GET", asked)["data"]) == b"eb\n"
    copied = tmp_path / "copied"
    assert f"{copied}: 5 files, " in site.cli("backup", "pull", "-r", backup["id"], "msdos1:/etc", str(copied)).stdout
    assert sorted(path.name for path in copied.iterdir()) == ["big", "deep", "empty", "hostname", "link", "ümläut name"]
    assert (copied / "link").read_text() == "web\n" and (copied / "deep").is_dir()
    ambiguous = site.cli("backup", "pull", backup["id"], "/etc/big", str(fetched), check=False).stderr
    assert "several file systems: msdos1 (ext*), msdos2 (ext*)" in ambiguous and "msdos2:/etc/big" in ambiguous
    for place, why in (("msdos1:/nowhere", "is not in file system msdos1"), ("msdos1:/etc", "/etc is a directory")):
        assert why in site.cli("backup", "pull", backup["id"], place, str(tmp_path / "x"), check=False).stderr
    for system, path in (("../x", "/"), ("msdos1", "etc"), ("msdos1", "/a\nb"), ("host", "/etc/passwd")):
        with pytest.raises(ApiError) as refused:
            site.client.backup_files(backup["id"], system, path)
        assert refused.value.status == 400 and refused.value.field in ("file_system", "path"), refused.value
    names = {entry.name for entry in site.client.backups.get(backup["id"]).files("msdos1", "/etc").entries}
    assert names == {"big", "deep", "empty", "hostname", "link", "ümläut name"}
    path = f"/api/v1/backups/{backup['id']}/file"
    records = [
        record["path"].partition("?")[0]
        for record in site.client.list("audit", limit=200)
        if record["path"].startswith(path) and record["status"] == 200
    ]
    assert records.count(path) == 1 + 1 + 5 + 2, records
    assert len(records) == records.count(path) + 1, "names are recorded once in a while, however many are listed"


# The agent's part.


@pytest.fixture
def settings(tmp_path: Path) -> AgentSettings:
    return AgentSettings(
        tmp_path / "state", tmp_path / "images", "a", backup_dir=tmp_path / "backups", uid_base=UID_BASE
    )


@pytest.fixture
def opened(settings: AgentSettings, tmp_path: Path) -> Iterator[asyncio.Runner]:
    (tmp_path / "backups").mkdir()
    with asyncio.Runner() as runner:
        yield runner


def keep(settings: AgentSettings, disk: Path, *, encrypted: bool = False) -> RepositoryBackup:
    """Store a disk as a node does it."""
    key, content_key = DataKey("key-1", b"k" * 32), DataKey("key-2", b"c" * 32) if encrypted else None
    root = directory.root_of(settings, REPOSITORY)
    repository = directory.open_repository(root, key, begin=True, purpose=Purpose.WRITE)
    try:
        copied = DiskCopy(disk, cipher=None if content_key is None else ContentCipher(content_key))
        kept = contents.store(
            repository.repository, ("backup-1", "vm-1"), copied, (b"{}", FirmwareState()), never
        )  # fmt: skip
    finally:
        repository.close()
    return RepositoryBackup(REPOSITORY, kept.snapshot, key, content_key)


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_node_reads_files_where_the_disk_is_only_in_the_repository(
    settings: AgentSettings, opened: asyncio.Runner, disk: Path, files: Path, encrypted: bool
) -> None:
    backup = keep(settings, disk, encrypted=encrypted)

    async def work() -> None:
        read = BackupFiles(settings)
        systems = await read.systems(ListBackupFileSystems(backup))
        assert [(system.name, system.label) for system in systems] == [("msdos1", "root; rm"), ("msdos2", "data")]
        listing = await read.listing(ListBackupFiles(backup, "msdos1", "/etc"))
        by_name = {entry.name: entry for entry in listing.entries}
        assert by_name["deep"].is_directory and by_name["hostname"].size_bytes == 4
        assert by_name["link"].size_bytes == 4, "links are what they lead to"
        assert not any("lines" in name and "two" in name for name in by_name), "a name with a line feed is left out"
        whole, offset = b"", 0
        while True:
            piece = await read.read(ReadBackupFile(backup, "msdos1", "/etc/big", offset, 512 << 10))
            whole, offset = whole + piece.data, offset + len(piece.data)
            if piece.end:
                break
        assert whole == (files / "etc" / "big").read_bytes()
        empty = await read.read(ReadBackupFile(backup, "msdos1", "/etc/empty", 0, 100))
        assert (empty.data, empty.end) == (b"", True)
        for path in ("/etc/way-out", "/nowhere", "/etc"):
            with pytest.raises((InvalidInput, Unacceptable)):
                await read.read(ReadBackupFile(backup, "msdos1", path, 0, 100))
        await read.end()

    opened.run(work())


def test_a_backup_is_closed_once_nobody_looks_into_it_and_few_are_open(
    settings: AgentSettings, opened: asyncio.Runner, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = keep(settings, disk)
    monkeypatch.setattr(backup_files, "IDLE_S_MAX", 0.3)
    monkeypatch.setattr(backup_files, "OPEN_MAX", 1)

    async def work() -> None:
        read = BackupFiles(settings)
        await read.systems(ListBackupFileSystems(backup))
        (task,) = [held.task for held in read._open.values()]
        other = keep(settings, disk)
        assert other.snapshot != backup.snapshot
        await read.systems(ListBackupFileSystems(other))
        assert list(read._open) == [(REPOSITORY, other.snapshot)]
        await asyncio.gather(task, return_exceptions=True)
        (task,) = [held.task for held in read._open.values()]
        await asyncio.wait_for(task, 30)
        assert not read._open
        assert not list((tmp_path / "backups" / REPOSITORY / "locks").iterdir())
        await read.systems(ListBackupFileSystems(backup))
        await read.end()

    opened.run(work())


def test_a_backup_is_opened_again_if_what_serves_its_disk_is_killed(
    settings: AgentSettings, opened: asyncio.Runner, disk: Path
) -> None:
    backup = keep(settings, disk)

    async def work() -> None:
        read = BackupFiles(settings)
        await read.systems(ListBackupFileSystems(backup))
        (reader,) = [held.reader.result() for held in read._open.values()]
        namespace = next(word for word in reader.wrap(["true"]) if word.startswith("--mount=/proc/"))
        os.kill(int(namespace.split("/")[2]), signal.SIGKILL)
        await eventually(reader.has_ended)
        assert len(await read.systems(ListBackupFileSystems(backup))) == 2
        await read.end()

    opened.run(work())


def test_a_backup_that_can_t_be_read_says_why(
    settings: AgentSettings, opened: asyncio.Runner, disk: Path, tmp_path: Path
) -> None:
    backup = keep(settings, disk)

    async def work() -> None:
        read = BackupFiles(settings)
        gone = RepositoryBackup(REPOSITORY, "0" * 64, backup.key)
        with pytest.raises(Unacceptable, match="is no longer in the repository"):
            await read.systems(ListBackupFileSystems(gone))
        shutil.rmtree(tmp_path / "backups" / REPOSITORY / "data")
        with pytest.raises(Unacceptable, match="is not in"):
            await read.systems(ListBackupFileSystems(backup))
        await read.end()

    opened.run(work())


def test_file_systems_that_lie_cost_an_error_and_nothing_else(
    settings: AgentSettings, opened: asyncio.Runner, disk: Path, files: Path, tmp_path: Path
) -> None:
    """A guest that is hostile has written whatever it likes."""
    chance, whole = random.Random(11), bytearray(disk.read_bytes())
    digest = hashlib.sha256((files / "etc" / "big").read_bytes()).digest()

    async def work() -> None:
        read, answered = BackupFiles(settings), 0
        for _ in range(3):
            damaged = bytearray(whole)
            for _ in range(400):  # most of it where ext4 keeps what describes the rest
                damaged[FIRST * SECTOR + chance.randrange(1 << 20)] = chance.randrange(256)
            (tmp_path / "damaged").write_bytes(damaged)
            backup = keep(settings, tmp_path / "damaged")
            try:
                for path in ("/", "/etc"):
                    listing = await read.listing(ListBackupFiles(backup, "msdos1", path))
                    assert all("/" not in entry.name for entry in listing.entries)
                piece = await read.read(ReadBackupFile(backup, "msdos1", "/etc/big", 0, 4 << 20))
                answered += hashlib.sha256(piece.data).digest() == digest
            except (InvalidInput, Unacceptable):
                pass
        await read.end()

    opened.run(work())
