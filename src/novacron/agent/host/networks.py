"""Networks of this node: set up as the server says, and where each interface of a VM belongs.

A network that is on this node is a namespace (``novacron.net.overlay``); one on a bridge of the host's has rules there.
All of it outlives the agent, which checks it at its start, at every change, and from time to time.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from novacron.agent.host.host_routing import HostRouting, resolved
from novacron.agent.host.instances import RUN_DIR, instance_of, prefix_of, table_of, tunnel_of
from novacron.agent.host.kept_interfaces import with_kept
from novacron.agent.host.network_problems import (
    InterfaceClosed,
    NetworkProblems,
    NetworkTroubles,
    by_vm,
    noting_failures,
    problems_of,
    still_closed,
)
from novacron.agent.host.wired import Wired
from novacron.agent.settings import AgentSettings
from novacron.model.network import (
    MTU_DEFAULT,
    NetworkKind,
    NetworkOnNode,
    VmInterface,
    service_address,
)
from novacron.model.vm import tap_name
from novacron.net import dnsmasq, firewall, namespace, overlay, router, tap, wireguard
from novacron.net.tap import NetworkFailed
from novacron.telemetry import logs

log = logs.get(__name__)

LOOK_S = 10.0
WHOLE_EVERY = 6
RETRY_S = 1.0
READY_S = 15.0
"""How long a VM's start waits for its networks."""
ARRIVING_S = 3600.0
PROGRAMS = ("nft", dnsmasq.BINARY)
ANY_GUEST = "any guest"
"""Rules of bridges that hold for any guest, and no others."""


class _Place(NamedTuple):
    netns: str | None
    bridge: str
    vlan: int | None


class GuestPlace(NamedTuple):
    """Where a guest is reached: a namespace, this node's own address in it, and the guest's."""

    netns: str
    source: str
    address: str


