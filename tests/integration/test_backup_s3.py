"""Repositories in buckets of a real S3 server: restic reads them, and what ends or lies harms nothing."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from novacron.agent.backups import VmBackups
from novacron.agent.repositories import contents, directory
from novacron.agent.repositories.contents import DiskCopy
from novacron.agent.repositories.directory import OpenRepository, Purpose
from novacron.agent.repositories.threads import never
from novacron.agent.settings import AgentSettings
from novacron.backup import restic, s3
from novacron.backup.addresses import BadAddress
from novacron.backup.errors import Damaged, DamagedBlobs, NotAllowed, NotStored, RepositoryError
from novacron.backup.places import storage_at
from novacron.backup.repository import Repository
from novacron.backup.requests import LIMITS
from novacron.backup.restic import PruneLimits
from novacron.backup.s3 import S3Storage
from novacron.backup.s3_address import S3Address
from novacron.backup.storage import Kind
from novacron.disk.errors import Unacceptable
from novacron.model.backup import BackupPhase
from novacron.model.firmware_state import FirmwareState
from novacron.platform_key import new_key
from novacron.wire import messages as wire
from tests.support.repositories import check_packs
from tests.support.s3 import ADMIN, NODE, Credentials, S3Server
from tests.waiting import eventually, until

ROOT = Path(__file__).parents[2]
REPOSITORY = "repo-0123456789abcdef"
KEY = new_key()
VM = "vm-1"
BESIDE = (b'{"name": "web"}', FirmwareState(nvram=b"variables"))
LOCK_RULE = b"""<ObjectLockConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><ObjectLockEnabled>Enabled\
</ObjectLockEnabled><Rule><DefaultRetention><Mode>GOVERNANCE</Mode><Days>1</Days></DefaultRetention></Rule>\
</ObjectLockConfiguration>"""
"""Nothing that is written can be removed for a day: deleting it leaves a mark, and the version below."""
IMPATIENT = LIMITS._replace(request_s=0.5, repeat_s=1.0)
WRITER = """
import sys
from pathlib import Path
from novacron.agent.repositories import contents, directory, threads
from novacron.backup.locks import survive_hangups
from novacron.backup.places import place_of
from novacron.model.encryption import DataKey
from novacron.model.firmware_state import FirmwareState
survive_hangups()
place, id, secret, disk = sys.argv[1:]
opened = directory.open_repository(place_of(place), DataKey(id, bytes.fromhex(secret)), begin=True)
beside = (b"{}", FirmwareState())
contents.store(opened.repository, ("backup-killed", "vm-1"), contents.DiskCopy(Path(disk)), beside, threads.never)
"""


class Bucket:
    """A bucket, with a place of the test's own in it."""

    def __init__(self, server: S3Server, name: str, files: Path) -> None:
        self.server, self.name, self._files = server, name, files
        self.prefix = f"backups/{_sha256(str(files).encode())[:16]}"

    def address(self, who: Credentials = ADMIN) -> S3Address:
        return S3Address.parse(self.text(who))

    def text(self, who: Credentials = ADMIN) -> str:
        file = self._files / who.key
        if not file.exists():
            who.file(file)
        return f"s3://{self.name}/{self.prefix}?endpoint={self.server.endpoint}&credentials={file}"

    def opened(self, who: Credentials = ADMIN, purpose: Purpose = Purpose.WRITE) -> OpenRepository:
        return directory.open_repository(self.address(who), KEY, begin=True, purpose=purpose)

    def restic(self, *arguments: str) -> bytes:
        """Run restic on the repository; return what it prints. Raises AssertionError."""
        done = subprocess.run(
            ["restic", "--no-cache", "-q", "-r", f"s3:{self.server.endpoint}/{self.name}/{self.prefix}", *arguments],
            capture_output=True, check=False,
            env={**os.environ, **ADMIN.environment(), "RESTIC_PASSWORD": KEY.passphrase().decode()},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def names(self, kind: Kind) -> list[str]:
        return list(storage_at(self.address()).names(kind))

    def damage(self, pack: str) -> None:
        """Flip a bit of a pack, behind everybody's back."""
        path = f"/{self.name}/{self.prefix}/data/{pack[:2]}/{pack}"
        content = bytearray(self.server.ask("GET", path).content)
        content[len(content) // 2] ^= 1
        assert self.server.ask("PUT", path, bytes(content)).status_code == 200


@pytest.fixture
def bucket(s3_server: S3Server, tmp_path: Path) -> Bucket:
    return Bucket(s3_server, s3_server.new_bucket("plain"), tmp_path)


@pytest.fixture
def locked_bucket(s3_server: S3Server, tmp_path: Path) -> Bucket:
    """A bucket with versions, in which what is written stays for a day."""
    name = s3_server.new_bucket("locked", object_lock=True)
    assert s3_server.ask("PUT", f"/{name}?object-lock=", LOCK_RULE).status_code == 200
    return Bucket(s3_server, name, tmp_path)


def _disk(tmp_path: Path, mib: int = 3) -> Path:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.write(os.urandom(mib << 20))
        file.truncate((mib << 20) + 12_345)
    return path


def _stored(opened: OpenRepository, backup: str, disk: Path) -> str:
    return contents.store(opened.repository, (backup, VM), DiskCopy(disk), BESIDE, never).snapshot


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("kind", ["bucket", "locked_bucket"])
def test_restic_reads_what_was_written_and_prunes_it(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    place: Bucket = request.getfixturevalue(kind)
    disk = _disk(tmp_path, 20)
    with contextlib.closing(place.opened()) as opened:
        first = _stored(opened, "backup-1", disk)
        with disk.open("r+b") as file:
            file.seek(1 << 20)
            file.write(os.urandom(4096))
        again = opened.storage.written_bytes
        second = _stored(opened, "backup-2", disk)
        assert opened.storage.written_bytes - again < 1 << 20, "what is there is not written again"
    assert place.names(Kind.LOCK) == []
    place.restic("check", "--read-data")
    assert _sha256(place.restic("dump", second, "/vm/disk.raw")) == _sha256(disk.read_bytes())
    place.restic("forget", "--prune", first)
    assert place.names(Kind.SNAPSHOT) == [second]
    with contextlib.closing(place.opened(purpose=Purpose.READ)) as opened:
        contents.verify(opened.repository, second, never)
        assert contents.restore(opened.repository, second, tmp_path / "back") == BESIDE[1]
    assert _sha256((tmp_path / "back").read_bytes()) == _sha256(disk.read_bytes())


def test_what_restic_wrote_is_read_here(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    disk = _disk(tmp_path / "folder")
    bucket.restic("init")
    bucket.restic("backup", str(tmp_path / "folder"))
    repository = Repository.open(storage_at(bucket.address()), KEY.passphrase())
    assert len(list(repository.snapshots())) == 1 and list(check_packs(repository)) == []
    with contextlib.closing(bucket.opened()) as opened:
        made = _stored(opened, "backup-1", disk)
    assert bucket.restic("dump", made, "/vm/disk.raw") == disk.read_bytes()
    bucket.restic("check", "--read-data")


def test_files_are_read_in_parts_and_never_written_over(bucket: Bucket) -> None:
    storage = S3Storage(bucket.address())
    name = _sha256(b"a")
    storage.write(Kind.PACK, name, b"0123456789")
    storage.write(Kind.PACK, name, b"something else")
    assert storage.read(Kind.PACK, name) == b"0123456789", "a file that is there stays as it is"
    parts = {(3, 4): b"3456", (3, None): b"3456789", (-4, None): b"6789", (-4, 2): b"67", (2, 0): b""}
    assert {part: storage.read(Kind.PACK, name, *part) for part in parts} == parts
    for part in ((5, 6), (10, 1), (99, 4)):
        with pytest.raises(Damaged, match="shorter than expected"):
            storage.read(Kind.PACK, name, *part)
    with pytest.raises(NotStored, match=f"keys/{name} can't be read from s3://{bucket.name}/{bucket.prefix}"):
        storage.read(Kind.KEY, name)
    names = sorted({name, *(_sha256(bytes([n])) for n in range(10))})
    for other in names:
        storage.write(Kind.PACK, other, b"x")
    foreign = ("x", f"data/{name}", f"data/00/{name}", f"data/{name[:2]}/{name}-tmp")
    for key in foreign:
        bucket.server.ask("PUT", f"/{bucket.name}/{bucket.prefix}/{key}", b"x")
    assert list(storage.names(Kind.PACK)) == names, "and nothing that is no file of a repository"
    assert list(storage.names(Kind.SNAPSHOT)) == []
    storage.remove(Kind.PACK, name)
    storage.remove(Kind.PACK, name)
    assert name not in set(storage.names(Kind.PACK))


def test_lists_are_whole_also_where_the_server_sends_them_in_parts(bucket: Bucket) -> None:
    storage, names = S3Storage(bucket.address()), sorted(_sha256(n.to_bytes(2)) for n in range(1100))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda name: storage.write(Kind.INDEX, name, b"x"), names):
            pass
    assert list(storage.names(Kind.INDEX)) == names


def test_credentials_that_are_replaced_are_used_in_work_that_goes_on(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "CREDENTIALS_LIFE", timedelta(0))
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of somebody else")
    address = bucket.address()
    storage = S3Storage(address, IMPATIENT)
    storage.write(Kind.LOCK, "0" * 64, b"x")
    assert address.credentials_file is not None
    Credentials(ADMIN.key, "another").file(address.credentials_file)
    with pytest.raises(NotAllowed, match="the secret key is wrong"):
        storage.read(Kind.LOCK, "0" * 64)
    ADMIN.file(address.credentials_file)
    assert storage.read(Kind.LOCK, "0" * 64) == b"x"


def test_a_server_has_to_prove_who_it_is(bucket: Bucket) -> None:
    address = bucket.text().replace(bucket.server.endpoint, bucket.server.tls_endpoint)
    storage = S3Storage(S3Address.parse(f"{address}&ca={bucket.server.ca}"))
    storage.write(Kind.LOCK, "0" * 64, b"x")
    assert storage.read(Kind.LOCK, "0" * 64) == b"x"
    with pytest.raises(RepositoryError, match="does not answer correctly"):
        S3Storage(S3Address.parse(address), IMPATIENT).read(Kind.LOCK, "0" * 64)
    other = S3Address.parse(f"{address}&ca={bucket.address().credentials_file}")
    with pytest.raises(BadAddress, match="check its endpoint, region and ca"):
        S3Storage(other)


def test_nodes_that_begin_a_repository_at_once_share_it(bucket: Bucket) -> None:
    bucket.text()  # its credentials are written once, before others read them

    def begin(_: int) -> str:
        with contextlib.closing(bucket.opened()) as opened:
            return opened.repository.id

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(begin, range(4)))) == 1
    storage = storage_at(bucket.address())
    keys = {name: storage.read(Kind.KEY, name) for name in bucket.names(Kind.KEY)}
    for alone in keys:  # restic takes whichever comes first
        for name, content in keys.items():
            if name == alone:
                storage.write(Kind.KEY, name, content)
            else:
                storage.remove(Kind.KEY, name)
        bucket.restic("check")


def test_a_repository_is_begun_by_whoever_comes_after_one_who_was_ended(bucket: Bucket, tmp_path: Path) -> None:
    storage = S3Storage(bucket.address())

    class Ended(Exception):
        pass

    class Ending(S3Storage):
        def write(self, kind: Kind, name: str, content: bytes) -> None:
            if kind is Kind.CONFIG:
                raise Ended
            super().write(kind, name, content)

    with pytest.raises(Ended):
        Repository.begin(Ending(bucket.address()), KEY.passphrase(), directory.COST)
    assert len(bucket.names(Kind.KEY)) == 1 and not directory.is_begun(storage)
    with pytest.raises(Unacceptable, match="--backup-dir"):
        directory.open_repository(bucket.address(), KEY, begin=False)
    with contextlib.closing(bucket.opened()) as opened:
        _stored(opened, "backup-1", _disk(tmp_path))
    bucket.restic("check", "--read-data")


def test_a_writer_that_is_killed_leaves_no_backup_and_nothing_in_the_way(bucket: Bucket, tmp_path: Path) -> None:
    disk = _disk(tmp_path, 120)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, bucket.text(), KEY.id, KEY.secret.hex(), str(disk)], stdin=subprocess.DEVNULL
    )
    try:
        until(lambda: len(bucket.names(Kind.PACK)) >= 2, "it writes", 60)
        assert writer.poll() is None
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert bucket.names(Kind.SNAPSHOT) == []
    with contextlib.closing(bucket.opened(purpose=Purpose.DELETE)):
        assert len(bucket.names(Kind.LOCK)) == 1, "the lock of who is gone was taken away"
    with contextlib.closing(bucket.opened()) as opened:
        made = _stored(opened, "backup-1", disk)
    bucket.restic("check", "--read-data")
    assert _sha256(bucket.restic("dump", made, "/vm/disk.raw")) == _sha256(disk.read_bytes())


