"""What HAProxy, as the product configures it, does to clients that are slow or too many."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.platform import until
from lab.ports import free_ports

CONFIG = Path(__file__).parents[2] / "deploy/rollout/haproxy.cfg"
HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
LATE_S = 30.0
TLS = " ssl crt /etc/haproxy/novacron.pem alpn h2,http/1.1", " ssl verify required ca-file /etc/haproxy/novacron-ca.crt"

pytestmark = pytest.mark.skipif(HAPROXY is None, reason="HAProxy is not installed: script/setup installs it")


def smaller(text: str, api: int, agents: int, other: int) -> str:
    """Return the configuration with ports of the test's, without TLS and log, and with smaller limits."""
    changes = {
        "    log /dev/log local0\n": "", "    log global\n": "", TLS[0]: "", TLS[1]: "",
        "    stats socket /run/haproxy/admin.sock mode 600 level admin\n": "",
        "bind 127.0.0.1:7443": f"bind 127.0.0.1:{api}", "bind :7444": f"bind 127.0.0.1:{agents}",
        "bind 127.0.0.1:7405": f"bind 127.0.0.1:{other}", "timeout http-request 15s": "timeout http-request 1s",
        "sc0_conn_cur gt 1000": "sc0_conn_cur gt 20", "sc0_http_req_rate gt 20000": "sc0_http_req_rate gt 30",
        "sc0_conn_cur gt 2000": "sc0_conn_cur gt 20", "inspect-delay 10s": "inspect-delay 1s",
    }  # fmt: skip
    for before, after in changes.items():
        assert before in text, before
        text = text.replace(before, after)
    return text


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """HAProxy without servers behind it; the ports of the API and of the agents."""
    assert HAPROXY is not None
    api, agents, other = free_ports(3)
    config = tmp_path / "haproxy.cfg"
    config.write_text(smaller(CONFIG.read_text(), api, agents, other))
    with subprocess.Popen([HAPROXY, "-db", "-f", str(config)], stdin=subprocess.DEVNULL) as process:
        try:
            until(lambda: answer(other, b"GET / HTTP/1.0\r\n\r\n") != b"", "HAProxy listens", 30)
            yield api, agents
        finally:
            process.kill()


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), LATE_S)


def answer(port: int, data: bytes) -> bytes:
    """Return what comes back until the connection ends; empty: nothing."""
    with contextlib.suppress(OSError), connected(port) as client:
        client.sendall(data)
        return to_its_end(client)
    return b""


def to_its_end(client: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionError):
        while piece := client.recv(65536):
            received += piece
    return received


@pytest.mark.parametrize(
    "begun",
    [b"GET /api/v1/vms HTTP/1.1\r\nHost: nova\r\n", b"POST /api/v1/vms HTTP/1.1\r\nContent-Length: 10\r\n\r\n{"],
    ids=["headers", "body"],
)
def test_headers_and_bodies_that_do_not_come_end_their_connection(ports: tuple[int, int], begun: bytes) -> None:
    with connected(ports[0]) as client:
        client.sendall(begun)
        began = time.monotonic()
        assert to_its_end(client).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - began < LATE_S


def test_one_address_has_a_part_of_all_connections_and_requests(ports: tuple[int, int]) -> None:
    request = b"GET /api/v1/vms HTTP/1.1\r\nHost: nova\r\nConnection: close\r\n\r\n"
    with contextlib.ExitStack() as held:
        kept = list[socket.socket]()
        for _ in range(40):
            with contextlib.suppress(ConnectionError):  # it is refused at once
                client = held.enter_context(connected(ports[0]))
                client.sendall(b"GET / HTTP/1.1\r\n")
                kept.append(client)
        refused = 40 - [to_its_end(client) != b"" for client in kept].count(True)
    assert 15 <= refused <= 20, "the others waited for the rest of their headers"
    until(lambda: answer(ports[0], request).startswith(b"HTTP/1.1 503"), "served again once they have ended", 30)
    answers = [answer(ports[0], request) for _ in range(60)]
    assert answers[-1].startswith(b"HTTP/1.1 429")


def test_who_says_nothing_to_the_nodes_port_is_cut_off(ports: tuple[int, int]) -> None:
    for said in (b"", b"GET / HTTP/1.1\r\n\r\n"):
        with connected(ports[1]) as client:
            client.sendall(said)
            assert to_its_end(client) == b""
