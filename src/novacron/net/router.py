"""Routing between a network and the outside, through the host of its gateway.

A pair of interfaces joins the network's namespace with the host. Inside, guests' addresses become the network's own
(``TRANSIT``), or their floating ones, so that networks may have the same subnets. The host hides the former behind its
own addresses, answers for the latter on the wire, and lets no guest reach itself.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from novacron.model.network import NetworkOnNode, Protocol
from novacron.net import namespace, tunnels
from novacron.net.firewall import GATEWAY_MAC, VXLAN_PORT, nft
from novacron.net.overlay import (
    GATEWAY,
    LINK_LOCAL,
    NEXT_HOP,
    RANGE,
    RT_SCOPE_LINK,
    TRANSIT,
    UPLINK,
    WIREGUARD_PORT,
    index,
    refusals,
    sysctl,
    transit_address,
)
from novacron.net.tap import netlink
from novacron.net.tunnels import Tunnels

if TYPE_CHECKING:
    from pyroute2 import IPRoute  # large: see ``tap.load``


TABLE = "novacron"
OUTSIDE = "novagw*"
ETH_P_ARP = 0x0806
NTF_PROXY = 8


def outside(number: int) -> str:
    """Return the name of the host's end."""
    return f"{OUTSIDE[:-1]}{number}"


def inside_script(network: NetworkOnNode) -> str:
    """Return the rules of the namespace of a network whose gateway is here."""
    subnet, transit = network.spec.subnet, transit_address(network.number)
    into = [f"  ip daddr {address} dnat to {guest}" for address, guest in network.floating]
    into += [
        f"  ip daddr {entrance.address or transit} {entrance.protocol} dport {entrance.port} dnat to "
        f"{entrance.guest}:{entrance.guest_port}"
        for entrance in network.entrances
    ]
    out = [f'  oifname "{UPLINK}" ip saddr {guest} snat to {address}' for address, guest in network.floating]
    out.append(f'  oifname "{UPLINK}" masquerade')
    out.append(f'  oifname "{GATEWAY}" ip saddr {subnet} ct status dnat masquerade')  # it came from there, too
    leaving = [f'  iifname "{GATEWAY}" oifname "{UPLINK}" ip saddr {guest} accept' for _, guest in network.floating]
    if network.spec.nat:
        leaving.append(f'  iifname "{GATEWAY}" oifname "{UPLINK}" accept')
    arriving = [
        f'  iifname "{UPLINK}" ip daddr {guest} accept'
        for _, guest in network.floating  # also in the midst of things
    ]
    return "\n".join(
        [
            f"table ip {TABLE}",
            f"delete table ip {TABLE}",
            f"table ip {TABLE} {{",
            " chain into { type nat hook prerouting priority dstnat; policy accept;",
            *into,
            " }",
            " chain out { type nat hook postrouting priority srcnat; policy accept;",
            *out,
            " }",
            " chain through { type filter hook forward priority 0; policy drop;",
            "  ct state established,related accept",
            "  ct status dnat accept",
            *arriving,
            *leaving,
            " }",
            "}",
            "",
        ]
    )


def _guests_out(nodes: Iterable[str]) -> list[str]:
    """Return the rules for what guests send through this host as their gateway.

    It leaves under the host's own address, which other hosts trust. So no guest reaches a host of the platform, the
    ranges that it uses itself, or a port at which hosts take tunnels. Answers to connections that came in go out.
    """
    platform = [str(LINK_LOCAL), str(RANGE), *sorted(nodes)]
    return [
        f'  iifname "{OUTSIDE}" ct state established,related accept',
        f'  iifname "{OUTSIDE}" ip daddr {TRANSIT} ct status & dnat == 0 drop',
        f'  iifname "{OUTSIDE}" ip daddr {{ {", ".join(platform)} }} drop',
        f'  iifname "{OUTSIDE}" oifname != "{OUTSIDE}" udp dport {{ {VXLAN_PORT}, {WIREGUARD_PORT} }} drop',
        f'  iifname "{OUTSIDE}" oifname "{tunnels.ENCRYPTED}" drop',
    ]


