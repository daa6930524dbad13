"""Which connections end: those that do nothing for long, and, when there are too many, those of who has the most."""

from __future__ import annotations

import asyncio
import resource
import socket
from pathlib import Path

import pytest

from novacron.api.edge.in_progress import RequestsInProgress
from novacron.server import connections
from novacron.server.connections import (
    FIRST_REQUEST_S_MAX,
    IDLE_S_MAX,
    UNSENT_S_MAX,
    ClientConnection,
    IdleConnections,
    most_connections,
    to_end,
)

NOW = 10_000.0


def open_for(seconds: float, *, address: str = "192.0.2.1", port: int = 1, **how: bool) -> ClientConnection:
    return ClientConnection(port, (address, port), NOW - seconds, **how)


@pytest.mark.parametrize(
    ("connection", "ends"),
    [
        (open_for(FIRST_REQUEST_S_MAX - 1), False),
        (open_for(FIRST_REQUEST_S_MAX + 1), True),
        (open_for(FIRST_REQUEST_S_MAX + 1, has_asked=True), False),
        (open_for(IDLE_S_MAX + 1, has_asked=True), True),
        (open_for(IDLE_S_MAX + 1, has_asked=True, is_sending=True), False),
        (open_for(UNSENT_S_MAX + 1, has_asked=True, is_sending=True), True),
        (open_for(1e9, has_asked=True, is_busy=True), False),
    ],
)
def test_a_connection_without_a_request_ends_after_a_while(connection: ClientConnection, ends: bool) -> None:
    assert to_end([connection], NOW, 100) == {"idle": [connection] if ends else [], "full": []}


def test_when_there_are_too_many_those_of_who_has_the_most_end_and_the_longest_silent_first() -> None:
    greedy = [open_for(port, address="192.0.2.9", port=port) for port in range(1, 10)]
    busy = [open_for(99, address="192.0.2.9", port=port, is_busy=True) for port in range(20, 25)]
    others = [open_for(15, address=f"192.0.2.{number}", port=1) for number in range(1, 4)]
    ended = to_end([*greedy, *busy, *others], NOW, 20)
    assert ended["full"] == greedy[:1:-1], "so many that half of 20 are left; the two last ones were active last"
    assert to_end([*busy * 4], NOW, 10)["full"] == [], "a request is not ended for another"


def test_addresses_of_one_host_count_as_one() -> None:
    one_host = [open_for(1, address=f"2001:db8::{number:x}", port=number) for number in range(1, 9)]
    other = open_for(15, address="2001:db8:1::1")
    assert other not in to_end([*one_host, other], NOW, 8)["full"]


def test_a_request_in_progress_is_counted_until_the_last_has_ended() -> None:
    requests = RequestsInProgress(lambda: NOW)
    peers = [requests.begin(("fe80::1%eth0", port)) for port in (5, "5")]
    requests.end(peers[0])
    assert requests.busy == {("fe80::1", 5): 1}
    requests.end(peers[1])
    assert not requests.busy and requests.ended_at == {("fe80::1", 5): NOW}
    requests.forget_all_but([], NOW)
    assert requests.ended_at, "it may have been opened after the look"
    requests.forget_all_but([], NOW + 1)
    assert not requests.ended_at


async def test_only_connections_of_the_port_end_and_those_with_a_request_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "FIRST_REQUEST_S_MAX", -1.0)
    requests = RequestsInProgress()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as other:
        port = server.getsockname()[1]
        proxies = IdleConnections(port, 1000, requests, lambda _: True)
        idle = IdleConnections(port, 1000, requests, lambda _: False)
        with (
            socket.create_connection(server.getsockname()) as silent,
            socket.create_connection(server.getsockname()) as busy,
            socket.create_connection(other.getsockname()) as elsewhere,
        ):
            accepted = [server.accept()[0], server.accept()[0], other.accept()[0]]
            address, source_port = busy.getsockname()
            peer = requests.begin((address, str(source_port)))  # as Granian has it
            assert len(await asyncio.to_thread(proxies.look)) == 2
            silent.settimeout(0.01)
            with pytest.raises(TimeoutError):
                silent.recv(1)
            await asyncio.to_thread(idle.look)
            silent.settimeout(10)
            assert silent.recv(1) == b""
            for still in (busy, elsewhere):
                still.setblocking(False)
                with pytest.raises(BlockingIOError):
                    still.recv(1)
            requests.end(peer)
            for end in accepted:
                end.close()


@pytest.mark.parametrize(
    ("files", "most"),
    [(resource.RLIM_INFINITY, 16_384), (1 << 20, 16_384), (17_408, 16_384), (4096, 3072), (1024, 512), (1, 1)],
)
def test_a_process_has_as_many_connections_as_it_may_open_files(
    monkeypatch: pytest.MonkeyPatch, files: int, most: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (files, files))
    assert most_connections(16_384) == most


@pytest.mark.parametrize("used", ["before it was first seen", "since it was looked at"])
async def test_a_connection_that_was_used_is_not_ended_as_one_without_a_request(
    monkeypatch: pytest.MonkeyPatch, used: str
) -> None:  # fmt: skip
    monkeypatch.setattr(connections, "FIRST_REQUEST_S_MAX", -1.0)
    requests = RequestsInProgress()

    def use() -> None:
        requests.end(requests.begin(client.getsockname()))

    def late(*arguments: object) -> dict[str, list[ClientConnection]]:
        ended = to_end(*arguments)  # type: ignore[arg-type]
        use()
        return ended

    with socket.create_server(("127.0.0.1", 0)) as server:
        idle = IdleConnections(server.getsockname()[1], 1000, requests, lambda _: False)
        with socket.create_connection(server.getsockname()) as client, server.accept()[0]:
            if used == "since it was looked at":
                monkeypatch.setattr(connections, "to_end", late)
            else:
                use()
            assert len(await asyncio.to_thread(idle.look)) == 1
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(1)


def test_a_number_that_is_no_sockets_any_more_leaves_no_file_open(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        before = len(list(Path(connections.FILES).iterdir()))
        with connections._borrowed(file.fileno()) as found:
            assert found is None
        assert len(list(Path(connections.FILES).iterdir())) == before
    with connections._borrowed(1 << 20) as found:
        assert found is None
