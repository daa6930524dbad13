"""A network on this host: a namespace with a bridge, the end of a VXLAN tunnel, and DHCP's and the gateway's ports.

Everything is in the namespace, so that networks may have the same subnets, and no guest reaches the host itself: only
what routes for guests has a way out, see ``novacron.net.router``.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from novacron.model import ipv6
from novacron.model.network import NetworkOnNode, gateway_address, service_address
from novacron.net import namespace
from novacron.net.firewall import GATEWAY_MAC, SERVICE_MAC, SERVICE_PORT, TUNNEL, VXLAN_PORT
from novacron.net.tap import NetworkFailed, netlink

if TYPE_CHECKING:
    from pyroute2 import IPRoute  # large: see ``tap.load``


BRIDGE, SERVICE, GATEWAY, GATEWAY_PORT, UPLINK = "br", "svc", "gw", "gwp", "up"
WIREGUARD_PORT = 51820
TTL = 64
IFA_F_NODAD = 0x02
IFA_F_NOPREFIXROUTE, RT_SCOPE_LINK = 0x200, 253
LINK_LOCAL = ipaddress.IPv4Network("169.254.0.0/16")
TRANSIT = ipaddress.IPv4Network("100.127.0.0/16")
"""Between a network and the host of its gateway."""
RANGE = ipaddress.IPv4Network("100.126.0.0/16")
"""Of nodes, as others see them through what encrypts."""
NEXT_HOP = str(TRANSIT[-2])
"""What a network takes for its router: the host has it at its end of each."""
FLOOD = "00:00:00:00:00:00"


def node_address(number: int) -> str:
    """Return a node's own address in every network."""
    return str(LINK_LOCAL[number])


def encrypted_address(number: int) -> str:
    """Return a node's address for those that encrypt what they send it."""
    return str(RANGE[number])


def transit_address(number: int) -> str:
    """Return the address under which the host of a network's gateway knows it."""
    return str(TRANSIT[number])


@contextlib.contextmanager
def refusals(what: str) -> Iterator[None]:
    """Raise NetworkFailed, which begins with ``what``, where the kernel refuses something."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except (NetlinkError, OSError) as error:
        raise NetworkFailed(f"{what}: {error}") from error


def sysctl(name: str, value: int) -> None:
    """Set a setting of this namespace's network. Raises OSError."""
    path = Path("/proc/sys/net") / name
    if path.read_text().split() != [str(value)]:
        path.write_text(str(value))


def index(ip: IPRoute, name: str) -> int | None:
    """Return the number of an interface, None if it is not there."""
    indexes = ip.link_lookup(ifname=name)
    return int(indexes[0]) if indexes else None


def _bridge(ip: IPRoute, mtu: int) -> int:
    if index(ip, BRIDGE) is None:
        ip.link("add", ifname=BRIDGE, kind="bridge", br_forward_delay=0, br_mcast_snooping=0)
    bridge = index(ip, BRIDGE)
    assert bridge is not None
    ip.link("set", index=bridge, mtu=mtu, state="up")
    return bridge


def _pair(ip: IPRoute, inner: str, port: str, mac: str, bridge: int, mtu: int) -> int:
    """Have an interface of the namespace that is a port of its bridge; return its number."""
    if index(ip, inner) is None:
        ip.link("add", ifname=inner, kind="veth", peer={"ifname": port})
    inner_index, other = index(ip, inner), index(ip, port)
    assert inner_index is not None and other is not None
    ip.link("set", index=other, master=bridge, mtu=mtu, state="up")
    ip.link("set", index=inner_index, address=mac, mtu=mtu, state="up")
    return inner_index


def _address(ip: IPRoute, device: int, address: str, subnet: ipaddress.IPv4Network, metric: int) -> None:
    """Give an interface an address, and a way to its subnet: the lowest metric is the one that is used."""
    if not list(ip.get_addr(index=device, family=socket.AF_INET)):
        ip.addr("add", index=device, address=address, prefixlen=subnet.prefixlen, IFA_FLAGS=IFA_F_NOPREFIXROUTE)
    ip.route("replace", dst=str(subnet), oif=device, priority=metric, scope=RT_SCOPE_LINK, prefsrc=address)


def _address6(ip: IPRoute, name: str, device: int, address: str) -> None:
    """Give an interface an IPv6 address, at once: nobody else can have it."""
    for setting, value in (("accept_dad", 0), ("accept_ra", 0), ("autoconf", 0), ("forwarding", 0)):
        sysctl(f"ipv6/conf/{name}/{setting}", value)
    sysctl(f"ipv6/conf/{name}/disable_ipv6", 0)
    has = {entry.get_attr("IFA_ADDRESS") for entry in ip.get_addr(index=device, family=socket.AF_INET6)}
    if address not in has:
        ip.addr("add", index=device, address=address, prefixlen=ipv6.PREFIX_BITS, IFA_FLAGS=IFA_F_NODAD)


def _own_mac(number: int) -> str:
    return f"02:4e:4f:57:{number >> 8:02x}:{number & 255:02x}"


