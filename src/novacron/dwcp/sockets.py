"""TCP settings that a WAN needs, and what the kernel knows about a connection."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from pathlib import Path

import msgspec

TCP_NOTSENT_LOWAT = 25
SO_MAX_PACING_RATE = 47
NOTSENT_BYTES = 64 * 1024
"""What the kernel may hold unsent. All that waits here when the sender stops is added to the stop's length."""
CONGESTION = b"bbr"
STREAMS_WITH_BBR = 1
STREAMS_WITHOUT_BBR = 4
UNLIMITED = 2**64 - 1
AVAILABLE = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
BUFFER_BYTES = 16 * 1024 * 1024
"""More than the bandwidth-delay product of 500 Mbit/s and 200 ms; the kernel doubles it for its own use."""
_TCP_INFO = struct.Struct("=8x24I4Q6IQ")
"""The head of ``struct tcp_info`` (linux/tcp.h), up to the delivery rate."""


class PathMetrics(msgspec.Struct, frozen=True):
    """What the kernel measured on a connection. Times in seconds, rates in bytes a second."""

    rtt_s: float
    rtt_min_s: float
    retransmits: int
    delivery_rate: int


def tune(sock: socket.socket) -> None:
    """Set a connection up for a long fat path with some loss. What the kernel lacks is left as it is."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    enlarge(sock)
    for option, value in ((socket.TCP_CONGESTION, CONGESTION), (TCP_NOTSENT_LOWAT, NOTSENT_BYTES)):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def enlarge(sock: socket.socket) -> None:
    """Give a socket buffers for a long fat path; needs CAP_NET_ADMIN, without it the kernel sizes them by itself.

    A listening socket has to be given them before a connection comes: they decide the window that is offered.
    """
    for option in (SO_SNDBUFFORCE, SO_RCVBUFFORCE):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)


GONE = (OSError, ValueError)
"""What the socket of a connection that was dropped a moment ago raises: uvloop's has no descriptor any more."""


def pace(sock: socket.socket, bytes_per_s: int | None) -> None:
    """Let the kernel send no faster; None lifts the limit."""
    with contextlib.suppress(*GONE):
        sock.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, struct.pack("=Q", bytes_per_s or UNLIMITED))


def measured(sock: socket.socket) -> PathMetrics | None:
    """Return what the kernel knows, or None where it tells less."""
    try:
        raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    except GONE:
        return None
    if len(raw) < _TCP_INFO.size:
        return None
    fields = _TCP_INFO.unpack_from(raw)
    rtt_us, retransmits, rtt_min_us, rate = (fields[i] for i in (15, 23, 31, 34))
    return PathMetrics(rtt_us / 1e6, rtt_min_us / 1e6, retransmits, rate)


def streams_default() -> int:
    """Return how many connections a session begins with here.

    One with BBR: it mostly fills the link alone, and several would fill the queue of the bottleneck too, which becomes
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
