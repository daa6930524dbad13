"""Which server takes writes, where a database's URL names several: one is the primary, and another one may be tomorrow.

asyncpg takes such URLs itself, but tries one server after the other within one time limit, so a host without power uses
it up; and it gives up at a server that is starting, instead of trying the next one.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, urlencode

import asyncpg

from novacron.model.errors import InvalidInput

NEXT_AFTER_S = 0.5
"""The next server is tried beside one that has not answered for so long."""
SERVERS_MAX = 16
WRITABLE = ("read-write", "primary")
"""What a URL may ask for as ``target_session_attrs``."""
TCP_OPTIONS = {
    socket.TCP_KEEPIDLE: 3,
    socket.TCP_KEEPINTVL: 1,
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 6000,
}
"""A connection to a host that lost its power breaks within about 6 s; without them, whoever waits for an answer on it
would do so for a quarter of an hour."""

Tries = dict["asyncio.Task[asyncpg.Connection]", str]
"""Connections that are being opened, each with its URL."""

_primaries: dict[str, str] = {}
"""By URL, the server that was the primary last, which is tried first."""


class NoPrimary(ConnectionError):
    """None of the servers takes writes; the text says what each answered."""


class UrlParts(NamedTuple):
    """A URL of PostgreSQL. ``urlsplit`` takes no list of hosts with an IPv6 address in it."""

    scheme: str
    credentials: str
    """With the ``@``, if there are any."""
    hosts: str
    path: str
    query: str

    @classmethod
    def of(cls, url: str) -> UrlParts:
        scheme, separator, rest = url.partition("://")
        if not separator:
            raise ValueError("it is not a URL: write it like postgresql://user@host:5432/database")
        rest, _, query = rest.partition("?")
        authority, slash, path = rest.partition("/")
        credentials, at, hosts = authority.rpartition("@")
        return cls(scheme, credentials + at, hosts, slash + path, query)

    def __str__(self) -> str:
        query = f"?{self.query}" if self.query else ""
        return f"{self.scheme}://{self.credentials}{self.hosts}{self.path}{query}"


def each_server(url: str) -> list[str]:
    """Return a URL for each server that ``url`` names, in libpq's way (``postgresql://u@h1:5432,h2:5432/db``), without
    ``target_session_attrs`` if it names several. Raises InvalidInput."""
    if "," not in url:
        return [url]
    parts = UrlParts.of(url)
    if "," not in parts.hosts:
        return [url]
    names = [name for name in parts.hosts.split(",") if name]
    options = parse_qsl(parts.query, keep_blank_values=True)
    required = dict(options).get("target_session_attrs", WRITABLE[0])
    if required not in WRITABLE:
        raise InvalidInput(
            f"target_session_attrs={required}: NovaCron writes to the database, and needs the primary",
            field="database", hint=f"leave it out, or write target_session_attrs={WRITABLE[0]}",
        )  # fmt: skip
    if not 0 < len(names) <= SERVERS_MAX:
        raise InvalidInput(
            f"{len(names)} servers in the database's URL: 1 to {SERVERS_MAX} are allowed", field="database",
            hint="write it like postgresql://user@host1:5432,host2:5432,host3:5432/database",
        )  # fmt: skip
    kept = [(name, value) for name, value in options if name != "target_session_attrs"]
    query = urlencode(kept, safe="/:,", quote_via=quote)
    return [str(parts._replace(hosts=name, query=query)) for name in names]


async def connect(url: str, *, timeout: float, **options: Any) -> asyncpg.Connection:  # noqa: ANN401 (asyncpg's)
    """Open a connection to the primary. Takes asyncpg's options, and raises what it raises; NoPrimary if the URL names
    several servers and none of them takes writes within ``timeout`` seconds."""
    servers = each_server(url)
    connection: asyncpg.Connection
    if len(servers) == 1:
        connection = await asyncpg.connect(url, timeout=timeout, **options)
        return connection
    known = _primaries.get(url)
    servers.sort(key=lambda server: server != known)
    connection, _primaries[url] = await _first(servers, timeout, options)
    _notice_silence(connection)
    return connection


async def _first(servers: Sequence[str], timeout_s: float, options: dict[str, Any]) -> tuple[asyncpg.Connection, str]:
    """Return a connection to the first server that proves to be the primary, and its URL. Raises NoPrimary;
    TooManyConnectionsError if one of them has no room, for which callers can wait."""
    tries: Tries = {}
    chosen: asyncio.Task[asyncpg.Connection] | None = None
    deadline = asyncio.get_running_loop().time() + timeout_s
    try:
        for number, server in enumerate(servers, 1):
            tries[asyncio.create_task(_open_primary(server, timeout_s, options))] = server
            chosen = await _chosen(tries, deadline, NEXT_AFTER_S if number < len(servers) else timeout_s)
            if chosen is not None:
                return chosen.result(), tries[chosen]
        for failed in (_error(each) for each in tries):
            if isinstance(failed, asyncpg.TooManyConnectionsError):
                raise failed
        raise NoPrimary(_why(tries))
    finally:
        for each in tries:
            each.cancel()
            each.add_done_callback(lambda task: _discard(task, chosen))


async def _chosen(tries: Tries, deadline: float, wait_s: float) -> asyncio.Task[asyncpg.Connection] | None:
    """Return the try that has succeeded; None: so far none has, or all have failed."""
    loop = asyncio.get_running_loop()
    end = min(deadline, loop.time() + wait_s)
    while True:
        running = [each for each in tries if not each.done()]
        chosen = next((each for each in tries if each.done() and each.exception() is None), None)
        left_s = end - loop.time()
        if chosen is not None or not running or left_s <= 0:
            return chosen
        await asyncio.wait(running, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)


def _discard(task: asyncio.Task[asyncpg.Connection], chosen: asyncio.Task[asyncpg.Connection] | None) -> None:
    if task is not chosen and not task.cancelled() and task.exception() is None:
        task.result().terminate()


async def _open_primary(server: str, timeout_s: float, options: dict[str, Any]) -> asyncpg.Connection:
    connection: asyncpg.Connection = await asyncpg.connect(server, timeout=timeout_s, **options)
    try:
        if await connection.fetchval("SELECT pg_is_in_recovery()", timeout=timeout_s):
            raise NoPrimary("it is a standby")
    except BaseException:
        connection.terminate()
        raise
    return connection


def _error(task: asyncio.Task[asyncpg.Connection]) -> BaseException | None:
    return task.exception() if task.done() and not task.cancelled() else None


def _why(tries: Tries) -> str:
    """Return what each server answered, without passwords."""
    words = []
    for task, server in tries.items():
        host = UrlParts.of(server).hosts
        error = _error(task)
        words.append(f"{host}: {_answer_of(error)}")
    return f"no database server accepts writes ({'; '.join(words)})"


def _notice_silence(connection: asyncpg.Connection) -> None:
    """Let the kernel end the connection when the other host is silent: another one takes over."""
    of_kernel = connection._transport.get_extra_info("socket")  # type: ignore[attr-defined]  # asyncpg offers no other way
    if of_kernel is not None and of_kernel.family in (socket.AF_INET, socket.AF_INET6):
        of_kernel.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in TCP_OPTIONS.items():
            of_kernel.setsockopt(socket.IPPROTO_TCP, option, value)


def _answer_of(error: BaseException | None) -> str:
    """Return in words why a host is not used; None: its time was over."""
    if error is None or (isinstance(error, TimeoutError) and not str(error)):
        return "it does not answer"
    return str(error) or type(error).__name__
