"""What of IPv6 may pass to and from guests, as rules of nftables. Pure.

Whatever a rule does not name is dropped: a guest uses its own addresses, answers neighbours' questions for these only,
and advertises no routes. Rules match what is there: a header that a fragment or a chain of extension headers hides
matches none of them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

ERRORS = "destination-unreachable, packet-too-big, time-exceeded, parameter-problem"
NEIGHBOURS = "nd-neighbor-solicit, nd-neighbor-advert"
LISTENERS = "mld-listener-report, mld-listener-done, mld2-listener-report"
FLOW = "ip6 saddr . ip6 daddr . meta l4proto . th sport . th dport"
BACK = "ip6 daddr . ip6 saddr . meta l4proto . th dport . th sport"
KEY = "type ipv6_addr . ipv6_addr . inet_proto . inet_service . inet_service"
PLAIN = "ip6 nexthdr icmpv6 icmpv6"
"""ICMPv6 right behind the IPv6 header: nodes refuse fragments of it, and need no extension headers (RFC 6980)."""


def _hex(address: str) -> str:
    return f"0x{int(ipaddress.IPv6Address(address)):032x}"


def _with_own_mac(message: str, length: int, option: int, mac: str) -> Iterator[str]:
    """Yield acceptance of a message of neighbour discovery with no option, or with only the link-layer address ``mac``
    (RFC 4861, section 4.6.1). ``length``: of the message, in bytes."""
    offset = length * 8
    yield f"{message} ip6 length {length} accept"
    own = f"@th,{offset},16 0x{option:02x}01 @th,{offset + 16},48 0x{mac.replace(':', '')}"
    yield f"{message} ip6 length {length + 8} {own} accept"


def spoofing(mac: str, addresses: tuple[str, ...]) -> Iterator[str]:
    """Yield what a guest may send that has these addresses, and a final drop of all other IPv6."""
    for address in addresses:  # it looks whether nobody else has its own, before it uses them
        target = f"@th,64,128 {_hex(address)}"
        yield f"ip6 saddr :: {PLAIN} type nd-neighbor-solicit {target} accept"
    yield f"ip6 saddr :: {PLAIN} type nd-router-solicit ip6 length 8 accept"
    yield f"ether type ip6 ip6 saddr != {{ {', '.join(addresses)} }} drop"
    yield from _with_own_mac(f"{PLAIN} type nd-neighbor-solicit", 24, 1, mac)
    yield from _with_own_mac(f"{PLAIN} type nd-router-solicit", 8, 1, mac)
    for address in addresses:
        target = f"@th,64,128 {_hex(address)}"
        yield from _with_own_mac(f"{PLAIN} type nd-neighbor-advert {target}", 24, 2, mac)
    yield f"icmpv6 type {{ {ERRORS}, {LISTENERS}, echo-request, echo-reply }} ether type ip6 accept"
    yield "ether type ip6 frag frag-off != 0 accept"  # nothing, without the first one, which has the ports
    yield "ether type ip6 udp dport != 546 accept"  # of DHCP's clients: nothing that hides its port passes
    yield "ether type ip6 meta l4proto != { icmpv6, udp } accept"
    yield "ether type ip6 drop"


def to_guest(flows: str) -> Iterator[str]:
    """Yield what always passes to a guest that has security groups."""
    yield f"{FLOW} @{flows} accept"
    yield f"icmpv6 type {{ {ERRORS}, echo-reply, {NEIGHBOURS}, nd-router-advert }} accept"
    yield "ether type ip6 frag frag-off != 0 accept"


def from_guest(flows: str, keep: str) -> Iterator[str]:
    """Yield what always passes from a guest with security groups that limit what it sends; ``spoofing`` has looked."""
    yield f"{BACK} @{flows} goto {keep}"
    yield f"icmpv6 type {{ {ERRORS}, echo-reply, {NEIGHBOURS}, {LISTENERS}, nd-router-solicit }} accept"
    yield "ether type ip6 frag frag-off != 0 accept"
    yield "ether type ip6 udp dport 547 accept"


def keeping(flows: str, connected_s: int, flow_s: int) -> Iterator[str]:
    """Yield what remembers what a guest sends."""
    established = "ether type ip6 tcp flags & (fin | syn | rst) == 0"
    yield f"{established} update @{flows} {{ {BACK} timeout {connected_s}s }} accept"
    yield f"meta l4proto {{ tcp, udp }} update @{flows} {{ {BACK} timeout {flow_s}s }}"
