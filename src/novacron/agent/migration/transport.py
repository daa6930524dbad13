"""How memory gets from one hypervisor to another: with QEMU and DWCP, or however a simulation does it."""

from __future__ import annotations

from typing import Protocol

from novacron.agent.migration import post_copy, source_stream, target_stream
from novacron.agent.migration.direct_placement import DirectPlacement
from novacron.agent.migration.outgoing import OutgoingMigration
from novacron.agent.migration.target_stream import Arrival
from novacron.agent.settings import AgentSettings
from novacron.agent.vm.hypervisor import VirtualMachine
from novacron.agent.vm.journal import PostCopy
from novacron.dwcp.connection import ConnectionPool
from novacron.dwcp.listener import Listener


class MemoryTransport(Protocol):
    """What both sides of a migration need of it."""

    async def send(self, migration: OutgoingMigration) -> None:
        """Send a guest's memory and give the migration's promise; see ``source_stream.send``. Raises TransferFailed."""

    async def load(self, arrival: Arrival) -> None:
        """Load a guest's memory; see ``target_stream.load``. Raises LoadFailed."""

    async def give_rest(self, machine: VirtualMachine, moving: PostCopy) -> None:
        """Return when a guest that has left needs no more memory from here. Raises MonitorFailed."""

    async def take_rest(self, machine: VirtualMachine, moving: PostCopy) -> None:
        """Return when all memory of a guest that has come is here. Raises MonitorFailed."""

    async def cancel(self, machine: VirtualMachine) -> None:
        """Make sure that nothing of the guest is sent any more."""

    async def abandon(self, machine: VirtualMachine) -> None:
        """Give up what an earlier agent was sending. Raises MonitorFailed."""


class DwcpTransport:
    """QEMU's stream in DWCP sessions."""

    def __init__(self, connections: ConnectionPool, listener: Listener, settings: AgentSettings) -> None:
        self._connections, self._listener, self._settings = connections, listener, settings
        self._placement = DirectPlacement(enabled=settings.place_memory)

    async def send(self, migration: OutgoingMigration) -> None:
        await source_stream.send(migration)

    async def load(self, arrival: Arrival) -> None:
        await target_stream.load(arrival, self._placement)

    async def give_rest(self, machine: VirtualMachine, moving: PostCopy) -> None:
        await post_copy.give_rest(machine, moving, self._connections, self._settings)

    async def take_rest(self, machine: VirtualMachine, moving: PostCopy) -> None:
        await post_copy.take_rest(machine, moving, self._listener, self._settings)

    async def cancel(self, machine: VirtualMachine) -> None:
        await source_stream.cancel(machine)

    async def abandon(self, machine: VirtualMachine) -> None:
        await source_stream.abandon(machine)
