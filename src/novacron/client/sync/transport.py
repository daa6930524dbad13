"""HTTP by urllib3, which loads fast: what ``Client`` sends its requests with. ``aio/transport.py`` is its twin."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import urllib3

from novacron.client import protocol
from novacron.client.certificate_errors import explain
from novacron.client.config import Config
from novacron.client.errors import Unreachable
from novacron.client.protocol import HttpReply

P = ParamSpec("P")
T = TypeVar("T")


class Transport:
    """Connections to one API. Not for use by several threads at once."""

    def __init__(self, config: Config, connections: int = 2) -> None:
        self._config = config
        self._pool = urllib3.PoolManager(ssl_context=protocol.tls(config), maxsize=connections)

    def send(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None = None,
        timeout_s: float = protocol.READ_TIMEOUT_S,
    ) -> HttpReply:  # fmt: skip
        """Send one request, once. Raises Unreachable."""
        try:
            response = self._pool.request(
                method, self._config.url + path, body=body, headers=headers, retries=False,
                timeout=urllib3.Timeout(connect=protocol.CONNECT_TIMEOUT_S, read=timeout_s),
            )  # fmt: skip
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(f"no answer from {self._config.url}: {explain(self._config, error)}") from error
        return HttpReply(response.status, response.data, response.headers.get(protocol.AUTHORITIES, ""))

    def stream(self, path: str, headers: dict[str, str]) -> Iterator[bytes]:
        """Yield the pieces of a long answer as they come. Raises ApiError, Unreachable."""
        try:
            response = self._pool.request(
                "GET", self._config.url + path, headers=headers, retries=False, preload_content=False,
                timeout=urllib3.Timeout(connect=protocol.CONNECT_TIMEOUT_S, read=protocol.STREAM_TIMEOUT_S),
            )  # fmt: skip
            try:
                if response.status != 200:
                    protocol.decode(HttpReply(response.status, response.data), self._config.url)
                yield from response.stream(None)
            finally:
                response.close()
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(f"the event stream broke off: {error}") from error

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what blocks: here at once."""
        return function(*args, **kwargs)

    def close(self) -> None:
        self._pool.clear()
