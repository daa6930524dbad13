"""Interfaces of VMs that the server does not name, because its database is older."""

from __future__ import annotations

from novacron.agent.host.kept_interfaces import with_kept
from novacron.model.network import NetworkOnNode, NetworkSpec, VmInterface


def network(name: str, number: int, *vms: str, is_gateway: bool = False) -> NetworkOnNode:
    nics = tuple(VmInterface(vm, 0, f"52:54:00:00:00:0{n}", f"10.0.0.{n}", None) for n, vm in enumerate(vms))
    return NetworkOnNode(name, NetworkSpec(subnet="10.0.0.0/24"), number, 1400, 1, is_gateway, (), (), nics)


def vms_of(networks: tuple[NetworkOnNode, ...]) -> dict[str, list[str]]:
    return {network.name: [nic.vm for nic in network.interfaces] for network in networks}


def test_a_vm_that_the_node_owns_keeps_its_interfaces_and_others_do_not() -> None:
    before = (network("lan", 1, "mine", "gone", "known"), network("new", 2, "mine", is_gateway=True))
    told = (network("lan", 1, "known"),)
    kept = with_kept(told, before, lambda vm: vm in ("mine", "known"))
    assert vms_of(kept) == {"lan": ["known", "mine"], "new": ["mine"]}
    assert not kept[1].is_gateway
    assert with_kept(told, kept, lambda vm: vm == "known") == told, "nothing is kept once the node has let go of the VM"
    adopted = (network("lan", 1, "known", "mine"),)
    assert with_kept(adopted, kept, lambda _: True) == adopted


def test_a_network_whose_number_another_has_by_now_is_not_kept() -> None:
    kept = with_kept((network("other", 2),), (network("new", 2, "mine"),), lambda _: True)
    assert vms_of(kept) == {"other": []}
