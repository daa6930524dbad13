"""Messages about networks."""

from __future__ import annotations

from novacron.model.network import NetworkOnNode
from novacron.wire.base import Message


class Networks(Message, frozen=True):
    """All networks that this node is to have, and no others."""

    networks: tuple[NetworkOnNode, ...]
    hosts: tuple[str, ...] = ()
    """Addresses and names of all hosts of the platform, which guests can't reach: for gateways only."""
