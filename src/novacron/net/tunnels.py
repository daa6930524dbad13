"""Which hosts may send frames of each network to this one, and get them from it, as rules of nftables.

A network's VXLAN identifier proves nothing: whoever reaches the port can send it. So each network has chains of its
own. A frame is taken if it comes from a host that has the network: through WireGuard where their traffic is encrypted,
else on the interface through which that host is reached (reverse path). All others are dropped and counted. All of it
is pure, but for ``refused``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from novacron.net.firewall import VXLAN_PORT, listed
from novacron.net.overlay import RANGE

ENCRYPTED = "novawg*"
"""Interfaces of what encrypts."""
STRANGERS, STRANGERS_MAX, STRANGERS_S = "strangers", 64, 600
"""Addresses from which frames were dropped lately."""
COUNTER = "refused_"
VNI = "@th,96,24"
"""Where the identifier is: RFC 7348, section 5, after 8 bytes of UDP."""

Tunnels = Mapping[int, Sequence[str]]
"""The addresses of the other hosts that have a network, by its VXLAN identifier."""


def _is_encrypted(address: str) -> bool:
    try:
        return ipaddress.IPv4Address(address) in RANGE
    except ValueError:  # nft refuses it, and with it this network alone
        return False


def _set(addresses: Iterable[str]) -> str:
    return "{ " + ", ".join(sorted(addresses)) + " }"


def _from(vni: int, hosts: Sequence[str]) -> Iterator[str]:
    encrypted = [host for host in hosts if _is_encrypted(host)]
    clear = [host for host in hosts if not _is_encrypted(host)]
    if encrypted:
        yield f'iifname "{ENCRYPTED}" ip saddr {_set(encrypted)} return'
    if clear:
        yield f"ip saddr {_set(clear)} fib saddr . iif oif exists return"
    yield f"update @{STRANGERS} {{ ip saddr }}"
    yield f"counter name {COUNTER}{vni} drop"


def _to(hosts: Sequence[str]) -> Iterator[str]:
    encrypted = [host for host in hosts if _is_encrypted(host)]
    clear = [host for host in hosts if not _is_encrypted(host)]
    if encrypted:  # what encrypts may have ended
        yield f'oifname "{ENCRYPTED}" ip daddr {_set(encrypted)} return'
    if clear:
        yield f"ip daddr {_set(clear)} return"
    yield "drop"


def declarations(tunnels: Tunnels) -> list[str]:
    """Return what a table has besides the rules of ``receiving`` and ``sending``, for which it is."""
    lines = [f" set {STRANGERS} {{ type ipv4_addr; size {STRANGERS_MAX}; flags dynamic, timeout;"
             f" timeout {STRANGERS_S}s; }}"]  # fmt: skip
    for vni, hosts in tunnels.items():
        lines.append(f" counter {COUNTER}{vni} {{ }}")
        for name, rules in ((f"from_{vni}", _from(vni, hosts)), (f"to_{vni}", _to(hosts))):
            lines += [f" chain {name} {{", *(f"  {rule}" for rule in rules), " }"]
    return lines


def _by_network(tunnels: Tunnels, chain: str) -> list[str]:
    jumps = ", ".join(f"{vni} : jump {chain}_{vni}" for vni in tunnels)
    return [f"  udp dport {VXLAN_PORT} {VNI} vmap {{ {jumps} }}"] if jumps else []


def receiving(tunnels: Tunnels) -> list[str]:
    """Return the rules for what comes to this host."""
    return [*_by_network(tunnels, "from"), f'  ip saddr {RANGE} iifname != "{ENCRYPTED}" drop']


def sending(tunnels: Tunnels) -> list[str]:
    """Return the rules for what this host sends."""
    return [f'  ip daddr {RANGE} oifname != "{ENCRYPTED}" drop', *_by_network(tunnels, "to")]


class Refused(NamedTuple):
    """What was dropped since the rules were loaded."""

    packets: Mapping[int, int]
    """By VXLAN identifier."""
    strangers: Sequence[str]
    """Addresses from which it came lately."""


def refused(table: str) -> Refused | None:
    """Return what a table of family ``ip`` has dropped; None: there is no such table. Raises NetworkFailed."""
    counters = listed("counters", "table", "ip", table)
    if counters is None:
        return None
    packets = {
        int(entry["counter"]["name"].removeprefix(COUNTER)): int(entry["counter"]["packets"])
        for entry in counters
        if entry.get("counter", {}).get("name", "").startswith(COUNTER)
    }
    if not any(packets.values()):
        return Refused(packets, ())
    sets = [entry["set"] for entry in listed("set", "ip", table, STRANGERS) or () if "set" in entry]
    elements = [element["elem"]["val"] for nft_set in sets for element in nft_set.get("elem", ())]  # each has a timeout
    return Refused(packets, sorted(elements))
