"""What a node offers to its VMs' workers, migrations included."""

from __future__ import annotations

from collections.abc import Callable

from novacron.agent.migration.known_pages import Neighbour, Pages
from novacron.agent.vm.context import VmServices
from novacron.dwcp.connection import Pool
from novacron.dwcp.receiver import Listener


class NodeServices(VmServices):
    """What all workers of a node share."""

    listener: Listener
    """Accepts the DWCP sessions of other nodes."""
    endpoint: str
    """Where the listener is reached: ``host:port``."""
    connections: Pool
    """Open DWCP connections to other nodes."""
    pages: Pages
    neighbours: Callable[[], list[Neighbour]]
    """The VMs that run on this node."""
