"""Networks as values: addresses, subnets, gateways, and the rules that are made of them."""

from __future__ import annotations

import ipaddress
import itertools
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.agent.host.network_problems import noting_failures
from novacron.agent.host.networks import NodeNetworks
from novacron.agent.settings import AgentSettings
from novacron.model.errors import InvalidInput, NoCapacity
from novacron.model.fit import refusal_by_networks
from novacron.model.network import (
    DEFAULT_SUBNETS,
    RESERVED,
    Direction,
    Entrance,
    Network,
    NetworkKind,
    NetworkSpec,
    NicSpec,
    Passing,
    Protocol,
    RuleSpec,
    VmInterface,
    check_rule,
    check_spec,
    check_subnet,
    choose_gateway,
    free_subnet,
    give,
)
from novacron.model.vm import VmSpec
from novacron.net import dnsmasq, firewall, router
from novacron.net.tap import NetworkFailed
from tests.support.fleet import NOW, node
from tests.support.network import NIC, network_on_node


def test_addresses_are_assigned_until_the_subnet_is_full() -> None:
    taken: set[str] = set()
    for expected in ("10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"):
        address = give("10.0.0.0/29", taken, None)
        assert address == expected
        taken.add(address)
    with pytest.raises(NoCapacity):
        give("10.0.0.0/29", taken, None)
    taken.remove("10.0.0.4")
    assert give("10.0.0.0/29", taken, None) == "10.0.0.4"


@pytest.mark.parametrize(
    "requested", ["10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.5", "10.0.0.255", "10.0.1.3", "10.0.0.03", "::1", "x"]
)
def test_an_unusable_address_is_refused(requested: str) -> None:
    with pytest.raises(InvalidInput):
        give("10.0.0.0/24", {"10.0.0.5"}, requested)


FIRST_SUBNETS = list(itertools.islice(DEFAULT_SUBNETS.subnets(new_prefix=24), 301))


@given(st.lists(st.integers(0, 300), max_size=40))
def test_a_free_subnet_overlaps_no_other(numbers: list[int]) -> None:
    taken = [str(FIRST_SUBNETS[number]) for number in numbers]
    subnet = ipaddress.IPv4Network(free_subnet(taken))
    assert not any(subnet.overlaps(ipaddress.IPv4Network(other)) for other in (*taken, *map(str, RESERVED)))


