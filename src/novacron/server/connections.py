"""Connections of the API's clients: ends those that do nothing, below HTTP, where no request shows that they are there.

The HTTP server takes a permit for each connection before it accepts it, and gives it back when the connection ends: one
that is silent, before or after its handshake, or between requests, would keep it for ever. See
docs/adr/0075-idle-connections.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import resource
import socket
import stat
import sys
import termios
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from novacron.api.access.client_address import counted_as
from novacron.api.edge.in_progress import Peer, RequestsInProgress, plain_address
from novacron.telemetry.values import counter, gauge

FIRST_REQUEST_S_MAX = 20.0
"""How long a connection may be open before it has made a request, its handshake included."""
IDLE_S_MAX = 120.0
"""How long a connection may have no request in progress after that."""
UNSENT_S_MAX = 600.0
"""The same, while bytes of the last answer are still on their way."""
FULL_SHARE = 0.5
"""Of the connections that a process may have: with more, those without a request end, too."""
LOOK_S, LOOK_WHEN_FULL_S = 1.0, 0.25
FILES_RESERVED = 1024
"""Files that a process has beside connections."""
FILES = "/proc/self/fd"

CLOSED = counter("novacron_api_connections_closed_total")
OPEN = gauge("novacron_api_connections")


class ClientConnection(NamedTuple):
    """A client's connection. ``since``: when it was first seen, or its last request ended."""

    file: int
    peer: Peer
    since: float
    has_asked: bool = False
    is_busy: bool = False
    """A request is in progress."""
    is_sending: bool = False


