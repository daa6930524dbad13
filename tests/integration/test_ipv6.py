"""IPv6 in a network of a node: what guests learn and reach, and what hostile ones send in vain.

Guests are namespaces.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from lab.hosts import Host, remove_namespace, run
from lab.platform import until
from novacron.model import ipv6
from novacron.model.network import Direction, Ipv6Addresses, NetworkOnNode, NetworkSpec, Passing, Protocol, VmInterface
from novacron.model.vm import tap_name
from novacron.net import dnsmasq, firewall, namespace, overlay, router
from tests.support import frames6

PREFIX = "fd12:3456:789a::/64"
MACS = ("06:00:00:00:00:01", "06:00:00:00:00:02")
CHOSEN = "fd12:3456:789a::50"
OWN = ipv6.of_mac(ipaddress.IPv6Network(PREFIX), MACS[0])
ETH_P_ALL = 3
ECHO_REQUEST, ECHO_REPLY = 128, 129
ANSWER_S = 2.0


class Net(NamedTuple):
    name: str
    guests: tuple[Host, Host]
    network: NetworkOnNode
    directory: Path

    def settle(self, **spec: object) -> None:
        network = msgspec.structs.replace(self.network, spec=msgspec.structs.replace(self.network.spec, **spec))
        dnsmasq.settle(self.name, network, self.directory, (), first=True)

    def guard(self, *rules: Passing) -> None:
        """Give the second guest these rules."""
        first, second = self.network.interfaces
        nics = [first, msgspec.structs.replace(second, passing=rules or None)]
        closed = namespace.within(self.name, lambda: firewall.load(router.TABLE, nics, "10.20.0.2", {}))
        assert closed == {}


def interfaces() -> tuple[VmInterface, VmInterface]:
    vms = ("vm-aaaaaaaaaaaaaaaa", "vm-bbbbbbbbbbbbbbbb")
    return (
        VmInterface(vms[0], 0, MACS[0], "10.20.0.3", None, OWN),
        VmInterface(vms[1], 0, MACS[1], "10.20.0.4", None, CHOSEN),
    )


@pytest.fixture(scope="module")
def net(lacks: list[str]) -> Iterator[Net]:
    """A network with a prefix and two guests, of which the second has an address of its user's choice."""
    if lacks:
        pytest.skip("; ".join(lacks))
    mark = f"nova-six-{os.getpid()}"
    host, name, directory = Host("host", f"{mark}-host", 1), f"{mark}-net", Path(f"/run/{mark}/files")
    guests = (Host("one", f"{mark}-one", 1), Host("two", f"{mark}-two", 2))
    nics = interfaces()
    names = tuple((nic.mac, str(nic.address), nic.vm[3:6]) for nic in nics)
    names6 = tuple((nic.mac, str(nic.address6), nic.vm[3:6]) for nic in nics)
    spec = NetworkSpec(subnet="10.20.0.0/24", subnet6=PREFIX)
    network = NetworkOnNode("six", spec, 7, 1450, 1, False, (), names, nics, names6=names6)
    try:
        for namespace_name in (host.netns, *(guest.netns for guest in guests)):
            run("ip", "netns", "add", str(namespace_name))
            run("ip", "-n", str(namespace_name), "link", "set", "lo", "up")
        host.within(lambda: overlay.settle(name, network, None, []))
        for guest, nic in zip(guests, nics, strict=True):
            tap, netns = tap_name(nic.vm, 0), str(guest.netns)
            run("ip", "-n", name, "link", "add", tap, "type", "veth", "peer", "eth0", "netns", netns)
            run("ip", "-n", name, "link", "set", tap, "master", overlay.BRIDGE, "mtu", "1450", "up")
            run("ip", "-n", netns, "link", "set", "eth0", "address", nic.mac)
            run(*guest.prefix, "sysctl", "-qw", "net.ipv6.conf.eth0.accept_dad=0")
        made = Net(name, guests, network, directory)
        made.guard()
        made.settle()
        for guest in guests:
            run("ip", "-n", str(guest.netns), "link", "set", "eth0", "up")
        for guest in guests:
            until(partial(has_own_address, guest), "it can send")
        yield made
    finally:
        with contextlib.suppress(FileNotFoundError):
            dnsmasq.end(directory)
        for namespace_name in (name, host.netns, *(guest.netns for guest in guests)):
            remove_namespace(str(namespace_name))
        shutil.rmtree(directory.parent, ignore_errors=True)


def addresses(guest: Host) -> str:
    return run("ip", "-n", str(guest.netns), "-6", "address", "show", "dev", "eth0")


def has_own_address(guest: Host) -> bool:
    return "fe80::" in addresses(guest)


