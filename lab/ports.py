"""Loopback ports for what a lab starts: no other lab of the machine gets them, even while nothing listens on them yet.

A port that the kernel picks is free only until it is let go: until the service it was picked for listens (a platform
makes its database first) it may go to another test, or to any connection. So these lie outside the range of which the
kernel picks (``net.ipv4.ip_local_port_range``) and of which VMs' forwards are, and each process takes whole blocks of
them by binding a name that only one can have, and that the kernel gives up when the process ends.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

FIRST = 20000
BLOCK = 100
"""Ports of a block."""
BLOCKS = 90

_held: list[socket.socket] = []
"""What this process holds its blocks by, for as long as it lives."""


def are_free(ports: tuple[int, ...]) -> bool:
    """Say whether nothing listens on these loopback ports."""
    try:
        for port in ports:
            socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def _taken(block: int) -> bool:
    """Take a block, in this network namespace, for as long as this process lives; say whether it was free."""
    name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        name.bind(f"\0novacron-lab-ports-{block}")
    except OSError:
        name.close()
        return False
    _held.append(name)
    return True


def _own_ports() -> Iterator[int]:
    for i in range(BLOCKS):
        block = (os.getpid() + i) % BLOCKS
        if _taken(block):
            first = FIRST + block * BLOCK
            yield from range(first, first + BLOCK)


_owner, _ports = os.getpid(), _own_ports()


def free_ports(count: int) -> list[int]:
    """Return loopback ports in a row on which nothing listens and that nobody else gets, however late they are used.

    Raises AssertionError when the labs of this machine hold all of them.
    """
    global _owner, _ports
    if _owner != os.getpid():  # a fork: its parent's ports are not its own
        _owner, _ports = os.getpid(), _own_ports()
    row: list[int] = []
    for port in _ports:
        row = [*row, port] if are_free((port,)) and (not row or port == row[-1] + 1) else []
        if len(row) == count:
            return row
    raise AssertionError(f"no {count} free ports: other labs of this machine hold them")
