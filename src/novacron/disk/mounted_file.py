"""A disk that this process reads for others, as a file that any program can open: ``qemu-storage-daemon`` exports it
over FUSE, in a mount namespace of its own, which ends with it, or with this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

from novacron import child_environment
from novacron.disk.errors import Unacceptable
from novacron.disk.nbd import ALIGNMENT
from novacron.disk.nbd_source import NbdSource, Read
from novacron.disk.served_disk import DAEMON, end

NODE, EXPORT = "source", "disk"
PATH = Path("/mnt/disk")
"""In that namespace."""
MOUNT = 'mount -t tmpfs -o nosuid,nodev,noexec,size=4k,mode=755 none /mnt && : > /mnt/disk && exec "$@"'
"""Makes a place for the file that each user can enter."""
START_S_MAX = 30.0
LOOK_S_MIN, LOOK_S_MAX = 0.01, 0.2
ERROR_BYTES_MAX = 500
FUSE = Path("/dev/fuse")


class MountedFile(NamedTuple):
    """The file, and what runs a command where it is."""

    path: Path
    enter: tuple[str, ...]
    has_ended: Callable[[], bool]
    """Says whether it is gone: its program has ended."""


@contextlib.asynccontextmanager
async def mounted(size_bytes: int, read: Read, uid: int | None) -> AsyncIterator[MountedFile]:
    """Yield the file, which this user may read, as long as the block runs. ``read``: any thread may call it, with what
    lies within the size. Raises Unacceptable, OSError."""
    if os.geteuid() != 0 or not FUSE.exists():
        raise Unacceptable(f"this takes an agent that runs as root, and {FUSE}: modprobe fuse")
    whole = -(-size_bytes // ALIGNMENT) * ALIGNMENT

    def read_padded(offset: int, length: int) -> bytes:
        within = max(0, min(length, size_bytes - offset))
        return (read(offset, within) if within else b"").ljust(length, b"\0")

    ours, theirs = socket.socketpair()
    source = NbdSource(ours, whole, read_padded)
    try:
        with theirs:
            process = await _start(theirs.fileno())
        try:
            await _let_read(process, whole, uid)
            enter = ("nsenter", f"--mount=/proc/{process.pid}/ns/mnt", "--")
            yield MountedFile(PATH, enter, lambda: process.returncode is not None)
        finally:
            await end(process)
    finally:
        source.close()


async def _start(connection: int) -> asyncio.subprocess.Process:
    command = [
        "unshare", "--mount", "--propagation", "private", "--", "sh", "-c", MOUNT, "mounted",
        "setpriv", "--pdeathsig", "KILL", "--", DAEMON,
        "--blockdev", f"driver=nbd,node-name={NODE},server.type=fd,server.str={connection},read-only=on",
        "--export", f"type=fuse,id={EXPORT},node-name={NODE},mountpoint={PATH},writable=off,allow-other=on",
    ]  # fmt: skip
    try:
        return await asyncio.create_subprocess_exec(
            *command, pass_fds=(connection,), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE, env=child_environment.clean(),
        )  # fmt: skip
    except OSError as error:
        raise Unacceptable(f"can't run {DAEMON}: {error}; install qemu-system-common") from error


async def _let_read(process: asyncio.subprocess.Process, size_bytes: int, uid: int | None) -> None:
    """Wait until the file is there, and let a user read it. Raises Unacceptable."""
    path, pause_s = f"/proc/{process.pid}/root{PATH}", LOOK_S_MIN
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_S_MAX):
            while process.returncode is None:
                if await asyncio.to_thread(_is_let_read, path, size_bytes, uid):
                    return
                await asyncio.sleep(pause_s)
                pause_s = min(LOOK_S_MAX, 2 * pause_s)
    raise Unacceptable(f"the disk can't be opened: {await _last_words(process)}")


def _is_let_read(path: str, size_bytes: int, uid: int | None) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:  # nothing is mounted yet, or the program has just ended
        return False
    try:
        if os.fstat(descriptor).st_size != size_bytes:
            return False
        if uid is not None:
            os.fchown(descriptor, uid, -1)
        return True
    finally:
        os.close(descriptor)


async def _last_words(process: asyncio.subprocess.Process) -> str:
    if process.returncode is None:
        return f"{DAEMON} took longer than {START_S_MAX:.0f} s"
    assert process.stderr is not None
    return (await process.stderr.read())[-ERROR_BYTES_MAX:].decode(errors="replace").strip() or "it ended"