def test_a_write_goes_on_once_a_server_that_was_killed_is_back(bucket: Bucket, tmp_path: Path) -> None:
    disk = _disk(tmp_path, 60)
    made = list[str]()
    with contextlib.closing(bucket.opened()) as opened:
        writing = threading.Thread(target=lambda: made.append(_stored(opened, "backup-1", disk)))
        writing.start()
        until(lambda: len(bucket.names(Kind.PACK)) >= 1, "it writes", 60)
        bucket.server.kill()
        bucket.server.start()
        writing.join(120)
    assert made == bucket.names(Kind.SNAPSHOT)
    bucket.restic("check", "--read-data")
    assert _sha256(bucket.restic("dump", made[0], "/vm/disk.raw")) == _sha256(disk.read_bytes())


def _each_request(storage: S3Storage) -> dict[str, Callable[[], object]]:
    name = _sha256(b"a")
    return {
        "read from": lambda: storage.read(Kind.CONFIG, ""), "written to": lambda: storage.write(Kind.PACK, name, b"x"),
        "listed in": lambda: list(storage.names(Kind.INDEX)), "removed from": lambda: storage.remove(Kind.LOCK, name),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"credentials_file": Credentials(ADMIN.key, "another-secret")}, "the secret key is wrong"),
        ({"credentials_file": Credentials("NOBODY", "a-secret")}, "does not know the access key"),
        ({"credentials_file": NODE}, "access was denied"),
        ({"endpoint": "http://127.0.0.1:9"}, "check that it runs"),
    ],
)
def test_what_is_wrong_is_said_in_words_with_bucket_and_key(
    bucket: Bucket, tmp_path: Path, change: dict[str, str | Credentials], words: str
) -> None:
    fields = {
        name: value.file(tmp_path / "other") if isinstance(value, Credentials) else value
        for name, value in change.items()
    }
    address = bucket.address()
    changed = S3Address(bucket.name, address.prefix, **{  # type: ignore[arg-type]
        "endpoint": address.endpoint, "credentials_file": address.credentials_file, **fields
    })  # fmt: skip
    for doing, request in _each_request(S3Storage(changed, IMPATIENT)).items():
        with pytest.raises(RepositoryError) as error:
            request()
        text = str(error.value)
        assert doing in text and f"s3://{bucket.name}/{bucket.prefix}" in text and words in text
        assert "secret" not in text.replace("the secret key is wrong", "") and error.value.__cause__ is None


