"""What may pass to and from guests, as rules of nftables. Pure, but for ``load``.

Bridges have no connection tracking on many kernels. So each interface with security groups has a set of flows of its
own: what its guest may send, or a rule lets in, adds a flow, and what belongs to one passes. A guest that makes more of
them than fit loses its own. ``load`` keeps the sets: rules may change while connections go on.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from novacron import child_environment
from novacron.model import ipv6
from novacron.model.network import Direction, Passing, Protocol, VmInterface
from novacron.model.vm import tap_name
from novacron.net import ipv6_rules
from novacron.net.tap import NetworkFailed
from novacron.telemetry import logs

log = logs.get(__name__)

SERVICE_MAC = "02:4e:4f:56:00:02"
GATEWAY_MAC = "02:4e:4f:56:00:01"
"""The same on every node: a guest that moves finds DHCP, DNS and its gateway where they were."""
TUNNEL, SERVICE_PORT = "vx", "svcp"
VXLAN_PORT = 4789
TAPS = "nv*"
FLOWS_MAX = 65_536
FLOW_S, CONNECTED_S = 180, 3600
"""For how long a flow is remembered after its guest's last packet: of a TCP connection that is up for longer."""
ARRIVED_S = 60
"""For so long what goes on of a guest's TCP connections makes flows, once it has come here: it has none yet."""
TIMEOUT_S = 10.0
FLOW = "ip saddr . ip daddr . meta l4proto . th sport . th dport"
BACK = "ip daddr . ip saddr . meta l4proto . th dport . th sport"
ARRIVED = {"arrived": "ipv4_addr", "arrived6": "ipv6_addr"}
"""Sets of guests that came lately."""
HOOKS = {
    "before": "type filter hook prerouting priority -300; policy accept;",
    "between": "type filter hook forward priority 0; policy accept;",
    "after": "type filter hook postrouting priority 0; policy accept;",
    "own": "type filter hook input priority 0; policy accept;",
}
RARP = "0x8035"
"""QEMU announces a guest that has moved with it."""


class RulesRefused(NetworkFailed):
    """nft(8) works, and does not accept a script."""


class NicKey(NamedTuple):
    """Which interface of which VM."""

    vm: str
    number: int


def key_of(nic: VmInterface) -> NicKey:
    return NicKey(nic.vm, nic.number)


def addresses_of(nic: VmInterface) -> list[str]:
    """Return the addresses that an interface was given."""
    return [address for address in (nic.address, nic.address6) if address is not None]


def _spoofing(nic: VmInterface) -> Iterator[str]:
    """Yield what keeps a guest from using the addresses of others, and from serving as their DHCP server or router."""
    yield f"ether saddr != {nic.mac} drop"
    yield f"arp saddr ether != {nic.mac} drop"
    yield "udp dport { 68, 546 } drop"  # clients of DHCP take answers from any port
    yield "icmpv6 type { nd-router-advert, nd-redirect } drop"
    if nic.address6 is not None:
        yield from ipv6_rules.spoofing(nic.mac, ipv6.own_addresses(nic.address6, nic.mac))
    if nic.address is not None:
        yield f"arp saddr ip {{ 0.0.0.0, {nic.address} }} accept"
        yield "ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept"
        yield f"ip saddr {nic.address} accept"
        yield f"ether type {RARP} accept"
        yield "drop"


def _matches(rule: Passing, end: str, family: str) -> Iterator[tuple[str, bool]]:
    """Yield the matches of a rule in a family, ``ip`` or ``ip6``, and whether each is of what has ports. ``end``: where
    the other end's address is."""
    where = f"ether type {family}"
    if rule.cidrs is not None:
        cidrs = [cidr for cidr in rule.cidrs if (":" in cidr) == (family == "ip6")]
        if not cidrs:
            return
        where = f"{family} {end} {{ {', '.join(cidrs)} }}"
    match rule.protocol:
        case Protocol.ICMP:
            yield f"{where} meta l4proto {'icmp' if family == 'ip' else 'icmpv6'}", False
        case Protocol.ANY:
            yield f"{where} meta l4proto {{ tcp, udp }}", True
            yield where, False
        case Protocol.TCP | Protocol.UDP:
            ports = "" if rule.ports is None else f" th dport {rule.ports[0]}-{rule.ports[1]}"
            yield f"{where} meta l4proto {rule.protocol}{ports}", True


