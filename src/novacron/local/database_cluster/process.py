"""Patroni itself, which starts PostgreSQL and keeps it what the cluster wants it to be."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

from novacron.child_environment import clean
from novacron.local.database_cluster.files import MemberFiles
from novacron.local.database_cluster.settings import ClusterFailed
from novacron.local.postgres import LOCK, server_user
from novacron.state_lock import FolderInUse, FolderLock
from novacron.terminal import say


def command(files: MemberFiles) -> list[str]:
    return [sys.executable, "-m", "patroni", str(files.patroni)]


def run(files: MemberFiles) -> NoReturn:
    """Become Patroni, as the user that PostgreSQL runs as: for a service manager. Raises ClusterFailed.

    Patroni keeps the folder's lock: no embedded database, restore or second Patroni comes near the data.
    """
    if not files.patroni.exists():
        raise ClusterFailed(
            f"{files.directory} is not a member of a cluster: see novacron database cluster init, and join"
        )
    try:
        lock = FolderLock(files.directory, LOCK)
    except FolderInUse as error:
        raise ClusterFailed(f"{error.args[0].partition(':')[0]}: this member is already running") from None
    lock.keep_over_exec()
    if files.renew_certificates(time.time()):
        say("renewed this member's certificate", err=True)
    files.link_etcd(files.membership()[0].etcd)
    if files.remove_partial_copy():
        say("removed a copy of the database that was never finished", err=True)
    user = server_user()
    files.pid_file.write_text(f"{os.getpid()}\n")
    os.chdir("/")
    os.umask(0o077)
    if user is not None:
        os.setgroups([])
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    arguments = command(files)
    os.execv(arguments[0], arguments)  # noqa: S606 (no shell)


def reload(files: MemberFiles) -> bool:
    """Let Patroni, if it runs, use the certificates that its files have now, and let PostgreSQL do so; connections to
    PostgreSQL go on. Say whether it runs. Raises OSError."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
        pid = int(files.pid_file.read_text())
        if str(files.patroni).encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            if _catches(pid, signal.SIGHUP):  # otherwise it is about to start, and has not read them yet
                os.kill(pid, signal.SIGHUP)
            return True
    return False


def _catches(pid: int, number: signal.Signals) -> bool:
    """Say whether a process would not be ended by a signal. Raises OSError, ValueError."""
    _, _, rest = Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")
    return bool(int(rest.split(maxsplit=1)[0], 16) >> (number - 1) & 1)


def runs(files: MemberFiles) -> bool:
    """Say whether Patroni, or anything else, works with this member's folder. Raises OSError."""
    if not files.directory.exists():
        return False
    try:
        FolderLock(files.directory, LOCK).release()
    except FolderInUse:
        return True
    return False


def start(files: MemberFiles) -> subprocess.Popen[bytes]:
    """Start Patroni in the background; it outlives this process. Raises OSError."""
    with (files.directory / "patroni.out").open("ab") as out:
        os.fchmod(out.fileno(), 0o600)
        out.truncate(0)
        return subprocess.Popen(
            [sys.executable, "-m", "novacron", "database", "cluster", "run", "--state-dir",
             str(files.directory.parent)],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, cwd="/", env=clean(),
        )  # fmt: skip


def last_words(files: MemberFiles) -> str:
    """Return the end of what Patroni wrote, for a message."""
    words = ""
    for path in (files.directory / "patroni.out", files.logs / "patroni.log"):
        if path.exists():
            words += path.read_text(errors="replace")[-1000:]
    return words.strip()
