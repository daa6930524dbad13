"""Ports at which a host listens, as the kernel says."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from novacron import listening
from novacron.model.errors import InvalidInput
from novacron.model.network import Protocol
from novacron.server import main
from novacron.server.main import check_free
from novacron.server.settings import ServerSettings

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 20 4 30 10 -1
"""


def test_only_listening_sockets_count() -> None:
    assert listening.ports_in(TCP.splitlines(), Protocol.TCP) == {22}


def test_a_new_listener_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", 0))
        used = listening.used_ports()
        assert (Protocol.TCP, server.getsockname()[1]) in used
        assert (Protocol.UDP, datagrams.getsockname()[1]) in used


async def test_a_server_begins_while_the_last_ones_connections_fade_and_not_beside_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The HTTP server's sockets allow what ours do not: theirs that wait for their end are no listener."""
    monkeypatch.setattr(main, "PORT_FREE_S_MAX", 0.2)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    port = listener.getsockname()[1]
    settings = ServerSettings(database_url="", host="127.0.0.1", port=port, link_port=0, state_dir=tmp_path)
    with socket.create_connection(("127.0.0.1", port)):
        accepted, _ = listener.accept()
        with pytest.raises(InvalidInput) as refused:
            await check_free(settings)
        assert refused.value.field == "port"
        accepted.close()  # first, so that it is this end that waits
    listener.close()
    with pytest.raises(OSError, match="in use"):
        socket.create_server(("127.0.0.1", port))
    await check_free(settings)
