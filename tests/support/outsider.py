"""A machine that is no host of the platform, beside one of its hosts."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from lab.hosts import Host, Lab, run

OUTSIDE, GATEWAY_OUTSIDE = "203.0.113.2", "203.0.113.1"


@contextlib.contextmanager
def outsider(hosts: Lab, beside: Host) -> Iterator[Host]:
    """Yield a machine that is no host of the platform, on a wire of its own with one that is."""
    name = f"{hosts.prefix}-out"
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", str(beside.netns))
        for netns, number in ((name, 2), (str(beside.netns), 1)):
            run("ip", "-n", netns, "address", "add", f"203.0.113.{number}/24", "dev", "wire")
            run("ip", "-n", netns, "link", "set", "wire", "up")
        run("ip", "-n", name, "route", "add", "default", "via", GATEWAY_OUTSIDE)
        yield Host("outsider", name, 2)
    finally:
        run("ip", "netns", "delete", name)


def datagrams(host: Host, port: int) -> socket.socket:
    """Return a socket of a host that takes datagrams, and does not wait for them."""
    waiting = host.within(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    waiting.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    waiting.bind(("0.0.0.0", port))
    waiting.setblocking(False)
    return waiting


@contextlib.contextmanager
def listening(host: Host, at: str, port: int) -> Iterator[list[str]]:
    """Take connections on a host; yield whence they came."""
    came: list[str] = []
    server = host.within(lambda: socket.create_server((at, port)))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                taken, (peer, _) = server.accept()
                came.append(peer)
                taken.close()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield came
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(5)
