"""Networks over two hosts: addresses and names, what may pass, ways in and out, and guests that move."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from lab.guest import ECHO_PORT, CounterClient
from lab.hosts import WAN_DEVICE, Host, run
from lab.platform import Platform, until
from novacron.agent.host.networks import NodeNetworks
from novacron.agent.settings import AgentSettings
from novacron.client.console import Console, ConsoleEnded
from novacron.model.network import VNI_BASE
from novacron.net import dnsmasq
from novacron.net.firewall import VXLAN_PORT
from novacron.net.overlay import WIREGUARD_PORT
from tests.e2e.conftest import delete, until_settled
from tests.support.outsider import OUTSIDE, listening, outsider
from tests.support.readable import everything_readable
from tests.support.vms import shell, wait_until_node_answers

Object = dict[str, Any]

FLOATING = "198.19.0.200"
NET = "/sys/class/net"


def create_vm(victim: Platform, name: str, node: str, *nics: Object, **fields: Any) -> Object:
    """Create a VM in networks, and wait until its guest has an address."""
    vm = victim.client.create_vm(name=name, image="tiny", memory_mib=128, node=node, nics=list(nics), **fields)
    until(lambda: "tiny guest: ready" in victim.console_log(vm, node), f"{name} has booted", 60)
    return vm


def address(vm: Object) -> str:
    return str(vm["spec"]["nics"][0]["address"])


def reaches(victim: Platform, vm: Object, command: str) -> bool:
    return shell(victim, vm, f"{command} >/dev/null 2>&1 && echo yes || echo no") == "yes"


def connects(victim: Platform, vm: Object, target: str, port: int) -> bool:
    return reaches(victim, vm, f"nc -w 3 {target} {port} </dev/null")


def echoes(host: Host, at: str, port: int) -> bool:
    """Say whether a guest's echo service is there, as a host sees it."""
    with contextlib.suppress(OSError), host.within(lambda: socket.create_connection((at, port), 2)) as client:
        client.settimeout(2)
        client.sendall(b"?")
        return client.recv(1) == b"?"
    return False


def until_grows(number: Callable[[], int], what: str) -> None:
    before = number()
    until(lambda: number() > before + 20, what, 60)


def dnsmasqs(victim: Platform, network: str) -> list[int]:
    pids = []
    for host in victim.lab.hosts:
        directory = NodeNetworks(AgentSettings(victim.directory / host.name / "agent", Path(), "")).directory(network)
        pid = dnsmasq.running(directory)
        pids += [] if pid is None else [pid]
    return pids


@pytest.fixture(scope="module")
def lan(victim: Platform) -> Iterator[Object]:
    """A network with a VM on each host; tests leave both where they were."""
    network = victim.client.create_network("lan", subnet="10.20.0.0/24")
    nics = {"host-a": {"network": "lan", "mac": "52:54:00:AB:CD:01"}, "host-b": {"network": "lan"}}
    vms = [create_vm(victim, f"lan-{node[-1]}", node, nic) for node, nic in nics.items()]
    yield {**network, "vms": vms}
    for vm in vms:
        delete(victim, vm)
    victim.client.delete("networks", "lan")


def test_guests_reach_each_other_by_address_and_name(victim: Platform, lan: Object) -> None:
    a, b = lan["vms"]
    assert (address(a), address(b)) == ("10.20.0.3", "10.20.0.4")
    assert shell(victim, a, "ip -4 -o address show dev eth0 | while read _ _ _ x _; do echo $x; done") == "10.20.0.3/24"
    assert shell(victim, a, "cat /sys/class/net/eth0/mtu") == str(lan["mtu"]) == "1450"
    macs = [shell(victim, vm, f"cat {NET}/eth0/address") for vm in (a, b)]
    assert macs == [vm["spec"]["nics"][0]["mac"] for vm in (a, b)]
    assert macs[0] == "52:54:00:ab:cd:01" and macs[1].startswith("06:")
    assert reaches(victim, a, f"ping -c 2 -W 2 {address(b)}")
    assert reaches(victim, b, "ping -c 2 -W 2 lan-a")
    assert reaches(victim, a, "nslookup lan-b.lan.internal")
    assert everything_readable(victim) == [], "another user of a host learns of tenants' names and addresses"


