"""The database in three places on loopback: three etcd and three members, each a process of its own, to be killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from lab.platform import open_directory, until
from lab.ports import free_ports
from novacron import pki
from novacron.local.database_cluster import process
from novacron.local.database_cluster.files import MemberFiles
from novacron.local.postgres import Postgres

ETCD_TIMING = ("--heartbeat-interval", "100", "--election-timeout", "1000")
COMMAND_S_MAX = 180.0
END_S_MAX = 30.0
"""For a process that was killed."""


class EtcdTls(NamedTuple):
    """Files with which one side of a connection to etcd knows the other (PEM)."""

    ca: Path
    certificate: Path
    key: Path

    @classmethod
    def at(cls, directory: Path, side: str) -> EtcdTls:
        return cls(*(directory / f"{side}.{kind}" for kind in ("ca", "crt", "key")))

    def issue(self, authority: tuple[bytes, bytes], left_s: float) -> None:
        """Write a certificate of an authority (key and certificate) that ends in ``left_s``, or has ended."""
        issued_s = time.time() - pki.CA_DAYS * 86_400 + left_s
        key, certificate = pki.issue_host(*authority, self.key.stem, ["127.0.0.1", "localhost"], issued_s)
        for path, content in ((self.ca, authority[1]), (self.certificate, certificate), (self.key, key)):
            new = path.with_suffix(f"{path.suffix}.new")
            new.write_bytes(content)
            new.chmod(0o644)  # Patroni runs as another user
            new.replace(path)

    @property
    def options(self) -> list[str]:
        """Options of a member of the database."""
        names = ("--etcd-ca", "--etcd-certificate", "--etcd-key")
        return [word for name, path in zip(names, self, strict=True) for word in (name, str(path))]

    @property
    def etcd_options(self) -> list[str]:
        names = ("--trusted-ca-file", "--cert-file", "--key-file")
        return ["--client-cert-auth", *(w for name, path in zip(names, self, strict=True) for w in (name, str(path)))]

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca)
        context.load_cert_chain(self.certificate, self.key)
        return context


class EtcdMember:
    """One etcd; ``tls``: what it shows its clients, and demands of them. The lab asks it with the same."""

    def __init__(self, directory: Path, name: str, ports: tuple[int, int], tls: EtcdTls | None = None) -> None:
        self.name, self.directory, self.tls = name, directory / name, tls
        port, peer_port = ports
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{port}"
        self.peer_url = f"http://127.0.0.1:{peer_port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, peers: str) -> None:
        arguments = [
            "etcd", "--name", self.name, "--data-dir", str(self.directory),
            "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
            "--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url,
            "--initial-cluster", peers, *ETCD_TIMING, "--logger", "zap",
            *([] if self.tls is None else self.tls.etcd_options),
        ]  # fmt: skip
        with self.directory.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(END_S_MAX)

    def answers(self) -> bool:
        verify = True if self.tls is None else self.tls.context()
        try:
            answer = httpx.get(f"{self.url}/health", timeout=2, trust_env=False, verify=verify)
            return bool(answer.json().get("health") == "true")
        except (httpx.HTTPError, ValueError):
            return False


class Place:
    """One member: a state directory, its Patroni and its PostgreSQL."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name, self.state = name, directory / name
        self.port, self.api_port = free_ports(2)
        self.files = MemberFiles(self.state)
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def options(self) -> list[str]:
        return [
            "--host", "127.0.0.1", "--member", self.name, "--port", str(self.port), "--api-port", str(self.api_port),
            "--state-dir", str(self.state),
        ]  # fmt: skip

    @property
    def patroni_pid(self) -> int | None:
        """Patroni's process; None: it does not run."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            pid = int(self.files.pid_file.read_text())
            if str(self.files.patroni).encode() in _command_line(pid):
                return pid
        return None

    @property
    def postmaster_pid(self) -> int | None:
        """PostgreSQL's first process; None: it does not run."""
        with contextlib.suppress(FileNotFoundError, ValueError, IndexError):
            pid = int((self.files.data / "postmaster.pid").read_text().splitlines()[0])
            if str(self.files.data).encode() in _command_line(pid):
                return pid
        return None

    def start(self) -> None:
        """Start Patroni again."""
        with (self.state / "run.log").open("ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "novacron", "database", "cluster", "run", "--state-dir", str(self.state)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def show_certificate(self, left_s: float) -> None:
        """Let Patroni show a certificate that was issued so long ago that it ends in ``left_s``, or has ended."""
        now_s = time.time()
        self.files._write_certificates(*self.files.membership(), now_s - pki.CA_DAYS * 86_400 + left_s)
        process.reload(self.files)
        until(lambda: abs(self._shown_ends_at_s() - now_s - left_s) < 60, "Patroni shows it")

    def _shown_ends_at_s(self) -> float:
        """Return when the certificate ends that Patroni shows; 0: it does not listen, as while it reloads."""
        try:
            return pki.served_validity(f"https://127.0.0.1:{self.api_port}", 5).ends_at_s
        except OSError:
            return 0.0

    def kill_postgres(self) -> None:
        """End all processes of PostgreSQL as the system does when there is no memory left."""
        pid = self.postmaster_pid
        assert pid is not None, f"{self.name} has no PostgreSQL"
        _kill([pid, *_children(pid)])

    def kill(self) -> None:
        """End Patroni and PostgreSQL as a power cut would."""
        pids = [pid for pid in (self.patroni_pid, self.postmaster_pid) if pid is not None]
        _kill([*pids, *(child for pid in pids for child in _children(pid))])
        if self._child is not None:
            self._child.wait(END_S_MAX)
        until(lambda: self.patroni_pid is None and self.postmaster_pid is None, f"{self.name} has ended")

    def stop(self) -> None:
        """Let Patroni stop PostgreSQL and end; kill what is left."""
        pid = self.patroni_pid
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            with contextlib.suppress(AssertionError):
                until(lambda: self.patroni_pid is None, f"{self.name} has stopped", 20)
        self.kill()


class DatabaseCluster:
    """Three places, and the etcd of each; ``tls``: etcd speaks TLS, and demands a certificate."""

    def __init__(self, directory: Path, *, tls: bool = False) -> None:
        self.directory = directory
        self.client_tls, self.etcd_tls = (EtcdTls.at(directory, side) if tls else None for side in ("client", "etcd"))
        self.etcd = [
            EtcdMember(directory, f"etcd-{i}", tuple(free_ports(2)), self.etcd_tls)  # type: ignore[arg-type]
            for i in "abc"
        ]
        self.places = [Place(directory, f"database-{i}") for i in "abc"]

    def start_etcd(self, members: list[EtcdMember] | None = None) -> None:
        peers = ",".join(f"{each.name}={each.peer_url}" for each in self.etcd)
        for each in members or self.etcd:
            each.start(peers)
        until(lambda: all(each.answers() for each in members or self.etcd), "etcd has a majority", 30)

    def init(self, place: Place, *more: str) -> subprocess.CompletedProcess[str]:
        """Make a place's embedded database the first member."""
        endpoints = [word for each in self.etcd for word in ("--etcd", each.url)]
        tls = [] if self.client_tls is None else self.client_tls.options
        return self.command("init", *place.options, *endpoints, *tls, *more)

    def join(self, place: Place, source: Place, *more: str) -> subprocess.CompletedProcess[str]:
        return self.command("join", "--file", str(source.files.join_file), *place.options, *more)

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Do ``novacron database cluster ...`` as it is typed."""
        return subprocess.run(
            [sys.executable, "-m", "novacron", "database", "cluster", *words],
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=COMMAND_S_MAX,
        )  # fmt: skip

    def tell(self, *words: str, place: Place | None = None) -> subprocess.CompletedProcess[str]:
        """Do a command that is about the cluster, as on a place's machine."""
        return self.command(*words, "--state-dir", str((place or self.places[0]).state))

    def status(self, place: Place | None = None) -> dict[str, Any]:
        done = self.tell("status", "--output", "json", place=place)
        try:
            found: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            raise AssertionError(f"status: {done.returncode}: {done.stderr}") from None
        return found

    def leader(self) -> Place:
        """Return the place of the primary."""
        name = until(lambda: self.status()["primary"], "there is a primary", 60)
        return next(each for each in self.places if each.name == name)

    def wait_well(self, timeout_s: float = 90.0) -> dict[str, Any]:
        """Wait until nothing is wrong."""
        last: dict[str, Any] = {}

        def is_well() -> dict[str, Any] | None:
            last.update(self.status())
            return last if last["well"] else None

        try:
            return until(is_well, "the cluster is well", timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}: {json.dumps(last, indent=1)}") from None

    @property
    def url(self) -> str:
        """How servers reach it."""
        return self.places[0].files.url_file.read_text().strip()

    def up(self) -> None:
        """Make three members of the embedded database in the first place; it is empty unless there is one already."""
        self.start_etcd()
        first = self.places[0]
        if not (first.files.data / "PG_VERSION").exists():
            database = Postgres(first.state / "postgres")
            database.start()
            database.stop()
        checked(self.init(first))
        with ThreadPoolExecutor() as pool:
            for done in pool.map(lambda place: self.join(place, first), self.places[1:]):
                checked(done)
        self.wait_well()

    def down(self) -> None:
        """End all processes, also when one of them can't be ended, which is raised at the end."""
        with contextlib.ExitStack() as ending:
            for etcd in self.etcd:  # the last that are ended
                ending.callback(etcd.kill)
            for place in self.places:
                ending.callback(place.kill)


def checked(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a command wrote. Raises AssertionError if it failed."""
    assert done.returncode == 0, f"{done.args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextlib.contextmanager
def database_cluster(*, tls: bool = False) -> Iterator[DatabaseCluster]:
    """Make a folder, and end all of its processes afterwards; nothing is started yet."""
    with open_directory("nvdc-") as directory:
        cluster = DatabaseCluster(directory, tls=tls)
        try:
            yield cluster
        finally:
            cluster.down()


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
