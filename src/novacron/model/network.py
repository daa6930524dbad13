"""Networks of VMs: their subnets and addresses, security groups, floating addresses and port forwards."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from datetime import datetime
from enum import StrEnum
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from novacron.model import limits
from novacron.model.constraints import GroupName
from novacron.model.errors import InvalidInput, NoCapacity
from novacron.model.mac import MacAddress
from novacron.model.metadata import Metadata
from novacron.model.project import DEFAULT

TUNNEL_BYTES = 50
"""Bytes that VXLAN over IPv4 adds to each packet (RFC 7348, section 5)."""
WIREGUARD_BYTES = 80
"""Bytes that WireGuard adds on top, over IPv4 or IPv6."""
MTU_MIN, MTU_DEFAULT = 576, 1500
IPV6_MTU_MIN = 1280
"""RFC 8200, section 5."""
PREFIX_MIN, PREFIX_MAX = 16, 29
VNI_BASE = 0x4E0000
DEFAULT_SUBNETS = ipaddress.IPv4Network("10.64.0.0/10")
"""A network that names no subnet gets the first free /24 of these."""
RESERVED = tuple(
    ipaddress.IPv4Network(text)
    for text in ("0.0.0.0/8", "100.127.0.0/16", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")
)
"""No network may use these. 100.127.0.0/16 and 169.254.0.0/16 connect networks with their hosts."""

InterfaceName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,14}\Z")]
Domain = Annotated[
    str,
    Meta(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?){0,7}\Z", max_length=100),
]
SearchDomains = Annotated[tuple[Domain, ...], Meta(max_length=limits.SEARCH_DOMAINS_MAX)]
SEARCH_BYTES_MAX = 200
"""What fits into one option of DHCP beside the network's own domain."""
Nameservers = Annotated[tuple[str, ...], Meta(max_length=limits.NAMESERVERS_MAX)]
VlanId = Annotated[int, Meta(ge=1, le=4094)]
NetworkName = GroupName
NO_NETWORK = "none"
"""No network's name: on the command line it stands for none."""
Port = Annotated[int, Meta(ge=1, le=65535)]


class NetworkKind(StrEnum):
    """What a network is made of."""

    OVERLAY = "overlay"
    """A network of its own: a bridge on every node that has VMs in it, connected by VXLAN."""
    BRIDGE = "bridge"
    """An existing bridge of the hosts."""


class Encryption(StrEnum):
    """Which traffic of an overlay is encrypted between nodes."""

    BETWEEN_SITES = "between-sites"
    """Traffic between sites, if both nodes can encrypt."""
    ALWAYS = "always"
    """All traffic. Its VMs run only on nodes that can encrypt."""
    NEVER = "never"


class Ipv6Addresses(StrEnum):
    """How guests learn their IPv6 addresses."""

    DHCP = "dhcp"
    """By DHCPv6."""
    SLAAC = "slaac"
    """They derive them from prefix and MAC address (SLAAC), without DHCP for addresses."""


class NetworkSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the user requested. Only name servers and search domains change later: guests rely on the rest."""

    kind: NetworkKind = NetworkKind.OVERLAY
    subnet: str | None = None
    """An IPv4 subnet, such as ``10.20.0.0/24``. The gateway has the first address, DHCP and DNS the second."""
    subnet6: str | None = None
    """An IPv6 prefix for guests, a /64; ``auto``: one is chosen at random. None: no IPv6 passes."""
    ipv6_addresses: Ipv6Addresses = Ipv6Addresses.DHCP
    nat: bool = True
    """Guests reach other networks through the gateway's host, with that host's address as their source."""
    nameservers: Nameservers = ()
    """DNS servers for names outside the network; none: those of each node."""
    search_domains: SearchDomains = ()
    """Domains in which guests look up short names, after the network's own."""
    encryption: Encryption = Encryption.BETWEEN_SITES
    bridge: InterfaceName | None = None
    vlan: VlanId | None = None
    """VLAN tag of the VMs' frames on the bridge. The bridge must have VLAN filtering enabled."""


class Network(Metadata, frozen=True):
    """A network as stored and as the API shows it."""

    name: str
    spec: NetworkSpec
    number: int
    mtu: int
    """MTU of the guests' interfaces, in bytes: the smallest MTU between nodes, less VXLAN's overhead."""
    gateway: str | None
    """The node through which guests reach other networks."""
    revision: int
    created_at: datetime
    project: str = DEFAULT
    encryption_required: bool = False
    """The fleet's settings require that all traffic between nodes is encrypted, whatever the spec says."""
    reason: str = ""
    """What prevents it from working."""
    reason_code: str = ""
    """``reason``, for programs: one of ``WaitCode``."""

    @property
    def encryption(self) -> Encryption:
        """Return which traffic between nodes is encrypted."""
        return Encryption.ALWAYS if self.encryption_required else self.spec.encryption