def test_a_bucket_that_is_missing_is_no_repository_that_has_to_be_begun(bucket: Bucket) -> None:
    bucket.name = "missing"
    for doing, request in _each_request(S3Storage(bucket.address())).items():
        if doing == "read from":
            with pytest.raises(RepositoryError, match="no such bucket") as error:
                request()
            assert not isinstance(error.value, NotStored)
    with pytest.raises(RepositoryError, match="no such bucket"):
        bucket.opened()


def test_a_server_that_stands_still_is_given_up_in_time(bucket: Bucket) -> None:
    storage = S3Storage(bucket.address(), IMPATIENT)
    with bucket.server.standing_still():
        for doing, request in _each_request(storage).items():
            with pytest.raises(RepositoryError, match=rf"{doing} .* in time"):
                request()
    for request in _each_request(storage).values():
        with contextlib.suppress(NotStored):
            request()


def test_flipped_bits_are_found_and_the_rest_can_be_used(bucket: Bucket, tmp_path: Path) -> None:
    disk, other = _disk(tmp_path), tmp_path / "other"
    other.write_bytes(os.urandom(1 << 20))
    with contextlib.closing(bucket.opened()) as opened:
        whole = _stored(opened, "backup-1", other)
        before = set(bucket.names(Kind.PACK))
        damaged = _stored(opened, "backup-2", disk)
    largest = {
        name: len(storage_at(bucket.address()).read(Kind.PACK, name)) for name in bucket.names(Kind.PACK)
    }  # fmt: skip
    pack = max(set(largest) - before, key=lambda name: largest[name])
    bucket.damage(pack)
    with contextlib.closing(bucket.opened(purpose=Purpose.DELETE)) as opened:
        with pytest.raises(DamagedBlobs) as error:
            contents.verify(opened.repository, damaged, never)
        assert error.value.packs == {bytes.fromhex(pack)}
        contents.verify(opened.repository, whole, never)
        opened.repository.replace_packs(error.value.packs)
    with contextlib.closing(bucket.opened()) as opened:
        _stored(opened, "backup-3", disk)
        contents.verify(opened.repository, damaged, never)
        contents.restore(opened.repository, damaged, tmp_path / "back")
    assert _sha256((tmp_path / "back").read_bytes()) == _sha256(disk.read_bytes())


