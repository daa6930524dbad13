"""What a network costs: two guests on two hosts talk over VXLAN, encrypted and not, and over the bridge that carries
it."""

from __future__ import annotations

import os
from typing import Any

from bench.report import Figure, median
from lab import guest
from lab.hosts import Lab, lab, run
from lab.images import images_dir
from lab.platform import Platform, default_cache, open_directory, platform, until

SENT_MIB = 24
OVER_BARE = 0.85
PORT = 7002
FLAT = "flat"
"""The bridge of both hosts, with a pair of interfaces between them."""

Object = dict[str, Any]


def join(hosts: Lab) -> None:
    """Join the hosts by a bridge, and let what is between them take that way."""
    a, b = (str(host.netns) for host in hosts.hosts)
    run("ip", "-n", a, "link", "add", "flat0", "type", "veth", "peer", "name", "flat0", "netns", b)
    for host in hosts.hosts:
        other = 3 - host.number
        run(
            *("ip", "-n", str(host.netns), "-batch", "-"),
            stdin=f"""
link add {FLAT} address 02:00:c6:14:00:0{host.number} type bridge forward_delay 0
link set flat0 master {FLAT} up
link set {FLAT} up
address add 198.18.1.{host.number}/24 dev {FLAT}
route replace 198.18.0.{other}/32 via 198.18.1.{other} dev {FLAT}
""",
        )


def shell(p: Platform, vm: Object, command: str) -> str:
    return guest.shell(p.client, vm["id"], command, 120)


def send(p: Platform, source: Object, target: Object, nic: int) -> float:
    """Return how many Mbit/s one guest sends another to its interface ``nic``."""
    address, counter = target["spec"]["nics"][nic]["address"], f"cat /sys/class/net/eth{nic}/statistics/rx_bytes"
    before = int(shell(p, target, counter))
    shell(p, target, f"nc -l -p {PORT} -e dd of=/dev/null bs=64k >/dev/null 2>&1 & echo begun")
    began = "read -r began _ </proc/uptime"
    sent = f"dd if=/dev/zero bs=64k count={SENT_MIB * 16} 2>/dev/null | nc {address} {PORT}"
    words = shell(p, source, f"{began}; {sent}; read -r ended _ </proc/uptime; echo $began $ended").split()
    assert int(shell(p, target, counter)) - before > SENT_MIB << 20, "all came, and came this way"
    return (SENT_MIB << 20) * 8 / 1e6 / (float(words[1]) - float(words[0]))


def figures(rounds: int) -> list[Figure]:
    with (
        open_directory("nvo-") as directory,
        lab(f"nvo{os.getpid()}", default_cache()) as hosts,
    ):
        join(hosts)
        with platform(directory / "p", hosts, images_dir()) as p:
            p.client.create_network("over", subnet="10.21.0.0/24")
            p.client.create_network("bare", kind="bridge", bridge=FLAT, subnet="10.22.0.0/24")
            names = ["over", "bare"]
            if all(node["status"]["inventory"]["wireguard"] for node in p.client.list("nodes")):
                p.client.create_network("keyed", subnet="10.23.0.0/24", encryption="always")
                names.append("keyed")
            vms = [
                p.client.create_vm(
                    name=node, image="tiny", memory_mib=128, node=node, nics=[{"network": name} for name in names]
                )
                for node in ("host-a", "host-b")
            ]
            for vm in vms:
                until(lambda vm=vm: "tiny guest: ready" in p.console_log(vm, vm["name"]), "booted", 120)  # type: ignore[misc]
                address = vm["spec"]["nics"][1]["address"]
                shell(p, vm, f"killall udhcpc; ip address add {address}/24 dev eth1; echo done")
            source, target = vms
            rates: dict[str, list[float]] = {name: [] for name in names}
            for _ in range(rounds):
                for number, name in sorted(enumerate(names), key=lambda entry: entry[1]):
                    rates[name].append(send(p, source, target, number))
    bare, over, keyed = rates["bare"], rates["over"], rates.get("keyed", [])
    encrypted = (
        [
            median("  ... over VXLAN and WireGuard", keyed, "Mbit/s"),
            median("  ... encrypted over not encrypted", [k / o for k, o in zip(keyed, over, strict=True)], "x"),
        ]
        if keyed
        else []
    )
    return [
        median("two guests over the bare bridge", bare, "Mbit/s"),
        median("  ... over VXLAN", over, "Mbit/s"),
        median(
            "  ... VXLAN over bare", [o / b for o, b in zip(over, bare, strict=True)], "x", OVER_BARE, at_least=True
        ),
        *encrypted,
    ]