def test_a_guests_port_is_reached_without_a_route(victim: Platform, lan: Object) -> None:
    sent = os.urandom(3 << 20)  # more than may be on its way at once
    for vm in lan["vms"]:
        with victim.client.open_port(vm["id"], ECHO_PORT) as connection:

            def send(connection: Console = connection) -> None:
                connection.send(sent)
                connection.send(b"")

            thread = threading.Thread(target=send, daemon=True)
            thread.start()
            came = b""
            with pytest.raises(ConsoleEnded, match=r"^$"):
                while True:
                    came += connection.recv(60)
            thread.join(30)
        assert came == sent
        with victim.client.open_port(vm["id"], 9) as connection, pytest.raises(ConsoleEnded, match="refused"):
            connection.recv(60)


def test_guests_reach_others_through_their_gateway_and_are_reached_through_forwards(
    victim: Platform, lan: Object
) -> None:
    (a, b), (host_a, host_b) = lan["vms"], victim.lab.hosts
    assert victim.client.get("networks", "lan")["gateway"] == "host-a"
    with outsider(victim.lab, host_a) as outside, listening(outside, OUTSIDE, 9000) as came:
        for vm in (a, b):  # the second one's way is through the tunnel first
            assert connects(victim, vm, OUTSIDE, 9000)
        assert came == ["203.0.113.1", "203.0.113.1"], "under their gateway's address"
    with listening(host_a, "0.0.0.0", 9001) as came, listening(host_b, "0.0.0.0", 9001) as came_to_b:
        hosts = "198.18.0.1 198.19.0.1 100.127.255.254 198.18.0.2 198.19.0.2"
        tries = f"for host in {hosts}; do nc -w 3 $host 9001 </dev/null && echo reached $host & done; wait; echo"
        for vm in (a, b):
            assert "reached" not in shell(victim, vm, f"{{ {tries} all-tried; }} 2>/dev/null | tr '\\n' ' '")
        assert came == came_to_b == [], "no guest reaches a host"
    forward = victim.client.create_forward("lan-b", 7001, 30001)
    until(lambda: echoes(host_b, "198.18.0.1", 30001), "the gateway's port leads to the guest")
    victim.client.delete("forwards", forward["id"])
    until(lambda: not echoes(host_b, "198.18.0.1", 30001), "it does no more")
    victim.cli("floating-address", "add", FLOATING)
    victim.cli("floating-address", "attach", FLOATING, "lan-b")
    until(lambda: echoes(host_b, FLOATING, 7001), "its floating address leads to the guest")
    with outsider(victim.lab, host_a) as outside, listening(outside, OUTSIDE, 9002) as came:
        assert connects(victim, b, OUTSIDE, 9002) and came == [FLOATING]
    assert connects(victim, a, FLOATING, 7001), "also from within"
    victim.cli("floating-address", "detach", FLOATING)
    until(lambda: not echoes(host_b, FLOATING, 7001), "it leads nowhere")
    victim.client.create_forward("lan-a", 7001, 80, address=FLOATING)
    until(lambda: echoes(host_b, FLOATING, 80), "a port of it leads to a guest")
    victim.client.act("floating-addresses", FLOATING, "detach")
    victim.cli("floating-address", "remove", FLOATING)
    assert not list(victim.client.list("forwards"))


