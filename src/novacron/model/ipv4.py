"""IPv4 addresses of VMs in the hosts' network."""

from __future__ import annotations

import ipaddress

from novacron.model.errors import InvalidInput


def check_interface(address: str) -> str:
    """Return an address with its prefix length in canonical form, or raise InvalidInput."""
    try:
        parsed = ipaddress.IPv4Interface(address)
    except ValueError:
        raise InvalidInput(
            f"{address!r} is not an IPv4 address with a prefix length",
            field="address",
            hint="write it like 10.77.0.10/24",
        ) from None
    if "/" not in address:
        raise InvalidInput(f"{address!r} lacks its prefix length", field="address", hint=f"write {address}/24")
    return str(parsed)