class NetworkEncryption(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the fleet's settings say of networks' traffic between nodes."""

    always: bool
    """All of it is encrypted, whatever each network's spec says."""


SecurityGroups = Annotated[tuple[GroupName, ...], Meta(max_length=limits.GROUPS_PER_NIC_MAX)]


class NicSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A network interface of a VM."""

    network: NetworkName
    address: str | None = None
    """IPv4 address without prefix length; None: assigned when the VM is created, if the network has a subnet."""
    mac: MacAddress | None = None
    """MAC address; None: a free one is assigned when the VM is created."""
    groups: SecurityGroups = ()
    """Security groups. Without any, all traffic is allowed."""
    address6: str | None = None
    """IPv6 address; None: the one that the MAC address yields, if the network has a prefix."""


class Direction(StrEnum):
    """Which packets a rule is about: to the VM, or from it."""

    IN = "in"
    OUT = "out"


class Protocol(StrEnum):
    """Which packets a rule or a forward is about."""

    ANY = "any"
    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"


FORWARD_PORTS_DEFAULT = "30000-32767"
"""Of gateways' hosts: below the ports that Linux gives to outgoing connections, and above those of services."""
FORWARD_PORT_MIN = 1024
TUNNEL_PORTS = (4789, 51820)
"""At which hosts take frames of networks: VXLAN, WireGuard."""


class PortRange(NamedTuple):
    """Ports from ``first`` to ``last``."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def __contains__(self, port: object) -> bool:
        return isinstance(port, int) and self.first <= port <= self.last


def port_range(text: str) -> PortRange:
    """Return a range of ports in the form ``443`` or ``8000-8099``."""
    first, _, last = text.partition("-")
    return PortRange(int(first), int(last or first))


def forward_ports(text: str) -> PortRange:
    """Return the range of ports of gateways that may be forwarded. Raises InvalidInput."""
    ports = port_range(text)
    if not FORWARD_PORT_MIN <= ports.first <= ports.last <= 65535:
        raise InvalidInput(
            f"{text} is not a range of ports between {FORWARD_PORT_MIN} and 65535",
            field="forward_ports", hint=f"such as {FORWARD_PORTS_DEFAULT}",
        )  # fmt: skip
    for port in TUNNEL_PORTS:
        if port in ports:
            raise InvalidInput(
                f"{text} includes port {port}, on which hosts receive network frames",
                field="forward_ports", hint=f"such as {FORWARD_PORTS_DEFAULT}",
            )  # fmt: skip
    return ports


PortRangeText = Annotated[str, Meta(pattern=r"^[0-9]{1,5}(-[0-9]{1,5})?\Z")]


class RuleSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rule that allows traffic. ``cidr`` or ``group``: the other end; neither: anywhere."""

    direction: Direction = Direction.IN
    protocol: Protocol = Protocol.ANY
    ports: PortRangeText | None = None
    """TCP or UDP ports, such as ``443`` or ``8000-8099``; None: all ports."""
    cidr: str | None = None
    group: GroupName | None = None

    @property
    def port_range(self) -> PortRange | None:
        return None if self.ports is None else port_range(self.ports)


Rules = Annotated[tuple[RuleSpec, ...], Meta(max_length=limits.RULES_PER_GROUP_MAX)]


class SecurityGroup(Metadata, frozen=True):
    """A set of rules. Incoming traffic needs a rule. Outgoing traffic needs one only if the group has rules for it."""

    name: str
    rules: tuple[RuleSpec, ...]
    revision: int
    created_at: datetime
    project: str = DEFAULT


class FloatingAddress(Metadata, frozen=True):
    """An address of the hosts' network that leads to a VM, or to ports of VMs, on whichever node they are."""

    address: str
    vm: str | None
    vm_name: str | None
    network: str | None
    """The network whose gateway has the address; None: the address is not in use."""
    revision: int
    created_at: datetime
    project: str = DEFAULT
    reason: str = ""
    """What prevents it from working."""
    reason_code: str = ""
    """``reason``, for programs: one of ``WaitCode``."""


class Forward(Metadata, frozen=True):
    """A port forward: a port that leads to a port of a VM."""

    id: str
    network: str
    address: str | None
    """A floating address; None: the addresses of the gateway's host."""
    protocol: Protocol
    port: int
    """Without a floating address, from the range of the gateway's site: outside of it, it leads nowhere."""
    vm: str
    vm_name: str
    vm_port: int
    revision: int
    created_at: datetime
    project: str = DEFAULT
    reason: str = ""
    """What prevents it from working."""
    reason_code: str = ""
    """``reason``, for programs: one of ``WaitCode``."""


def check_subnet(text: str) -> ipaddress.IPv4Network:
    """Return a valid subnet for guests. Raises InvalidInput."""
    try:
        subnet = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise InvalidInput(
            f"{text!r} is not an IPv4 subnet: {error}", field="subnet", hint="such as 10.20.0.0/24"
        ) from None
    if not PREFIX_MIN <= subnet.prefixlen <= PREFIX_MAX:
        raise InvalidInput(f"{text} is not between /{PREFIX_MIN} and /{PREFIX_MAX}", field="subnet")
    for taken in RESERVED:
        if subnet.overlaps(taken):
            raise InvalidInput(f"{text} overlaps {taken}, which guests can't have", field="subnet")
    return subnet


def check_address(text: str, field: str = "address") -> ipaddress.IPv4Address:
    """Return an address. Raises InvalidInput."""
    try:
        return ipaddress.IPv4Address(text)
    except ValueError:
        raise InvalidInput(f"{text!r} is not an IPv4 address", field=field, hint="such as 10.20.0.10") from None


def is_private(text: str) -> bool:
    """Say whether a text is an IPv4 address that is not reached from everywhere (IANA's special-purpose registry)."""
    try:
        return ipaddress.IPv4Address(text).is_private
    except ValueError:
        return False


def check_spec(spec: NetworkSpec) -> None:
    """Raise InvalidInput unless the fields of a network fit together."""
    overlay = spec.kind is NetworkKind.OVERLAY
    if overlay and (spec.bridge is not None or spec.vlan is not None):
        field = "bridge" if spec.bridge is not None else "vlan"
        raise InvalidInput(f"an overlay has no {field} of the hosts'", field=field, hint="kind: bridge")
    if not overlay and spec.bridge is None:
        raise InvalidInput("the bridge is not named", field="bridge", hint="see: novacron node show NODE")
    for field in ("subnet6", "nameservers", "search_domains"):
        if not overlay and getattr(spec, field):
            raise InvalidInput(f"only overlays have {field}", field=field, hint="leave it out")
    if sum(len(domain) + 2 for domain in spec.search_domains) > SEARCH_BYTES_MAX:
        raise InvalidInput(
            f"they have more than {SEARCH_BYTES_MAX} characters together", field="search_domains", hint="name fewer"
        )
    for nameserver in spec.nameservers:
        check_address(nameserver, "nameservers")


def check_rule(rule: RuleSpec) -> RuleSpec:
    """Return a rule as it is stored, with its ports and its CIDR in canonical form. Raises InvalidInput unless its
    fields fit together.

    Python accepts ``198.51.100.0/0.0.0.255`` (a host mask); nftables does not, and would reject all rules of the
    network.
    """
    if rule.ports is not None and rule.protocol not in (Protocol.TCP, Protocol.UDP):
        raise InvalidInput(f"{rule.protocol} has no ports", field="ports", hint="protocol: tcp or udp")
    if rule.port_range is not None:
        first, last = rule.port_range
        if not 1 <= first <= last <= 65535:
            raise InvalidInput(f"{rule.ports} is not a range of ports", field="ports", hint="such as 8000-8099")
        rule = msgspec.structs.replace(rule, ports=str(first) if first == last else f"{first}-{last}")
    if rule.cidr is not None and rule.group is not None:
        raise InvalidInput("a rule has a cidr or a group, not both", field="group", hint="make two rules")
    if rule.cidr is not None:
        try:
            network = ipaddress.ip_network(rule.cidr if "%" not in rule.cidr else "")
        except ValueError as error:
            raise InvalidInput(f"{rule.cidr!r} is not a range of addresses: {error}", field="cidr") from None
        return msgspec.structs.replace(rule, cidr=str(network))
    return rule


def gateway_address(subnet: str) -> str:
    return str(ipaddress.IPv4Network(subnet)[1])


def service_address(subnet: str) -> str:
    """Return the address of a network's DHCP and DNS, which each node serves for its own guests."""
    return str(ipaddress.IPv4Network(subnet)[2])


def free_subnet(taken: Collection[str]) -> str:
    """Return the first /24 that overlaps none of the subnets ``taken``. Raises NoCapacity."""
    others = [ipaddress.IPv4Network(subnet) for subnet in taken]
    for candidate in DEFAULT_SUBNETS.subnets(new_prefix=24):
        if not any(candidate.overlaps(other) for other in others) and not any(
            candidate.overlaps(reserved) for reserved in RESERVED
        ):
            return str(candidate)
    raise NoCapacity(f"{DEFAULT_SUBNETS} has no free subnet for another network", field="subnet", hint="name one")


def give(subnet: str, taken: Collection[str], requested: str | None) -> str:
    """Return the address for an interface: the requested one, or the first free one.

    Raises InvalidInput, NoCapacity.
    """
    net = ipaddress.IPv4Network(subnet)
    if requested is not None:
        address = check_address(requested)
        if address not in net or address in (net[0], net[-1]):
            raise InvalidInput(f"{requested} is not an address in {subnet}", field="address")
        if address in (net[1], net[2]):
            raise InvalidInput(f"{requested} is the network's own", field="address", hint=f"from {net[3]} on")
        if str(address) in taken:
            raise InvalidInput(f"{requested} is another VM's", field="address", hint="leave it out, and get a free one")
        return str(address)
    for number in range(3, net.num_addresses - 1):
        if (text := str(net[number])) not in taken:
            return text
    raise NoCapacity(f"{subnet} has no free address", field="network", hint="make a larger network")


class Passing(msgspec.Struct, frozen=True):
    """A rule as a node applies it. ``cidrs`` None: anywhere."""

    direction: Direction
    protocol: Protocol
    ports: tuple[int, int] | None
    cidrs: tuple[str, ...] | None


class VmInterface(msgspec.Struct, frozen=True):
    """An interface of a VM that is on a node or migrates to it. ``passing`` None: it has no security group."""

    vm: str
    number: int
    mac: str
    address: str | None
    passing: tuple[Passing, ...] | None
    address6: str | None = None
    """None: no IPv6 passes."""


class Entrance(msgspec.Struct, frozen=True):
    """A port forward as its gateway applies it. ``address`` None: the addresses of the gateway's host."""

    address: str | None
    protocol: Protocol
    port: int
    guest: str
    guest_port: int


class NetworkPeer(msgspec.Struct, frozen=True):
    """Another node of the network. ``key``: its public key; empty: traffic to it is not encrypted."""

    host: str
    number: int
    key: str = ""


class NetworkOnNode(msgspec.Struct, frozen=True):
    """Everything that a node needs to know about a network."""

    name: str
    spec: NetworkSpec
    number: int
    mtu: int
    node_number: int
    """The node's own address in the network follows from it."""
    is_gateway: bool
    peers: tuple[NetworkPeer, ...]
    names: tuple[tuple[str, str, str], ...]
    """MAC address, IP address and name of each interface in it."""
    interfaces: tuple[VmInterface, ...]
    floating: tuple[tuple[str, str], ...] = ()
    """Floating addresses, each with the guest's address. Only the gateway has them, and the entrances."""
    entrances: tuple[Entrance, ...] = ()
    names6: tuple[tuple[str, str, str], ...] = ()
    """As ``names``, with IPv6 addresses."""

    @property
    def vni(self) -> int:
        """Return its VXLAN network identifier."""
        return VNI_BASE + self.number


class NetworkProblem(msgspec.Struct, frozen=True):
    """What keeps a network of a node, or with an address or a port a way into it, from being as it was asked to be."""

    network: str
    code: str
    """One of ``WaitCode``."""
    message: str
    address: str | None = None
    """A floating address."""
    protocol: Protocol | None = None
    port: int | None = None
    """Of the gateway's host."""

    @property
    def key(self) -> tuple[str, str, str | None, Protocol | None, int | None]:
        """Return what tells it from others: the words may differ."""
        return self.network, self.code, self.address, self.protocol, self.port


def choose_gateway(
    now: str | None, having: Collection[str], counts: dict[str, int], there: Collection[str]
) -> str | None:
    """Return the node that should be a network's gateway. The present one stays if it can: moving ends connections.

    ``having``: nodes that have VMs of the network. ``counts``: the nodes that may be gateways, each with the number of
    networks for which it is; the choice is added to it. ``there``: nodes that are not dead.
    """
    if now in counts:
        return now
    best = min(counts, key=lambda name: (name not in having, counts[name], name), default=None)
    if best is None:
        return now if now in there else None
    counts[best] += 1
    return best