def test_a_migrated_guest_keeps_its_connections_and_forwards(victim: Platform, lan: Object) -> None:
    a, b = lan["vms"]
    host_b = victim.lab.hosts[1]
    victim.client.create_security_group("closed", [])
    victim.client.add_floating_address(FLOATING)
    victim.client.attach_floating_address(FLOATING, "lan-a")
    until(lambda: echoes(host_b, FLOATING, 7001), "its floating address leads to the guest")
    shell(victim, b, f"{{ sleep 999 | nc {address(a)} 7000; }} >/tmp/count 2>/dev/null & echo begun")
    client = CounterClient(host_b, FLOATING)
    victim.client.configure_vm("lan-b", security_groups=["closed"])
    try:
        for vm, target in ((a, "host-b"), (b, "host-a"), (a, "host-a")):
            victim.cli("vm", "migrate", vm["name"], "--to", target, "--wait")
            assert until_settled(victim, vm)["node"] == target
            until_grows(lambda: client.last, "the connection through the floating address goes on")
            until_grows(lambda: int(shell(victim, b, "tail -n 1 /tmp/count") or 0), "that between guests does, too")
        assert client.broken is None and client.missing_numbers() == 0
        whole = "sed '$d' /tmp/count >/tmp/whole; [ $(wc -l </tmp/whole) = $(tail -n 1 /tmp/whole) ]"
        assert reaches(victim, b, f"{{ {whole}; }}"), "no number is missing"
    finally:
        client.close()
        victim.client.act("floating-addresses", FLOATING, "detach")
        victim.client.delete("floating-addresses", FLOATING)
        victim.client.configure_vm("lan-b", security_groups=[])
        victim.client.delete("security-groups", "closed")
    hardware_that_changes_while_a_guest_is_off_moves_with_it(victim, a, b)


def hardware_that_changes_while_a_guest_is_off_moves_with_it(victim: Platform, a: Object, b: Object) -> None:
    """``lan-b`` is on host-a at first, on host-b at the end."""

    def start_again() -> Object:
        before = boots()
        victim.cli("vm", "start", "lan-b", "--wait")
        until(lambda: boots() > before, "lan-b has booted", 120)
        return victim.client.get("vms", "lan-b")

    def boots() -> int:
        return victim.console_log(victim.client.get("vms", "lan-b")).count("tiny guest: ready")

    before = victim.client.get("vms", "lan-b")
    victim.client.create_network("dmz", subnet="10.21.0.0/24")
    victim.cli("vm", "kill", "lan-b", "--wait")
    victim.cli("vm", "nic", "add", "lan-b", "lan")
    mac = victim.client.get("vms", "lan-b")["spec"]["nics"][1]["mac"]
    victim.cli("vm", "nic", "set", "lan-b", mac, "--network", "dmz")
    machines = victim.client.get("nodes", "host-a")["status"]["inventory"]["machines"]
    *_, older, _ = sorted((name for name in machines if "i440fx" in name), key=lambda name: float(name.split("-")[2]))
    victim.cli("vm", "set", "lan-b", "--cpu", "host", "--machine", older)
    changed = start_again()
    assert changed["status"]["machine"] == older and changed["status"]["hardware_renewals"] == 1
    assert changed["status"]["cpu"] is not None
    victim.cli("vm", "migrate", "lan-b", "--to", "host-b", "--wait")
    moved = until_settled(victim, b)
    assert (moved["node"], moved["status"]["machine"]) == ("host-b", older)
    until(lambda: reaches(victim, b, f"ping -c 1 -W 2 {address(a)}"), "it is in its first network")
    own = "ip -4 -o address show dev eth1 | while read _ _ _ x _; do echo $x; done"
    assert shell(victim, b, own) == f"{moved['spec']['nics'][1]['address']}/24", "and in another one"
    assert shell(victim, b, f"cat {NET}/eth1/address") == mac
    assert reaches(victim, b, "ping -c 2 -W 2 -I eth1 10.21.0.1")
    victim.cli("vm", "kill", "lan-b", "--wait")
    victim.cli("vm", "nic", "remove", "lan-b", mac)
    victim.client.delete("networks", "dmz")
    victim.cli("vm", "set", "lan-b", "--cpu", "baseline", "--machine", "newest")
    assert start_again()["status"]["machine"] == before["status"]["machine"]
    assert shell(victim, b, f"ls {NET} | grep -c eth") == "1"
    until(lambda: reaches(victim, b, "ping -c 1 -W 2 lan-a"), "all is as it was")


