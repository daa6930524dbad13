"""Connections to a database at several hosts, and what its failures mean."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest
from asyncpg.protocol.protocol import ConnectionSettings

from novacron.local.doctor.database import database
from novacron.store import hosts
from novacron.store.database import PooledConnection

SEVERAL = "postgresql://u@h1:1,h2:2/db"


class FakeConnection:
    """A connection to a primary, on a socket of its own."""

    def __init__(self, tcp: socket.socket) -> None:
        self.tcp = tcp

    @property
    def _transport(self) -> FakeConnection:
        return self

    def get_extra_info(self, name: str) -> socket.socket | None:
        return self.tcp if name == "socket" else None

    async def fetchval(self, *_: object, **__: object) -> bool:
        return False

    def terminate(self) -> None:
        self.tcp.close()


@contextlib.contextmanager
def tcp_socket() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as tcp:
        yield tcp


async def test_only_connections_to_one_of_several_hosts_are_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single server that is silent for seconds comes back; nobody else takes over."""
    for url, timeout_ms in ((SEVERAL, hosts.TCP_OPTIONS[socket.TCP_USER_TIMEOUT]), ("postgresql://u@h1:1/db", 0)):
        with tcp_socket() as tcp:

            async def connect(*_: object, tcp: socket.socket = tcp, **__: object) -> FakeConnection:
                return FakeConnection(tcp)

            monkeypatch.setattr(asyncpg, "connect", connect)
            await hosts.connect(url, timeout=5)
            assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == timeout_ms, url


@pytest.mark.parametrize("full", ["h1", "h2"])
async def test_a_primary_without_room_can_be_waited_for(monkeypatch: pytest.MonkeyPatch, full: str) -> None:
    async def connect(server: str, **_: object) -> None:
        if full in server:
            raise asyncpg.TooManyConnectionsError("sorry, too many clients already")
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(asyncpg, "connect", connect)
    with pytest.raises(asyncpg.TooManyConnectionsError):
        await hosts.connect(SEVERAL, timeout=5)


async def test_a_write_that_a_pooler_refuses_fails_as_what_it_is() -> None:
    """Poolers don't pass ``in_hot_standby`` on."""

    class BehindPooler(PooledConnection):
        def __init__(self) -> None:
            pass

        def __del__(self) -> None:
            pass

        def get_settings(self) -> Any:
            return ConnectionSettings("db")

    async def write() -> None:
        await asyncio.sleep(0)
        raise asyncpg.ReadOnlySQLTransactionError("cannot execute INSERT in a read-only transaction")

    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await BehindPooler()._confirmed("INSERT", write())


async def test_the_doctor_says_in_words_that_a_url_asks_for_any_server() -> None:
    found = await database(f"{SEVERAL}?target_session_attrs=any")
    assert len(found) == 1 and "target_session_attrs=any: NovaCron writes" in found[0].found
