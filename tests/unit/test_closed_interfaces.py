"""Interfaces whose rules are refused, as VMs, doctor and metrics tell of them; and metrics of quotas."""

from __future__ import annotations

from typing import Any

import msgspec

from novacron.agent.host.network_problems import by_vm, still_closed
from novacron.api.routes import metrics
from novacron.local.doctor import running
from novacron.net.firewall import NicKey
from tests.support.network import NIC, network_on_node


def test_a_vm_says_which_of_its_interfaces_are_closed_while_it_has_them() -> None:
    lan, wan = (msgspec.structs.replace(network_on_node(), name=name, interfaces=(NIC,)) for name in ("lan", "wan"))
    own, gone = NicKey(NIC.vm, NIC.number), NicKey("vm-gone", 0)
    closed = {"lan": {own: "nft refuses:\n  no", gone: "no"}, "wan": {own: "no"}, "removed": {own: "no"}}
    there = still_closed(closed, [lan, wan])
    assert there == {"lan": {own: "nft refuses:\n  no"}, "wan": {own: "no"}}
    words = f"interface {NIC.number} in network lan is closed: nft refuses: no; interface {NIC.number} in network wan"
    assert by_vm(there) == {NIC.vm: f"{words} is closed: no"}
    assert by_vm(still_closed({"lan": {}}, [lan])) == {} == by_vm(still_closed(closed, []))
    (long,) = by_vm({"lan": {own: "x" * 5000}}).values()
    assert len(long) == 400


def test_doctor_and_metrics_tell_of_networks_that_do_not_work() -> None:
    networks: list[dict[str, Any]] = [
        {"name": "good", "reason": "", "reason_code": ""},
        {"name": "lan", "reason": "node host-a: interface 0 takes no traffic", "reason_code": "InterfaceClosed"},
    ]
    (told,) = running._networks(networks)
    assert told.about == "network lan" and "novacron events --object lan" in told.advice
    assert told.found == "node host-a: interface 0 takes no traffic (InterfaceClosed)"
    assert list(metrics._hindered_networks(networks)) == [("novacron_network_hindered", ("lan", "InterfaceClosed"), 1)]


def test_quotas_and_what_images_take_are_metrics() -> None:
    projects = [{"name": "web", "quota": {"vms": 5, "image_mib": 100, "forwards": None}}]
    owners: list[dict[str, Any]] = [{"project": "web", "size_mib": 96}, {"project": "web", "size_mib": 1}]
    assert set(metrics._quotas(projects, owners)) == {
        ("novacron_project_quota", ("web", "vms"), 5), ("novacron_project_quota", ("web", "image_mib"), 100),
        ("novacron_project_image_bytes", ("web",), 97 << 20),
    }  # fmt: skip
