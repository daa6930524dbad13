"""TCP settings that a WAN needs."""

from __future__ import annotations

import contextlib
import socket
import ssl
from pathlib import Path

TCP_NOTSENT_LOWAT = 25
NOTSENT_BYTES = 64 * 1024
"""What the kernel may hold unsent. All that waits here when the sender stops is added to the stop's length."""
CONGESTION = b"bbr"
STREAMS_WITH_BBR = 1
STREAMS_WITHOUT_BBR = 4
AVAILABLE = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")


def tune(sock: socket.socket) -> None:
    """Set a connection up for a long fat path with some loss. What the kernel lacks is left as it is."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option, value in ((socket.TCP_CONGESTION, CONGESTION), (TCP_NOTSENT_LOWAT, NOTSENT_BYTES)):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def streams_default() -> int:
    """Return how many connections a session uses here.

    One with BBR: it fills the link alone, and several would fill the queue of the bottleneck too, which becomes
    downtime. Others halve their rate at every loss and need company.
    """
    try:
        bbr = CONGESTION.decode() in AVAILABLE.read_text().split()
    except OSError:
        bbr = False
    return STREAMS_WITH_BBR if bbr else STREAMS_WITHOUT_BBR


def require_tls13(context: ssl.SSLContext) -> ssl.SSLContext:
    """Return the context, or raise ValueError if it would talk to an unproven peer or below TLS 1.3."""
    if context.minimum_version != ssl.TLSVersion.TLSv1_3 or context.verify_mode is not ssl.CERT_REQUIRED:
        raise ValueError("DWCP needs TLS 1.3 with certificates on both ends")
    return context
