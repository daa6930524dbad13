"""Who may send frames of networks to a host, as rules, and what is said of those who may not."""

from __future__ import annotations

from novacron.agent.host.refused_frames import RECENT_S, SETTLED_S, TRUSTED, RefusedFrames
from novacron.model.condition import ConditionReason, ConditionStatus
from novacron.net import tunnels
from novacron.net.tunnels import Refused
from novacron.telemetry.values import counter

CLEAR, ENCRYPTED = "198.18.0.2", "100.126.0.2"


def chain(rules: list[str], name: str) -> list[str]:
    begin = rules.index(f" chain {name} {{")
    return [rule.strip() for rule in rules[begin + 1 : rules.index(" }", begin)]]


def test_frames_are_taken_only_from_hosts_that_have_their_network_and_on_the_way_to_them() -> None:
    rules = tunnels.declarations({5: [CLEAR, ENCRYPTED], 6: []})
    assert chain(rules, "from_5") == [
        'iifname "novawg*" ip saddr { 100.126.0.2 } return',
        "ip saddr { 198.18.0.2 } fib saddr . iif oif exists return",
        "update @strangers { ip saddr }",
        "counter name refused_5 drop",
    ]
    assert chain(rules, "from_6") == ["update @strangers { ip saddr }", "counter name refused_6 drop"], "from nobody"
    assert chain(rules, "to_5") == [
        'oifname "novawg*" ip daddr { 100.126.0.2 } return', "ip daddr { 198.18.0.2 } return", "drop",
    ]  # fmt: skip
    assert chain(rules, "to_6") == ["drop"]


def test_every_network_has_its_own_chains_and_a_host_without_networks_has_none() -> None:
    for direction, rules in (("from", tunnels.receiving({5: [CLEAR], 6: []})), ("to", tunnels.sending({5: [], 6: []}))):
        jumps = f"udp dport 4789 @th,96,24 vmap {{ 5 : jump {direction}_5, 6 : jump {direction}_6 }}"
        assert [rule.strip() for rule in rules if "vmap" in rule] == [jumps]
    assert not any("vmap" in rule for rule in (*tunnels.receiving({}), *tunnels.sending({})))


class Looks:
    """Looks at a host with one network, ``lan``, at times of the test's choice."""

    def __init__(self) -> None:
        self.now = 0.0
        self.frames = RefusedFrames(lambda: self.now)

    def at(self, now: float, packets: int, *strangers: str, hosts: tuple[str, ...] = (CLEAR,)) -> ConditionStatus:
        self.now = now
        self.frames.take(Refused({5: packets}, strangers), {5: hosts}, {5: "lan"})
        return self.frames.condition().status


def test_strangers_are_reported_for_a_while_and_named() -> None:
    looks, dropped = Looks(), counter("novacron_agent_refused_vxlan_packets_total").cell("lan")
    before = dropped[0]
    assert looks.at(0, 0) is ConditionStatus.TRUE and looks.frames.condition() == TRUSTED
    assert looks.at(SETTLED_S, 3, "203.0.113.2") is ConditionStatus.FALSE
    said = looks.frames.condition()
    assert said.reason is ConditionReason.FOREIGN_FRAMES
    assert "frames of lan that come from 203.0.113.2" in said.message
    assert looks.at(SETTLED_S + RECENT_S - 1, 3) is ConditionStatus.FALSE
    assert looks.at(SETTLED_S + RECENT_S, 3) is ConditionStatus.TRUE
    assert dropped[0] - before == 3, "each is counted once"


def test_counters_that_begin_anew_are_counted_from_their_beginning() -> None:
    looks, dropped = Looks(), counter("novacron_agent_refused_vxlan_packets_total").cell("lan")
    before = dropped[0]
    looks.at(0, 7)
    looks.frames.begin_anew()
    looks.at(10, 2)
    assert dropped[0] - before == 9


def test_what_goes_on_for_a_moment_while_a_network_comes_to_a_node_or_leaves_one_is_no_alarm() -> None:
    looks, both = Looks(), (CLEAR, "198.18.0.3")
    looks.at(0, 0)
    assert looks.at(100, 4, "198.18.0.3", hosts=both) is ConditionStatus.TRUE, "it sent before it was known here"
    assert looks.at(200, 4, hosts=both) is ConditionStatus.TRUE
    looks.at(201, 4)
    assert looks.at(201 + SETTLED_S - 1, 6, "198.18.0.3") is ConditionStatus.TRUE, "it heard later that it left"
    assert looks.at(201 + SETTLED_S, 7, "198.18.0.3") is ConditionStatus.FALSE


def test_a_network_that_is_gone_is_not_spoken_of() -> None:
    looks = Looks()
    looks.at(0, 0)
    assert looks.at(SETTLED_S, 1) is ConditionStatus.FALSE
    looks.frames.take(Refused({5: 9}, ()), {}, {})
    assert looks.frames.condition() == TRUSTED
    assert looks.at(SETTLED_S, 0) is ConditionStatus.TRUE
    assert looks.at(2 * SETTLED_S, 1) is ConditionStatus.FALSE
    looks.frames.forget()
    assert looks.frames.condition() == TRUSTED
