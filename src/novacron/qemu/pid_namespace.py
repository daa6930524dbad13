"""PID namespaces (pid_namespaces(7)): who is in one sees and signals no process outside of it."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from novacron.qemu.lease_guard import CLONE_NEWPID


def unshare() -> None:
    """Have what this thread starts next be the first process of a new PID namespace (unshare(2)).

    When that one ends, the thread can start no more. Raises OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWPID) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"no new PID namespace: {os.strerror(error)}")


def host_threads(pid: int) -> dict[int, int]:
    """Return the threads of a process by the numbers that it has for them: what this host calls each.

    ``pid`` is as this host counts; for a process without a PID namespace of its own the two are the same
    (proc_pid_status(5), NSpid). Raises OSError when it is not there.
    """
    threads = {}
    for entry in Path(f"/proc/{pid}/task").iterdir():
        try:
            lines = (entry / "status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):  # a thread that ends at this moment
            continue
        inner = next((line for line in lines if line.startswith("NSpid:")), f"NSpid: {entry.name}")
        threads[int(inner.split()[-1])] = int(entry.name)
    return threads