def _rules(
    rules: Sequence[Passing], direction: Direction, end: str, remember: str, family: str = "ip"
) -> Iterator[str]:
    for rule in rules:
        if rule.direction is direction:
            for match, has_ports in _matches(rule, end, family):
                yield f"{match} {remember if has_ports else 'accept'}"


def _to_guest(rules: Sequence[Passing], flows: str, flows6: str | None) -> Iterator[str]:
    """Yield what passes to a guest. ``flows6``: its IPv6 flows; None: it has no IPv6."""
    remember = f"update @{flows} {{ {FLOW} }} accept"
    yield f"ether saddr {SERVICE_MAC} accept"
    yield f"ether type {{ arp, {RARP} }} accept"
    yield f"{FLOW} @{flows} accept"
    yield "icmp type { echo-reply, destination-unreachable, time-exceeded, parameter-problem } accept"
    yield "ip frag-off & 0x1fff != 0 accept"  # only the first fragment has ports
    yield from _rules(rules, Direction.IN, "saddr", remember)
    yield f"ip daddr @arrived tcp flags & (syn | rst) == 0 {remember}"
    if flows6 is not None:
        remember6 = f"update @{flows6} {{ {ipv6_rules.FLOW} }} accept"
        yield from ipv6_rules.to_guest(flows6)
        yield from _rules(rules, Direction.IN, "saddr", remember6, "ip6")
        yield f"ip6 daddr @arrived6 tcp flags & (syn | rst) == 0 {remember6}"
    yield "drop"


def _keeping(flows: str, flows6: str | None) -> Iterator[str]:
    """Yield what remembers what a guest sends."""
    if flows6 is not None:
        yield from ipv6_rules.keeping(flows6, CONNECTED_S, FLOW_S)
    yield f"tcp flags & (fin | syn | rst) == 0 update @{flows} {{ {BACK} timeout {CONNECTED_S}s }} accept"
    yield f"meta l4proto {{ tcp, udp }} update @{flows} {{ {BACK} timeout {FLOW_S}s }}"
    yield "accept"


def _from_guest(rules: Sequence[Passing], flows: str, keep: str, flows6: str | None) -> Iterator[str]:
    if not any(rule.direction is Direction.OUT for rule in rules):
        yield f"goto {keep}"
        return
    yield f"ether daddr {SERVICE_MAC} goto {keep}"  # its answers may come another way
    yield f"ether type {{ arp, {RARP} }} accept"
    yield "ip daddr 255.255.255.255 udp dport 67 accept"
    yield f"{BACK} @{flows} goto {keep}"
    yield "icmp type { echo-reply, destination-unreachable, time-exceeded, parameter-problem } accept"
    yield "ip frag-off & 0x1fff != 0 accept"
    yield from _rules(rules, Direction.OUT, "daddr", f"goto {keep}")
    yield f"ip saddr @arrived tcp flags & (syn | rst) == 0 goto {keep}"
    if flows6 is not None:
        yield from ipv6_rules.from_guest(flows6, keep)
        yield from _rules(rules, Direction.OUT, "daddr", f"goto {keep}", "ip6")
        yield f"ip6 saddr @arrived6 tcp flags & (syn | rst) == 0 goto {keep}"
    yield "drop"


def _vmap(end: str, jumps: Mapping[str, str]) -> str:
    pairs = ", ".join(f'"{tap}" : jump {chain}' for tap, chain in sorted(jumps.items()))
    return f"{end} vmap {{ {pairs} }}"


