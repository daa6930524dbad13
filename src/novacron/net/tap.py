"""Tap interfaces: create, attach to a bridge, remove. Needs CAP_NET_ADMIN."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pyroute2 import IPRoute  # large: see ``tap.load``


TUN = "/dev/net/tun"
TUNSETIFF = 0x400454CA
SIOCETHTOOL, ETHTOOL_GDRVINFO, DRVINFO_BYTES = 0x8946, 3, 196
RT_SCOPE_UNIVERSE = 0
MARK = "novacron "
"""Begins the alias of a tap of ours."""
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000


class NetworkFailed(Exception):
    """The kernel refused to make or change an interface: says which, and why."""


class Carried(NamedTuple):
    """Traffic of an interface since it was created."""

    received_bytes: int
    received_packets: int
    sent_bytes: int
    sent_packets: int
    dropped: int


def carried() -> dict[str, Carried]:
    """Return the traffic of each interface in the calling thread's namespace (proc_pid_net(5))."""
    counters = {}
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]:
        name, _, rest = line.partition(":")
        values = [int(value) for value in rest.split()]
        counters[name.strip()] = Carried(values[0], values[1], values[8], values[9], values[3] + values[11])
    return counters


def load() -> None:
    """Load the netlink library before it is needed: that takes a third of a second."""
    netlink().close()


def netlink() -> IPRoute:
    """Return a netlink connection in the calling thread's namespace."""
    from pyroute2 import IPRoute  # large: see `load`

    return IPRoute()