def test_a_repository_of_yesterday_lacks_the_backups_since(bucket: Bucket, tmp_path: Path) -> None:
    with contextlib.closing(bucket.opened()) as opened:
        first, second = (_stored(opened, f"backup-{n}", _disk(tmp_path)) for n in (1, 2))
    bucket.server.ask("DELETE", f"/{bucket.name}/{bucket.prefix}/snapshots/{second}")
    with contextlib.closing(bucket.opened()) as opened:
        contents.verify(opened.repository, first, never)
        with pytest.raises(NotStored, match="no longer in the repository"):
            contents.verify(opened.repository, second, never)


def _policy(bucket: Bucket, *deletable: str) -> dict[str, Any]:
    """Return what nodes may do in a bucket: add, read, list, and delete below some prefixes."""
    page = (ROOT / "docs/how-to/back-up-vms.md").read_text()
    text = page.partition("```json\n")[2].partition("```")[0]
    policy: dict[str, Any] = json.loads(text.replace("BUCKET", bucket.name))
    policy["Statement"][-1]["Resource"] = [f"arn:aws:s3:::{bucket.name}/{prefix}/*" for prefix in deletable]
    return policy


@pytest.fixture
def append_only(s3_server: S3Server, tmp_path: Path) -> Bucket:
    """A bucket with the policy of the documentation: nodes can delete nothing but locks."""
    bucket = Bucket(s3_server, s3_server.new_bucket("appendonly"), tmp_path)
    s3_server.allow(bucket.name, _policy(bucket, "*/locks"))
    return bucket