def test_security_groups_admit_what_their_rules_allow_and_nothing_else(victim: Platform, lan: Object) -> None:
    a, b = lan["vms"]
    rule = {"direction": "in", "protocol": "tcp", "ports": "7001"}
    victim.client.create_security_group("friends", [])
    victim.client.create_security_group("web", [{**rule, "cidr": "10.99.0.0/16"}])
    victim.client.configure_vm("lan-b", security_groups=["web"])
    until(lambda: not connects(victim, a, address(b), 7001), "nothing comes in")
    assert not reaches(victim, a, f"ping -c 1 -W 2 {address(b)}")
    assert connects(victim, b, address(a), 7001), "all goes out"
    assert reaches(victim, b, f"ping -c 1 -W 2 {address(a)}")
    victim.cli("security-group", "set", "web", "--rule", "in:tcp:7001:@friends", "--rule", "in:icmp")
    until(lambda: reaches(victim, a, f"ping -c 1 -W 2 {address(b)}"), "pings come in")
    assert not connects(victim, a, address(b), 7001)
    victim.cli("vm", "set", "lan-a", "--security-group", "friends")
    until(lambda: connects(victim, a, address(b), 7001), "members of the group come in")
    assert not connects(victim, a, address(b), 7000)
    rules_that_nftables_refuses_are_shown_while_they_last(victim, a, b)
    victim.cli("security-group", "set", "friends", "--rule", "out:udp:53")
    until(lambda: not connects(victim, a, address(b), 7001), "nothing else goes out")
    assert reaches(victim, a, "nslookup lan-b.lan.internal"), "its names it has all the same"
    for vm in ("lan-a", "lan-b"):
        victim.cli("vm", "set", vm, "--no-security-group")
    until(lambda: connects(victim, a, address(b), 7001), "all is as it was")
    for group in ("web", "friends"):
        victim.cli("security-group", "delete", group)


def rules_that_nftables_refuses_are_shown_while_they_last(victim: Platform, a: Object, b: Object) -> None:
    """``lan-b`` has the group ``web``. The API takes no such rule: an earlier version may have."""

    async def store(cidr: str) -> None:
        connection = await asyncpg.connect(victim.postgres.url)
        rule = {"direction": "in", "protocol": "any", "ports": None, "cidr": cidr, "group": None}
        await connection.execute("UPDATE security_groups SET rules = $1 WHERE name = 'web'", json.dumps([rule]))
        await connection.close()

    def codes() -> list[str]:
        vms = [victim.client.get("vms", vm)["status"]["reason_code"] for vm in ("lan-a", "lan-b")]
        return [*vms, victim.client.get("networks", "lan")["reason_code"]]

    asyncio.run(store("10.20.0.0/0.0.0.255"))
    until(lambda: codes() == ["", "InterfaceClosed", "InterfaceClosed"], "VM and network say that it is closed", 60)
    assert "nft refuses" in victim.client.get("vms", "lan-b")["status"]["reason"]
    assert not reaches(victim, a, f"ping -c 1 -W 2 {address(b)}"), "it is closed"
    asyncio.run(store("10.20.0.0/24"))
    until(lambda: codes() == ["", "", ""], "it ends by itself", 60)
    until(lambda: reaches(victim, a, f"ping -c 1 -W 2 {address(b)}"), "it is open")
    happened = {(event["kind"], event["reason"]) for event in victim.client.list("events")}
    assert {("network", "InterfaceClosed"), ("vm", "InterfaceClosed")} <= happened


def packets(host: Host, seconds: float) -> set[int]:
    """Return the UDP ports to which a host sends over the WAN meanwhile."""
    sniffer = host.within(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3)))
    sniffer.bind((WAN_DEVICE, 3))
    sniffer.settimeout(0.2)
    ports: set[int] = set()
    deadline = time.monotonic() + seconds
    with sniffer:
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                data, (_, _, kind, *_) = sniffer.recvfrom(2048)
                if kind == socket.PACKET_OUTGOING and data[9] == socket.IPPROTO_UDP:
                    port, vni = int.from_bytes(data[22:24], "big"), int.from_bytes(data[32:35], "big")
                    if port != VXLAN_PORT or vni >= VNI_BASE:  # the lab's own bridge has a tunnel, too
                        ports.add(port)
    return ports


