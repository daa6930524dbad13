"""A QEMU process: started so that it outlives us, and its end noticed without polling."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

from novacron import child_environment
from novacron.qemu import lease_guard, pid_namespace
from novacron.qemu.firmware import TPM

KILL_TIMEOUT_S, QUIT_TIMEOUT_S = 10.0, 10.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
KEEPER_ANSWER_S_MAX = 15.0
"""How long what keeps a VM may take to say that QEMU runs."""
LOG = "qemu.log"
LOG_TAIL_BYTES = 600
KEEPER = ("-I", "-S", str(Path(lease_guard.__file__).resolve()))


class Surroundings(NamedTuple):
    """What a process is started in."""

    log: str = LOG
    """The file in its directory to which its messages go."""
    marks: Mapping[str, str] = {}
    """What is in its environment, and nothing of ours."""
    lease: Path | None = None
    """It ends with this lease."""
    own_pids: bool = False
    """It is the first process of a PID namespace, in which it sees and signals only what it starts itself
    (pid_namespaces(7)). Only root may do that."""


def spawn(
    arguments: list[str], directory: Path, descriptors: Sequence[int] = (), surroundings: Surroundings | None = None
) -> int:
    """Start QEMU in a session of its own, in its directory, and return its process id as this host counts.

    It inherits the ``descriptors`` under their numbers. Raises OSError.
    """
    within = surroundings or Surroundings()
    with (directory / within.log).open("wb") as messages:

        def popen(command: list[str], *, stdin: int, stdout: int | BinaryIO = messages) -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                command, stdin=stdin, stdout=stdout, stderr=messages, cwd=directory, start_new_session=True,
                pass_fds=descriptors, umask=0o077, env=child_environment.clean(within.marks),
            )  # fmt: skip

        if within.lease is not None:
            return _spawn_kept(arguments, directory, popen, within)
        start = functools.partial(popen, arguments, stdin=subprocess.DEVNULL)
        started = _in_own_pids(start) if within.own_pids else start()
    started.returncode = 0  # ``ended`` waits for it: the next Popen must not, or nobody would learn its exit status
    return started.pid


def _in_own_pids(start: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    """Start a process in a new PID namespace. Raises OSError."""

    def inside() -> subprocess.Popen[bytes]:
        pid_namespace.unshare()
        return start()

    # The thread starts all its processes there from then on, so it has to end.
    with ThreadPoolExecutor(1, thread_name_prefix="own-pids") as thread:
        return thread.submit(inside).result()


def _spawn_kept(
    arguments: list[str], directory: Path, popen: Callable[..., subprocess.Popen[bytes]], within: Surroundings
) -> int:
    assert within.lease is not None
    own_pids = (lease_guard.OWN_PIDS,) if within.own_pids else ()
    keeper_ = popen(
        [sys.executable, *KEEPER, str(within.lease.resolve()), *own_pids],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert keeper_.stdin is not None and keeper_.stdout is not None
    with keeper_.stdin as stdin, keeper_.stdout as said:
        stdin.write(b"".join(os.fsencode(argument) + b"\0" for argument in arguments))
        stdin.close()
        answer = _read_line(said.fileno(), KEEPER_ANSWER_S_MAX)
    if not answer.strip().isdigit():
        keeper_.kill()  # QEMU, if it runs, ends with it
        keeper_.wait()
        raise OSError(log_tail(directory) or "the lease guard did not start")
    return int(answer)


def _read_line(descriptor: int, seconds: float) -> bytes:
    """Return what arrives until the end of a line or of the time limit."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    line, ends_at = b"", time.monotonic() + seconds
    while not line.endswith(b"\n"):
        if not poll.poll(max(0.0, ends_at - time.monotonic()) * 1e3):
            break
        piece = os.read(descriptor, 64)
        if not piece:
            break
        line += piece
    return line


def is_kept(pid: int) -> bool:
    """Say whether a QEMU ends with its node's lease."""
    try:
        parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        return os.fsencode(KEEPER[-1]) in Path(f"/proc/{parent}/cmdline").read_bytes().split(b"\0")
    except (OSError, IndexError):
        return False


def log_tail(directory: Path) -> str:
    """Return the end of QEMU's own messages."""
    try:
        with (directory / LOG).open("rb") as file:  # a guest can make QEMU write a great deal
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            return file.read(LOG_TAIL_BYTES).decode(errors="replace").strip()
    except FileNotFoundError:
        return ""


class Used(NamedTuple):
    """What a process has used. ``started_s``: after the host's start."""

    cpu_s: float
    resident_bytes: int
    started_s: float


def used(pid: int) -> Used:
    """Return what a process has used (proc_pid_stat(5)). Raises OSError when it is not there."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    cpu, started, resident = int(fields[11]) + int(fields[12]), int(fields[19]), int(fields[21])
    return Used(cpu / TICKS_PER_S, resident * PAGE_BYTES, started / TICKS_PER_S)


def companions(directory: Path) -> list[int]:
    """Return the processes beside QEMU that run in a VM's directory: its TPM."""
    directory, pids = directory.resolve(), []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            is_here = entry.name.isdecimal() and (entry / "cwd").readlink() == directory
            if is_here and (entry / "cmdline").read_bytes().split(b"\0")[0] == os.fsencode(TPM):
                pids.append(int(entry.name))
    return pids


def _reap(pid: int) -> int | None:
    with contextlib.suppress(ChildProcessError):
        _, status = os.waitpid(pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status)
    return None


async def ended(pid: int) -> int | None:
    """Wait for a process to end; return its exit status if it was our child."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    try:
        loop.add_reader(descriptor, over.set)
        await over.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return _reap(pid)


async def reaped(pid: int) -> None:
    """Wait for a child, so that nothing is left of it."""
    await ended(pid)


async def quit(pid: int) -> None:
    """End a QEMU of which nobody can ask anything, its disks' caches written; one that does not end is killed."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended(pid), QUIT_TIMEOUT_S)
            return
        await kill(pid)


async def kill(pid: int) -> None:
    """Kill a process and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        await asyncio.wait_for(ended(pid), KILL_TIMEOUT_S)
