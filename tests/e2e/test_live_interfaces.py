"""Network interfaces that come, go and change networks while their guest runs, also when it moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab.platform import Platform, until
from tests.e2e.conftest import delete, until_settled
from tests.support.vms import shell

Object = dict[str, Any]
GATEWAYS = {"left": "10.31.0.1", "right": "10.32.0.1"}
DHCP = "ip link set {0} up; ip addr flush dev {0}; udhcpc -i {0} -s /dhcp -n -q -t 5 -T 2 >/dev/null 2>&1"


@pytest.fixture(scope="module")
def sides(victim: Platform) -> Iterator[None]:
    """Two networks on both hosts."""
    for name, gateway in GATEWAYS.items():
        victim.client.create_network(name, subnet=gateway.removesuffix("1") + "0/24")
    yield
    for name in GATEWAYS:
        victim.client.delete("networks", name)


@pytest.fixture
def create(victim: Platform, sides: None) -> Iterator[Callable[..., Object]]:
    """Create VMs on host-a in network ``left``, once or more, and wait until their guests are up."""
    created: list[Object] = []

    def make(name: str, *, interfaces: int = 1, **fields: Any) -> Object:
        nics = [{"network": "left"} for _ in range(interfaces)]
        vm = victim.client.create_vm(
            **{"name": name, "image": "tiny", "memory_mib": 128, "node": "host-a", "nics": nics, **fields}
        )
        created.append(vm)
        until(lambda: "tiny guest: ready" in victim.console_log(vm, "host-a"), f"{name} has booted", 120)
        return victim.client.get("vms", vm["id"])

    yield make
    for vm in created:
        delete(victim, vm)


def interfaces(victim: Platform, vm: Object) -> dict[str, str]:
    """Return the guest's interfaces by their MAC addresses."""
    every = shell(victim, vm, "cd /sys/class/net; for n in eth*; do echo $n=$(cat $n/address); done").split()
    return {mac: name for name, _, mac in (entry.partition("=") for entry in every)}


def devices(victim: Platform, vm: Object) -> dict[str, str]:
    """Return the devices of the guest's interfaces by their MAC addresses, as the API shows them."""
    hardware = victim.client.get("vms", vm["id"])["status"]["hardware"] or {}
    return {nic["mac"]: nic["device"] for nic in (hardware.get("nics") or {}).get("devices", [])}


def macs(vm: Object) -> list[str]:
    return [str(nic["mac"]) for nic in vm["spec"]["nics"]]


def reaches(victim: Platform, vm: Object, mac: str, network: str) -> bool:
    """Say whether an interface gets its address by DHCP and reaches the gateway of its network."""
    name = interfaces(victim, vm).get(mac)
    if name is None:  # the guest's kernel has not found it yet
        return False
    gateway = GATEWAYS[network]
    probe = f"{DHCP.format(name)}; ping -c 1 -W 2 -I {name} {gateway} >/dev/null 2>&1 && echo yes || echo no"
    return shell(victim, vm, probe).endswith("yes")


def until_reaches(victim: Platform, vm: Object, mac: str, network: str) -> None:
    until(lambda: reaches(victim, vm, mac, network), f"interface {mac} is in network {network}", 60)


def in_order(victim: Platform, vm: Object) -> None:
    def settled() -> bool:
        now = victim.client.get("vms", vm["id"])
        return set(devices(victim, vm)) == set(macs(now)) and not now["status"]["reason"]

    until(settled, "the guest has the interfaces that it should", 60)


def test_interfaces_come_go_and_change_networks_while_a_guest_runs_and_moves(
    victim: Platform, create: Callable[..., Object]
) -> None:
    vm = create("plugged")
    (first,) = macs(vm)
    assert devices(victim, vm) == {first: "nic0"}

    victim.cli("vm", "nic", "add", "plugged", "right")
    second = macs(victim.client.get("vms", vm["id"]))[1]
    in_order(victim, vm)
    assert devices(victim, vm) == {first: "nic0", second: "hot0"}
    until_reaches(victim, vm, second, "right")

    victim.cli("vm", "migrate", "plugged", "--to", "host-b", "--wait")
    assert until_settled(victim, vm)["node"] == "host-b"
    until_reaches(victim, vm, second, "right")
    until_reaches(victim, vm, first, "left")

    victim.cli("vm", "nic", "remove", "plugged", first)  # with which it began: the others do not close up
    in_order(victim, vm)
    assert set(interfaces(victim, vm)) == {second}
    victim.cli("vm", "migrate", "plugged", "--to", "host-a", "--wait")
    assert until_settled(victim, vm)["node"] == "host-a"
    until_reaches(victim, vm, second, "right")


@pytest.mark.slow
def test_an_interface_changes_networks_while_its_guest_runs_and_the_agent_restarts(
    victim: Platform, create: Callable[..., Object]
) -> None:
    vm = create("rewired", interfaces=2)
    first, second = macs(vm)
    victim.cli("vm", "nic", "set", "rewired", second, "--network", "right")
    in_order(victim, vm)
    until_reaches(victim, vm, second, "right")
    victim.agents["host-a"].kill()
    victim.agents["host-a"].start()
    victim.wait_node("host-a")
    victim.cli("vm", "nic", "remove", "rewired", first)
    in_order(victim, vm)
    victim.cli("vm", "nic", "set", "rewired", second, "--network", "left")
    until_reaches(victim, vm, second, "left")
    victim.cli("vm", "nic", "add", "rewired", "right")
    third = macs(victim.client.get("vms", vm["id"]))[1]
    in_order(victim, vm)
    assert devices(victim, vm) == {second: "nic1", third: "hot0"}
    until_reaches(victim, vm, third, "right")
    victim.cli("vm", "migrate", "rewired", "--to", "host-b", "--warm", "--wait")
    assert until_settled(victim, vm)["node"] == "host-b"
    until_reaches(victim, vm, third, "right")
    victim.cli("vm", "kill", "rewired", "--wait")
    victim.cli("vm", "start", "rewired", "--wait")
    until(lambda: devices(victim, vm) == {second: "nic0", third: "nic1"}, "after a start they are in order", 60)


@pytest.mark.slow
def test_a_machine_with_pci_express_has_ports_for_them(victim: Platform, create: Callable[..., Object]) -> None:
    """What its guest began with stays: the refusal says why."""
    vm = create("express", interfaces=2, firmware="uefi", memory_mib=256)
    first, second = macs(vm)
    said = victim.cli("vm", "nic", "remove", "express", first, check=False).stderr
    assert "keeps on board" in said and "novacron vm stop express --wait" in said
    victim.cli("vm", "nic", "add", "express", "right")
    third = macs(victim.client.get("vms", vm["id"]))[2]
    in_order(victim, vm)
    assert devices(victim, vm) == {first: "nic0", second: "nic1", third: "hot0"}
    until_reaches(victim, vm, third, "right")
    victim.cli("vm", "nic", "set", "express", first, "--network", "right")
    until_reaches(victim, vm, first, "right")
    victim.cli("vm", "migrate", "express", "--to", "host-b", "--wait")
    assert until_settled(victim, vm)["node"] == "host-b"
    until_reaches(victim, vm, third, "right")
    until_reaches(victim, vm, first, "right")
    victim.cli("vm", "nic", "remove", "express", third)
    in_order(victim, vm)
    assert set(interfaces(victim, vm)) == {first, second}
