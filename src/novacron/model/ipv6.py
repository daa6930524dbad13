"""IPv6 addresses of networks and interfaces. Pure.

A network's prefix is a /64. An interface has one address in it: the one that its MAC address yields (RFC 4291, appendix
A), which a guest also derives by itself, or one of the user's choice.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from novacron.model.errors import InvalidInput

PREFIX_BITS = 64
RANDOM_BYTES = 5
AUTO = "auto"
"""Stands for a prefix that is chosen at random."""
EUI64_MARK = b"\xff\xfe"
"""In the middle of an interface identifier that a MAC address yields."""
LINK_LOCAL = ipaddress.IPv6Network("fe80::/64")
RESERVED = tuple(
    ipaddress.IPv6Network(text)
    for text in ("::/8", "64:ff9b::/32", "2001::/32", "2002::/16", "fd4e:6f76:6163::/48", "fe00::/7")
)
"""No network may use these: they have a meaning of their own, stand for IPv4 addresses, or reach hosts.
fd4e:6f76:6163::/48 is kept for what connects networks with their hosts."""


def random_prefix(random: bytes) -> str:
    """Return a unique local prefix (RFC 4193, section 3.2) of five random bytes."""
    return str(ipaddress.IPv6Network((b"\xfd" + random[:RANDOM_BYTES] + bytes(10), PREFIX_BITS)))


def check_prefix(text: str) -> str:
    """Return a prefix for guests in canonical form. Raises InvalidInput."""
    field, hint = "subnet6", f"such as fd12:3456:789a::/64, or {AUTO}"
    try:
        if "%" in text:  # a zone, which may be any text
            raise ValueError("it has a zone")
        prefix = ipaddress.IPv6Network(text)
    except ValueError as error:
        raise InvalidInput(f"{text[:80]!r} is not an IPv6 prefix: {error}", field=field, hint=hint) from None
    if prefix.prefixlen != PREFIX_BITS:
        raise InvalidInput(f"{prefix} is no /{PREFIX_BITS}: guests need one of that length", field=field, hint=hint)
    for taken in RESERVED:
        if prefix.overlaps(taken):
            raise InvalidInput(f"{prefix} overlaps {taken}, which guests can't have", field=field, hint=hint)
    return str(prefix)


def check_address(text: str, field: str = "address6") -> ipaddress.IPv6Address:
    """Return an address. Raises InvalidInput, also for one with a zone, which may be any text."""
    try:
        if "%" in text:
            raise ValueError
        return ipaddress.IPv6Address(text)
    except ValueError:
        raise InvalidInput(
            f"{text[:80]!r} is not an IPv6 address", field=field, hint="such as fd12:3456:789a::10"
        ) from None


def of_mac(prefix: ipaddress.IPv6Network, mac: str) -> str:
    """Return the address that a MAC address yields in a prefix."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + EUI64_MARK + octets[3:]
    return str(prefix[int.from_bytes(identifier)])


def link_local(mac: str) -> str:
    """Return the link-local address that a MAC address yields."""
    return of_mac(LINK_LOCAL, mac)


def own_addresses(address: str, mac: str) -> tuple[str, ...]:
    """Return the addresses that a guest may use whose interface has this one: it may also derive one by itself."""
    prefix = ipaddress.IPv6Network((address, PREFIX_BITS), strict=False)
    return tuple(dict.fromkeys((address, of_mac(prefix, mac), link_local(mac))))


def service_address(prefix: str) -> str:
    """Return the address of a network's DHCP and DNS, which each node serves for its own guests."""
    return str(ipaddress.IPv6Network(prefix)[2])


def give(prefix: str, mac: str, taken: Collection[str], requested: str | None) -> str:
    """Return the address for an interface: the requested one, or the one that its MAC address yields.

    Raises InvalidInput.
    """
    net = ipaddress.IPv6Network(prefix)
    own = of_mac(net, mac)
    address = check_address(own if requested is None else requested)
    if address not in net or address == net[0]:
        raise InvalidInput(f"{address} is not an address in {prefix}", field="address6")
    if address in (net[1], net[2]):
        raise InvalidInput(f"{address} is the network's own", field="address6", hint=f"from {net[3]} on")
    if address.packed[11:13] == EUI64_MARK and str(address) != own:
        raise InvalidInput(f"{address} belongs to another MAC address", field="address6", hint=f"such as {net[16]}")
    if str(address) in taken:
        raise InvalidInput(f"{address} is another interface's", field="address6", hint="choose another one")
    return str(address)


def after_mac_change(address: str | None, before: str | None, now: str | None) -> str | None:
    """Return an interface's address after its MAC address has changed: one that the old MAC address yielded follows."""
    if address is None or before is None or now is None:
        return address
    prefix = ipaddress.IPv6Network((address, PREFIX_BITS), strict=False)
    return of_mac(prefix, now) if address == of_mac(prefix, before) else address