def test_traffic_between_sites_is_encrypted(victim: Platform, lan: Object) -> None:
    a, b = lan["vms"]
    host_a = victim.lab.hosts[0]
    ping = f"ping -c 3 -W 2 {address(b)}"
    with ThreadPoolExecutor(1) as aside:
        heard = aside.submit(packets, host_a, 3)
        assert reaches(victim, a, ping)
        assert VXLAN_PORT in heard.result(), "within a site it is not"
        victim.client.configure_node("host-b", site="far")
        until(lambda: "novawg" in run(*host_a.prefix, "ls", NET), "both have what encrypts")

        def encrypted() -> bool:
            heard = aside.submit(packets, host_a, 3)
            reached = reaches(victim, a, ping)
            return reached and VXLAN_PORT not in (ports := heard.result()) and WIREGUARD_PORT in ports

        until(encrypted, "they find each other again, and nothing goes in clear", 60)
    assert reaches(victim, b, "nslookup lan-a.lan.internal")
    victim.cli("vm", "migrate", "lan-a", "--to", "host-b", "--wait")
    assert reaches(victim, b, f"ping -c 3 -W 2 {address(a)}")
    victim.cli("vm", "migrate", "lan-a", "--to", "host-a", "--wait")
    victim.client.configure_node("host-b", site="default")
    until(lambda: "novawg" not in run(*host_a.prefix, "ls", NET), "it is taken away again")
    until(lambda: reaches(victim, b, "ping -c 1 -W 2 10.20.0.1"), "its gateway is there", 60)


def test_killed_network_processes_restart_and_another_node_becomes_the_gateway(victim: Platform, lan: Object) -> None:
    a, b = lan["vms"]
    host_a = victim.lab.hosts[0]
    for pid in dnsmasqs(victim, "lan"):
        os.kill(pid, signal.SIGKILL)
    victim.agents["host-a"].kill()
    victim.agents["host-a"].start()
    until(lambda: len(dnsmasqs(victim, "lan")) == 2, "both nodes have DHCP and DNS again", 40)
    wait_until_node_answers(victim, a)
    until(lambda: reaches(victim, a, "nslookup lan-b"), "names are there again")
    victim.client.act("nodes", "host-a", "cordon")
    until(lambda: victim.client.get("networks", "lan")["gateway"] == "host-b", "host-b is the gateway")
    try:
        with outsider(victim.lab, victim.lab.hosts[1]) as outside, listening(outside, OUTSIDE, 9003) as came:
            for vm in (a, b):
                until(functools.partial(connects, victim, vm, OUTSIDE, 9003), "it is used")
            assert set(came) == {"203.0.113.1"}
        until(lambda: "novagw" not in run(*host_a.prefix, "ls", NET), "host-a is it no more")
    finally:
        victim.client.act("nodes", "host-a", "uncordon")
    last = next(iter(victim.client.list("events", limit=1, object="lan")))
    assert last["reason"] == "GatewayMoved" and "host-b, it was host-a" in last["message"]


def test_a_guest_can_use_only_its_own_addresses(victim: Platform, lan: Object) -> None:
    a, b = lan["vms"]
    shell(victim, a, "ip address add 10.20.0.77/24 dev eth0; echo done")
    assert not reaches(victim, a, f"ping -c 1 -W 1 -I 10.20.0.77 {address(b)}"), "no other address"
    assert not reaches(victim, b, "ping -c 1 -W 1 10.20.0.77"), "not even by ARP"
    shell(victim, a, "ip link set eth0 address 52:54:00:00:00:99; echo done")
    assert not reaches(victim, a, f"ping -c 1 -W 1 {address(b)}"), "no other MAC address"
    mac = shell(victim, b, "cat /sys/class/net/eth0/address")
    shell(victim, a, f"ip link set eth0 address {mac}; echo done")
    assert not reaches(victim, a, f"ping -c 1 -W 1 {address(b)}"), "nor somebody else's"
    assert reaches(victim, b, "ping -c 2 -W 2 10.20.0.2") and reaches(victim, b, "ping -c 2 -W 2 10.20.0.1")


