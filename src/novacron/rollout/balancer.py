"""HAProxy: which share of the requests goes to which colour.

Weights are written to its configuration file, and then set in the running process through its admin socket: a reload
or restart forgets what only the socket was told. See the management guide of HAProxy 2.6, "set weight", "show stat".
"""

from __future__ import annotations

import csv
import itertools
import re
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from novacron import private_file
from novacron.child_environment import clean
from novacron.rollout.model import Colour, StepFailed

SOCKET_S_MAX = 5.0
CHECK_S_MAX = 30.0
RETRY_S = 0.5
ANSWER_BYTES_MAX = 4 << 20
SECTION = re.compile(r"^(?P<kind>[a-z-]+)(?:\s+(?P<name>\S+))?")
SERVER = re.compile(r"^(\s+server\s+(?P<name>\S+)\s.*?\bweight\s+)(?P<weight>\d+)\b")

Weights = Mapping[Colour, int]


class BalancerAway(StepFailed):
    """HAProxy did not answer for as long as is waited."""


class Traffic(NamedTuple):
    """What HAProxy has counted for one colour since it began."""

    answered: int
    failed: int
    """Answers of 500 and above, connections that failed, and answers that broke off."""
    sessions: int = 0
    """In progress now."""
    up: bool = False
    """Its health checks succeed."""


NO_TRAFFIC = Traffic(0, 0)


def with_weights(text: str, backends: Sequence[str], weights: Weights) -> str:
    """Return a configuration in which the servers of these backends have these weights.

    Raises StepFailed if one of them has no line ``server COLOUR ... weight N``.
    """
    weighted: set[tuple[str, str]] = set()
    lines, backend = [], ""
    for line in text.splitlines(keepends=True):
        backend = _backend_at(line, backend)
        server = SERVER.match(line) if backend in backends else None
        if server is not None and server["name"] in weights:
            weighted.add((backend, server["name"]))
            line = f"{server[1]}{weights[Colour(server['name'])]}{line[server.end() :]}"
        lines.append(line)
    missing = [(name, colour) for name in backends for colour in weights if (name, colour.value) not in weighted]
    if missing:
        raise StepFailed(
            f"haproxy-config: backend {missing[0][0]} has no line: server {missing[0][1]} ADDRESS ... weight N"
        )
    return "".join(lines)


def _backend_at(line: str, backend: str) -> str:
    """Return the backend that a line belongs to; empty: none. ``backend``: that of the line before."""
    section = SECTION.match(line)
    if section is None:
        return backend
    return (section["name"] or "") if section["kind"] in ("backend", "listen") else ""


class HAProxy:
    """One HAProxy on this host. ``wait_s``: for how long it may be away, for example while it restarts."""

    def __init__(self, config: Path, admin_socket: Path, program: str, wait_s: float) -> None:
        self._config, self._socket, self._program, self._wait_s = config, admin_socket, program, wait_s

    def shift(self, backends: Sequence[str], weights: Weights) -> None:
        """Give each colour its share, for good. Raises StepFailed."""
        self._write(backends, weights)
        self.shift_running(backends, weights)

    def shift_running(self, backends: Sequence[str], weights: Weights) -> None:
        """Give each colour its share until HAProxy is reloaded: nothing is written. Raises StepFailed."""
        # The larger one first: between two commands, requests come in, and a backend without weights refuses them.
        rising = sorted(weights.items(), key=lambda item: item[1], reverse=True)
        for backend, (colour, weight) in itertools.product(backends, rising):
            said = self._tell(f"set weight {backend}/{colour} {weight}")
            if said:
                raise StepFailed(f"haproxy-socket: set weight {backend}/{colour} {weight}: {said}")
        self.verify(backends, weights)

    def verify(self, backends: Sequence[str], weights: Weights) -> None:
        """See that the running process has these weights. Raises StepFailed."""
        for backend in backends:
            for colour, weight in weights.items():
                said = self._tell(f"get weight {backend}/{colour}")
                if said.split(" ")[0] != str(weight):
                    raise StepFailed(f"haproxy-socket: {backend}/{colour} has weight {said!r} instead of {weight}")

    def weight(self, backend: str, colour: Colour) -> int:
        """Return which weight a colour has in the running process. Raises StepFailed."""
        said = self._tell(f"get weight {backend}/{colour}")
        try:
            return int(said.split(" ")[0])
        except ValueError:
            raise StepFailed(f"haproxy-socket: get weight {backend}/{colour}: {said}") from None

    def hold(self, backends: Sequence[str], weights: Weights) -> bool:
        """Set weights again that somebody or a restart has changed; say whether that was so. Raises StepFailed."""
        try:
            self.verify(backends, weights)
        except BalancerAway:
            raise
        except StepFailed:
            self.shift(backends, weights)
            return True
        return False

    def _write(self, backends: Sequence[str], weights: Weights) -> None:
        try:
            before, status = self._config.read_text(), self._config.stat()
            after = with_weights(before, backends, weights)
            if after == before:
                return
            tried = self._config.with_name(self._config.name + ".tried")
            private_file.write(tried, after.encode(), status.st_mode & 0o777, (status.st_uid, status.st_gid))
            done = subprocess.run(
                [self._program, "-c", "-f", str(tried)], check=False, capture_output=True, text=True,
                stdin=subprocess.DEVNULL, timeout=CHECK_S_MAX, env=clean(),
            )  # fmt: skip
            if done.returncode != 0:
                raise StepFailed(f"haproxy-config: HAProxy refuses {tried}: {done.stderr.strip()[-500:]}")
            tried.replace(self._config)
        except (OSError, subprocess.SubprocessError) as error:
            raise StepFailed(f"haproxy-config: can't change {self._config}: {error}") from None

    def traffic(self, backend: str) -> dict[Colour, Traffic]:
        """Return what each colour has had so far. Raises StepFailed."""
        rows = csv.DictReader(self._tell("show stat").removeprefix("# ").splitlines())
        by_colour = {}
        for row in rows:
            if row.get("pxname") == backend and row.get("svname") in set(Colour):
                classes = [int(row.get(f"hrsp_{kind}xx") or 0) for kind in "12345"]
                broken = sum(int(row.get(name) or 0) for name in ("econ", "eresp"))
                by_colour[Colour(row["svname"])] = Traffic(
                    sum(classes), classes[4] + broken, int(row.get("scur") or 0), (row.get("status") or "")[:2] == "UP"
                )
        return by_colour

    def _tell(self, command: str) -> str:
        """Return what HAProxy answers, asked again while it is away. Raises StepFailed."""
        deadline = time.monotonic() + self._wait_s
        while True:
            try:
                return self._ask(command)
            except OSError as error:
                if time.monotonic() >= deadline:
                    raise BalancerAway(
                        f"haproxy-socket: {self._socket} does not answer ({error}): is HAProxy running,"
                        " with 'stats socket ... level admin'?"
                    ) from None
            time.sleep(RETRY_S)

    def _ask(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.settimeout(SOCKET_S_MAX)
            connection.connect(str(self._socket))
            connection.sendall(f"{command}\n".encode())
            answer = b""
            while chunk := connection.recv(1 << 16):
                answer += chunk
                if len(answer) > ANSWER_BYTES_MAX:
                    raise OSError(f"its answer is larger than {ANSWER_BYTES_MAX >> 20} MiB")
        return answer.decode(errors="replace").strip()
