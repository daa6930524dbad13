"""Networks through the API: invalid requests, full subnets, and objects in use."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lab.hosts import run
from lab.platform import Platform, until
from tests.integration.conftest import Api

NewVm = Callable[..., dict[str, Any]]


def wait_until_deleted(site: Platform, vm: dict[str, Any]) -> None:
    until(lambda: all(vm_now["id"] != vm["id"] for vm_now in site.client.list("vms")), f"{vm['name']} is deleted")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": "X"}, "name"),
        ({"name": "n", "subnet": "10.0.0.1/24"}, "subnet"),
        ({"name": "n", "kind": "bridge"}, "bridge"),
        ({"name": "n", "kind": "bridge", "bridge": "../x"}, "bridge"),
        ({"name": "n", "kind": "bridge", "bridge": "br0", "vlan": 4095}, "vlan"),
        ({"name": "n", "mtu": 9000}, "mtu"),
        ({"name": "n", "nameservers": ["x"]}, "nameservers"),
    ],
)
def test_an_invalid_network_is_refused(site: Platform, api: Api, fields: Any, field: str) -> None:
    answer = api("POST", "/api/v1/networks", fields)
    assert answer.status == 400 and answer.problem["field"] == field
    assert not list(site.client.list("networks"))


def test_a_network_gives_each_vm_an_address_and_is_deleted_last(site: Platform, api: Api, new_vm: NewVm) -> None:
    small_network = site.client.create_network("small", subnet="10.30.0.0/29")
    assert small_network["spec"]["subnet"] == "10.30.0.0/29" and small_network["gateway"] is None
    assert api("POST", "/api/v1/networks", {"name": "small"}).status == 409
    other = site.client.create_network("other")
    assert other["spec"]["subnet"] == "10.64.0.0/24" and other["number"] != small_network["number"]
    site.client.create_security_group("web", [{"protocol": "tcp", "ports": "80"}])
    nic = {"network": "small"}
    off = {"power": "stopped", "memory_mib": 64}
    vms = [new_vm(nics=[nic], **off) for _ in range(3)]
    vms.append(new_vm(nics=[nic, {"network": "other", "address": "10.64.0.99", "groups": ["web"]}], **off))
    addresses = [vm["spec"]["nics"][0]["address"] for vm in vms]
    assert addresses == ["10.30.0.3", "10.30.0.4", "10.30.0.5", "10.30.0.6"]
    assert vms[3]["spec"]["nics"][1]["address"] == "10.64.0.99"

    def refused(status: int, **fields: Any) -> str:
        answer = api("POST", "/api/v1/vms", {"name": "refused", "image": "tiny", **fields})
        assert answer.status == status and answer.problem["field"] in ("nics", "network", "address")
        return str(answer.problem["detail"])

    assert "no free address" in refused(409, nics=[nic])
    assert "another VM's" in refused(400, nics=[{"network": "other", "address": "10.64.0.99"}])
    assert "not an address in" in refused(400, nics=[{"network": "other", "address": "10.65.0.9"}])
    assert "no network" in refused(404, nics=[{"network": "nowhere"}])
    assert "no security group" in refused(404, nics=[{"network": "other", "groups": ["nobody"]}])
    assert "names its own addresses" in refused(400, nics=[{"network": "other"}], address="10.64.0.5/24")
    for path, users in (("networks/small", "VM "), ("security-groups/web", "VM ")):
        answer = api("DELETE", f"/api/v1/{path}")
        assert answer.status == 409 and users in answer.problem["detail"]
    assert (
        "(nics) have security groups"
        in api("PATCH", f"/api/v1/vms/{new_vm(**off)['id']}", {"security_groups": ["web"]}).problem["hint"]
    )
    site.client.create_security_group("apps", [{"group": "web"}])
    for vm in vms:
        site.client.delete("vms", vm["id"])
        wait_until_deleted(site, vm)
    assert "rule of security group apps" in api("DELETE", "/api/v1/security-groups/web").problem["detail"]
    site.client.delete("security-groups", "apps")
    site.client.delete("security-groups", "web")
    for network in ("small", "other"):
        site.client.delete("networks", network)


def test_a_network_is_changed_and_renamed_while_no_vm_is_in_it(site: Platform, api: Api, new_vm: NewVm) -> None:
    site.client.create_network("old", subnet="10.32.0.0/24")
    at = "/api/v1/networks/old"
    for changes, field in (
        ({"mtu": 9000}, "mtu"), ({"nameservers": ["x"]}, "nameservers"),
        ({"search_domains": ["a b"]}, "search_domains"),
        ({"search_domains": ["a\nserver=192.0.2.1"]}, "search_domains"),
        ({"search_domains": ["x" * 60] * 4}, "search_domains"),
        ({"name": "none"}, "name"), ({"subnet": "10.33.0.0/24"}, "subnet"),
    ):  # fmt: skip
        refused = api("PATCH", at, changes)
        assert refused.status == 400 and str(refused.problem["field"]).startswith(field), changes
    changed = site.client.configure_network(
        "old", mtu=1300, nameservers=["192.0.2.53"], search_domains=["example.net"], description=""
    )
    assert (changed["mtu"], changed["spec"]["nameservers"], changed["description"]) == (1300, ["192.0.2.53"], "")
    assert changed["spec"]["search_domains"] == ["example.net"] and changed["spec"]["subnet"] == "10.32.0.0/24"
    vm = new_vm(nics=[{"network": "old"}], power="stopped", memory_mib=64)
    assert vm["name"] in api("PATCH", at, {"name": "new"}).problem["detail"]
    site.client.delete("vms", vm["id"])
    wait_until_deleted(site, vm)
    site.client.create_network("other")
    assert api("PATCH", at, {"name": "other"}).status == 409
    assert site.client.configure_network("old", name="new", is_default=True)["name"] == "new"
    assert site.client.get("projects", "default")["default_network"] == "new"
    assert api("GET", at).status == 404
    site.client.configure_network("new", is_default=False)
    assert site.client.get("projects", "default")["default_network"] is None
    for name in ("new", "other"):
        site.client.delete("networks", name)


def test_interfaces_have_ipv6_addresses_in_networks_with_a_prefix(site: Platform, api: Api, new_vm: NewVm) -> None:
    for fields, field in (
        ({"subnet6": "fd12::1/64"}, "subnet6"), ({"subnet6": "auto", "mtu": 1200}, "mtu"),
        ({"subnet6": "auto", "kind": "bridge", "bridge": "br0"}, "subnet6"),
    ):  # fmt: skip
        refused = api("POST", "/api/v1/networks", {"name": "six", **fields})
        assert (refused.status, refused.problem["field"]) == (400, field)
    site.client.create_network("six", subnet6="fd12:3456:789a::/64")
    vm = new_vm(nics=[{"network": "six", "mac": "06:00:00:00:00:77"}], power="stopped", memory_mib=64)
    own, chosen = "fd12:3456:789a:0:400:ff:fe00:77", "fd12:3456:789a::50"
    assert vm["spec"]["nics"][0]["address6"] == own
    for addresses in ([chosen, chosen], [own], ["fd12:3456:789a::1"], ["fd13::50"]):
        nics = [{"network": "six", "address6": address} for address in addresses]
        refused = api("POST", "/api/v1/vms", {"name": "no", "image": "tiny", "power": "stopped", "nics": nics})
        assert (refused.status, refused.problem["field"]) == (400, "nics")
    at = f"/api/v1/vms/{vm['id']}"
    for path, changes, address in (
        ("/nics/06:00:00:00:00:77", {"address6": chosen.upper()}, chosen),
        ("", {"macs": ["06:00:00:00:00:78"]}, chosen),
        ("/nics/06:00:00:00:00:78", {"address6": None}, own[:-1] + "8"),
        ("", {"macs": ["06:00:00:00:00:79"]}, own[:-1] + "9"),
    ):
        answer = api("PATCH", at + path, changes)
        assert answer.status == 200 and answer.body["spec"]["nics"][0]["address6"] == address, answer
    site.client.delete("vms", vm["id"])
    wait_until_deleted(site, vm)
    site.client.delete("networks", "six")


def test_vms_that_name_no_network_are_in_the_default_one_of_their_project(site: Platform, api: Api) -> None:
    assert api("POST", "/api/v1/projects", {"name": "home", "host_network": True}).status == 201
    vms = []

    def create(name: str, **fields: Any) -> Any:
        body = {"name": name, "image": "tiny", "memory_mib": 64, "power": "stopped", **fields}
        answer = api("POST", "/api/v1/vms?project=home", body)
        assert answer.status == 201, answer.problem
        vms.append(answer.body)
        return answer.body["spec"]

    assert create("before")["nics"] == []
    assert api("POST", "/api/v1/networks?project=home", {"name": "none"}).problem["field"] == "name"
    network = {"name": "home-lan", "subnet": "10.31.0.0/24", "is_default": True}
    assert api("POST", "/api/v1/networks?project=home", network).status == 201
    assert site.client.get("projects", "home")["default_network"] == "home-lan"
    plain = create("plain", mac="52:54:00:77:77:01")
    assert [(nic["network"], nic["address"], nic["mac"]) for nic in plain["nics"]] == [
        ("home-lan", "10.31.0.3", "52:54:00:77:77:01")
    ]
    assert plain["mac"] is None
    assert create("alone", nics=[])["nics"] == [] == create("on-the-hosts-network", address="10.9.0.7/24")["nics"]
    items = [{"name": f"many-{n}", "image": "tiny", "memory_mib": 64, "power": "stopped"} for n in range(2)]
    items[1]["nics"] = []
    done = api("POST", "/api/v1/vms/batch?project=home", {"items": items}).body["items"]
    vms += [item["vm"] for item in done]
    assert [len(item["vm"]["spec"]["nics"]) for item in done] == [1, 0]
    foreseen = api("POST", "/api/v1/placements?project=home", {"name": "x", "image": "tiny"})
    assert foreseen.status == 200
    for vm in vms:
        site.client.delete("vms", vm["id"])
        wait_until_deleted(site, vm)
    site.client.delete("networks", "home-lan")
    until(lambda: site.client.get("projects", "home")["default_network"] is None, "there is none")
    site.client.delete("projects", "home")


def test_a_node_that_cannot_have_a_network_is_not_chosen(site: Platform, api: Api) -> None:
    site.client.create_network("lan", kind="bridge", bridge="br-none")
    answer = api("POST", "/api/v1/placements", {"name": "x", "image": "tiny", "nics": [{"network": "lan"}]})
    assert answer.status < 300
    assert {verdict["node"]: verdict["refusal"] for verdict in answer.body["items"]} == {
        node["name"]: f"node {node['name']} can't have network lan: it has no bridge br-none"
        for node in site.client.list("nodes")
    }
    site.client.delete("networks", "lan")


def test_a_vlan_needs_a_bridge_that_filters_and_is_in_one_network(site: Platform, api: Api) -> None:
    """The hosts' bridges are real; a bridge that comes later is known within seconds."""
    vlan: dict[str, Any] = {"kind": "bridge", "bridge": "vlans"}
    host = site.lab.hosts[0]
    run(*host.prefix, "ip", "link", "add", "vlans", "type", "bridge")
    try:
        until(
            lambda: "vlans" in site.client.get("nodes", host.name)["status"]["inventory"]["bridges"], "it is known", 90
        )
        site.client.create_network("red", **vlan, vlan=40)
        answer = api("POST", "/api/v1/placements", {"name": "x", "image": "tiny", "nics": [{"network": "red"}]})
        refusals = {verdict["node"]: verdict["refusal"] for verdict in answer.body["items"]}
        assert refusals[host.name] == (
            f"node {host.name} can't have network red: its bridge vlans does not filter VLANs: ip link set vlans type"
            " bridge vlan_filtering 1"
        )
        again = api("POST", "/api/v1/networks", {"name": "pink", **vlan, "vlan": 40})
        assert (again.status, again.problem["field"]) == (409, "vlan")
        assert "network red of project default has VLAN 40 of bridge vlans" in again.problem["detail"]
        site.client.create_network("blue", **vlan, vlan=41)
        site.client.create_network("green", kind="bridge", bridge="other", vlan=40)
    finally:
        for network in list(site.client.list("networks")):
            site.client.delete("networks", network["name"])
        run(*host.prefix, "ip", "link", "delete", "vlans")