def lacks() -> list[str]:
    """Return what this host misses for networks of VMs, each in a sentence."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    return [f"no networks of VMs: apt-get install {'nftables' if m == 'nft' else 'dnsmasq-base'}" for m in missing]


def tunnel_address(settings: AgentSettings) -> str | None:
    """Return the address at which other nodes reach this one; None where that is this host alone."""
    address = resolved(settings.advertise or settings.dwcp_host)
    return None if address is None or address.startswith("127.") or address == "0.0.0.0" else address


def _interfaces(networks: Iterable[NetworkOnNode]) -> Iterator[VmInterface]:
    return (nic for network in networks for nic in network.interfaces)


def _tunnel_ends(network: NetworkOnNode, addresses: Mapping[str, str]) -> list[str]:
    """Return the addresses of the other hosts that have a network, as far as their names are known."""
    return [
        overlay.encrypted_address(peer.number) if peer.key else addresses[peer.host]
        for peer in network.peers
        if peer.host in addresses
    ]


class NodeNetworks:
    """All networks of this node."""

    def __init__(self, settings: AgentSettings) -> None:
        self.instance = instance_of(settings.state_dir)
        self._table = table_of(self.instance)
        self._settings = settings
        self.owns: Callable[[str], bool] = lambda _: False
        """Says whether this node owns a VM: its interfaces stay, whatever the server leaves out."""
        self._told: tuple[NetworkOnNode, ...] = ()
        self._desired: tuple[NetworkOnNode, ...] | None = None
        self.routing = HostRouting(self.instance)
        self._settled: dict[str, NetworkOnNode] = {}
        self._failed: dict[str, str] = {}
        self._closed: dict[str, dict[firewall.NicKey, str]] = {}
        """Interfaces in each network that are closed, and why nft refuses their rules."""
        self.problems = NetworkProblems()
        self.closed: dict[str, str] = {}
        """VMs with interfaces that are closed, and why, as of the last look."""
        self.on_closed: Callable[[set[str]], None] = lambda _: None
        """Called with the VMs whose interfaces were closed or opened."""
        self._arriving: set[str] = set()
        self._arrived: dict[str, float] = {}
        """Until when (monotonic clock, seconds) connections of guests at these addresses go on without a flow."""
        self._began = False
        self._bridge_rules: str | None = None
        """Which rules for guests on bridges were loaded last; None: none are."""
        self._guards_bridges = settings.bridge is not None and os.geteuid() == 0 and shutil.which("nft") is not None
        """VMs that are in no network are on a bridge: they, too, send hosts no frames of overlays."""
        self._changed = asyncio.Event()
        self._looked = asyncio.Condition()

    @property
    def prefix(self) -> str:
        """With what the names of this agent's namespaces begin."""
        return prefix_of(self.instance)

    def tell(self, desired: tuple[NetworkOnNode, ...], hosts: tuple[str, ...] = ()) -> None:
        """Take what is desired of networks here. ``hosts``: names and addresses that no guest reaches."""
        self._told = desired
        desired = with_kept(desired, self._desired or (), self.owns)
        open_ = {(nic.vm, nic.number) for nic in _interfaces(self._desired or ()) if nic.passing is None}
        shut = {
            address
            for nic in _interfaces(desired)
            if nic.passing is not None and (nic.vm, nic.number) in open_
            for address in firewall.addresses_of(nic)
        }
        # What these have begun while nobody asked goes on.
        self._arrived |= dict.fromkeys(shut, time.monotonic() + firewall.ARRIVED_S)
        self._desired, self.routing.hosts = desired, hosts
        self._changed.set()

    async def run(self) -> None:
        """See to them until cancelled."""
        for look in itertools.count():
            self._changed.clear()
            failed = False
            if self._desired is not None:
                if self._desired != self._told:  # interfaces were kept of VMs that may be gone by now
                    self._desired = with_kept(self._told, self._desired, self.owns)
                whole = look % WHOLE_EVERY == 0
                try:
                    failed = await asyncio.to_thread(self._settle, self._desired, self._arrivals(), whole=whole)
                except Exception:  # a defect met in networks must not take the VMs' workers away
                    log.exception("defect while networks were set up")
                    failed = True
                before, self._closed = self.closed, still_closed(self._closed, self._desired)
                self.closed = by_vm(self._closed)
                self.on_closed({vm for vm, _ in before.items() ^ self.closed.items()})
                async with self._looked:
                    self._looked.notify_all()
                self.problems.tell(problems_of(self._desired, self._troubles()))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), RETRY_S if failed else LOOK_S)

    def _troubles(self) -> NetworkTroubles:
        routing = self.routing
        return NetworkTroubles(
            self._failed, self._closed, routing.not_forwarded, routing.unrouted, routing.refused_ways
        )

    def trouble(self, network: str) -> str | None:
        """Return why a network can't be set up here, None as far as is known it can."""
        return self._failed.get(network) or self._failed.get("")

    async def wire(self, vm: str, number: int, network: str, mac: str) -> Wired:
        """Return where an interface of a VM belongs, once its network and the rules for it, with this MAC address, are
        there.

        Raises NetworkFailed.
        """

        def ready() -> bool:
            settled = self._settled.get(network)
            return settled is not None and any(
                (nic.vm, nic.number, nic.mac) == (vm, number, mac) for nic in settled.interfaces
            )

        try:
            async with asyncio.timeout(READY_S), self._looked:
                await self._looked.wait_for(ready)
        except TimeoutError:
            why = self.trouble(network) or "the control plane has not sent its description yet"
            raise NetworkFailed(f"network {network} is not ready: {why}") from None
        why_closed = self._closed.get(network, {}).get(firewall.NicKey(vm, number))
        if why_closed is not None:
            raise InterfaceClosed(f"interface {number} in network {network} is closed: {why_closed}")
        place = self._place(self._settled[network])
        return Wired(tap_name(vm, number), mac, place.bridge, place.netns, vlan=place.vlan, network=network)

    def _place(self, network: NetworkOnNode) -> _Place:
        if network.spec.kind is NetworkKind.BRIDGE:
            assert network.spec.bridge is not None
            return _Place(None, network.spec.bridge, network.spec.vlan)
        return _Place(self.prefix + network.name, overlay.BRIDGE, None)

    def place_of(self, vm: str) -> GuestPlace | None:
        """Return where the first interface of a VM is reached that has an address in an overlay; None: it has none."""
        places = sorted(
            (nic.number, GuestPlace(self.prefix + network.name, service_address(network.spec.subnet), nic.address))
            for network in self._settled.values()
            if network.spec.kind is NetworkKind.OVERLAY and network.spec.subnet is not None
            for nic in network.interfaces
            if nic.vm == vm and nic.address is not None
        )
        return places[0][1] if places else None

    def arrives(self, vm: str) -> None:
        """A guest is on its way here: its connections go on."""
        self._arriving |= self._addresses(vm)
        self._changed.set()

    def does_not_arrive(self, vm: str) -> None:
        """A guest that was on its way does not come: its connections elsewhere make no flows here."""
        self._arriving -= self._addresses(vm)
        self._changed.set()

    def arrived(self, vm: str) -> None:
        """A guest that was on its way is here."""
        addresses = self._addresses(vm)
        self._arriving -= addresses
        self._arrived |= dict.fromkeys(addresses, time.monotonic() + firewall.ARRIVED_S)
        self._changed.set()

    def _addresses(self, vm: str) -> set[str]:
        nics = [nic for nic in _interfaces(self._desired or ()) if nic.vm == vm]
        return {address for nic in nics for address in firewall.addresses_of(nic)}

    def _arrivals(self) -> dict[str, float]:
        """Return for how many seconds yet connections of which guests go on without a flow."""
        now = time.monotonic()
        if not self._began:  # guests here may have flows that we have lost: let those go on
            self._began = True
            here = [address for nic in _interfaces(self._desired or ()) for address in firewall.addresses_of(nic)]
            self._arrived |= dict.fromkeys(here, now + firewall.ARRIVED_S)
        self._arrived = {address: until for address, until in self._arrived.items() if until > now}
        arrived = {address: until - now for address, until in self._arrived.items()}
        return arrived | dict.fromkeys(self._arriving, ARRIVING_S)

    # in a thread

    def _settle(self, networks: tuple[NetworkOnNode, ...], arrived: dict[str, float], *, whole: bool) -> bool:
        """Bring networks into their desired state; say whether something failed. ``whole``: unchanged ones too."""
        if not networks and not self.routing.loaded and not namespace.all(self.prefix):
            return self._settle_without_networks(whole=whole)
        own = tunnel_address(self._settings)
        hosts = {peer.host for network in networks for peer in network.peers}
        addresses = {host: address for host in hosts if (address := resolved(host)) is not None}
        overlays = [network for network in networks if network.spec.kind is NetworkKind.OVERLAY]
        gateways = [network for network in overlays if network.is_gateway]
        on_bridges = [network for network in networks if network.spec.kind is NetworkKind.BRIDGE]
        ends = {network.vni: _tunnel_ends(network, addresses) for network in overlays}
        failed: dict[str, str] = {}
        with noting_failures((), failed):
            self._settle_encryption(networks, addresses, own)
        with noting_failures(overlays, failed):
            # First of all: no tunnel may learn from a frame, or send one, that does not take the way it should.
            rules_are_gone = self.routing.take_refused_frames(overlays, ends)
            refused = self.routing.settle(gateways, ends, whole=whole or rules_are_gone)
            failed |= {network.name: refused[network.vni] for network in overlays if network.vni in refused}
        for network in (network for network in overlays if network.name not in failed):
            with noting_failures([network], failed):
                self._settle_overlay(network, own, ends[network.vni], arrived, whole=whole)
                self._settled[network.name] = network
        with noting_failures(gateways, failed):
            self.routing.settle_gateways(gateways, failed, whole=whole)
        with noting_failures(on_bridges, failed):
            self._settle_bridges(on_bridges, arrived, whole=whole)
            self._settled |= {network.name: network for network in on_bridges}
        with noting_failures((), failed):
            self._remove_others({network.name for network in networks})
        self._report(failed)
        return bool(failed)

    def _settle_without_networks(self, *, whole: bool) -> bool:
        """Keep the rules for guests on bridges; say whether that failed. There is no network here, and was none."""
        failed: dict[str, str] = {}
        if self._guards_bridges or self._bridge_rules is not None:
            with noting_failures((), failed):
                self._settle_bridges([], {}, whole=whole)
        self._report(failed)
        return bool(failed)

    def _report(self, failed: dict[str, str]) -> None:
        for name, why in failed.items():
            if self._failed.get(name) != why:
                log.warning("a network can't be set up", network=name, error=why)
        self._failed = failed

    def _settle_encryption(
        self, desired: tuple[NetworkOnNode, ...], addresses: dict[str, str], own: str | None
    ) -> None:
        name = tunnel_of(self.instance)
        peers = sorted(
            {peer for network in desired for peer in network.peers if peer.key}, key=lambda peer: peer.number
        )
        if peers:
            mtu = (None if own is None else tap.mtu_at(own)) or MTU_DEFAULT
            interface = wireguard.WireguardInterface(
                name, self._settings.wireguard_key, desired[0].node_number, mtu, RUN_DIR / f"{self.instance}.wireguard"
            )
            wireguard.settle(interface, peers, addresses)
        else:
            wireguard.remove(name)

    def _settle_overlay(
        self, network: NetworkOnNode, own: str | None, peers: list[str], arrived: dict[str, float], *, whole: bool
    ) -> None:
        name = self.prefix + network.name
        # Peers learn our address from frames: with a fixed one, they would send to it unencrypted.
        local = None if any(peer.key for peer in network.peers) else own
        assert network.spec.subnet is not None
        if whole or self._settled.get(network.name) != network or not namespace.exists(name) or arrived:
            overlay.settle(name, network, local, peers)
            service = service_address(network.spec.subnet)
            closed = namespace.within(name, lambda: firewall.load(router.TABLE, network.interfaces, service, arrived))
            self._close(network, closed)
        servers = network.spec.nameservers or dnsmasq.host_nameservers()
        first = network.name not in self._settled
        dnsmasq.settle(name, network, self.directory(network.name), servers if network.spec.nat else (), first=first)

    def _close(self, network: NetworkOnNode, closed: dict[firewall.NicKey, str]) -> None:
        """Remember which interfaces of a network are closed because their rules are refused, and why."""
        before = self._closed.pop(network.name, {})
        for key, why in closed.items():
            if before.get(key) != why:
                log.error("an interface is closed", network=network.name, vm=key.vm, number=key.number, error=why)
        if closed:
            self._closed[network.name] = closed

    def _settle_bridges(self, networks: list[NetworkOnNode], arrived: dict[str, float], *, whole: bool) -> None:
        nics = list(_interfaces(networks))
        if not nics and not self._guards_bridges:
            if self._bridge_rules is not None or whole:
                self._bridge_rules = None
                firewall.remove(self._table)
        elif nics or whole or self._bridge_rules != ANY_GUEST:
            closed = firewall.load(self._table, nics, None, arrived)
            for network in networks:
                own = set(map(firewall.key_of, network.interfaces))
                self._close(network, {key: why for key, why in closed.items() if key in own})
            self._bridge_rules = "" if nics else ANY_GUEST

    def _remove_others(self, desired: set[str]) -> None:
        """Remove networks that are not wanted here, unless a VM is still in them."""
        for name in namespace.all(self.prefix):
            network = name.removeprefix(self.prefix)
            if network in desired or (namespace.exists(name) and overlay.taps(name)):
                continue
            self._settled.pop(network, None)
            self._closed.pop(network, None)
            dnsmasq.end(self.directory(network))
            namespace.delete(name)
            shutil.rmtree(self.directory(network), ignore_errors=True)
            log.info("a network was removed", network=network)

    def directory(self, network: str) -> Path:
        """Return where the files of a network's DHCP and DNS are."""
        return RUN_DIR / f"{self.instance}-{network}"
