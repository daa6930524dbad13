"""Guests with root, hosts that do not have a network, and strangers: nobody gets frames into it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import asyncpg
import pytest

from lab.hosts import WAN_DEVICE, Host
from lab.platform import Platform, until
from novacron.agent.host.instances import instance_of, prefix_of, tunnel_of
from novacron.model.network import VNI_BASE
from novacron.net import namespace, overlay
from novacron.net.firewall import GATEWAY_MAC, TUNNEL, VXLAN_PORT
from novacron.net.overlay import WIREGUARD_PORT, encrypted_address, node_address, transit_address
from tests.support import frames
from tests.support.outsider import GATEWAY_OUTSIDE, OUTSIDE, datagrams, outsider
from tests.support.vms import shell, wait_until_booted

Object = dict[str, Any]

BLOBS_PORT = 9009
HOST_PORT, CONTROL_PORT = 9010, 9011
GUESTS_AT = "52:54:00:00:99:99"
ETH_P_ALL = 3
ROUTED = ""
"""Instead of a device: as the host routes it."""
INTRUDERS = {"host-a": "10.40.0.10", "host-b": "10.40.0.11"}
PREY = "10.41.0.3"


def netns_of(site: Platform, host: Host, network: str) -> str:
    return prefix_of(instance_of(site.directory / host.name / "agent")) + network


class Ears:
    """Hears all frames of a network on a host, at its tunnel and its bridge, whatever is dropped afterwards."""

    def __init__(self, netns: str) -> None:
        def listen() -> socket.socket:
            opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            opened.setblocking(False)
            return opened

        self._socket = namespace.within(netns, listen)
        self._heard: set[bytes] = set()

    def heard(self) -> set[bytes]:
        """Return the markers of all frames that came so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._heard.update(re.findall(rb"nova-[0-9a-f]{12}", self._socket.recv(65536)))
        return self._heard

    def close(self) -> None:
        self._socket.close()


class Networks(NamedTuple):
    """``intruders``: a guest on each host, in a network of their own; ``prey``: another project's, on both hosts;
    ``alone``: one on host-a only."""

    intruders: dict[str, Object]
    prey: Object
    alone: Object


SUBNETS = {"intruders": "10.40.0.0/24", "prey": "10.41.0.0/24", "alone": "10.42.0.0/24"}


def make_networks(site: Platform) -> None:
    """Make the networks, all with host-a as their gateway."""
    client = site.client
    client.create_project("prey")
    client.act("nodes", "host-b", "cordon")
    try:
        for name, subnet in SUBNETS.items():
            project = "default" if name == "intruders" else "prey"
            client.request("POST", f"/api/v1/networks?project={project}", {"name": name, "subnet": subnet})
        until(lambda: all(client.get("networks", name)["gateway"] == "host-a" for name in SUBNETS), "host-a is it")
    finally:
        client.act("nodes", "host-b", "uncordon")


@pytest.fixture(scope="module")
def networks(site: Platform, lacks: list[str]) -> Iterator[Networks]:
    if lacks:
        pytest.skip("; ".join(lacks))
    client, vms = site.client, []
    make_networks(site)
    for node, address in INTRUDERS.items():
        nic = {"network": "intruders", "address": address}
        vms.append(client.create_vm(name=f"intruder-{node[-1]}", image="tiny", memory_mib=128, node=node, nics=[nic]))
    intruders = dict(zip(INTRUDERS, vms, strict=True))
    for node, network in (("host-a", "prey"), ("host-b", "prey"), ("host-a", "alone")):
        body = {"name": f"{network}-{node[-1]}", "image": "tiny", "memory_mib": 64, "node": node, "power": "stopped",
                "nics": [{"network": network}]}  # fmt: skip
        vms.append(client.request("POST", "/api/v1/vms?project=prey", body))
    for host in site.lab.hosts:
        until(lambda host=host: namespace.exists(netns_of(site, host, "prey")), "it has the network")  # type: ignore[misc]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda vm: wait_until_booted(site, vm), intruders.values()))
    yield Networks(intruders, client.get("networks", "prey"), client.get("networks", "alone"))
    for vm in vms:
        client.delete("vms", vm["id"])
    until(lambda: not {vm["id"] for vm in vms} & {vm["id"] for vm in client.list("vms")}, "its VMs are gone", 60)
    for name in SUBNETS:
        client.delete("networks", name)
    client.delete("projects", "prey")