@pytest.mark.slow
def test_a_network_can_use_a_hosts_bridge_and_binds_its_guests_to_their_addresses(
    victim: Platform,
) -> None:
    victim.client.create_network("office", kind="bridge", bridge="br0", subnet="198.19.0.0/24")
    host_a, host_b = victim.lab.hosts
    nic = {"network": "office", "address": "198.19.0.60"}
    vm = create_vm(victim, "at-office", "host-a", nic)
    shell(victim, vm, "killall udhcpc; ip address add 198.19.0.60/24 dev eth0; echo done")
    assert reaches(victim, vm, "ping -c 2 -W 2 198.19.0.2") and echoes(host_b, "198.19.0.60", 7001)
    victim.client.create_security_group("shut", [{"protocol": "icmp"}])
    victim.client.configure_vm("at-office", security_groups=["shut"])
    until(lambda: not echoes(host_b, "198.19.0.60", 7001), "nothing but pings comes in")
    with listening(host_b, "198.19.0.2", 9004) as came:
        assert connects(victim, vm, "198.19.0.2", 9004) and came == ["198.19.0.60"]
    shell(victim, vm, "ip address add 198.19.0.61/24 dev eth0; echo done")
    assert not reaches(victim, vm, "ping -c 1 -W 1 -I 198.19.0.61 198.19.0.2"), "no other address"
    victim.cli("vm", "migrate", "at-office", "--to", "host-b", "--wait")
    assert reaches(victim, vm, "ping -c 2 -W 2 198.19.0.1"), "also where it is now"
    assert not reaches(victim, vm, "ping -c 1 -W 1 -I 198.19.0.61 198.19.0.1")
    rules = (*host_a.prefix, "nft", "list", "ruleset")
    until(lambda: "spoofing_" not in run(*rules), "no rules of it are left where it was")
    delete(victim, vm)
    victim.client.delete("networks", "office")
    victim.client.delete("security-groups", "shut")


@pytest.mark.slow
def test_guests_have_ipv6_addresses_across_nodes_and_keep_them_and_connections_when_they_move(victim: Platform) -> None:
    network = victim.client.create_network("six", subnet6="auto", ipv6_addresses="slaac")
    a, b = (create_vm(victim, f"six-{node[-1]}", node, {"network": "six"}) for node in ("host-a", "host-b"))
    own, other = (str(vm["spec"]["nics"][0]["address6"]) for vm in (a, b))
    foreign = network["spec"]["subnet6"].replace("/64", "77")
    try:
        for vm, address6 in ((a, own), (b, other)):
            has = f"ip -6 address show dev eth0 | grep -q {address6}/"
            until(functools.partial(reaches, victim, vm, has), "the guest derives the address that it was given", 90)
        until(lambda: reaches(victim, a, f"ping -6 -c 1 -W 2 {other}"), "they reach each other", 60)
        assert reaches(victim, a, f"nslookup -type=aaaa six-b.six.internal | grep -q {other}"), "names have addresses"
        shell(victim, a, f"ip -6 address add {foreign}/64 dev eth0 nodad; echo done")
        assert not reaches(victim, a, f"ping -6 -c 1 -W 2 -I {foreign} {other}"), "no other address"
        assert not reaches(victim, b, f"ping -6 -c 1 -W 2 {foreign}"), "not even by neighbour discovery"
        shell(victim, b, f"{{ sleep 999 | nc {own} 7000; }} >/tmp/count6 2>/dev/null & echo begun")
        victim.client.create_security_group("closed6", [])
        victim.client.configure_vm("six-a", security_groups=["closed6"])
        until(lambda: not reaches(victim, b, f"ping -6 -c 1 -W 2 {own}"), "nothing comes in")
        for target in ("host-b", "host-a"):
            victim.cli("vm", "migrate", "six-a", "--to", target, "--wait")
            until_grows(lambda: int(shell(victim, b, "tail -n 1 /tmp/count6") or 0), "the connection goes on")
        victim.cli("security-group", "set", "closed6", "--rule", f"in:icmp::{network['spec']['subnet6']}")
        until(lambda: reaches(victim, b, f"ping -6 -c 1 -W 2 {own}"), "a rule lets it in")
    finally:
        for vm in (a, b):
            delete(victim, vm)
        victim.client.delete("networks", "six")
        victim.client.delete("security-groups", "closed6")
