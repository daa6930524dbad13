"""One agent of a node at a time acts on a host, whatever folders hold its state: a lock under the node's identity.

A copy of a state folder has a lock file of its own, so ``state_lock`` does not tell the two apart. This lock is held
twice: as a file, which agents in other network namespaces see, and as a name in the kernel's list of sockets, which is
there even when ``/run`` has been emptied.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import socket
import time
from pathlib import Path

from novacron.qemu.confine import PEER
from novacron.state_lock import FolderInUse, FolderLock

ATTEMPTS, ATTEMPT_S = 10, 0.1
"""Another agent may just be looking whether this one lives."""
BACKLOG = 8


class AgentLives(Exception):
    """Another agent of the node works on this host."""

    def __init__(self, owner: str, pid: int) -> None:
        who = f"process {pid}" if pid else "another process"
        super().__init__(f"{who} is an agent of node {owner.partition('/')[2]} on this host already")
        self.pid = pid


def directory() -> Path | None:
    """Return where agents of this user have their locks; None: there is no place that they all share."""
    run = "/run" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(run) / "novacron" / "agents" if run else None


def _lock_name(owner: str) -> str:
    return hashlib.sha256(owner.encode()).hexdigest()[:32]


class Presence:
    """An agent's presence on this host, from ``Presence(...)`` to ``release`` or the end of its process.

    Raises AgentLives, OSError.
    """

    def __init__(self, owner: str) -> None:
        self._file: FolderLock | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._take(owner)
        except BaseException:
            self.release()
            raise

    def _take(self, owner: str) -> None:
        try:
            self._socket.bind(_address(owner))
            self._socket.listen(BACKLOG)
        except OSError as error:
            pid = _listener(owner)
            if error.errno != errno.EADDRINUSE:
                raise
            if pid is not None:  # else another user has taken the name, which must not keep this host from working
                raise AgentLives(owner, pid) from None
        where = directory()
        if where is None:
            return
        where.mkdir(parents=True, exist_ok=True, mode=0o700)
        for attempt in range(ATTEMPTS):
            try:
                self._file = FolderLock(where, _lock_name(owner))
                return
            except FolderInUse as error:
                if attempt == ATTEMPTS - 1:
                    raise AgentLives(owner, error.pid) from None
            time.sleep(ATTEMPT_S)

    def release(self) -> None:
        """Let another agent of the node begin."""
        self._socket.close()
        if self._file is not None:
            self._file.release()


def lives(owner: str) -> bool:
    """Say whether an agent of a node works on this host."""
    if _listener(owner) is not None:
        return True
    where = directory()
    if where is None:
        return False
    try:
        descriptor = os.open(where / _lock_name(owner), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _address(owner: str) -> str:
    return f"\0novacron-agent-{_lock_name(owner)}"


def _listener(owner: str) -> int | None:
    """Return the process that has the socket of a node's agent, if it is this user's, or root's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        try:
            connection.connect(_address(owner))
        except ConnectionRefusedError:
            return None
        except BlockingIOError:  # it listens, and its queue is full
            return 0
        pid, uid, _ = PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))
        return int(pid) if uid in (0, os.geteuid()) else None