def _of_any_guest(service: str | None) -> Iterator[tuple[str, str]]:
    """Yield chains and rules that hold whoever is on a bridge, see ``chains``."""
    if service is None:
        for tagged in ("", "vlan type ip "):
            yield "before", f'iifname "{TAPS}" {tagged}udp dport {VXLAN_PORT} drop'
        return
    for end in ("saddr", "daddr"):
        yield "before", f'iifname "{TUNNEL}" ether {end} {SERVICE_MAC} drop'
        yield "between", f'oifname "{TUNNEL}" ether {end} {SERVICE_MAC} drop'
    yield "before", f'iifname "{TUNNEL}" arp daddr ip {service} drop'
    yield "between", f'oifname "{TUNNEL}" arp daddr ip {service} drop'
    yield "between", f'oifname "{TUNNEL}" udp dport {{ 67, 547 }} drop'
    yield "own", f'iifname "{TAPS}" drop'


def chains(nics: Iterable[VmInterface], service: str | None, closed: Collection[NicKey] = ()) -> dict[str, list[str]]:
    """Return all chains, and their rules in order. ``service``: the address of an overlay's DHCP and DNS, which each
    node has for itself; None for bridges of the host's, on which hosts are reached: no guest sends frames of overlays
    there, whoever has its tap. Nothing passes to or from ``closed`` interfaces."""
    rules: dict[str, list[str]] = {name: [] for name in HOOKS}
    taps, inward, outward = {}, {}, {}
    for nic in nics:
        tap = tap_name(nic.vm, nic.number)
        taps[tap] = f"spoofing_{tap}"
        if key_of(nic) in closed:
            inward[tap] = f"to_{tap}"
            rules[taps[tap]] = rules[inward[tap]] = ["drop"]
            continue
        rules[taps[tap]] = list(_spoofing(nic))
        if nic.passing is not None:
            inward[tap], outward[tap] = f"to_{tap}", f"from_{tap}"
            flows, flows6 = f"flows_{tap}", None if nic.address6 is None else f"flows6_{tap}"
            rules[inward[tap]] = list(_to_guest(nic.passing, flows, flows6))
            rules[outward[tap]] = list(_from_guest(nic.passing, flows, f"keep_{tap}", flows6))
            rules[f"keep_{tap}"] = list(_keeping(flows, flows6))
    for chain, rule in _of_any_guest(service):
        rules[chain].append(rule)
    if taps:
        rules["before"].append(_vmap("iifname", taps))
    if service is not None:
        tap_names = "".join(f', "{tap}"' for tap in sorted(taps))[2:]
        foreign_tap = f'iifname "{TAPS}"' + (f" iifname != {{ {tap_names} }}" if tap_names else "")
        rules["before"].append(f"{foreign_tap} drop")
    if inward:
        # In chains of their own: what one guest may send, another on this node need not take.
        if outward:
            rules["between"].append(_vmap("iifname", outward))
        rules["after"].append(_vmap("oifname", inward))
    return rules


def script(
    table: str,
    nics: Sequence[VmInterface],
    service: str | None,
    arrived: Mapping[str, float],
    stale: Iterable[str] = (),
    closed: Collection[NicKey] = (),
) -> str:
    """Return what makes a table of family ``bridge`` be as it should, in one transaction.

    ``arrived``: addresses of guests that came lately, and for how many seconds that still counts. ``stale``: names of
    chains and sets that are there, as ``chain NAME`` and ``set NAME``. ``closed``: interfaces through which nothing
    passes.
    """
    desired = chains(nics, service, closed)
    guarded = [nic for nic in nics if nic.passing is not None and key_of(nic) not in closed]
    key = "type ipv4_addr . ipv4_addr . inet_proto . inet_service . inet_service"
    flows = {f"flows_{tap_name(nic.vm, nic.number)}": key for nic in guarded}
    flows |= {f"flows6_{tap_name(nic.vm, nic.number)}": ipv6_rules.KEY for nic in guarded if nic.address6 is not None}
    lines = [f"table bridge {table} {{"]
    lines += [f" set {name} {{ type {type_}; flags timeout; }}" for name, type_ in ARRIVED.items()]
    lines += [
        f" set {name} {{ {type_}; size {FLOWS_MAX}; flags dynamic, timeout; timeout {FLOW_S}s; }}"
        for name, type_ in flows.items()
    ]
    lines += [f" chain {name} {{ {HOOKS.get(name, '')} }}" for name in desired]
    lines += ["}", *(f"flush set bridge {table} {name}" for name in ARRIVED)]
    lines += [f"flush chain bridge {table} {name}" for name in HOOKS]
    kept = {f"chain {name}" for name in desired} | {f"set {name}" for name in (*flows, *ARRIVED)}
    gone = sorted(set(stale) - kept)  # chains before sets, of which they speak
    lines += [f"flush chain bridge {table} {name}" for name in desired if name not in HOOKS]
    lines += [f"delete {entry.replace(' ', f' bridge {table} ', 1)}" for entry in gone]
    lines += [
        f"add element bridge {table} {'arrived6' if ':' in address else 'arrived'}"
        f" {{ {address} timeout {max(1, round(remaining_s))}s }}"
        for address, remaining_s in sorted(arrived.items())
    ]
    lines.append(f"table bridge {table} {{")
    for name, rules in desired.items():
        lines += [f" chain {name} {{", *(f"  {rule}" for rule in rules), " }"]
    return "\n".join([*lines, "}", ""])