@contextlib.contextmanager
def serving(site: Platform, host: Host, blobs: list[bytes]) -> Iterator[str]:
    """Give guests of the intruders' network on a host these, one a connection; yield the address for that."""
    address = "10.40.0.2"
    server = namespace.within(
        netns_of(site, host, "intruders"), lambda: socket.create_server((address, BLOBS_PORT), reuse_port=True)
    )

    def serve() -> None:
        for blob in blobs:
            with contextlib.suppress(OSError), server.accept()[0] as guest:
                guest.sendall(blob)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield address
    finally:
        server.close()
        thread.join(5)


@pytest.fixture(scope="module")
def injector(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return frames.build_injector(tmp_path_factory.mktemp("injector"))


def send(site: Platform, vm: Object, program: bytes, sent: list[bytes]) -> None:
    """Let a guest send these frames; return when they are on their way."""
    host = site.host(vm["node"])
    index = int(shell(site, vm, "cat /sys/class/net/eth0/ifindex"))
    with serving(site, host, [program, frames.for_injector(index, sent)]) as address:
        take = f"nc {address} {BLOBS_PORT} </dev/null"
        done = shell(site, vm, f"{take} >/tmp/inject; chmod +x /tmp/inject; {take} | /tmp/inject && echo sent")
    assert done == "sent", "the guest can't send frames"


def inner(mark: bytes) -> bytes:
    """Return a frame that all guests of a network would get."""
    packet = frames.ipv4("10.41.0.66", "10.41.0.255", frames.udp(5000, 5000, mark))
    return frames.ethernet(frames.BROADCAST, GUESTS_AT, frames.IPV4, packet)


def numbers_of(site: Platform) -> list[int]:
    """Return the hosts' numbers, of which their addresses in tunnels are made: in the order in which they joined."""

    async def read() -> list[int]:
        connection = await asyncpg.connect(site.postgres.url)
        try:
            names = [host.name for host in site.lab.hosts]
            return [await connection.fetchval("SELECT number FROM nodes WHERE name = $1", name) for name in names]
        finally:
            await connection.close()

    return asyncio.run(read())


def tunnel_frames(site: Platform, vm: Object, networks: Networks, mark: bytes) -> list[bytes]:
    """Return all ways in which a guest may try to have frames of another network taken for a host's."""
    own_mac, own = vm["spec"]["nics"][0]["mac"], INTRUDERS[vm["node"]]
    hosts = [host.address for host in site.lab.hosts]
    numbers = numbers_of(site)
    targets = [
        *hosts, "198.19.0.1", "198.19.0.2", *map(encrypted_address, numbers), *map(node_address, numbers),
        transit_address(networks.prey["number"]), overlay.NEXT_HOP, "10.40.0.1", "10.40.0.2", "10.40.0.255",
        "255.255.255.255", PREY, OUTSIDE,
    ]  # fmt: skip
    attack = frames.vxlan(VNI_BASE + networks.prey["number"], inner(mark))
    sent = []

    def to_gateway(packet: bytes, source: str = own_mac, kind: int = frames.IPV4) -> None:
        sent.append(frames.ethernet(GATEWAY_MAC, source, kind, packet))

    for target in targets:
        for port in (VXLAN_PORT, WIREGUARD_PORT):
            to_gateway(frames.ipv4(own, target, frames.udp(40000, port, attack)))
    datagram = frames.udp(VXLAN_PORT, VXLAN_PORT, attack)
    for target in (*hosts, *map(encrypted_address, numbers), OUTSIDE):
        for source in (own, *hosts, *map(encrypted_address, numbers)):
            to_gateway(frames.ipv4(source, target, datagram))  # as another host
            to_gateway(frames.ipv4(source, target, datagram), source=GATEWAY_MAC)
            for fragment in frames.fragments(source, target, datagram):
                to_gateway(fragment)
        to_gateway(frames.ipv4(own, target, frames.udp(40001, HOST_PORT, mark)))
        sent.append(frames.tagged(sent[-1], 7))
    to_gateway(frames.ipv4(own, OUTSIDE, frames.udp(40001, CONTROL_PORT, b"control")))
    for target in ("ff02::1", "fe80::1"):
        to_gateway(frames.ipv6_udp("fe80::2", target, datagram), kind=frames.IPV6)
    sent.append(inner(mark))  # also as if it were in that network
    return sent


def spoofing_frames(vm: Object, other: str, mark: bytes) -> list[bytes]:
    """Return what would make other guests of the network take this one for someone else."""
    own_mac, own = vm["spec"]["nics"][0]["mac"], INTRUDERS[vm["node"]]
    all_hear = partial(frames.ethernet, frames.BROADCAST)
    datagram = frames.udp(5000, 5000, mark)
    claims = [
        frames.arp(operation, mac, address, frames.BROADCAST, address) + mark
        for operation in (1, 2)  # gratuitous: a request, and a reply
        for mac, address in ((own_mac, other), (own_mac, "10.40.0.1"), (GUESTS_AT, own))
    ]
    offer = frames.ipv4(own, "255.255.255.255", frames.udp(67, 68, mark))
    advert = b"\x60\0\0\0" + (8 + len(mark)).to_bytes(2, "big") + b"\x3a\xff" + bytes(32) + b"\x86\0\0\0" + mark
    return [
        *(all_hear(own_mac, frames.ARP, claim) for claim in claims),
        all_hear(own_mac, frames.IPV4, offer),
        all_hear(own_mac, frames.IPV4, frames.ipv4(other, "10.40.0.255", datagram)),
        all_hear(GUESTS_AT, frames.IPV4, frames.ipv4(own, "10.40.0.255", datagram)),
        frames.ethernet("33:33:00:00:00:01", own_mac, frames.IPV6, advert),
    ]


def from_tunnel(netns: str, frame: bytes) -> None:
    """Send a frame to a network's other hosts, as its bridge does."""
    with namespace.within(netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as out:
        out.bind((TUNNEL, 0))
        out.send(frame)


def from_host(host: Host, device: str, addresses: tuple[str, str], network: Object, mark: bytes) -> None:
    """Send a frame of a network from a host as it likes, past its own rules; ``addresses``: as whose, and to whom."""
    datagram = frames.udp(40002, VXLAN_PORT, frames.vxlan(VNI_BASE + network["number"], inner(mark)))
    packet = frames.ipv4(*addresses, datagram)
    if device == ROUTED:
        with host.within(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)) as out:
            out.sendto(packet, (addresses[1], 0))
    else:
        with host.within(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)) as out:
            out.bind((device, frames.IPV4))
            out.send(packet)


