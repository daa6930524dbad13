"""Messages about networks."""

from __future__ import annotations

from novacron.model.network import NetworkOnNode, NetworkProblem
from novacron.wire.base import Message


class Networks(Message, frozen=True):
    """All networks that this node is to have, and no others."""

    networks: tuple[NetworkOnNode, ...]
    hosts: tuple[str, ...] = ()
    """Addresses and names of all hosts of the platform, which guests can't reach: for gateways only."""


class NetworksStand(Message, frozen=True):
    """All that keeps networks of this node from being as they should, and nothing else does."""

    problems: tuple[NetworkProblem, ...]