def is_bridge(name: str) -> bool:
    """Return whether an interface with this name exists and is a bridge (ethtool(7): ETHTOOL_GDRVINFO)."""
    driver_info = array.array("B", struct.pack("I", ETHTOOL_GDRVINFO).ljust(DRVINFO_BYTES, b"\0"))
    request = struct.pack("16sP16x", name.encode(), driver_info.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_:
        try:
            fcntl.ioctl(any_, SIOCETHTOOL, request)
        except OSError:
            return False
    return driver_info.tobytes()[4:36].rstrip(b"\0") == b"bridge"


def tap_address(guest_mac: str) -> str:
    """Return a tap's own address: the guest's with ``fe`` in front.

    A bridge takes the lowest address of its ports for its own, and would change it, with every connection of the host,
    when a VM comes or goes.
    """
    return "fe" + guest_mac[2:]


def create(name: str, bridge: str, guest_mac: str, vlan: int | None = None, mark: str = "") -> int:
    """Create the tap ``name`` on ``bridge`` and set it up; an existing one is used. Return its MTU in bytes.

    ``vlan``: the tag that its guest's frames have on the bridge. ``mark``: whose it is. Raises NetworkFailed.
    """
    from pyroute2.netlink.exceptions import NetlinkError

    with netlink() as ip:
        bridge_indexes = ip.link_lookup(ifname=bridge)
        if not bridge_indexes:
            raise NetworkFailed(f"there is no bridge {bridge!r} on this host")
        mtu = int(ip.get_links(bridge_indexes[0])[0].get_attr("IFLA_MTU"))
        try:
            if not ip.link_lookup(ifname=name):
                ip.link("add", ifname=name, kind="tuntap", mode="tap")
            index = ip.link_lookup(ifname=name)[0]
            if mark:
                ip.link("set", index=index, IFLA_IFALIAS=MARK + mark)
            ip.link("set", index=index, address=tap_address(guest_mac), mtu=mtu)
            ip.link("set", index=index, master=bridge_indexes[0])
            if vlan is not None:
                _tag(ip, index, bridge_indexes[0], bridge, vlan)
            ip.link("set", index=index, state="up")
        except NetlinkError as error:
            raise NetworkFailed(f"can't put tap {name} on bridge {bridge}: {error}") from error
    return mtu


def marked() -> list[tuple[str, str]]:
    """Return the names and marks of the taps in the calling thread's namespace that have one."""
    with netlink() as ip:
        aliases = [(link.get_attr("IFLA_IFNAME"), link.get_attr("IFLA_IFALIAS") or "") for link in ip.get_links()]
    return [(name, alias.removeprefix(MARK)) for name, alias in aliases if alias.startswith(MARK)]


def _tag(ip: IPRoute, index: int, master: int, bridge: str, vlan: int) -> None:
    """Put a port of a bridge into one VLAN only. Raises NetworkFailed."""
    if not _filters_vlans(ip.get_links(master)[0]):
        raise NetworkFailed(f"bridge {bridge} does not filter VLANs: ip link set {bridge} type bridge vlan_filtering 1")
    for entry in ip.get_vlans(index=index):
        for info in entry.get_attr("IFLA_AF_SPEC").get_attrs("IFLA_BRIDGE_VLAN_INFO"):
            ip.vlan_filter("del", index=index, vlan_info={"vid": info["vid"]})
    ip.vlan_filter("add", index=index, vlan_info={"vid": vlan, "flags": ["pvid", "untagged"]})


class Bridges(NamedTuple):
    """Names of a host's bridges, and of those that filter VLANs."""

    every: tuple[str, ...]
    filter_vlans: tuple[str, ...]


def bridges() -> Bridges:
    """Return this host's bridges. Raises NetworkFailed."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with netlink() as ip:
            listed = sorted(
                (link.get_attr("IFLA_IFNAME"), _filters_vlans(link)) for link in ip.link("dump", kind="bridge")
            )
    except NetlinkError as error:
        raise NetworkFailed(f"can't list this host's bridges: {error}") from error
    return Bridges(tuple(name for name, _ in listed), tuple(name for name, filters in listed if filters))


def _filters_vlans(link: Any) -> bool:  # noqa: ANN401 - a message of pyroute2, which has no types
    return bool(link.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA", "IFLA_BR_VLAN_FILTERING"))


def links() -> list[tuple[str, str, int, bool]]:
    """Return name, MAC address, MTU and whether it is up, of each interface but loopback and those of VMs."""
    with netlink() as ip:
        return sorted(
            (
                name,
                str(link.get_attr("IFLA_ADDRESS")),
                int(link.get_attr("IFLA_MTU")),
                link.get_attr("IFLA_OPERSTATE") == "UP",
            )
            for link in ip.get_links()
            if (name := str(link.get_attr("IFLA_IFNAME"))) != "lo" and not name.startswith("nv")
        )


def mtu_at(address: str | None) -> int | None:
    """Return the MTU of the interface that has an address, in bytes; None if none has."""
    with netlink() as ip:
        for entry in ip.get_addr(family=socket.AF_INET):
            if entry.get_attr("IFA_ADDRESS") == address:
                return int(ip.get_links(entry["index"])[0].get_attr("IFLA_MTU"))
    return None


def addresses() -> list[str]:
    """Return the IPv4 addresses of this host that others may reach, sorted; none of its loopback's."""
    with netlink() as ip:
        own = {entry.get_attr("IFA_ADDRESS") for entry in ip.get_addr(family=socket.AF_INET, scope=RT_SCOPE_UNIVERSE)}
    return sorted(address for address in own if not address.startswith("127."))


def open_(name: str) -> int:
    """Return an open descriptor of a tap that exists, as QEMU takes it. Raises NetworkFailed."""
    descriptor = -1
    try:
        descriptor = os.open(TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        raise NetworkFailed(f"can't open tap {name}: {error.strerror}") from error
    return descriptor


def detach(name: str) -> None:
    """Detach a tap from its bridge, and set it down. It is no error if it does not exist.

    It stays as long as its QEMU lives: QEMU loops on an error for ever if the interface vanishes.
    """
    from pyroute2.netlink.exceptions import NetlinkError

    with netlink() as ip:
        for index in ip.link_lookup(ifname=name):
            try:
                ip.link("set", index=index, master=0, state="down")
            except NetlinkError as error:
                if error.code != errno.ENODEV:
                    raise NetworkFailed(f"can't take tap {name} off its bridge: {error}") from error


def move(name: str, new_name: str, netns: int | None = None) -> None:
    """Take a tap off its bridge, down, and give it another name, in the namespace that is open as ``netns`` if that is
    another one. Its QEMU keeps it. Raises NetworkFailed when it is not there.
    """
    from pyroute2.netlink.exceptions import NetlinkError

    with netlink() as ip:
        indexes = ip.link_lookup(ifname=name)
        if not indexes:
            raise NetworkFailed(f"tap {name} is gone")
        try:
            ip.link("set", index=indexes[0], master=0, state="down")
            if netns is not None:
                ip.link("set", index=indexes[0], net_ns_fd=netns, ifname=new_name)
            elif name != new_name:
                ip.link("set", index=indexes[0], ifname=new_name)
        except NetlinkError as error:
            raise NetworkFailed(f"can't move tap {name}: {error}") from error


def delete(name: str) -> None:
    """Remove a tap; one that does not exist is no error."""
    from pyroute2.netlink.exceptions import NetlinkError

    with netlink() as ip:
        for index in ip.link_lookup(ifname=name):
            try:
                ip.link("del", index=index)
            except NetlinkError as error:
                if error.code != errno.ENODEV:
                    raise NetworkFailed(f"can't remove tap {name}: {error}") from error