def most_connections(wanted: int) -> int:
    """Return how many connections this process may have: as many as are wanted, if it may open so many files."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, files - min(FILES_RESERVED, files // 2)))


def to_end(connections: Sequence[ClientConnection], now: float, most: int) -> dict[str, list[ClientConnection]]:
    """Return which connections to end, by reason. ``most``: how many a process may have.

    When it has too many, those of the address with the most connections without a request go first, the longest silent
    of them before others: nobody gets rid of another's connection without having more.
    """
    idle = [connection for connection in connections if now - connection.since > _limit_s(connection)]
    ended = set(idle)
    rest = [connection for connection in connections if not connection.is_busy and connection not in ended]
    surplus = len(connections) - len(idle) - int(most * FULL_SHARE)
    return {"idle": idle, "full": _of_the_greediest(rest, surplus) if surplus > 0 else []}


def _limit_s(connection: ClientConnection) -> float:
    if connection.is_busy:
        return float("inf")
    if not connection.has_asked:
        return FIRST_REQUEST_S_MAX
    return UNSENT_S_MAX if connection.is_sending else IDLE_S_MAX


def _of_the_greediest(idle: Iterable[ClientConnection], count: int) -> list[ClientConnection]:
    """Return that many connections: as many as leaves the addresses with the most an equal number."""
    by_address: dict[str, list[ClientConnection]] = {}
    for connection in sorted(idle, key=lambda connection: -connection.since):
        by_address.setdefault(counted_as(connection.peer[0]), []).append(connection)
    keyed = [
        (rank, connection.since, connection) for of in by_address.values() for rank, connection in enumerate(of, 1)
    ]
    keyed.sort(key=lambda item: (-item[0], item[1]))
    return [connection for _, _, connection in keyed[:count]]


class IdleConnections:
    """Looks at this process's own sockets, and shuts those down that do nothing."""

    def __init__(
        self, port: int, most: int, requests: RequestsInProgress, is_exempt: Callable[[str], bool]
    ) -> None:  # fmt: skip
        """``most``: how many connections may be open; ``is_exempt`` says whose are left alone: proxies'."""
        self._port, self._most, self._requests, self._is_exempt = port, most, requests, is_exempt
        self._seen: dict[int, tuple[Peer | None, float]] = {}
        """Of each socket, by inode: the other end of a client's connection, and since when it is there."""

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            looked_at = time.monotonic()
            peers = await asyncio.to_thread(self.look)
            self._requests.forget_all_but(peers, looked_at)
            await asyncio.sleep(LOOK_WHEN_FULL_S if len(peers) > self._most * FULL_SHARE else LOOK_S)

    def look(self) -> list[Peer]:
        """End what does nothing, and return who was connected. It may run beside requests, in another thread."""
        now = time.monotonic()
        files = dict(_sockets())
        self._seen = {inode: self._seen.get(inode) or (self._peer(file), now) for inode, file in files.items()}
        busy, ended_at = dict(self._requests.busy), dict(self._requests.ended_at)
        connections = [
            self._connection(files[inode], peer, since, busy, ended_at)
            for inode, (peer, since) in self._seen.items() if peer is not None
        ]  # fmt: skip
        mine = [connection for connection in connections if not self._is_exempt(connection.peer[0])]
        for reason, chosen in to_end(mine, now, self._most - len(connections) + len(mine)).items():
            ended = sum(self._end(connection) for connection in chosen)
            CLOSED.add(reason, count=ended)
        OPEN.set(len(connections))
        return [connection.peer for connection in connections]

    def _connection(
        self, file: int, peer: Peer, since: float, busy: Mapping[Peer, int], ended_at: Mapping[Peer, float]
    ) -> ClientConnection:  # fmt: skip
        last = ended_at.get(peer, 0.0)
        has_asked = peer in ended_at or peer in busy  # maybe before it was first seen
        is_sending = has_asked and peer not in busy and _unsent_bytes(file) > 0
        return ClientConnection(file, peer, max(since, last), has_asked, peer in busy, is_sending)

    def _peer(self, file: int) -> Peer | None:
        """Return the other end of a socket, if it is a client's connection to the API."""
        with _borrowed(file) as borrowed:
            if borrowed is None or borrowed.family not in (socket.AF_INET, socket.AF_INET6):
                return None
            try:
                if borrowed.type != socket.SOCK_STREAM or borrowed.getsockname()[1] != self._port:
                    return None
                address, port = borrowed.getpeername()[:2]
            except OSError:  # it listens, or is over
                return None
            return plain_address(address), port

    def _end(self, connection: ClientConnection) -> bool:
        """Shut a connection down, unless it is another one by now; say whether it was."""
        with _borrowed(connection.file) as borrowed:
            try:
                if borrowed is None or self._was_used(connection):
                    return False
                address, port = borrowed.getpeername()[:2]
                if (plain_address(address), port) != connection.peer:
                    return False
                borrowed.shutdown(socket.SHUT_RDWR)
            except OSError:  # it has ended by itself
                return False
            return True

    def _was_used(self, connection: ClientConnection) -> bool:
        """Say whether a request has begun since it was looked at, and maybe ended."""
        peer = connection.peer
        return peer in self._requests.busy or self._requests.ended_at.get(peer, 0.0) > connection.since


def _sockets() -> Iterator[tuple[int, int]]:
    """Yield the inode and the file of each socket of this process."""
    for entry in os.scandir(FILES):
        with contextlib.suppress(OSError):  # it was closed meanwhile
            status = os.fstat(int(entry.name))
            if stat.S_ISSOCK(status.st_mode):
                yield status.st_ino, int(entry.name)


@contextlib.contextmanager
def _borrowed(file: int) -> Iterator[socket.socket | None]:
    """Have a socket of the HTTP server, which goes on owning it, as one that stays the same while it is looked at."""
    try:
        copy = os.dup(file)
    except OSError:  # it was closed meanwhile
        yield None
        return
    try:
        borrowed = socket.socket(fileno=copy)
    except OSError:  # the number is another file's by now, which is no socket
        os.close(copy)
        yield None
        return
    with borrowed:
        yield borrowed


def _unsent_bytes(file: int) -> int:
    """Return how many bytes of a connection its other end has not taken yet."""
    try:
        return int.from_bytes(fcntl.ioctl(file, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except OSError:
        return 0
