"""Taps and late frames, on real devices in namespaces."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from lab.agent_networks import remove_all
from lab.hosts import WAN_DEVICE, Lab, run
from lab.platform import until
from novacron.agent.host import remnants
from novacron.agent.host.instances import RUN_DIR, instance_of, mark_of, prefix_of
from novacron.agent.host.networks import GuestPlace, NodeNetworks
from novacron.agent.host.presence import Presence
from novacron.agent.host.remnants import RemnantKind
from novacron.agent.settings import AgentSettings
from novacron.agent.vm.leftovers import Leftovers, abandoned
from novacron.agent.vm.port_forward import PortForwards
from novacron.model.network import VNI_BASE, Direction, Entrance, Passing, Protocol, VmInterface
from novacron.model.node import AcceleratorKind
from novacron.model.vm import tap_name
from novacron.net import firewall, namespace, overlay, router, tap, tunnels
from novacron.net.firewall import TUNNEL, VXLAN_PORT, nft
from novacron.net.in_flight_frames import InFlightFrames
from novacron.net.tap import NetworkFailed, tap_address
from novacron.qemu import confine
from novacron.qemu.confine import Cgroup
from novacron.wire import messages as wire
from tests.support import frames
from tests.support.network import NIC, network_on_node
from tests.waiting import eventually

MAC = "52:54:00:aa:bb:cc"
ADDRESS = "198.19.0.77"
TUNSETIFF = 0x400454CA
IFF_TAP_NO_PI = 0x0002 | 0x1000


def bridge_address(lab: Lab) -> str:
    return run(*lab.hosts[1].prefix, "cat", "/sys/class/net/br0/address")


@pytest.fixture
def device(wan: Lab) -> Iterator[int]:
    """A tap of a guest on host-b, held open as QEMU holds it."""
    host = wan.hosts[1]

    def opened() -> int:
        tap.create("nvtest", "br0", MAC)
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH", b"nvtest", IFF_TAP_NO_PI))
        return descriptor

    descriptor = host.within(opened)
    yield descriptor
    os.close(descriptor)
    host.within(lambda: tap.delete("nvtest"))


def test_a_bridge_keeps_its_address_when_a_tap_comes_and_goes(wan: Lab) -> None:
    host, before = wan.hosts[1], bridge_address(wan)
    assert host.within(lambda: tap.create("nvtest", "br0", "52:54:00:00:00:01")) == 1450
    assert bridge_address(wan) == before
    host.within(lambda: tap.create("nvtest", "br0", "52:54:00:00:00:01"))  # again: it is used
    host.within(lambda: tap.delete("nvtest"))
    host.within(lambda: tap.delete("nvtest"))  # again: no error
    assert bridge_address(wan) == before


def test_the_error_names_a_missing_bridge(wan: Lab) -> None:
    with pytest.raises(NetworkFailed, match="no bridge 'br9'"):
        wan.hosts[1].within(lambda: tap.create("nvtest", "br9", MAC))


def test_frames_that_arrive_after_a_guest_stopped_are_forwarded_to_it(wan: Lab, device: int) -> None:
    here, there = wan.hosts[1], wan.hosts[0]
    run(*there.prefix, "ip", "neigh", "replace", ADDRESS, "lladdr", MAC, "dev", "br0")
    kept = here.within(lambda: InFlightFrames("nvtest"))
    sender = there.within(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    for number in range(3):
        sender.sendto(b"late-%d" % number, (ADDRESS, 5555))
    came = bytearray()

    def all_came() -> bool:
        came.extend(_read(device))
        return came.count(b"late-") == 3

    until(all_came, "the frames have come to the tap")
    here.within(lambda: tap.delete("nvtest"))
    heard = there.within(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
    heard.bind(("vx0", 0x0003))
    heard.settimeout(20)
    assert here.within(lambda: kept.send_after("br0", MAC)) == 3
    frames: list[bytes] = []
    while len(frames) < 3:
        frame = heard.recv(2000)
        if b"late-" in frame:
            frames.append(frame)
    assert [frame[-6:] for frame in frames] == [b"late-0", b"late-1", b"late-2"]
    for frame in frames:
        assert frame[:6].hex(":") == MAC
        assert frame[6:12].hex(":") == tap_address(MAC), "bridges must not learn that the sender has moved"
    for opened in (heard, sender):
        opened.close()
    kept.close()


def test_a_former_address_of_a_host_is_forgotten(wan: Lab) -> None:
    """Frames for it would go there, past the encryption that it has been given since."""
    host, name = wan.hosts[1], f"nvtest-{os.getpid()}"
    plain, encrypted = "198.18.0.1", overlay.encrypted_address(1)
    within = ("ip", "netns", "exec", name, "bridge", "fdb")

    def destinations() -> set[str]:
        return set(re.findall(r"dst (\S+)", run(*within, "show", "dev", TUNNEL)))

    try:
        host.within(lambda: overlay.settle(name, network_on_node(), None, [plain]))
        run(*within, "append", MAC, "dev", TUNNEL, "dst", plain, "dynamic")
        assert destinations() == {plain}
        host.within(lambda: overlay.settle(name, network_on_node(), None, [encrypted]))
        assert destinations() == {encrypted}
    finally:
        host.within(lambda: namespace.delete(name))


def test_traffic_to_another_site_stops_while_its_encryption_is_missing(wan: Lab) -> None:
    """There is a way to its address for all that: the host's default route."""
    host, encrypted = wan.hosts[1], overlay.encrypted_address(1)
    run(*host.prefix, "ip", "route", "add", str(overlay.RANGE), "via", "198.18.0.1")
    try:
        with host.within(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
            sender.sendto(b"frame", (encrypted, VXLAN_PORT))
            host.within(lambda: nft(router.host_script("nvtest", router.HostRules([], {5: [encrypted]}))))
            with pytest.raises(PermissionError):
                sender.sendto(b"frame", (encrypted, VXLAN_PORT))
    finally:
        host.within(lambda: nft("table ip nvtest\ndelete table ip nvtest\n"))
        run(*host.prefix, "ip", "route", "del", str(overlay.RANGE))


def _read(device: int) -> bytes:
    """Return what is waiting in a tap."""
    data = b""
    for _ in range(64):
        try:
            data += os.read(device, 2000)
        except BlockingIOError:
            break
    return data


def interface(vm: str, address: str, *, cidr: str = "192.0.2.0/24") -> VmInterface:
    passing = (Passing(Direction.IN, Protocol.TCP, (22, 22), (cidr,)),)
    return VmInterface(vm, 0, "52:54:00:00:00:01", address, passing)


@pytest.fixture
def rules_of(wan: Lab) -> Iterator[Callable[[], str]]:
    """The rules of a table ``nvtest`` on host-b, which is removed afterwards."""
    host = wan.hosts[1]
    yield lambda: run(*host.prefix, "nft", "list", "table", "bridge", "nvtest")
    host.within(lambda: firewall.remove("nvtest"))


@pytest.mark.parametrize("remaining_s", [0.2, 59.7, 60.0, 3600.0])
def test_rules_load_while_a_guest_arrives(wan: Lab, rules_of: Callable[[], str], remaining_s: float) -> None:
    nics = [interface("aaaaaaaaaaaa", "10.20.0.3")]
    for _ in range(2):  # again: the address is there already
        refused = wan.hosts[1].within(lambda: firewall.load("nvtest", nics, "10.20.0.2", {"10.20.0.3": remaining_s}))
        assert refused == {}
    assert "10.20.0.3 timeout" in rules_of()


def test_an_interface_with_refused_rules_is_closed_and_the_others_work(wan: Lab, rules_of: Callable[[], str]) -> None:
    good = interface("aaaaaaaaaaaa", "10.20.0.3")
    bad = interface("bbbbbbbbbbbb", "10.20.0.4", cidr="198.51.100.0/0.0.0.255")
    arrived = {"10.20.0.3": 30.0, "10.20.0.4": 30.0}
    refused = wan.hosts[1].within(lambda: firewall.load("nvtest", [bad, good], "10.20.0.2", arrived))
    assert list(refused) == [firewall.key_of(bad)] and "nft refuses" in refused[firewall.key_of(bad)]
    rules = rules_of()
    assert "ip saddr 192.0.2.0/24" in rules and "10.20.0.3 timeout" in rules, "the good one has its rules"
    assert rules.count('"nvbbbbbbbbbbbb" : jump') == 2, "both directions of the bad one"
    for chain in ("spoofing_nvbbbbbbbbbbbb", "to_nvbbbbbbbbbbbb"):
        assert re.search(rf"chain {chain} \{{\s+drop\s+\}}", rules), f"{chain} lets something pass"
    mended = interface("bbbbbbbbbbbb", "10.20.0.4")
    assert wan.hosts[1].within(lambda: firewall.load("nvtest", [mended, good], "10.20.0.2", arrived)) == {}
    assert "flows_nvbbbbbbbbbbbb" in rules_of()


def test_one_way_in_that_is_refused_stops_no_other_of_its_network(
    wan: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = wan.hosts[1]
    routing = NodeNetworks(AgentSettings(tmp_path, tmp_path, "")).routing
    name = prefix_of(routing._instance) + "lan"
    good = Entrance(None, Protocol.TCP, 30022, "10.20.0.3", 22)
    by_host = Entrance(None, Protocol.TCP, 99999, "10.20.0.3", 22)
    inside = Entrance(None, Protocol.UDP, 30053, "10.20.0.300", 53)
    floating = (("192.0.2.7", "10.20.0.3"), ("192.0.2.8", "10.20.0.300"))
    network = network_on_node(entrances=(good, by_host, inside), floating=floating)
    monkeypatch.setattr(router, "greet", lambda name, address: None)  # its bridge is not there
    failed: dict[str, str] = {}

    def settle() -> str:
        assert routing.settle([network], {network.vni: []}, whole=True) == {}
        routing.settle_gateways([network], failed, whole=True)
        return namespace.within(name, lambda: run("nft", "list", "table", "ip", router.TABLE))

    try:
        host.within(lambda: namespace.create(name))
        rules = host.within(settle)
        assert failed == {} and set(routing.refused_ways["lan"]) == {by_host, inside, floating[1]}
        assert "tcp dport 30022 dnat to 10.20.0.3:22" in rules and "ip daddr 192.0.2.7 dnat to 10.20.0.3" in rules
        assert "masquerade" in rules and "30053" not in rules
        of_host = run(*host.prefix, "nft", "list", "table", "ip", routing._table)
        assert "dport 30022" in of_host and "99999" not in of_host
    finally:
        host.within(lambda: routing.settle_gateways([], {}, whole=True))
        host.within(lambda: namespace.delete(name))
        host.within(lambda: firewall.nft(f"table ip {routing._table}\ndelete table ip {routing._table}\n"))


def test_one_network_that_the_hosts_rules_refuse_does_not_open_or_stop_the_others(wan: Lab, tmp_path: Path) -> None:
    host = wan.hosts[1]
    networks = NodeNetworks(AgentSettings(tmp_path, tmp_path, ""))
    table = f"novacron_{networks.instance}"
    try:
        refused = host.within(lambda: networks.routing.settle([], {5: ["198.18.0.1"], 6: ["nonsense"]}, whole=True))
        assert list(refused) == [6]
        rules = run(*host.prefix, "nft", "list", "table", "ip", table)
        assert rules.count("198.18.0.1") == 2, "the good one has its rules"
        closed = re.search(
            r"chain from_6 \{\s+update @strangers \{ ip saddr \}\s+counter name \"refused_6\" drop", rules
        )
        assert closed and re.search(r"chain to_6 \{\s+drop\s+\}", rules), "and nothing of the bad one passes"
    finally:
        host.within(lambda: firewall.nft(f"table ip {table}\ndelete table ip {table}\n"))


@pytest.fixture
def noted(tmp_path: Path) -> Iterator[Callable[[str, str], AgentSettings]]:
    """Note agents on this host, by owner and state folder, and give each a network; remove what is left of them."""
    made: list[Path] = []

    def note(owner: str, folder: str) -> AgentSettings:
        state_dir = tmp_path / folder
        made.append(state_dir)
        remnants.note_instance(state_dir, owner)
        namespace.create(network_of(state_dir))
        return AgentSettings(state_dir, tmp_path, owner.partition("/")[2], owner=owner)

    yield note
    for state_dir in made:
        remove_all(state_dir)


def network_of(state_dir: Path) -> str:
    return f"{prefix_of(instance_of(state_dir))}lan"


def test_an_agent_removes_what_agents_that_are_gone_left_on_its_host_and_nothing_else(
    wan: Lab, tmp_path: Path, noted: Callable[[str, str], AgentSettings]
) -> None:
    """Namespaces, taps, cgroups, files in ``/run`` and notes."""
    host, installation = wan.hosts[1], f"installation-{tmp_path.name}"
    own = noted(f"{installation}/host-b", "own")
    gone = noted(f"{installation}/was-host-b", "gone")
    lives = noted(f"{installation}/host-c", "lives")
    other = noted(f"other-{installation}/host-b", "other")
    present = Presence(lives.owner)
    (own.vms_dir / "vm-here").mkdir(parents=True)
    marks = {
        "nvhere": mark_of(instance_of(own.state_dir), "vm-here"),
        "nvnone": mark_of(instance_of(own.state_dir), "vm-none"),
        "nvgone": mark_of(instance_of(gone.state_dir), "vm-gone"),
        "nvlives": mark_of(instance_of(lives.state_dir), "vm-lives"),
        "nvother": mark_of(instance_of(other.state_dir), "vm-other"),
    }
    files = RUN_DIR / f"{instance_of(gone.state_dir)}-lan"
    files.mkdir()
    cgroup = Cgroup(f"was-host-b.{tmp_path.name}", marks["nvgone"])
    with subprocess.Popen(["sleep", "60"]) as process:
        with contextlib.suppress(OSError):  # not every host gives limits
            cgroup.place(process.pid, 1, 64, AcceleratorKind.TCG)
        process.kill()
    try:
        for name, mark in marks.items():
            host.within(lambda name=name, mark=mark: tap.create(name, "br0", MAC, None, mark))  # type: ignore[misc]
        found = host.within(abandoned)
        assert {(left.kind, left.name) for left in found if left.vm == "vm-gone"} >= {(RemnantKind.TAP, "nvgone")}
        assert not any(left.by is not None and left.by.owner == lives.owner for left in found)
        host.within(Leftovers(own, list).remove_remnants)
        assert {name for name, _ in host.within(tap.marked)} == {"nvhere", "nvlives", "nvother"}
        assert not namespace.exists(network_of(gone.state_dir)) and not files.exists()
        assert all(namespace.exists(network_of(agent.state_dir)) for agent in (own, lives, other))
        assert instance_of(gone.state_dir) not in remnants.instances()
        assert f"was-host-b.{tmp_path.name}" not in dict(confine.cgroups())
    finally:
        present.release()
        for name in marks:
            host.within(lambda name=name: tap.delete(name))  # type: ignore[misc]
        cgroup.remove()


def datagram_from(source: str, target: str, vni: int) -> bytes:
    frame = frames.ethernet(frames.BROADCAST, MAC, frames.IPV4, frames.ipv4("10.0.0.1", "10.0.0.2", b""))
    return frames.ipv4(source, target, frames.udp(40000, VXLAN_PORT, frames.vxlan(vni, frame)))


def test_frames_from_hosts_that_do_not_have_the_network_are_dropped_and_counted(wan: Lab) -> None:
    """Also those that name a host which has it, but do not come from where that one is."""
    there, here = wan.hosts
    script = router.host_script("nvtest", router.HostRules([], {5: [there.address], 6: []}))

    def send(device: str, source: str, vni: int = 5) -> None:
        with there.within(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)) as out:
            out.bind((device, frames.IPV4))
            packet = datagram_from(source, here.address, vni)
            out.sendto(packet, (device, frames.IPV4, 0, 0, bytes.fromhex(bridge_address(wan).replace(":", ""))))

    def refused() -> tunnels.Refused:
        counted = here.within(lambda: tunnels.refused("nvtest"))
        assert counted is not None
        return counted

    def until_refused(vni: int, device: str, source: str) -> None:
        before = refused().packets[vni]

        def is_refused() -> bool:
            send(device, source, vni)
            return refused().packets[vni] > before

        until(is_refused, f"{source} on {device} is refused")

    try:
        here.within(lambda: nft(script))
        for _ in range(20):
            send(WAN_DEVICE, there.address)
        until_refused(6, WAN_DEVICE, there.address)  # after these
        assert refused().packets[5] == 0, "what a host sends that has the network is taken"
        until_refused(5, WAN_DEVICE, "203.0.113.9")
        until_refused(5, "br0", there.address)
        assert set(refused().strangers) == {"203.0.113.9", there.address}
        run(*here.prefix, "nft", "flush", "ruleset")
        assert here.within(lambda: tunnels.refused("nvtest")) is None, "so an agent sees that they are gone"
    finally:
        here.within(lambda: nft("table ip nvtest\ndelete table ip nvtest\n"))


def test_no_guest_on_a_hosts_bridge_sends_frames_of_overlays(
    wan: Lab, device: int, rules_of: Callable[[], str]
) -> None:
    """Whether its VM is in a network or not, and whatever address it takes."""
    host, mark = wan.hosts[1], frames.marker()
    host.within(lambda: firewall.load("nvtest", [], None, {}))
    heard = host.within(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
    heard.bind(("br0", 0x0003))
    heard.settimeout(20)
    attack = frames.udp(40000, VXLAN_PORT, frames.vxlan(5, mark))
    packets = [
        frames.ipv4("198.18.0.1", "198.18.0.2", attack),
        *frames.fragments("198.18.0.1", "198.18.0.2", attack)[:1],
    ]
    sent = [frames.ethernet(frames.BROADCAST, MAC, frames.IPV4, packet) for packet in packets]
    sent += [frames.tagged(frame, 7) for frame in sent]
    sent.append(frames.ethernet(frames.BROADCAST, MAC, frames.IPV6, frames.ipv6_udp("fe80::1", "ff02::1", attack)))
    others = frames.ipv4("198.18.0.1", "198.18.0.2", frames.udp(40000, 9, b"last"))
    for frame in (*sent, frames.ethernet(frames.BROADCAST, MAC, frames.IPV4, others)):
        os.write(device, frame)
    came: list[bytes] = []
    while not any(b"last" in frame for frame in came):
        came.append(heard.recv(2000))
    heard.close()
    assert not [frame for frame in came if mark in frame or VXLAN_PORT.to_bytes(2, "big") in frame[36:38]]
    assert "udp dport 4789 drop" in rules_of()


def test_rules_against_guests_are_there_before_any_network_and_back_after_somebody_has_flushed_them(
    wan: Lab, tmp_path: Path
) -> None:
    """VMs that are in no network are on the bridge, too."""
    host = wan.hosts[1]
    networks = NodeNetworks(AgentSettings(tmp_path, tmp_path, "", bridge="br0"))
    ends = {VNI_BASE + 7: [wan.hosts[0].address]}

    def rules() -> str:
        return run(*host.prefix, "nft", "list", "ruleset")

    def settle(*, whole: bool) -> None:
        assert host.within(lambda: networks._settle((), {}, whole=whole)) is False

    try:
        settle(whole=False)
        assert 'iifname "nv*" udp dport 4789 drop' in rules()
        run(*host.prefix, "nft", "flush", "ruleset")
        settle(whole=True)
        assert 'iifname "nv*" udp dport 4789 drop' in rules()
        assert host.within(lambda: networks.routing.settle([], ends, whole=False)) == {}
        assert host.within(lambda: networks.routing.take_refused_frames([network_on_node()], ends)) is False
        run(*host.prefix, "nft", "flush", "ruleset")
        assert host.within(lambda: networks.routing.take_refused_frames([network_on_node()], ends)), "it is noticed"
    finally:
        run(*host.prefix, "nft", "flush", "ruleset")


@pytest.fixture
def guest(wan: Lab, request: pytest.FixtureRequest) -> Iterator[GuestPlace]:
    """A network on host-b, on its gateway or not, with a guest that no security group lets anything through to."""
    name, inside = f"nvtest{os.getpid()}-lan", f"nvtest{os.getpid()}-guest"
    closed = msgspec.structs.replace(NIC, passing=())
    network = msgspec.structs.replace(network_on_node(), is_gateway=request.param, interfaces=(closed,))
    network = msgspec.structs.replace(network, number=41 + request.param)  # the other one goes when the kernel likes
    ends = tap_name(closed.vm, 0)
    try:
        wan.hosts[1].within(lambda: overlay.settle(name, network, None, []))
        namespace.within(name, lambda: firewall.load(router.TABLE, network.interfaces, "10.20.0.2", {}))
        namespace.create(inside)
        run("ip", "-n", name, "link", "add", ends, "type", "veth", "peer", "name", "eth0", "netns", inside)
        run("ip", "-n", name, "link", "set", ends, "master", overlay.BRIDGE, "up")
        run("ip", "-n", inside, "link", "set", "eth0", "address", closed.mac, "up")
        run("ip", "-n", inside, "address", "add", "10.20.0.3/24", "dev", "eth0")
        yield GuestPlace(name, "10.20.0.2", "10.20.0.3")
    finally:
        namespace.delete(inside)
        namespace.delete(name)


@pytest.mark.parametrize("guest", [True, False], indirect=True, ids=["gateway", "other"])
async def test_a_guests_port_is_reached_without_a_route_or_a_rule(guest: GuestPlace) -> None:
    sent: list[wire.Message] = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())
        writer.close()

    async def send(message: wire.Message) -> None:
        sent.append(message)

    inside = guest.netns.replace("-lan", "-guest")
    listens = namespace.within(inside, lambda: socket.create_server((guest.address, 22)))
    ports = PortForwards(lambda _: guest, send)
    async with await asyncio.start_server(echo, sock=listens):
        await ports.open(1, "vm", 22)
        await ports.write(1, b"hello")
        await ports.write(1, b"")
        await eventually(lambda: wire.ConsoleClosed(1, wire.CLOSED) in sent, f"the connection ends: {sent}", 30)
    assert [message.data for message in sent if isinstance(message, wire.ConsoleOutput)] == [b"hello"]
