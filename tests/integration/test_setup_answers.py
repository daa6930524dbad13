"""``novacron setup server`` waits until the server that it began answers, with the certificate that it is to show."""

from __future__ import annotations

import ssl
import threading
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import cast

import pytest

from novacron import pki
from novacron.local.setup.server import _objection
from novacron.server.settings import ServerSettings


class Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"ok\n" if self.path == "/readyz" else b"what?\n")

    def log_message(self, *_: object) -> None:
        return


def issued(directory: Path) -> tuple[Path, Path]:
    """Return a certificate for this host by an authority of its own, and its key."""
    return pki.Authority.open(directory).issue_server(directory, ["127.0.0.1"])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[int, tuple[Path, Path]]]:
    """A server that is ready: its port, and the certificate that it shows."""
    certificate = issued(tmp_path / "server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with HTTPServer(("127.0.0.1", 0), Ready) as running:
        running.socket = context.wrap_socket(running.socket, server_side=True)
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running.server_address[1], certificate
        running.shutdown()


def settings(port: int, certificate: tuple[Path, Path]) -> ServerSettings:
    return cast(ServerSettings, types.SimpleNamespace(port=port, api_certificate=certificate))


def test_a_server_answers_with_a_certificate_of_its_own_authority(server: tuple[int, tuple[Path, Path]]) -> None:
    assert _objection("127.0.0.1", settings(*server)) == ""


def test_what_shows_another_certificate_is_not_that_server(
    server: tuple[int, tuple[Path, Path]], tmp_path: Path
) -> None:
    assert "fingerprint" in _objection("127.0.0.1", settings(server[0], issued(tmp_path / "other"))).lower()
