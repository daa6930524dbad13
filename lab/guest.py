"""What talks to the tiny guest: its shell, and TCP clients with the times at which what it sent came."""

from __future__ import annotations

import itertools
import os
import re
import socket
import threading
import time

from lab.hosts import Host
from novacron.client import Client

COUNTER_PORT, ECHO_PORT = 7000, 7001
CONNECT_TIMEOUT_S = 30.0


class CounterClient:
    """Reads the guest's counter over one TCP connection until it is closed."""

    def __init__(self, host: Host, address: str) -> None:
        self.arrivals: list[tuple[float, int]] = []
        """When each line came (monotonic clock, seconds), and the number in it."""
        self.broken: str | None = None
        self._socket = host.within(lambda: _connect(address))
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        rest = b""
        try:
            while data := self._socket.recv(4096):
                now = time.monotonic()
                *lines, rest = (rest + data).split(b"\n")
                self.arrivals += [(now, int(line)) for line in lines]
            self.broken = self.broken or "the guest closed the connection"
        except OSError as error:
            self.broken = self.broken or str(error)

    @property
    def last(self) -> int:
        """The newest number, 0 before the first."""
        return self.arrivals[-1][1] if self.arrivals else 0

    def longest_gap_ms(self, since: float = 0.0, before: float = float("inf")) -> float:
        """Return the longest time without a line that touches a window of the monotonic clock, in milliseconds."""
        times = [at for at, _ in self.arrivals]
        return max((b - a for a, b in itertools.pairwise(times) if b >= since and a <= before), default=0.0) * 1e3

    def missing_numbers(self) -> int:
        """Return how many numbers did not come, or came out of order: 0 for an unbroken stream."""
        numbers = [number for _, number in self.arrivals]
        return sum(1 for a, b in itertools.pairwise(numbers) if b != a + 1)

    def close(self) -> None:
        self.broken = "closed"
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._socket.close()


class EchoClient:
    """Sends the guest numbers over one TCP connection and takes them back: the guest does next to nothing for it."""

    def __init__(self, host: Host, address: str, every_s: float = 0.005) -> None:
        self.arrivals: list[float] = []
        """When something came back (monotonic clock, seconds)."""
        self.broken: str | None = None
        self._every_s = every_s
        self._socket = host.within(lambda: _connect(address, ECHO_PORT))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sent = self._echoed = b""
        self._over = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._read)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        for number in itertools.count():
            if self._over.wait(self._every_s):
                return
            line = b"%d\n" % number
            self._sent += line
            try:
                self._socket.sendall(line)
            except OSError as error:
                self.broken = self.broken or str(error)
                return

    def _read(self) -> None:
        try:
            while data := self._socket.recv(4096):
                self.arrivals.append(time.monotonic())
                self._echoed += data
            self.broken = self.broken or "the guest closed the connection"
        except OSError as error:
            self.broken = self.broken or str(error)

    def longest_gap_ms(self, since: float) -> float:
        """Return the longest time without an echo after ``since`` (monotonic clock), in milliseconds."""
        times = [at for at in self.arrivals if at >= since]
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0) * 1e3

    def whole(self) -> bool:
        """Say whether all that came back is what was sent, in order."""
        return self.broken is None and self._sent.startswith(self._echoed)

    def close(self) -> None:
        self._over.set()
        self.broken = self.broken or "closed"
        self._socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        self._socket.close()


def _connect(address: str, port: int = COUNTER_PORT) -> socket.socket:
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    while True:
        try:
            connection = socket.create_connection((address, port), timeout=2)
            connection.settimeout(None)
            return connection
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def shell(client: Client, vm: str, command: str, timeout_s: float = 30.0) -> str:
    """Run a command in the tiny guest's shell and return the line that it prints. Raises TimeoutError."""
    mark = os.urandom(4).hex()
    with client.open_console(vm) as console:
        console.send(f"\recho {mark[:4]}'{mark[4:]}'-$( {command})-\r".encode())
        seen = ""
        while (match := re.search(f"{mark}-(.*?)-\r", seen)) is None:
            seen += console.recv(timeout_s).decode(errors="replace")
    return match[1]
