"""Ports at which something on this host listens, from ``/proc/net`` (proc(5))."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from novacron.model.network import Protocol

TABLES = {"tcp": Protocol.TCP, "tcp6": Protocol.TCP, "udp": Protocol.UDP, "udp6": Protocol.UDP}
LISTENING = {Protocol.TCP: "0A", Protocol.UDP: "07"}
"""States in the kernel's tables: TCP_LISTEN, and that of UDP sockets that are not connected."""


def ports_in(lines: Iterable[str], protocol: Protocol) -> set[int]:
    """Return the ports of listening sockets in one of the kernel's tables."""
    fields = (line.split() for line in lines)
    return {
        int(columns[1].rpartition(":")[2], 16)
        for columns in fields
        if len(columns) > 3 and columns[3] == LISTENING[protocol]
    }


def used_ports(proc: Path = Path("/proc/net")) -> frozenset[tuple[Protocol, int]]:
    """Return the ports at which this host listens, those of the kernel's own tunnels too. Raises OSError."""
    return frozenset(
        (protocol, port)
        for name, protocol in TABLES.items()
        if (proc / name).exists()
        for port in ports_in((proc / name).read_text().splitlines(), protocol)
    )
