"""Frames of networks that came from hosts which do not have the network, and were dropped: counted and reported.

What goes on for a moment after a network has come to another node, or has left one, is only counted: the two nodes are
not told at the same time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from novacron.model.condition import ConditionReason, ConditionStatus, ConditionType, ReportedCondition
from novacron.net.tunnels import Refused, Tunnels
from novacron.telemetry.values import counter

DROPPED = counter("novacron_agent_refused_vxlan_packets_total")
SETTLED_S = 15.0
"""A network's hosts must have been the same for so long before strangers are reported."""
RECENT_S = 600.0
"""For how long they are reported after the last frame."""
NAMED_MAX = 3

TRUSTED = ReportedCondition(
    ConditionType.OVERLAY, ConditionStatus.TRUE, ConditionReason.OVERLAY_TRUSTED,
    "frames of its networks come only from nodes that have them",
)  # fmt: skip


class _Since(NamedTuple):
    hosts: Sequence[str]
    at: float


class _Seen(NamedTuple):
    at: float
    strangers: Sequence[str]


class RefusedFrames:
    """Those of one node. ``condition`` may be called in any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._packets: dict[int, int] = {}
        """By VXLAN identifier, as the counters were when they were read last."""
        self._hosts: dict[int, _Since] = {}
        """Which hosts have each network, and since when."""
        self._seen: dict[str, _Seen] = {}
        """By network: strangers that were met when its hosts had settled."""

    def begin_anew(self) -> None:
        """The counters begin at 0 again."""
        self._packets = {}

    def take(self, refused: Refused, tunnels: Tunnels, names: Mapping[int, str]) -> None:
        """Take what the counters say. ``tunnels``, ``names``: of the networks that are here now."""
        now = self._clock()
        for vni, hosts in tunnels.items():
            if vni not in self._hosts or self._hosts[vni].hosts != hosts:
                self._hosts[vni] = _Since(hosts, now)
        for vni, packets in refused.packets.items():
            more = packets - self._packets.get(vni, 0)
            if more <= 0 or vni not in names:
                continue
            DROPPED.add(names[vni], count=more)
            if now - self._hosts[vni].at >= SETTLED_S:
                self._seen[names[vni]] = _Seen(now, refused.strangers)
        self._packets = dict(refused.packets)
        self._hosts = {vni: since for vni, since in self._hosts.items() if vni in tunnels}
        self._seen = {name: seen for name, seen in self._seen.items() if name in names.values()}

    def forget(self) -> None:
        """No network is here any more."""
        self._packets, self._hosts, self._seen = {}, {}, {}

    def condition(self) -> ReportedCondition:
        """Return the condition of this node."""
        now = self._clock()
        seen = {name: seen for name, seen in self._seen.items() if now - seen.at < RECENT_S}
        if not seen:
            return TRUSTED
        strangers = sorted({stranger for network in seen.values() for stranger in network.strangers})
        networks = _few(sorted(seen))
        message = (
            f"it drops VXLAN frames of {networks} that come from {_few(strangers) or 'elsewhere'}, where no node has"
            " that network: find out what that host is. Only encryption proves who sends: novacron network encryption"
        )
        return ReportedCondition(
            ConditionType.OVERLAY, ConditionStatus.FALSE, ConditionReason.FOREIGN_FRAMES, message
        )  # fmt: skip


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    return ", ".join(names[:NAMED_MAX]) + more