def until_heard(ears: Ears, send: Callable[[bytes], None], what: str) -> None:
    """Send marked frames until one is heard: the emulated link loses some, and tunnels are made anew."""
    marks: set[bytes] = set()

    def heard() -> bool:
        mark = frames.marker()
        marks.add(mark)
        with contextlib.suppress(OSError):
            send(mark)
        return bool(marks & ears.heard())

    until(heard, what, 60)


def until_connected(site: Platform, network: str, ears: list[Ears]) -> None:
    """Wait until what one host sends in a network comes to the other; ``ears``: of both."""
    for here, there in ((0, 1), (1, 0)):
        netns = netns_of(site, site.lab.hosts[here], network)
        until_heard(ears[there], lambda mark, netns=netns: from_tunnel(netns, inner(mark)), f"{network} works")  # type: ignore[misc]


def attack(site: Platform, networks: Networks, program: bytes) -> None:
    """Let the intruder of each host send all that it can; nothing may come out."""
    with contextlib.ExitStack() as stack:
        ears = {name: [Ears(netns_of(site, host, name)) for host in site.lab.hosts] for name in ("prey", "intruders")}
        for opened in (*ears["prey"], *ears["intruders"]):
            stack.callback(opened.close)
        for name, both in ears.items():
            until_connected(site, name, both)
        for number, (node, vm) in enumerate(networks.intruders.items()):
            mark, spoofed, last = frames.marker(), frames.marker(), frames.marker()
            own = frames.ipv4(INTRUDERS[node], "10.40.0.255", frames.udp(5000, 5000, last))
            canary = frames.ethernet(frames.BROADCAST, vm["spec"]["nics"][0]["mac"], frames.IPV4, own)
            theirs, other = ears["intruders"][1 - number], site.lab.hosts[1 - number].name
            sent = tunnel_frames(site, vm, networks, mark) + spoofing_frames(vm, INTRUDERS[other], spoofed)
            send(site, vm, program, [*sent, *[canary] * 20])
            until(lambda: last in theirs.heard(), "what it may send comes out")  # noqa: B023 (awaited here)
            until_connected(site, "prey", ears["prey"])  # after all that was sent before
            assert spoofed not in theirs.heard(), "others may take it for someone else"
            assert not any(mark in listener.heard() for listener in ears["prey"]), f"the guest on {node} got in"