class HostRules(NamedTuple):
    """What the rules of a host depend on."""

    gateways: Sequence[NetworkOnNode]
    """Networks whose gateway it is."""
    tunnels: Tunnels
    nodes: Collection[str] = ()
    """IPv4 addresses of all hosts of the platform."""
    only_between: Iterable[str] | None = None
    """The host forwards for guests only, and between the ports of each of these bridges; None: whatever it did
    before."""
    used: Collection[tuple[Protocol, int]] = ()
    """Ports at which something on the host listens: they are never forwarded."""


def host_script(table: str, host: HostRules) -> str:
    """Return the rules of the host."""
    into = [
        f"  fib daddr type local {entrance.protocol} dport {entrance.port} dnat to {transit_address(network.number)}:"
        f"{entrance.port}"
        for network in host.gateways
        for entrance in network.entrances
        if entrance.address is None and (entrance.protocol, entrance.port) not in host.used
    ]
    only_between = host.only_between
    return "\n".join(
        [
            f"table ip {table}",
            f"delete table ip {table}",
            f"table ip {table} {{",
            *tunnels.declarations(host.tunnels),
            " chain into { type nat hook prerouting priority dstnat; policy accept;",
            *into,
            " }",
            " chain out { type nat hook postrouting priority srcnat; policy accept;",
            f'  ip saddr {TRANSIT} oifname != "{OUTSIDE}" masquerade',
            " }",
            " chain own { type filter hook input priority 0; policy accept;",
            f'  iifname "{OUTSIDE}" ct state established,related accept',
            f'  iifname "{OUTSIDE}" icmp type echo-request accept',
            f'  iifname "{OUTSIDE}" drop',
            *tunnels.receiving(host.tunnels),
            " }",
            " chain away { type filter hook output priority 0; policy accept;",
            *tunnels.sending(host.tunnels),
            " }",
            " chain through { type filter hook forward priority 0; policy accept;",
            *_guests_out(host.nodes),
            *(f'  iifname "{bridge}" oifname "{bridge}" accept' for bridge in only_between or ()),
            *([] if only_between is None else [f'  iifname != "{OUTSIDE}" oifname != "{OUTSIDE}" drop']),
            " }",
            "}",
            "",
        ]
    )


def _uplink_inside(network: NetworkOnNode) -> None:
    sysctl("ipv4/ip_forward", 1)
    with netlink() as ip:
        up = index(ip, UPLINK)
        ip.link("set", index=up, state="up")
        if not list(ip.get_addr(index=up, family=socket.AF_INET)):
            ip.addr("add", index=up, address=transit_address(network.number), prefixlen=32)
        ip.route("replace", dst="default", gateway=NEXT_HOP, oif=up, flags=["onlink"])
    nft(inside_script(network))


def open_(name: str, network: NetworkOnNode) -> None:
    """Set up routing for a network whose gateway is on this host. Raises NetworkFailed."""
    with refusals(f"can't be the gateway of network {network.name}"):
        near = outside(network.number)
        with (namespace.ROOT / name).open() as file, netlink() as ip:
            if index(ip, near) is None:
                ip.link("add", ifname=near, kind="veth", peer={"ifname": UPLINK, "net_ns_fd": file.fileno()})
            near_index = index(ip, near)
            ip.link("set", index=near_index, state="up")
            sysctl(f"ipv4/conf/{near}/rp_filter", 0)
            if not list(ip.get_addr(index=near_index, family=socket.AF_INET)):
                ip.addr("add", index=near_index, address=NEXT_HOP, prefixlen=32)
            ip.route("replace", dst=f"{transit_address(network.number)}/32", oif=near_index, scope=RT_SCOPE_LINK)
        namespace.within(name, lambda: _uplink_inside(network))


def held() -> set[str]:
    """Return the floating addresses that lead to networks of this host, as the kernel knows them.

    Raises NetworkFailed.
    """
    with refusals("can't list the routes into networks"), netlink() as ip:
        near = [link["index"] for link in ip.get_links() if link.get_attr("IFLA_IFNAME").startswith(OUTSIDE[:-1])]
        addresses = {
            route.get_attr("RTA_DST")
            for route in ip.get_routes(family=socket.AF_INET)
            if route["dst_len"] == 32 and route.get_attr("RTA_OIF") in near
        }
    return {address for address in addresses if ipaddress.IPv4Address(address) not in TRANSIT}