def has_alone(guest: Host, address: str) -> None:
    """Let a guest have this address, and none that it has learned."""
    run("ip", "-n", str(guest.netns), "-6", "address", "flush", "dev", "eth0", "scope", "global")
    run("ip", "-n", str(guest.netns), "-6", "address", "add", f"{address}/64", "dev", "eth0", "nodad")


def pings(guest: Host, address: str, size: int = 56) -> bool:
    """Say whether an address answers a guest's echo request with ``size`` bytes."""
    request = struct.pack("!BBHHH", ECHO_REQUEST, 0, 0, os.getpid() & 0xFFFF, 1) + bytes(size)
    with guest.within(lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)) as pinger:
        deadline = time.monotonic() + ANSWER_S
        with contextlib.suppress(OSError):
            pinger.sendto(request, (address, 0))
            while (left := deadline - time.monotonic()) > 0:
                pinger.settimeout(left)
                answer, (source, *_) = pinger.recvfrom(65536)
                if source == address and answer[:1] == bytes([ECHO_REPLY]) and answer[4:] == request[4:]:
                    return True
    return False


def test_guests_learn_their_addresses_and_names(net: Net) -> None:
    one, two = net.guests
    answer = one.within(lambda: frames6.ask_dhcp(MACS[0], "eth0"))
    assert ipaddress.IPv6Address(OWN).packed in answer, "DHCPv6 gives the address that its MAC address yields"
    answer = two.within(lambda: frames6.ask_dhcp(MACS[1], "eth0"))
    assert ipaddress.IPv6Address(CHOSEN).packed in answer, "and the one of its user's choice"
    assert ipaddress.IPv6Address("fd12:3456:789a::2").packed in answer, "a name server"
    assert OWN not in addresses(one), "no guest makes one up that it is not to have"
    net.settle(ipv6_addresses=Ipv6Addresses.SLAAC)
    try:
        until(lambda: OWN in addresses(one), "it derives its address", 60)
    finally:
        net.settle()
    assert "default" not in run("ip", "-n", str(one.netns), "-6", "route"), "no route that leads nowhere"


def test_guests_reach_each_other_and_only_as_groups_allow(net: Net) -> None:
    one, two = net.guests
    has_alone(one, OWN)
    has_alone(two, CHOSEN)
    until(lambda: pings(one, CHOSEN), "guests reach each other")
    assert pings(one, CHOSEN, 4000), "with fragments, too"
    assert pings(one, "fd12:3456:789a::2")
    with two.within(lambda: socket.create_server((CHOSEN, 80), family=socket.AF_INET6)):
        connect = lambda: socket.create_connection((CHOSEN, 80), 2).close()  # noqa: E731
        net.guard(Passing(Direction.IN, Protocol.TCP, (80, 80), ("10.0.0.0/8", "fd12:3456:789a::/64")))
        one.within(connect)
        assert not pings(one, CHOSEN), "no rule allows it"
        assert pings(two, OWN), "replies come in"
        net.guard(Passing(Direction.IN, Protocol.ICMP, None, None))
        assert pings(one, CHOSEN)
        with pytest.raises(OSError):
            one.within(connect)
    net.guard(Passing(Direction.OUT, Protocol.TCP, (443, 443), None))
    assert not pings(two, OWN), "a group limits what goes out"
    net.guard()
    assert pings(one, CHOSEN)


def test_what_a_hostile_guest_sends_does_not_arrive(net: Net) -> None:
    one, two = net.guests
    has_alone(one, OWN)
    has_alone(two, CHOSEN)
    until(lambda: pings(one, CHOSEN), "guests reach each other")
    attacker = frames6.Attacker(MACS[0], OWN, MACS[1], CHOSEN)
    attacks = list(attacker.attacks())
    assert len(attacks) > 25
    assert arriving(net, attacker, attacks) == []
    namespace.within(net.name, lambda: firewall.remove(router.TABLE))
    try:
        assert arriving(net, attacker, attacks) == [what for what, _ in attacks], "it is the rules that hold them"
    finally:
        net.guard()


def arriving(net: Net, attacker: frames6.Attacker, attacks: Sequence[tuple[str, bytes]]) -> list[str]:
    """Send frames from the first guest; return which of them come to the second."""
    one, two = net.guests
    ears = two.within(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)))
    ears.settimeout(30)
    mouth = one.within(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
    mouth.bind(("eth0", 0))
    arrived = []
    with ears, mouth:
        for number, (what, frame) in enumerate(attacks):
            mouth.send(frame)
            end = b"end-%04d" % number
            mouth.send(attacker.allowed(end))
            came: list[bytes] = []
            while not came or end not in came[-1]:
                came.append(ears.recv(65536))
            without_tag = frame[:12] + frame[16:]  # the kernel takes a VLAN's tag off
            if any(heard.startswith((frame, without_tag)) for heard in came):
                arrived.append(what)
    return arrived
