"""Repositories behind restic's REST protocol, as rclone serves it: restic reads them, and nodes need not delete."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from lab.ports import free_ports
from novacron import private_file
from novacron.agent.repositories import contents, directory
from novacron.agent.repositories.contents import DiskCopy
from novacron.agent.repositories.directory import OpenRepository, Purpose
from novacron.agent.repositories.threads import never
from novacron.backup.errors import Damaged, DamagedBlobs, NotAllowed, NotStored, RepositoryError
from novacron.backup.requests import LIMITS
from novacron.backup.rest import RestStorage
from novacron.backup.rest_address import RestAddress
from novacron.backup.storage import Kind
from novacron.model.firmware_state import FirmwareState
from novacron.platform_key import new_key
from tests.waiting import until

KEY = new_key()
USER, PASSWORD = "node", "an-example-of-a-password"
BESIDE = (b"{}", FirmwareState())
IMPATIENT = LIMITS._replace(request_s=0.5, repeat_s=0.5)


class RestServer:
    """rclone, which serves a directory on loopback."""

    def __init__(self, root: Path, *options: str) -> None:
        (self.port,) = free_ports(1)
        self.data = root / "data"
        self.data.mkdir()
        self.credentials = root / "credentials"
        private_file.write(self.credentials, f"[default]\nusername = {USER}\npassword = {PASSWORD}\n".encode())
        self._process = subprocess.Popen(
            [Path(sys.executable).parent / "rclone", "serve", "restic", "--addr", f"127.0.0.1:{self.port}",
             "--config", "/dev/null", *options, str(self.data)],
            env={**os.environ, "RCLONE_USER": USER, "RCLONE_PASS": PASSWORD}, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until(self._answers, "rclone answers", 30)

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{self.port}/").status_code == httpx.codes.UNAUTHORIZED
        return False

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def address(self) -> RestAddress:
        return RestAddress.parse(f"rest:http://127.0.0.1:{self.port}/vms/repo-1?credentials={self.credentials}")

    def opened(self, purpose: Purpose = Purpose.WRITE) -> OpenRepository:
        return directory.open_repository(self.address(), KEY, begin=True, purpose=purpose)

    def restic(self, *arguments: str) -> bytes:
        """Run restic on the directory that is served; return what it prints. Raises AssertionError."""
        done = subprocess.run(
            ["restic", "--no-cache", "-q", "-r", str(self.data / "vms/repo-1"), *arguments], capture_output=True,
            env={**os.environ, "RESTIC_PASSWORD": KEY.passphrase().decode()}, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RestServer]:
    running = RestServer(tmp_path)
    yield running
    running.end()


@pytest.fixture
def append_only(tmp_path: Path) -> Iterator[RestServer]:
    running = RestServer(tmp_path, "--append-only")
    yield running
    running.end()


def _disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(os.urandom((20 << 20) + 12_345))
    return path


def _stored(opened: OpenRepository, backup: str, disk: Path) -> str:
    return contents.store(opened.repository, (backup, "vm-1"), DiskCopy(disk), BESIDE, never).snapshot


def test_restic_reads_what_was_written_and_damage_is_found(server: RestServer, tmp_path: Path) -> None:
    disk = _disk(tmp_path)
    with contextlib.closing(server.opened()) as opened:
        made = _stored(opened, "backup-1", disk)
        contents.verify(opened.repository, made, never)
        contents.restore(opened.repository, made, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == disk.read_bytes()
    server.restic("check", "--read-data")
    assert server.restic("dump", made, "/vm/disk.raw") == disk.read_bytes()
    server.restic("backup", str(tmp_path / "credentials"))
    pack = max((server.data / "vms/repo-1/data").glob("*/*"), key=lambda path: path.stat().st_size)
    content = bytearray(pack.read_bytes())
    content[len(content) // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(content)
    with contextlib.closing(server.opened(Purpose.DELETE)) as opened:
        assert len(list(opened.repository.snapshots())) == 2
        with pytest.raises(DamagedBlobs):
            contents.verify(opened.repository, made, never)
        contents.forget(opened.repository, "backup-1")
        assert len(list(opened.repository.snapshots())) == 1


def test_where_nothing_but_locks_can_be_deleted_backups_are_made(append_only: RestServer, tmp_path: Path) -> None:
    with contextlib.closing(append_only.opened()) as opened:
        made = _stored(opened, "backup-1", _disk(tmp_path))
    refused = f"run restic forget {made[:8]} on the host .*access was denied"
    with (
        contextlib.closing(append_only.opened(Purpose.DELETE)) as opened,
        pytest.raises(NotAllowed, match=refused),
    ):
        contents.forget(opened.repository, "backup-1")
    assert list(RestStorage(append_only.address()).names(Kind.LOCK)) == []
    append_only.restic("check", "--read-data")


@pytest.mark.parametrize("kind", ["server", "append_only"])
def test_files_are_read_in_parts_and_never_written_over(kind: str, request: pytest.FixtureRequest) -> None:
    server: RestServer = request.getfixturevalue(kind)
    storage, name = RestStorage(server.address()), "ab" * 32
    assert list(storage.names(Kind.PACK)) == [], "not even a folder"
    storage.write(Kind.PACK, name, b"0123456789")
    storage.write(Kind.PACK, name, b"something else")
    parts = {(0, None): b"0123456789", (3, 4): b"3456", (3, None): b"3456789", (-4, None): b"6789", (2, 0): b""}
    assert {part: storage.read(Kind.PACK, name, *part) for part in parts} == parts
    for part in ((5, 6), (10, 1), (99, 4)):
        with pytest.raises(Damaged, match="shorter than expected"):
            storage.read(Kind.PACK, name, *part)
    assert list(storage.names(Kind.PACK)) == [name]
    with pytest.raises(NotStored):
        storage.read(Kind.KEY, name)
    storage.remove(Kind.LOCK, name)


def test_what_is_wrong_is_said_in_words(server: RestServer, tmp_path: Path) -> None:
    private_file.write(tmp_path / "other", b"[default]\nusername = node\npassword = another-secret\n")
    address = RestAddress(f"http://127.0.0.1:{server.port}", "vms/repo-1", tmp_path / "other")
    with pytest.raises(NotAllowed, match=r"config can't be read from rest:http://127.*access was denied") as error:
        RestStorage(address).read(Kind.CONFIG, "")
    assert "secret" not in str(error.value)
    server.end()
    for request in (
        lambda: RestStorage(address, IMPATIENT).read(Kind.CONFIG, ""),
        lambda: RestStorage(address, IMPATIENT).write(Kind.LOCK, "ab" * 32, b"x"),
    ):
        with pytest.raises(RepositoryError, match="check that it runs"):
            request()


class Endless(BaseHTTPRequestHandler):
    """Answers every read with more than was asked for, as long as anybody takes it."""

    status, said_bytes = 206, 0

    def do_GET(self) -> None:
        self.send_response(type(self).status)
        self.end_headers()
        with contextlib.suppress(OSError):
            while type(self).said_bytes < 1 << 30:
                type(self).said_bytes += self.wfile.write(bytes(1 << 16))

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


@pytest.mark.parametrize(("status", "why"), [(206, "longer than it should be"), (200, "501")])
def test_a_server_that_answers_more_than_was_asked_for_fills_no_memory(
    monkeypatch: pytest.MonkeyPatch, status: int, why: str
) -> None:
    monkeypatch.setattr(Endless, "status", status)
    monkeypatch.setattr(Endless, "said_bytes", 0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        storage = RestStorage(RestAddress(f"http://127.0.0.1:{server.server_port}", "vms", None), IMPATIENT)
        with pytest.raises(RepositoryError, match=why):
            storage.read(Kind.PACK, "ab" * 32, 0, 4096)
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
    assert Endless.said_bytes < 64 << 20, "what the sockets hold, not what it had to say"
