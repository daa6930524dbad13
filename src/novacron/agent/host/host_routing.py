"""What a host itself does for networks: its rules for tunnels and guests, and the ways in and out of networks whose
gateway it is. All of it runs in a thread."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Collection

from novacron import listening
from novacron.agent.host.instances import RUN_DIR, prefix_of, table_of
from novacron.agent.host.refused_frames import RefusedFrames
from novacron.model.network import NetworkOnNode, Protocol, gateway_address
from novacron.net import firewall, router, tap, tunnels, ways_in
from novacron.net.tap import NetworkFailed
from novacron.net.ways_in import WayIn
from novacron.telemetry import logs

log = logs.get(__name__)


def resolved(host: str) -> str | None:
    """Return the IPv4 address of a host; None if its name has none."""
    with contextlib.suppress(OSError, ValueError):  # the latter: what can be no name
        return socket.gethostbyname(host)
    return None


class HostRouting:
    """The rules of this host, and its part in networks whose gateway is here."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._table = table_of(instance)
        self.hosts: Collection[str] = ()
        """Names and addresses that no guest reaches."""
        self._host_addresses: dict[str, str] = {}
        """Addresses of ``hosts``, those that are known."""
        self._rules: str | None = None
        """Those that were loaded last; None: none are."""
        self.not_forwarded: frozenset[tuple[Protocol, int]] = frozenset()
        self.refused_frames = RefusedFrames()
        self.unrouted: dict[str, list[str]] = {}
        """Floating addresses of each network that are on no subnet of this host."""
        self._open: dict[str, NetworkOnNode] = {}
        """Networks whose gateway is here, as they were made last."""
        self._refused_ways: dict[str, tuple[NetworkOnNode, dict[WayIn, str]]] = {}
        """Networks, by their names, of which some ways in are refused."""

    @property
    def loaded(self) -> bool:
        """Say whether the host has rules."""
        return self._rules is not None

    @property
    def refused_ways(self) -> dict[str, dict[WayIn, str]]:
        """Ways into each network whose rules are refused, and why: they are left out, and the others work."""
        return {name: ways for name, (_, ways) in self._refused_ways.items()}

    def _accepted(self, network: NetworkOnNode) -> NetworkOnNode:
        """Return a network without the ways in that are known to be refused."""
        known = self._refused_ways.get(network.name)
        return ways_in.without(network, known[1]) if known is not None and known[0] == network else network

    def _find_refused_ways(self, gateways: list[NetworkOnNode]) -> bool:
        """Look which ways in are refused; say whether some are that were not known to be."""
        is_new = False
        for network in gateways:
            if self._accepted(network) == network and (refusals := ways_in.refused(f"{self._table}_check", network)):
                self._refused_ways[network.name] = network, refusals
                is_new = True
                log.warning("ways into a network are refused", network=network.name, ways=len(refusals))
        return is_new

    def take_refused_frames(self, overlays: list[NetworkOnNode], ends: tunnels.Tunnels) -> bool:
        """Count what this host's rules have dropped; say whether the rules are gone, because somebody flushed them."""
        if self._rules is None:
            return False
        refused = tunnels.refused(self._table)
        if refused is not None:
            self.refused_frames.take(refused, ends, {network.vni: network.name for network in overlays})
        return refused is None

    def settle(self, gateways: list[NetworkOnNode], ends: dict[int, list[str]], *, whole: bool) -> dict[int, str]:
        """Load the rules of this host. ``ends``: the hosts that have each network, by its VXLAN identifier.

        A way into a network that nft refuses is left out; so is a network whose other part it refuses, its tunnel
        closed: return why, by the network's identifier. Raises NetworkFailed.
        """
        if whole:
            self._refused_ways.clear()
        try:
            return self._settle(gateways, ends, whole=whole)
        except firewall.RulesRefused:
            if not self._find_refused_ways(gateways):
                raise
        return self._settle(gateways, ends, whole=whole)

    def _settle(self, gateways: list[NetworkOnNode], ends: dict[int, list[str]], *, whole: bool) -> dict[int, str]:
        gateways = [self._accepted(network) for network in gateways]
        if not ends and not gateways:
            self._remove_host_rules()
            return {}
        forwarded = router.forward(RUN_DIR / f"{self._instance}.forwards") if gateways else True
        host = router.HostRules(
            gateways, ends, self._addresses_of_hosts(whole=whole) if gateways else (),
            None if forwarded else list(tap.bridges().every), self._used_ports(gateways),
        )  # fmt: skip
        rules = router.host_script(self._table, host)
        if not whole and self._rules == rules:
            return {}
        try:
            firewall.nft(rules)
            self._rules = rules
            self.refused_frames.begin_anew()
            return {}
        except firewall.RulesRefused as error:
            return self._load_without(host, ends, error)

    def _load_without(self, host: router.HostRules, ends: dict[int, list[str]], error: NetworkFailed) -> dict[int, str]:
        """Load the rules of this host without the networks whose part is refused; return why. Raises ``error``
        if none is, or a way in is to be left out first, and NetworkFailed."""
        gateways = list(host.gateways)
        ways_are = any(ways_in.refused(f"{self._table}_check", network) for network in gateways)
        refused = {} if ways_are else self._refused_of_host(gateways, ends)
        if not refused:
            raise error
        accepted = {vni: [] if vni in refused else peers for vni, peers in ends.items()}
        open_ = [network for network in gateways if network.vni not in refused]
        firewall.nft(router.host_script(self._table, host._replace(gateways=open_, tunnels=accepted)))
        self.refused_frames.begin_anew()
        self._rules = ""
        return refused

    def _addresses_of_hosts(self, *, whole: bool) -> list[str]:
        """Return the addresses of the platform's hosts; names are looked up again with ``whole``."""
        known = {} if whole else self._host_addresses
        self._host_addresses = {
            host: address for host in self.hosts if (address := known.get(host) or resolved(host)) is not None
        }
        return sorted({address for address in self._host_addresses.values() if not address.startswith(("127.", "0."))})

    def _used_ports(self, gateways: list[NetworkOnNode]) -> frozenset[tuple[Protocol, int]]:
        """Return the forwarded ports that this host itself listens at: they stay the host's."""
        forwarded = {
            (entrance.protocol, entrance.port): network.name
            for network in gateways
            for entrance in network.entrances
            if entrance.address is None
        }
        used = listening.used_ports() & forwarded.keys() if forwarded else frozenset()
        for protocol, port in sorted(used - self.not_forwarded):
            log.error(
                "a port is not forwarded: this host itself listens at it",
                network=forwarded[protocol, port], protocol=protocol, port=port,
            )  # fmt: skip
        self.not_forwarded = used
        return used

    def _remove_host_rules(self) -> None:
        if self._rules is not None:
            self._rules = None
            firewall.nft(f"table ip {self._table}\ndelete table ip {self._table}\n")
            self.refused_frames.forget()

    def _refused_of_host(self, gateways: list[NetworkOnNode], ends: tunnels.Tunnels) -> dict[int, str]:
        """Return the networks whose part of this host's rules nft refuses when it stands alone, and why."""
        refused = {}
        for vni, peers in ends.items():
            own = [network for network in gateways if network.vni == vni]
            try:
                script = router.host_script(f"{self._table}_check", router.HostRules(own, {vni: peers}))
                firewall.nft(script, check=True)
            except firewall.RulesRefused as error:
                refused[vni] = str(error)
        return refused

    def settle_gateways(self, gateways: list[NetworkOnNode], failed: dict[str, str], *, whole: bool) -> None:
        """Have the ways in and out of the networks whose gateway is here, and no others."""
        self._refused_ways = {
            network.name: self._refused_ways[network.name] for network in gateways if network.name in self._refused_ways
        }
        gateways = [self._accepted(network) for network in gateways]
        before = router.held()
        gone = before - {address for network in gateways for address in router.floating_of(network)}
        router.silence(gone)
        router.close((network.number for network in gateways), gone)
        self._open = {network.name: network for network in gateways if self._open.get(network.name) == network}
        for network in gateways:
            name = prefix_of(self._instance) + network.name
            if network.name in failed:
                continue
            try:
                if not whole and self._open.get(network.name) == network:
                    continue
                self._open_gateway(name, network, before, whole=whole)
            except NetworkFailed as error:
                failed[network.name] = str(error)

    def _open_gateway(self, name: str, network: NetworkOnNode, before: set[str], *, whole: bool) -> None:
        """Have the ways in and out of one network. Raises NetworkFailed."""
        try:
            router.open_(name, network)
        except firewall.RulesRefused:
            if not self._find_refused_ways([network]):
                raise
            network = self._accepted(network)
            router.open_(name, network)
        router.lead(network)
        self._announce(network, before, whole=whole)
        assert network.spec.subnet is not None
        router.greet(name, gateway_address(network.spec.subnet))
        self._open[network.name] = network

    def _announce(self, network: NetworkOnNode, before: set[str], *, whole: bool) -> None:
        """Announce the floating addresses of a network, without ``whole`` those that were not held before."""
        floating = router.floating_of(network)
        unrouted = router.announce(sorted(floating if whole else floating - before))
        kept = () if whole else set(self.unrouted.get(network.name, ())) & floating & before
        self.unrouted[network.name] = sorted({*unrouted, *kept})
        for address in unrouted:
            log.info("a floating address is on no subnet of this host: route it here", address=address)