def test_nothing_that_guests_send_comes_out_in_another_network_or_at_a_host(
    site: Platform, networks: Networks, injector: bytes
) -> None:
    """Over VXLAN alone, and encrypted; also what hosts, and strangers beside them, send without having the network."""
    (host_a, host_b), client = site.lab.hosts, site.client
    a, b = host_a.address, host_b.address
    key_a, key_b = map(encrypted_address, numbers_of(site))
    refused, keyed = frames.marker(), tunnel_of(instance_of(site.directory / "host-b" / "agent"))
    with contextlib.ExitStack() as stack:
        beside = stack.enter_context(outsider(site.lab, host_a))
        ends = {
            (host.name, port): stack.enter_context(datagrams(host, port))
            for host, port in ((host_a, HOST_PORT), (host_b, HOST_PORT), (beside, VXLAN_PORT), (beside, WIREGUARD_PORT))
        }
        control = stack.enter_context(datagrams(beside, CONTROL_PORT))
        prey, alone = (Ears(netns_of(site, host_a, name)) for name in ("prey", "alone"))
        stack.callback(prey.close)
        stack.callback(alone.close)
        attack(site, networks, injector)
        assert control.recvfrom(100)[1][0] == GATEWAY_OUTSIDE, "other datagrams go out"
        from_host(host_b, WAN_DEVICE, (b, a), networks.alone, refused)
        from_host(host_b, WAN_DEVICE, (key_b, a), networks.prey, refused)
        from_host(beside, ROUTED, (OUTSIDE, GATEWAY_OUTSIDE), networks.prey, refused)
        from_host(beside, ROUTED, (b, a), networks.prey, refused)
        until_heard(
            prey, lambda mark: from_host(host_b, WAN_DEVICE, (b, a), networks.prey, mark), "a host that has it gets in"
        )
        site.cli("network", "encryption", "--always")
        assert client.get("networks", "prey")["encryption_required"]
        try:
            until_heard(
                prey, lambda mark: from_tunnel(netns_of(site, host_b, "prey"), inner(mark)), "it works, encrypted"
            )
            attack(site, networks, injector)
            for source in (b, key_b):
                from_host(host_b, WAN_DEVICE, (source, a), networks.prey, refused)
                from_host(beside, ROUTED, (source, a), networks.prey, refused)
            from_host(host_b, keyed, (key_b, key_a), networks.alone, refused)
            until_heard(
                prey, lambda mark: from_host(host_b, keyed, (key_b, key_a), networks.prey, mark), "with its key it does"
            )
        finally:
            client.configure_network_encryption(always=False)
        assert refused not in prey.heard() | alone.heard(), "who does not have the network got in"
        for (name, port), waiting in ends.items():
            with pytest.raises(BlockingIOError):
                raise AssertionError(f"{name}, port {port}: {waiting.recvfrom(100)}")


@pytest.mark.slow
def test_strangers_are_counted_and_shown_with_their_address(site: Platform, networks: Networks) -> None:
    host_a, client = site.lab.hosts[0], site.client
    with outsider(site.lab, host_a) as beside:

        def shown() -> bool:
            from_host(beside, ROUTED, (OUTSIDE, GATEWAY_OUTSIDE), networks.prey, frames.marker())
            conditions = client.get("nodes", "host-a")["status"]["conditions"]
            return any(found["reason"] == "ForeignFrames" and OUTSIDE in found["message"] for found in conditions)

        until(shown, "the node says who sends such frames", 60)
    assert re.search(r'novacron_agent_refused_vxlan_packets_total\{network="prey"\} [1-9]', client.metrics("host-a"))
    events = [event["reason"] for event in client.list("events", object="host-a")]
    assert events.count("ForeignFrames") == 1, "one event, however many frames"
