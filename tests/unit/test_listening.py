"""Ports at which a host listens, as the kernel says."""

from __future__ import annotations

import socket

from novacron.model.network import Protocol
from novacron.net import listening

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