def test_a_node_that_may_not_delete_makes_backups_and_says_where_to_delete_them(
    append_only: Bucket, tmp_path: Path
) -> None:
    disk = _disk(tmp_path)
    with contextlib.closing(append_only.opened(NODE)) as opened:
        made = _stored(opened, "backup-1", disk)
        contents.verify(opened.repository, made, never)
    refused = f"is not allowed to delete backups: run restic forget {made[:8]} on the host .*access was denied"
    with (
        contextlib.closing(append_only.opened(NODE, Purpose.DELETE)) as opened,
        pytest.raises(NotAllowed, match=refused),
    ):
        contents.forget(opened.repository, "backup-1")
    assert append_only.names(Kind.LOCK) == [], "nobody is kept out"
    append_only.restic("check", "--read-data")
    append_only.restic("forget", "--prune", made[:8])
    with contextlib.closing(append_only.opened(NODE, Purpose.DELETE)) as opened:
        contents.forget(opened.repository, "backup-1")


def test_whoever_can_not_remove_locks_takes_none(append_only: Bucket, tmp_path: Path) -> None:
    append_only.opened().close()
    append_only.server.allow(append_only.name, _policy(append_only, "nothing"))
    for purpose in (Purpose.WRITE, Purpose.DELETE):
        with pytest.raises(NotAllowed, match=r"locks/0000.* can't be removed from .*policy"):
            append_only.opened(NODE, purpose)
    assert append_only.names(Kind.LOCK) == []
    with contextlib.closing(append_only.opened(NODE, Purpose.READ)) as opened:
        assert opened.lock is None