def test_conflicting_forwards_and_floating_addresses_are_refused(site: Platform, api: Api, new_vm: NewVm) -> None:
    site.client.create_network("lan")
    vm = new_vm(nics=[{"network": "lan"}], power="stopped", memory_mib=64)
    alone = new_vm(power="stopped", memory_mib=64)
    floating = "/api/v1/floating-addresses"
    assert api("POST", floating, {"address": "x"}).problem["field"] == "address"
    site.client.add_floating_address("192.0.2.7")
    assert api("POST", floating, {"address": "192.0.2.7"}).status == 409
    assert api("POST", f"{floating}/192.0.2.8/actions/attach", {"vm": vm["id"]}).status == 404
    assert api("POST", f"{floating}/192.0.2.7/actions/attach", {"vm": "nobody"}).problem["field"] == "vm"
    assert api("POST", f"{floating}/192.0.2.7/actions/attach", {"vm": alone["id"]}).problem["field"] == "vm"
    site.client.attach_floating_address("192.0.2.7", vm["id"])
    assert api("DELETE", f"{floating}/192.0.2.7").status == 409
    forward = {"vm": vm["id"], "vm_port": 80, "port": 30080}
    assert api("POST", "/api/v1/forwards", {**forward, "address": "192.0.2.7"}).status == 409, "it leads to the VM"
    assert api("POST", "/api/v1/forwards", {**forward, "protocol": "icmp"}).problem["field"] == "protocol"
    assert api("POST", "/api/v1/forwards", {**forward, "port": 70000}).problem["field"] == "port"
    site.client.create_forward(vm["id"], 80, 30080)
    assert api("POST", "/api/v1/forwards", forward).problem["field"] == "port"
    assert [entry["vm_name"] for entry in site.client.list("forwards", vm=vm["name"])] == [vm["name"]]
    site.client.delete("vms", vm["id"])
    wait_until_deleted(site, vm)
    assert not list(site.client.list("forwards"))
    assert site.client.get("floating-addresses", "192.0.2.7")["network"] is None
    site.client.delete("floating-addresses", "192.0.2.7")
    site.client.delete("networks", "lan")


