"""A tenant who lets a node fetch an image by URL, to look around where the node is."""

from __future__ import annotations

import http.server
import ipaddress
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from novacron.agent.images.download import UNREACHABLE, Fetch
from novacron.disk.errors import Unacceptable

LOOPBACK = (ipaddress.IPv4Network("127.0.0.0/8"),)


class _Web(http.server.BaseHTTPRequestHandler):
    """Redirects to where its server says, or answers."""

    def do_GET(self) -> None:
        target = getattr(self.server, "target", "")
        self.send_response(302 if target else 200)
        if target:
            self.send_header("Location", target)
        self.end_headers()
        self.wfile.write(b"the disk")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[http.server.HTTPServer]:
    with http.server.HTTPServer(("127.0.0.1", 0), _Web) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def error_of(url: str, *allowed: Any, **options: bool) -> str:
    with pytest.raises(Unacceptable) as failed, Fetch(url, allowed, **options):
        pass
    return str(failed.value)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "169.254.169.254", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "10.0.0.1",
        "192.168.1.1", "172.16.0.1", "100.64.0.1", "198.18.0.1", "[fd00::1]", "[fe80::1]", "[64:ff9b::7f00:1]",
        "[64:ff9b::a00:1]",
        "[::10.0.0.1]", "[::7f00:1]", "[fec0::1]", "[3fff::1]", "[3fff:fff::1]", "[5f00::1]", "192.88.99.1",
        "[2001::1]",
        "[2001:db8::1]", "[64:ff9b:1::a00:1]", "[::ffff:0:127.0.0.1]", "[100::1]", "[2002:c058:6301::]", "[ff0e::1]",
        "[2002:7f00:1::]", "[::]", "224.0.0.1", "255.255.255.255", "2130706433", "0x7f.1", "no-such-host.invalid",
    ],
)  # fmt: skip
def test_no_address_that_is_not_public_is_connected_to(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def connects(*_: object, **__: object) -> None:
        raise AssertionError("it connects")

    monkeypatch.setattr("urllib3.util.connection.create_connection", connects)
    assert error_of(f"http://{host}:1/disk") == UNREACHABLE


@pytest.mark.parametrize(
    "host", ["93.184.216.34", "[2606:2800:220:1::1]", "[64:ff9b::5db8:d822]", "[2002:5db8:d822::1]"]
)
def test_public_addresses_are_connected_to(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def connects(address: tuple[str, int], *_: object, **__: object) -> None:
        tried.append(address[0])
        raise OSError("there is no network here")

    monkeypatch.setattr("urllib3.util.connection.create_connection", connects)
    assert error_of(f"http://{host}:1/disk") == UNREACHABLE
    assert tried == [host.strip("[]")]


def test_a_server_at_an_address_of_the_host_itself_is_refused_even_if_it_is_public(
    monkeypatch: pytest.MonkeyPatch, web: http.server.HTTPServer
) -> None:
    monkeypatch.setattr(ipaddress.IPv4Address, "is_global", property(lambda _: True))
    assert error_of(f"http://127.0.0.1:{web.server_port}/disk") == UNREACHABLE


def test_what_fails_is_not_told_apart(web: http.server.HTTPServer) -> None:
    """A closed port, one that speaks something else, a server that is silent at TLS: a scanner learns nothing."""
    with socket.create_server(("127.0.0.1", 0)) as odd:
        port = odd.getsockname()[1]

        def answers() -> None:
            client, _ = odd.accept()
            with client:
                client.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        thread = threading.Thread(target=answers)
        thread.start()
        assert error_of(f"http://127.0.0.1:{port}/disk", *LOOPBACK) == UNREACHABLE
        thread.join()
    assert error_of(f"http://127.0.0.1:{port}/disk", *LOOPBACK) == UNREACHABLE
    assert error_of(f"https://127.0.0.1:{web.server_port}/disk", *LOOPBACK) == UNREACHABLE
    assert error_of(f"http://127.0.0.1:{web.server_port}/disk") == UNREACHABLE


def test_an_operator_can_allow_ranges(web: http.server.HTTPServer) -> None:
    with Fetch(f"http://127.0.0.1:{web.server_port}/disk", LOOPBACK) as fetch:
        assert fetch.read(100) == b"the disk"


def test_a_redirection_is_checked_again(web: http.server.HTTPServer) -> None:
    web.target = "http://169.254.169.254/latest/meta-data"  # type: ignore[attr-defined]
    assert error_of(f"http://127.0.0.1:{web.server_port}/disk", *LOOPBACK) == UNREACHABLE


def test_a_name_is_resolved_once(web: http.server.HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that answers with another address the second time reaches nothing by that."""
    asked = []

    def resolve(host: str, port: int, *_: object, **__: object) -> list[tuple[object, ...]]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr("novacron.agent.images.download.socket.getaddrinfo", resolve)
    with Fetch(f"http://rebinds.example:{web.server_port}/disk", LOOPBACK) as fetch:
        assert fetch.read(100) == b"the disk"
    assert [host for host in asked if host == "rebinds.example"] == ["rebinds.example"]