def nft(text: str, *, check: bool = False) -> None:
    """Let nft(8) do what ``text`` says, all or nothing; with ``check``, only ask the kernel whether it would.

    Raises RulesRefused, NetworkFailed.
    """
    done = _run(["nft", *(["--check"] if check else []), "-f", "-"], text)
    if done.returncode != 0:
        raise RulesRefused(f"nft refuses the rules: {done.stderr.strip()[:500]}")


def _run(arguments: list[str], text: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            arguments,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
            env=child_environment.clean(),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NetworkFailed(f"nft does not work: {error}") from error


def listed(*what: str) -> list[dict[str, Any]] | None:
    """Return what nft(8) lists, None if there is no such thing. Raises NetworkFailed."""
    done = _run(["nft", "-j", "list", *what], "")
    if done.returncode != 0:
        return None
    entries: list[dict[str, Any]] = json.loads(done.stdout)["nftables"]
    return entries


def present(table: str) -> list[str]:
    """Return the chains and sets of a table of family ``bridge``. Raises NetworkFailed."""
    names = []
    for entry in listed("table", "bridge", table) or ():
        names += [f"{kind} {entry[kind]['name']}" for kind in ("chain", "set") if kind in entry]
    return names


def load(
    table: str, nics: Sequence[VmInterface], service: str | None, arrived: Mapping[str, float]
) -> dict[NicKey, str]:
    """Let the rules of this namespace be these; flows go on.

    An interface whose own rules nft refuses is closed, and the others get theirs: return why, for each that is closed.
    Raises RulesRefused when the fault is in no interface, NetworkFailed when nft does not work.
    """
    stale = present(table)
    try:
        nft(script(table, nics, service, arrived, stale))
        return {}
    except RulesRefused as error:
        refused = _refused(f"{table}_check", nics, service, arrived)
        if not refused:
            raise
        log.warning("rules of interfaces are refused", table=table, interfaces=len(refused), error=str(error))
    addresses = {address for nic in nics if key_of(nic) in refused for address in addresses_of(nic)}
    accepted = {address: remaining_s for address, remaining_s in arrived.items() if address not in addresses}
    nft(script(table, nics, service, accepted, stale, closed=refused))
    return refused


def _refused(
    table: str, nics: Sequence[VmInterface], service: str | None, arrived: Mapping[str, float]
) -> dict[NicKey, str]:
    """Return the interfaces whose rules nft refuses when they stand alone, and why. Raises NetworkFailed."""
    refused = {}
    for nic in nics:
        own = {address: remaining_s for address, remaining_s in arrived.items() if address in addresses_of(nic)}
        try:
            nft(script(table, [nic], service, own), check=True)
        except RulesRefused as error:
            refused[key_of(nic)] = str(error)
    return refused


def remove(table: str) -> None:
    """Remove a table of family ``bridge``; one that is not there is no error. Raises NetworkFailed."""
    nft(f"table bridge {table}\ndelete table bridge {table}\n")