def test_only_ports_of_the_sites_range_are_forwarded(site: Platform, api: Api, new_vm: NewVm) -> None:
    """A gateway's other ports are its host's: SSH, the API, the agents', the tunnels' between hosts."""
    site.client.create_network("lan")
    vm = new_vm(nics=[{"network": "lan"}], power="stopped", memory_mib=64)

    def forward(port: int | None, protocol: str = "tcp") -> Any:
        return api("POST", "/api/v1/forwards", {"vm": vm["id"], "vm_port": 80, "port": port, "protocol": protocol})

    for port in (22, 80, 443, 4789, 8443, 29_999, 32_768, 51_820):
        for protocol in ("tcp", "udp"):
            refused = forward(port, protocol)
            assert (refused.status, refused.problem["field"]) == (400, "port"), port
            assert "30000-32767" in refused.problem["hint"]
    first, second = forward(None), forward(None)
    assert (first.body["port"], second.body["port"]) == (30_000, 30_001), "the first that are free"
    sites = "/api/v1/sites/default"
    for ports in ("1-65535", "80-90", "4000-5000", "51820-51820", "40000-30000", "x", "30000-99999"):
        assert api("PATCH", sites, {"forward_ports": ports}).problem["field"] == "forward_ports", ports
    assert api("PATCH", "/api/v1/sites/nowhere", {"forward_ports": "8000-8999"}).status == 404
    assert api("PATCH", sites, {"forward_ports": "8000-8999"}).status == 409, "30000 is forwarded"
    for entry in (first, second):
        site.client.delete("forwards", entry.body["id"])
    assert site.client.configure_site("default", forward_ports="8000-8001")["forward_ports"] == "8000-8001"
    assert [entry["forward_ports"] for entry in site.client.list("sites")] == ["8000-8001"]
    assert [forward(None).body["port"] for _ in range(2)] == [8000, 8001]
    assert forward(30_000).status == 400 and forward(None).status == 409, "all are taken"
    site.client.delete("vms", vm["id"])
    wait_until_deleted(site, vm)
    site.client.configure_site("default", forward_ports="30000-32767")
    site.client.delete("networks", "lan")


