"""Where another node listens, as text and as an address."""

from __future__ import annotations


def parse_endpoint(endpoint: str) -> tuple[str, int]:
    """Return the host and the port of ``host:port`` or ``[address]:port``. Raises ValueError for another port."""
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)
