"""TCP settings that a WAN needs."""

from __future__ import annotations

import contextlib
import socket
import ssl

TCP_NOTSENT_LOWAT = 25
NOTSENT_BYTES = 128 * 1024
"""What the kernel may hold unsent. All that waits here when the sender stops is added to the stop's length."""
CONGESTION = b"bbr"


def tune(sock: socket.socket) -> None:
    """Set a connection up for a long fat path with some loss. What the kernel lacks is left as it is."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option, value in ((socket.TCP_CONGESTION, CONGESTION), (TCP_NOTSENT_LOWAT, NOTSENT_BYTES)):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def require_tls13(context: ssl.SSLContext) -> ssl.SSLContext:
    """Return the context, or raise ValueError if it would talk to an unproven peer or below TLS 1.3."""
    if context.minimum_version != ssl.TLSVersion.TLSv1_3 or context.verify_mode is not ssl.CERT_REQUIRED:
        raise ValueError("DWCP needs TLS 1.3 with certificates on both ends")
    return context