def test_forwards_of_two_projects_that_are_created_at_once_get_different_ports(site: Platform, api: Api) -> None:
    created = []
    for project in ("ports-1", "ports-2"):
        assert api("POST", "/api/v1/projects", {"name": project}).status == 201
        assert api("POST", f"/api/v1/networks?project={project}", {"name": f"lan-{project}"}).status == 201
        off = {"name": project, "image": "tiny", "memory_mib": 64, "power": "stopped"}
        answer = api("POST", f"/api/v1/vms?project={project}", {**off, "nics": [{"network": f"lan-{project}"}]})
        assert answer.status == 201
        created.append(answer.body)
    with ThreadPoolExecutor(8) as pool:
        bodies = [{"vm": vm["id"], "vm_port": port} for port in range(80, 100) for vm in created]
        answers = list(pool.map(lambda body: api("POST", "/api/v1/forwards", body), bodies))
    assert {answer.status for answer in answers} == {201}
    assert len({answer.body["port"] for answer in answers}) == len(bodies)
    for vm in created:
        site.client.delete("vms", vm["id"])
        wait_until_deleted(site, vm)
        site.client.delete("networks", f"lan-{vm['project']}")
        site.client.delete("projects", vm["project"])


def test_forwards_count_in_quotas(site: Platform, api: Api, new_vm: NewVm) -> None:
    site.client.create_network("lan")
    vm = new_vm(nics=[{"network": "lan"}], power="stopped", memory_mib=64)
    project = "/api/v1/projects/default"
    assert api("PATCH", project, {"quota": {"forwards": 1}}).status == 200
    try:
        forward = site.client.create_forward(vm["id"], 80)
        refused = api("POST", "/api/v1/forwards", {"vm": vm["id"], "vm_port": 81})
        assert (refused.status, refused.problem["field"]) == (403, "forwards")
        assert [entry["id"] for entry in site.client.list("forwards")] == [forward["id"]]
    finally:
        assert api("PATCH", project, {"quota": {}}).status == 200
    site.client.delete("vms", vm["id"])
    wait_until_deleted(site, vm)
    site.client.delete("networks", "lan")


def test_a_hosts_address_is_no_floating_address(site: Platform, api: Api) -> None:
    endpoint = next(iter(site.client.list("nodes")))["status"]["inventory"]["dwcp_endpoint"]
    refused = api("POST", "/api/v1/floating-addresses", {"address": endpoint.rpartition(":")[0]})
    assert (refused.status, refused.problem["field"]) == (400, "address")
