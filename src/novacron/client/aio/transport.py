"""HTTP by httpx for asyncio: what ``AsyncClient`` sends its requests with. ``sync/transport.py`` is its twin."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import ParamSpec, TypeVar

import httpx

from novacron.client import protocol
from novacron.client.certificate_errors import explain
from novacron.client.config import Config
from novacron.client.errors import Unreachable
from novacron.client.protocol import HttpReply

P = ParamSpec("P")
T = TypeVar("T")


class AsyncTransport:
    """Connections to one API, at most ``connections`` at a time, for the tasks of one event loop."""

    def __init__(self, config: Config, connections: int) -> None:
        self._config = config
        self._http = httpx.AsyncClient(
            verify=protocol.tls(config),
            trust_env=False,
            headers={"Accept": "*/*", "Accept-Encoding": "identity"},
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    async def send(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None = None,
        timeout_s: float = protocol.READ_TIMEOUT_S,
    ) -> HttpReply:  # fmt: skip
        """Send one request, once. Raises Unreachable."""
        try:
            response = await self._http.request(
                method, self._config.url + path, content=body, headers=headers, timeout=_timeout(timeout_s)
            )
        except httpx.HTTPError as error:
            why = await asyncio.to_thread(explain, self._config, error)
            raise Unreachable(f"no answer from {self._config.url}: {why}") from error
        authorities = response.headers.get(protocol.AUTHORITIES, "")
        age_s = protocol.age_s(response.headers.get(protocol.AGE))
        return HttpReply(response.status_code, response.content, authorities, age_s=age_s)

    async def stream(self, path: str, headers: dict[str, str]) -> AsyncIterator[bytes]:
        """Yield the pieces of a long answer as they come. Raises ApiError, Unreachable."""
        timeout = _timeout(protocol.STREAM_TIMEOUT_S)
        try:
            async with self._http.stream("GET", self._config.url + path, headers=headers, timeout=timeout) as response:
                if response.status_code != 200:
                    protocol.decode(HttpReply(response.status_code, await response.aread()), self._config.url)
                async for chunk in response.aiter_raw():
                    yield chunk
        except httpx.HTTPError as error:
            raise Unreachable(f"the event stream broke off: {error or type(error).__name__}") from error

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what blocks, such as reading a file, in a thread: asyncio has no file input of its own."""
        return await asyncio.to_thread(function, *args, **kwargs)

    async def close(self) -> None:
        await self._http.aclose()


def _timeout(read_s: float) -> httpx.Timeout:
    # A task that waits for one of the few connections waits as long as its turn takes.
    return httpx.Timeout(read_s, connect=protocol.CONNECT_TIMEOUT_S, pool=None)