@pytest.mark.parametrize(
    ("subnet", "says"),
    [
        ("10.0.0.0", "between"), ("10.0.0.1/24", "host bits"), ("10.0.0.0/8", "between"),
        ("169.254.3.0/24", "overlaps"),
        ("100.127.0.0/24", "overlaps"), ("127.0.0.0/16", "overlaps"),
        ("fd00::/64", "not an IPv4 subnet"), ("x", "not an IPv4"),
    ],
)  # fmt: skip
def test_an_unusable_subnet_is_refused(subnet: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        check_subnet(subnet)


FILTER = "ip link set br1 type bridge vlan_filtering 1"


@pytest.mark.parametrize(
    ("bridges", "filtering", "vlan", "why"),
    [
        (("br1",), ("br1",), 40, None),
        (("br1",), (), None, None),
        (("br1",), None, 40, None),  # an agent of an earlier version does not say
        ((), (), 40, "it has no bridge br1"),
        (("br1", "br2"), ("br2",), 40, f"its bridge br1 does not filter VLANs: {FILTER}"),
    ],
)
def test_a_node_has_a_vlan_on_a_bridge_that_filters_vlans(
    bridges: tuple[str, ...], filtering: tuple[str, ...] | None, vlan: int | None, why: str | None
) -> None:
    host = node("a")
    assert host.status.inventory is not None
    has = msgspec.structs.replace(host.status.inventory, networks=True, bridges=bridges, vlan_bridges=filtering)
    network = Network("red", NetworkSpec(NetworkKind.BRIDGE, bridge="br1", vlan=vlan), 1, 1500, None, 1, NOW)
    vm = VmSpec(image="tiny", nics=(NicSpec("red"),))
    found = refusal_by_networks(host, has, vm, {"red": network})
    assert found == (None if why is None else f"node a can't have network red: {why}")


def test_conflicting_fields_of_networks_and_rules_are_refused() -> None:
    for spec, field in (
        (NetworkSpec(bridge="br0"), "bridge"),
        (NetworkSpec(vlan=7), "vlan"),
        (NetworkSpec(NetworkKind.BRIDGE), "bridge"),
        (NetworkSpec(NetworkKind.BRIDGE, bridge="br0", nameservers=("1.1.1.1",)), "nameservers"),
        (NetworkSpec(nameservers=("dns",)), "nameservers"),
    ):
        with pytest.raises(InvalidInput) as refused:
            check_spec(spec)
        assert refused.value.field == field
    for rule, field in (
        (RuleSpec(ports="80"), "ports"),
        (RuleSpec(protocol=Protocol.TCP, ports="90-80"), "ports"),
        (RuleSpec(protocol=Protocol.TCP, ports="0"), "ports"),
        (RuleSpec(cidr="10.0.0.0/8", group="web"), "group"),
        (RuleSpec(cidr="10.0.0.1/8"), "cidr"),
    ):
        with pytest.raises(InvalidInput) as refused:
            check_rule(rule)
        assert refused.value.field == field


def test_a_gateway_stays_where_it_can_and_gateways_are_spread() -> None:
    counts = {"a": 2, "b": 0, "c": 0}
    assert choose_gateway("a", {"b"}, counts, {"a", "b", "c"}) == "a"
    assert choose_gateway("d", {"c"}, counts, {"a", "b", "c"}) == "c", "where its VMs are"
    assert choose_gateway(None, set(), counts, {"a", "b", "c"}) == "b", "the one with fewest"
    assert counts == {"a": 2, "b": 1, "c": 1}
    assert choose_gateway("d", set(), {}, {"d"}) == "d", "there is no other, and it is not dead"
    assert choose_gateway("d", set(), {}, set()) is None


def test_every_tap_accepts_only_its_own_addresses_and_unknown_taps_none() -> None:
    chains = firewall.chains([NIC], "10.20.0.2")
    mine = chains["spoofing_nvaaaaaaaaaaaa"]
    assert mine[0] == "ether saddr != 52:54:00:00:00:01 drop" and mine[-1] == "drop"
    assert chains["before"][-1] == 'iifname "nv*" iifname != { "nvaaaaaaaaaaaa" } drop'
    assert chains["after"] == [], "without groups all may reach it"


def test_security_rules_apply_in_their_direction_and_nothing_enters_without_one() -> None:
    passing = (
        Passing(Direction.IN, Protocol.TCP, (80, 90), ("10.0.0.0/8",)),
        Passing(Direction.IN, Protocol.ANY, None, ()),
        Passing(Direction.OUT, Protocol.UDP, (53, 53), None),
    )
    nic = VmInterface(NIC.vm, 0, NIC.mac, NIC.address, passing)
    chains = firewall.chains([nic], "10.20.0.2")
    let_in = [rule for rule in chains["to_nvaaaaaaaaaaaa"] if "saddr {" in rule]
    assert len(let_in) == 1 and "th dport 80-90" in let_in[0], "a group without members lets nobody in"
    let_out = [rule for rule in chains["from_nvaaaaaaaaaaaa"] if "dport 53-53" in rule]
    assert let_out == ["ether type ip meta l4proto udp th dport 53-53 goto keep_nvaaaaaaaaaaaa"]
    assert chains["to_nvaaaaaaaaaaaa"][-1] == chains["from_nvaaaaaaaaaaaa"][-1] == "drop"


def test_obsolete_sets_are_deleted_after_the_rules_that_refer_to_them() -> None:
    text = firewall.script("t", [NIC], "10.20.0.2", {"10.20.0.3": 12.7}, ["set flows_x", "chain to_x", "chain before"])
    lines = [line for line in text.splitlines() if line.startswith("delete")]
    assert lines == ["delete chain bridge t to_x", "delete set bridge t flows_x"]
    assert "10.20.0.3 timeout 13s" in text


def test_a_range_is_stored_in_the_form_that_nftables_reads() -> None:
    for written, stored in (
        ("198.51.100.0/0.0.0.255", "198.51.100.0/24"),
        ("10.0.0.0/255.0.0.0", "10.0.0.0/8"),
        ("192.0.2.7", "192.0.2.7/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
    ):
        assert check_rule(RuleSpec(cidr=written)).cidr == stored


def test_nothing_passes_through_a_closed_interface() -> None:
    nic = VmInterface(NIC.vm, 0, NIC.mac, NIC.address, (Passing(Direction.IN, Protocol.ANY, None, None),))
    chains = firewall.chains([nic], "10.20.0.2", closed={firewall.key_of(nic)})
    assert chains["spoofing_nvaaaaaaaaaaaa"] == chains["to_nvaaaaaaaaaaaa"] == ["drop"]
    assert '"nvaaaaaaaaaaaa" : jump to_nvaaaaaaaaaaaa' in chains["after"][0]


def test_dnsmasq_and_nftables_get_names_and_forwards() -> None:
    files = dnsmasq.config(network_on_node(), Path("/run/x"), ["9.9.9.9"])
    assert files["hosts"] == "52:54:00:00:00:01,10.20.0.3,web\n" and files["names"] == "10.20.0.3 web\n"
    for line in ("server=9.9.9.9", "domain=lan.internal", "dhcp-option=option:mtu,1450", "dhcp-range=10.20.0.0,static"):
        assert line in files["dnsmasq.conf"]
    entrance = Entrance(None, Protocol.TCP, 8080, "10.20.0.3", 80)
    gateway = network_on_node(floating=(("192.0.2.9", "10.20.0.4"),), entrances=(entrance,))
    inside = router.inside_script(gateway)
    assert "ip daddr 192.0.2.9 dnat to 10.20.0.4" in inside
    assert "ip daddr 100.127.0.7 tcp dport 8080 dnat to 10.20.0.3:80" in inside
    rules = router.HostRules([gateway], {5: ["198.18.0.2"]}, ["192.0.2.3", "192.0.2.2"], ["br0"])
    host = router.host_script("t", rules)
    assert "fib daddr type local tcp dport 8080 dnat to 100.127.0.7:8080" in host
    assert 'ip daddr 100.126.0.0/16 oifname != "novawg*" drop' in host
    assert "udp dport 4789 @th,96,24 vmap { 5 : jump from_5 }" in host
    assert 'iifname "br0" oifname "br0" accept' in host
    assert 'iifname "novagw*" ip daddr { 169.254.0.0/16, 100.126.0.0/16, 192.0.2.2, 192.0.2.3 } drop' in host
    used = router.host_script("t", rules._replace(used={(Protocol.TCP, 8080)}))
    assert "dport 8080" not in used, "what the host listens at stays the host's"


def test_a_guest_that_does_not_come_leaves_nothing_open(tmp_path: Path) -> None:
    """While it is on its way, what its connections send makes flows: for an hour, if nobody takes that back."""
    networks = NodeNetworks(AgentSettings(tmp_path, tmp_path, ""))
    networks.tell((network_on_node(),))
    networks._arrivals()
    networks._arrived.clear()
    networks.arrives(NIC.vm)
    assert set(networks._arrivals()) == {NIC.address}
    networks.does_not_arrive(NIC.vm)
    assert networks._arrivals() == {}


def test_a_defect_with_one_network_is_noted_as_its_own() -> None:
    failed: dict[str, str] = {}
    for error in (NetworkFailed("no"), ProcessLookupError("gone"), ValueError("a defect")):
        with noting_failures([msgspec.structs.replace(network_on_node(), name=str(error))], failed):
            raise error
    assert failed == {"no": "no", "gone": "gone", "a defect": "a defect"}


def test_guests_are_told_mtu_and_search_domains_and_names_are_looked_up_at_the_networks_servers(tmp_path: Path) -> None:
    network = network_on_node()
    told = dnsmasq.config(network, tmp_path, ())[dnsmasq.CONFIG].splitlines()
    assert "dhcp-option=option:mtu,1450" in told and not [line for line in told if "domain-search" in line]
    spec = msgspec.structs.replace(network.spec, search_domains=("example.net", "example.org"))
    changed = msgspec.structs.replace(network, spec=spec, mtu=1400)
    told = dnsmasq.config(changed, tmp_path, ("192.0.2.53",))[dnsmasq.CONFIG].splitlines()
    assert "dhcp-option=option:domain-search,lan.internal,example.net,example.org" in told
    assert "dhcp-option=option:mtu,1400" in told and "server=192.0.2.53" in told
