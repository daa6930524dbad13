"""What keeps networks of this node from being as they should: gathered after each look, and said when it changes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from novacron.model.network import NetworkOnNode, NetworkProblem, Protocol
from novacron.model.waiting import WaitCode
from novacron.net.firewall import NicKey, key_of
from novacron.net.tap import NetworkFailed
from novacron.net.ways_in import WayIn
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

PROBLEMS_MAX = 1000
MESSAGE_LENGTH_MAX = 400


class NetworkTroubles(NamedTuple):
    """What was found when networks were set up last."""

    failed: Mapping[str, str]
    """Why each network can't be set up; under no name: why none can."""
    closed: Mapping[str, Mapping[NicKey, str]]
    """Interfaces of each network whose rules are refused, and why."""
    unforwarded: Collection[tuple[Protocol, int]]
    """Ports that are to be forwarded, and at which this host itself listens."""
    unrouted: Mapping[str, Collection[str]]
    """Floating addresses of each network that are on no subnet of this host."""
    refused: Mapping[str, Mapping[WayIn, str]] = {}
    """Ways into each network whose rules are refused, and why."""


def problems_of(networks: Iterable[NetworkOnNode], troubles: NetworkTroubles) -> tuple[NetworkProblem, ...]:
    """Return all that keeps networks from being as they should. Pure."""
    every = [problem for network in networks for problem in _of(network, troubles)]
    return tuple(every[:PROBLEMS_MAX])


def _of(network: NetworkOnNode, troubles: NetworkTroubles) -> Iterator[NetworkProblem]:
    name, code = network.name, WaitCode
    failure = troubles.failed.get(name) or troubles.failed.get("")
    if failure is not None:
        yield NetworkProblem(name, code.NETWORK_NOT_READY, failure[:MESSAGE_LENGTH_MAX])
    for nic, why in troubles.closed.get(name, {}).items():
        words = f"interface {nic.number} of {nic.vm} has no traffic: nftables refuses its rules: {why}"
        yield NetworkProblem(name, code.INTERFACE_CLOSED, words[:MESSAGE_LENGTH_MAX])
    if not network.is_gateway:
        return
    for address in sorted(troubles.unrouted.get(name, ())):
        words = f"{address} is on no subnet of the gateway's host: route it there"
        yield NetworkProblem(name, code.NOT_ROUTED, words, address=address)
    for way, why in troubles.refused.get(name, {}).items():
        words = f"nftables refuses its rules: {why}"[:MESSAGE_LENGTH_MAX]
        if isinstance(way, tuple):
            yield NetworkProblem(name, code.RULES_REFUSED, words, address=way[0])
        else:
            yield NetworkProblem(name, code.RULES_REFUSED, words, way.address, way.protocol, way.port)
    for entrance in network.entrances:
        if entrance.address is None and (entrance.protocol, entrance.port) in troubles.unforwarded:
            words = (
                f"the gateway's host itself listens on {entrance.protocol} port {entrance.port}: choose another port"
            )
            yield NetworkProblem(name, code.PORT_IN_USE, words, protocol=entrance.protocol, port=entrance.port)


class InterfaceClosed(NetworkFailed):
    """The rules of an interface are refused, so nothing passes through it."""


Closed = Mapping[str, Mapping[NicKey, str]]
"""Interfaces of each network whose rules are refused, and why."""


def still_closed(closed: Closed, networks: Iterable[NetworkOnNode]) -> dict[str, dict[NicKey, str]]:
    """Return those of the interfaces that are in these networks. Pure."""
    there = {network.name: set(map(key_of, network.interfaces)) for network in networks}
    return {
        name: {nic: why for nic, why in nics.items() if nic in there[name]}
        for name, nics in closed.items()
        if name in there
    }


def by_vm(closed: Closed) -> dict[str, str]:
    """Return which interfaces of each VM are closed, and why. Pure."""
    words: dict[str, list[str]] = {}
    for network, nics in sorted(closed.items()):
        for nic, why in sorted(nics.items()):
            text = " ".join(f"interface {nic.number} in network {network} is closed: {why}".split())
            words.setdefault(nic.vm, []).append(text[:MESSAGE_LENGTH_MAX])
    return {vm: "; ".join(texts) for vm, texts in words.items()}


@contextlib.contextmanager
def noting_failures(networks: Iterable[NetworkOnNode], failed: dict[str, str]) -> Iterator[None]:
    """Note by its name which network failed, and why; without networks, under no name. What failed before stays."""
    try:
        yield
    except Exception as error:  # also a defect met with one network: the others are set up
        if not isinstance(error, NetworkFailed):
            log.exception("defect while a network was set up", networks=[network.name for network in networks])
        for name in [network.name for network in networks] or [""]:
            failed.setdefault(name, str(error) or type(error).__name__)


class NetworkProblems:
    """Says all problems when one begins or ends, in the words of its beginning."""

    def __init__(self) -> None:
        self.send: Callable[[wire.Message], None] = lambda message: None
        self._now: tuple[NetworkProblem, ...] = ()
        self._said = False

    def resync(self) -> None:
        """The link is new: say everything again after the next look."""
        self._said = False

    def tell(self, now: tuple[NetworkProblem, ...]) -> None:
        """Take all problems that there are."""
        if self._said and [problem.key for problem in now] == [problem.key for problem in self._now]:
            return
        self._now, self._said = now, True
        self.send(wire.NetworksStand(now))
