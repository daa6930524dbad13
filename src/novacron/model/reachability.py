"""Where and how other nodes reach a node, as its agent says: checked before they are told, for they act on it."""

from __future__ import annotations

import base64
import ipaddress
import re

from novacron.model.errors import InvalidInput
from novacron.model.node import Inventory

ENDPOINT = re.compile(r"(?P<host>[A-Za-z0-9_.:-]{1,253}|\[[A-Fa-f0-9:.]{2,45}\]):(?P<port>[0-9]{1,5})")
PORT_MAX = 65535
TUNNEL_MTU_MIN, TUNNEL_MTU_MAX = 576, 65536
KEY_BYTES = 32
QUOTED_MAX = 100


def check_endpoint(endpoint: str, field: str = "endpoint") -> str:
    """Return ``host:port`` or ``[address]:port``, or raise InvalidInput if it is neither."""
    parts = ENDPOINT.fullmatch(endpoint)
    if parts is None or not 1 <= int(parts["port"]) <= PORT_MAX:
        raise InvalidInput(
            f"{endpoint[:QUOTED_MAX]!r} is not a host and a port", field=field, hint="see: novacron agent --advertise"
        )
    return endpoint


def check_reachable(inventory: Inventory) -> None:
    """Raise InvalidInput unless other nodes can act on what a node says of itself."""
    check_endpoint(inventory.dwcp_endpoint, "dwcp_endpoint")
    if not TUNNEL_MTU_MIN <= inventory.tunnel_mtu <= TUNNEL_MTU_MAX:
        raise InvalidInput(
            f"{inventory.tunnel_mtu} is not an MTU", field="tunnel_mtu", hint=f"{TUNNEL_MTU_MIN} to {TUNNEL_MTU_MAX}"
        )
    if inventory.wireguard and not _is_key(inventory.wireguard):
        raise InvalidInput(f"{inventory.wireguard[:QUOTED_MAX]!r} is not a WireGuard key", field="wireguard")
    for address in inventory.addresses:
        try:
            ipaddress.IPv4Address(address)
        except ValueError:
            raise InvalidInput(f"{address[:QUOTED_MAX]!r} is not an IPv4 address", field="addresses") from None


def _is_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) == KEY_BYTES
    except ValueError:
        return False
