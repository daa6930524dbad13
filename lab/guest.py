"""A TCP client of the tiny guest: its counter service, line by line, with the time at which each line came."""

from __future__ import annotations

import itertools
import socket
import threading
import time

from lab.hosts import Host

COUNTER_PORT = 7000
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


def _connect(address: str) -> socket.socket:
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    while True:
        try:
            connection = socket.create_connection((address, COUNTER_PORT), timeout=2)
            connection.settimeout(None)
            return connection
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
