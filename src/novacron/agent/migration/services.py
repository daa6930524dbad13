"""What a node offers to its VMs' workers, migrations included."""

from __future__ import annotations

from collections.abc import Callable

from novacron.agent.host.database_mark import RememberedMark
from novacron.agent.host.revoked_keys import RevokedKeys
from novacron.agent.migration.known_pages import KnownPages, LocalVm
from novacron.agent.migration.transport import MemoryTransport
from novacron.agent.vm.context import VmServices
from novacron.dwcp.connection import ConnectionPool
from novacron.dwcp.listener import Listener


class NodeServices(VmServices):
    """What all workers of a node share."""

    listener: Listener
    """Accepts the DWCP sessions of other nodes."""
    endpoint: str
    """Where the listener is reached: ``host:port``."""
    connections: ConnectionPool
    """Open DWCP connections to other nodes."""
    revoked: RevokedKeys
    """Whose connections it refuses."""
    database_mark: RememberedMark
    transport: MemoryTransport
    pages: KnownPages
    neighbours: Callable[[], list[LocalVm]]
    """The VMs that run on this node."""
