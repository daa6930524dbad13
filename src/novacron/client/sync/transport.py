"""HTTP by the standard library, which loads fast: what ``Client`` sends its requests with. ``aio/transport.py`` is its
twin."""

from __future__ import annotations

import contextlib
import ssl
import time
import weakref
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import NamedTuple, ParamSpec, TypeVar
from urllib.parse import urlsplit

from novacron.client import protocol
from novacron.client.certificate_errors import explain
from novacron.client.config import Config
from novacron.client.errors import Unreachable
from novacron.client.protocol import HttpReply

P = ParamSpec("P")
T = TypeVar("T")

FAILURES = (OSError, HTTPException, ValueError)
"""What keeps a request from being answered; ValueError: of a header, or an address, that can't be sent."""
CLOSED = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
"""What a connection ends with that the server has closed; without TLS's goodbye if the server was killed."""
CHUNK_BYTES_MAX = 1 << 16
PORTS = {"http": 80, "https": 443}


class _ApiAddress(NamedTuple):
    """Where an API is: ``prefix`` comes before each path."""

    scheme: str
    host: str
    port: int
    prefix: str


class Transport:
    """One connection to one API, and one for each stream. Not for use by several threads at once."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._address = _address(config.url)
        self._tls = protocol.tls(config) if self._address.scheme == "https" else None
        self._idle: list[HTTPConnection] = []
        """The connection that the next request uses; at most one."""
        weakref.finalize(self, _close, self._idle)

    def send(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None = None,
        timeout_s: float = protocol.READ_TIMEOUT_S,
    ) -> HttpReply:  # fmt: skip
        """Send one request; once more if the server had closed the connection. Raises Unreachable."""
        kept = self._idle.pop() if self._idle else None
        try:
            if kept is not None:
                with contextlib.suppress(*CLOSED):
                    return self._answer(kept, method, path, headers, body, timeout_s)
            return self._answer(self._connect(), method, path, headers, body, timeout_s)
        except FAILURES as error:
            raise Unreachable(f"no answer from {self._config.url}: {explain(self._config, error)}") from error

    def stream(self, path: str, headers: dict[str, str]) -> Iterator[bytes]:
        """Yield the pieces of a long answer as they come. Raises ApiError, Unreachable."""
        try:
            connection = self._connect()
            with contextlib.closing(connection):
                response = self._request(connection, "GET", path, headers, None, protocol.STREAM_TIMEOUT_S)
                if response.status != 200:
                    protocol.decode(HttpReply(response.status, response.read()), self._config.url)
                while chunk := response.read1(CHUNK_BYTES_MAX):
                    yield chunk
        except FAILURES as error:
            raise Unreachable(f"the event stream broke off: {error or type(error).__name__}") from error

    def _connect(self) -> HTTPConnection:
        address, timeout_s = self._address, protocol.CONNECT_TIMEOUT_S
        if self._tls is None:
            connection = HTTPConnection(address.host, address.port, timeout=timeout_s)
        else:
            connection = HTTPSConnection(address.host, address.port, timeout=timeout_s, context=self._tls)
        connection.connect()
        return connection

    def _request(
        self, connection: HTTPConnection, method: str, path: str, headers: dict[str, str], body: bytes | None,
        timeout_s: float,
    ) -> HTTPResponse:  # fmt: skip
        assert connection.sock is not None
        connection.sock.settimeout(timeout_s)
        with contextlib.suppress(BrokenPipeError):  # the server may have answered before it had the whole body
            connection.request(method, self._address.prefix + path, body=body, headers=headers)
        return connection.getresponse()

    def _answer(
        self, connection: HTTPConnection, method: str, path: str, headers: dict[str, str], body: bytes | None,
        timeout_s: float,
    ) -> HttpReply:  # fmt: skip
        """Return the answer to a request, and keep the connection for the next one if that is possible."""
        try:
            response = self._request(connection, method, path, headers, body, timeout_s)
            authorities = response.headers.get(protocol.AUTHORITIES, "")
            cookies = tuple(response.headers.get_all("Set-Cookie", ()))
            age_s = protocol.age_s(response.headers.get(protocol.AGE))
            answer = HttpReply(response.status, response.read(), authorities, cookies, age_s)
        except BaseException:
            connection.close()
            raise
        if response.will_close:
            connection.close()
        else:
            self._idle.append(connection)
        return answer

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what blocks: here at once."""
        return function(*args, **kwargs)

    def close(self) -> None:
        _close(self._idle)


def _close(connections: list[HTTPConnection]) -> None:
    while connections:
        connections.pop().close()


def _address(url: str) -> _ApiAddress:
    """Take the URL of an API apart. Raises Unreachable."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        if parts.hostname and parts.scheme in PORTS:
            port = parts.port or PORTS[parts.scheme]
            return _ApiAddress(parts.scheme, parts.hostname, port, parts.path.rstrip("/"))
    raise Unreachable(f"{url!r} is no URL of an API: write it like https://server.example.org:7443")