async def test_an_agent_reports_what_became_of_backups_in_a_bucket(append_only: Bucket, tmp_path: Path) -> None:
    """The agent's own part, with a backup that another node made."""
    place = S3Address.parse(append_only.text(NODE).replace(append_only.prefix, "backups"))
    settings = AgentSettings(tmp_path, tmp_path / "images", "host-a", backup_dir=place)
    root = directory.root_of(settings, REPOSITORY)
    with contextlib.closing(directory.open_repository(root, KEY, begin=True)) as opened:
        made = _stored(opened, "backup-1", _disk(tmp_path))
    reports = list[wire.BackupStands]()

    def send(message: wire.Message) -> None:
        assert isinstance(message, wire.BackupStands)
        reports.append(message)

    backups = VmBackups(settings, lambda _vm: None, send)
    wanted = wire.BackupWanted("backup-1", VM, "web", BackupPhase.VERIFYING, REPOSITORY, False, made, b"", KEY)
    async with asyncio.TaskGroup() as tasks:
        backups.tell((wanted,), tasks)
        await eventually(lambda: reports, "it was verified", 60)
        assert (reports[-1].phase, reports[-1].error) == (BackupPhase.KEPT, "")
        backups.tell((msgspec.structs.replace(wanted, phase=BackupPhase.DELETING),), tasks)
        await eventually(lambda: len(reports) > 1, "deleting it was tried", 60)
        assert reports[-1].error.startswith(f"this node is not allowed to delete backups: run restic forget {made[:8]}")
        backups.tell((), tasks)


def test_the_room_of_deleted_backups_is_freed_where_that_may_be(
    bucket: Bucket, append_only: Bucket, tmp_path: Path
) -> None:
    disk, limits = _disk(tmp_path, 20), PruneLimits(300.0)
    for place, who in ((bucket, ADMIN), (append_only, NODE)):
        with contextlib.closing(place.opened(who)) as opened:
            made = _stored(opened, "backup-1", disk)
        storage_at(place.address()).remove(Kind.SNAPSHOT, made)
        assert place.names(Kind.PACK)
    freed = asyncio.run(restic.prune(bucket.address(), KEY.passphrase(), limits))
    assert freed.startswith("20.") and not bucket.names(Kind.PACK) and not bucket.names(Kind.LOCK)
    before = append_only.names(Kind.PACK)
    with pytest.raises(NotAllowed, match="don't allow deleting"):
        asyncio.run(restic.prune(append_only.address(NODE), KEY.passphrase(), limits))
    assert append_only.names(Kind.PACK) == before, "nothing was written anew in vain"
