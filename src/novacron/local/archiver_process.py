"""The archiver's process, as the server's process owns it: started, started again with a back-off, and ended."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import msgspec

from novacron.local import database_archiver
from novacron.local.database_archiver import ArchiverSettings
from novacron.server.workers import SECRET_VARIABLES
from novacron.supervise import BackoffPolicy
from novacron.telemetry.values import gauge
from novacron.terminal import say

END_S_MAX = database_archiver.LAST_STORE_S + 10.0
BACKOFF = BackoffPolicy()
LOOK_S = 0.5


@contextlib.contextmanager
def archiving(settings: ArchiverSettings | None) -> Iterator[None]:
    """Archive a database for as long as the block runs; None: do not."""
    if settings is None:
        yield
        return
    gauge("novacron_database_wal_archiving").set(1.0)
    gauge("novacron_database_base_backup_interval_seconds").set(settings.base_every_s)
    over = threading.Event()
    owner = threading.Thread(target=_keep, args=(settings, over), name="archiver")
    owner.start()
    try:
        yield
    finally:
        over.set()
        owner.join()


def _keep(settings: ArchiverSettings, over: threading.Event) -> None:
    pause_s = 0.0
    while not over.is_set():
        began = time.monotonic()
        process = _start(settings)
        try:
            while process.poll() is None and not over.wait(LOOK_S):
                pass
        finally:
            _end(process)
        if not over.is_set():
            pause_s = BACKOFF.after(pause_s, time.monotonic() - began)
            say(
                f"the database's archiver ended with {process.returncode}: starting it again in {pause_s:.0f} s",
                err=True,
            )
            over.wait(pause_s)


def _start(settings: ArchiverSettings) -> subprocess.Popen[bytes]:
    """Start it with its settings, which may hold a password, through its standard input; that stays open until it is
    to end."""
    process = subprocess.Popen(
        [sys.executable, "-m", database_archiver.__name__], stdin=subprocess.PIPE, start_new_session=True,
        env={name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES},
    )  # fmt: skip
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended already, which its owner sees
        process.stdin.write(msgspec.json.encode(settings) + b"\n")
        process.stdin.flush()
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(END_S_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