def floating_of(network: NetworkOnNode) -> set[str]:
    """Return the floating addresses that lead into a network."""
    return {address for address, _ in network.floating} | {
        entrance.address for entrance in network.entrances if entrance.address
    }


def lead(network: NetworkOnNode) -> None:
    """Route the floating addresses of a network to it. Raises NetworkFailed."""
    with refusals(f"can't have the floating addresses of network {network.name}"), netlink() as ip:
        near = index(ip, outside(network.number))
        for address in sorted(floating_of(network)):
            inside = transit_address(network.number)
            ip.route("replace", dst=f"{address}/32", gateway=inside, oif=near, flags=["onlink"])


def _wire_of(ip: IPRoute, address: str) -> tuple[str, int] | None:
    """Return name and index of the host's interface whose subnet has an address."""
    for entry in ip.get_addr(family=socket.AF_INET):
        own, prefix = entry.get_attr("IFA_ADDRESS"), entry["prefixlen"]
        if prefix < 32 and ipaddress.IPv4Address(address) in ipaddress.IPv4Network(f"{own}/{prefix}", strict=False):
            link = ip.get_links(entry["index"])[0]
            return str(link.get_attr("IFLA_IFNAME")), int(entry["index"])
    return None


def announce(addresses: Iterable[str]) -> list[str]:
    """Answer ARP for floating addresses on the links of their subnets, and announce them there; return those on
    no link of this host: other routers have to send them here. Raises NetworkFailed."""
    unannounced = []
    with refusals("can't announce floating addresses"), netlink() as ip:
        for address in addresses:
            wire = _wire_of(ip, address)
            if wire is None:
                unannounced.append(address)
                continue
            name, number = wire
            ip.neigh("replace", dst=address, ifindex=number, flags=NTF_PROXY)
            mac = ip.get_links(number)[0].get_attr("IFLA_ADDRESS")
            _gratuitous(name, mac, address)
    return unannounced


def forward(marker: Path) -> bool:
    """Enable IP forwarding; return whether it was on before. ``marker`` records that we enabled it.

    Raises NetworkFailed.
    """
    with refusals("can't enable IP forwarding"):
        if Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() != "1":
            marker.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            marker.touch()
            sysctl("ipv4/ip_forward", 1)
        return not marker.exists()


def _gratuitous(name: str, mac: str, address: str) -> None:
    """Send gratuitous ARP (RFC 5227, section 2.3)."""
    own, ip = bytes.fromhex(mac.replace(":", "")), socket.inet_aton(address)
    for kind, target in ((1, b"\0" * 6), (2, own)):
        body = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, kind, own, ip, target, ip)
        frame = b"\xff" * 6 + own + struct.pack("!H", ETH_P_ARP) + body
        with contextlib.closing(socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as out:
            out.bind((name, 0))
            out.send(frame)


def silence(addresses: Iterable[str]) -> None:
    """Stop answering ARP for these addresses. Raises NetworkFailed."""
    from pyroute2.netlink.exceptions import NetlinkError

    with refusals("can't release floating addresses"), netlink() as ip:
        for address in addresses:
            wire = _wire_of(ip, address)
            if wire is not None:
                with contextlib.suppress(NetlinkError):  # it was not answered for
                    ip.neigh("del", dst=address, ifindex=wire[1], flags=NTF_PROXY)


def greet(name: str, address: str) -> None:
    """Announce to a network's guests, and the bridges between, that their gateway is here. Raises NetworkFailed."""
    with refusals("can't announce the gateway"):
        namespace.within(name, lambda: _gratuitous(GATEWAY, GATEWAY_MAC, address))


def close(numbers: Iterable[int], addresses: Iterable[str]) -> None:
    """Remove the host's ends of all networks but these, and the routes to these addresses. Raises NetworkFailed."""
    from pyroute2.netlink.exceptions import NetlinkError

    kept = {outside(number) for number in numbers}
    with refusals("can't remove a network's routing"), netlink() as ip:
        for link in list(ip.get_links()):
            name = link.get_attr("IFLA_IFNAME")
            if name.startswith(OUTSIDE[:-1]) and name not in kept:
                ip.link("del", index=link["index"])
        for address in addresses:
            with contextlib.suppress(NetlinkError):  # it went with its interface
                ip.route("del", dst=f"{address}/32")