def _inside(network: NetworkOnNode) -> None:
    """Make the bridge and this node's own ports on it."""
    assert network.spec.subnet is not None
    subnet = ipaddress.IPv4Network(network.spec.subnet)
    for setting in ("arp_ignore", "arp_announce", "rp_filter"):
        # Several interfaces are on one bridge: each answers for its own address only.
        value = {"arp_ignore": 1, "arp_announce": 2, "rp_filter": 0}[setting]
        for where in ("all", "default"):
            sysctl(f"ipv4/conf/{where}/{setting}", value)
    for family in ("iptables", "ip6tables", "arptables"):
        with contextlib.suppress(FileNotFoundError):  # frames of a bridge are no packets of this host's
            sysctl(f"bridge/bridge-nf-call-{family}", 0)
    sysctl("ipv6/conf/default/disable_ipv6", 1)
    sysctl("ipv6/conf/all/disable_ipv6", 1)
    with netlink() as ip:
        lo = index(ip, "lo")
        ip.link("set", index=lo, state="up")
        bridge = _bridge(ip, network.mtu)
        ip.link("set", index=bridge, address=_own_mac(network.node_number))
        _address(ip, bridge, node_address(network.node_number), LINK_LOCAL, 1)
        service = _pair(ip, SERVICE, SERVICE_PORT, SERVICE_MAC, bridge, network.mtu)
        _address(ip, service, service_address(network.spec.subnet), subnet, 2)
        if network.spec.subnet6 is not None:
            _address6(ip, SERVICE, service, ipv6.service_address(network.spec.subnet6))
        tunnel = index(ip, TUNNEL)
        if tunnel is not None:
            ip.link("set", index=tunnel, master=bridge, mtu=network.mtu, state="up")
        _resize_taps(ip, network.mtu)
        if network.is_gateway:
            gateway = _pair(ip, GATEWAY, GATEWAY_PORT, GATEWAY_MAC, bridge, network.mtu)
            _address(ip, gateway, gateway_address(network.spec.subnet), subnet, 1)
        else:
            _without_gateway(ip)
            ip.route(
                "replace", dst="default", gateway=gateway_address(network.spec.subnet), oif=bridge, flags=["onlink"],
                prefsrc=node_address(network.node_number),
            )  # fmt: skip


def _resize_taps(ip: IPRoute, mtu: int) -> None:
    """Let the guests' ports carry what their network carries, also those that were made before it changed."""
    for link in ip.get_links():
        if link.get_attr("IFLA_IFNAME").startswith("nv") and link.get_attr("IFLA_MTU") != mtu:
            ip.link("set", index=link["index"], mtu=mtu)


def _without_gateway(ip: IPRoute) -> None:
    for name in (GATEWAY, UPLINK):
        link = index(ip, name)
        if link is not None:
            ip.link("del", index=link)


def _reach(peers: Iterable[str]) -> None:
    """Send broadcasts and frames for unknown addresses to these hosts and to no others: what was learned of a
    host that has another address now, because frames are encrypted for it, would go to the old one."""
    from pyroute2.netlink.exceptions import NetlinkError

    with netlink() as ip:
        tunnel = index(ip, TUNNEL)
        if tunnel is None:
            return
        has = {
            (entry.get_attr("NDA_LLADDR"), entry.get_attr("NDA_DST"))
            for entry in ip.fdb("dump", ifindex=tunnel)
            if entry["ifindex"] == tunnel and entry.get_attr("NDA_DST") is not None
        }
        desired = {(FLOOD, peer) for peer in peers}
        for _, peer in sorted(desired - has):
            ip.fdb("append", ifindex=tunnel, lladdr=FLOOD, dst=peer)
        for mac, peer in sorted(has):
            if (FLOOD, peer) not in desired:
                with contextlib.suppress(NetlinkError):  # it was forgotten just now
                    ip.fdb("del", ifindex=tunnel, lladdr=mac, dst=peer)


def _tunnel(name: str, network: NetworkOnNode, local: str | None) -> None:
    """Create this host's tunnel interface: it sends from the host, and its frames are in the namespace."""
    if namespace.within(name, lambda: _has_tunnel(local)):
        return
    with (namespace.ROOT / name).open() as file, netlink() as ip:
        here = {} if local is None else {"vxlan_local": local}
        ip.link(
            "add", ifname=TUNNEL, kind="vxlan", vxlan_id=network.vni, vxlan_port=VXLAN_PORT, vxlan_learning=True,
            vxlan_ttl=TTL, net_ns_fd=file.fileno(), **here,
        )  # fmt: skip


def _has_tunnel(local: str | None) -> bool:
    """Return whether the tunnel exists with this address; remove one with another address."""
    with netlink() as ip:
        tunnel = index(ip, TUNNEL)
        if tunnel is None:
            return False
        data = ip.get_links(tunnel)[0].get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")
        if data.get_attr("IFLA_VXLAN_LOCAL") == local:
            return True
        ip.link("del", index=tunnel)
        return False


def settle(name: str, network: NetworkOnNode, local: str | None, peers: Iterable[str]) -> None:
    """Set up an overlay in its namespace. ``local`` is this host's address for other nodes, ``peers`` are theirs.

    Raises NetworkFailed.
    """
    with refusals(f"can't set up network {network.name}"):
        namespace.create(name)
        _tunnel(name, network, local)
        namespace.within(name, lambda: _inside(network))
        namespace.within(name, lambda: _reach(peers))


def taps(name: str) -> list[str]:
    """Return the taps that are in a namespace. Raises NetworkFailed."""

    def tap_names() -> list[str]:
        with netlink() as ip:
            names = [link.get_attr("IFLA_IFNAME") for link in ip.get_links()]
        return [link_name for link_name in names if link_name.startswith("nv")]

    return namespace.within(name, tap_names)
