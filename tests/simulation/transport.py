"""Memory that moves between simulated hosts: when it flows, when it arrives and when it is lost, the test decides."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from novacron.agent.migration.outgoing import OutgoingMigration
from novacron.agent.migration.phases import SourcePhase
from novacron.agent.migration.pre_copy import TransferFailed
from novacron.agent.migration.target_stream import Arrival, LoadFailed
from novacron.agent.vm.hypervisor import VirtualMachine
from novacron.agent.vm.journal import PostCopy
from novacron.dwcp.receiver import ReceiveSession
from tests.simulation.machine import SimulatedMachine, SimulatedQemu

if TYPE_CHECKING:
    from tests.simulation.host import AgentProcess


class Channel:
    """What one migration's memory goes through, from when its target waits until either side has gone."""

    def __init__(self) -> None:
        self.may_flow, self.may_arrive = asyncio.Event(), asyncio.Event()
        """Set by the test: the source hands everything on; the target gets it."""
        self.memory: int | None = None
        self.changed = asyncio.Event()
        self.broken = self.confirmed = False

    def send(self, memory: int) -> None:
        self.memory = memory
        self.changed.set()

    def confirm(self) -> None:
        self.confirmed = True
        self.changed.set()

    def cut(self) -> None:
        """Break it, unless it has done its work."""
        self.broken = not self.confirmed
        self.changed.set()
        self.may_flow.set()
        self.may_arrive.set()

    async def wait_for(self, what: str) -> None:
        """Wait for the ``memory``, or until it is ``confirmed``. Raises ConnectionError when it breaks."""
        while True:
            if self.broken:
                raise ConnectionError("the connection was lost")
            if getattr(self, what):
                return
            self.changed.clear()
            await self.changed.wait()


class SimulatedListener:
    """Expects sessions; they are only names here."""

    @contextlib.contextmanager
    def announce(self, session: str, peer: str) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def expect(self, session: str, peer: str, terms: object) -> Iterator[ReceiveSession]:
        yield cast(ReceiveSession, session)


class SimulatedTransport:
    """One agent's side of memory that moves: as ``source_stream`` and ``target_stream`` do it with QEMU and DWCP."""

    def __init__(self, agent: AgentProcess) -> None:
        self._agent, self._channels = agent, agent.host.world.channels

    async def send(self, migration: OutgoingMigration) -> None:
        qemu, channel = _qemu(migration.machine), self._channels.get(migration.task.migration)
        if qemu is None or channel is None or channel.broken or channel.memory is not None:
            raise TransferFailed("nobody waits for the memory")
        qemu.outgoing = channel
        migration.enter(SourcePhase.PRE_COPY)
        try:
            await channel.may_flow.wait()
            if channel.broken or not qemu.alive or qemu.outgoing is not channel:
                raise ConnectionError("the connection was lost")
            migration.enter(SourcePhase.SWITCHOVER)
            channel.send(qemu.stop_and_hand_on())
            await migration.promise(memory_follows=False)
            await channel.wait_for("confirmed")
        except OSError as error:
            if migration.promised:
                return
            await self.cancel(migration.machine)
            raise TransferFailed(str(error)) from error
        except BaseException:
            if not migration.promised:
                await self.cancel(migration.machine)
            raise

    async def load(self, arrival: Arrival) -> None:
        qemu, name = _qemu(arrival.machine), str(arrival.session)
        assert qemu is not None
        channel = self._channels[name] = Channel()
        try:
            await arrival.ready()
            await channel.wait_for("memory")
            await channel.may_arrive.wait()
            if channel.broken or not qemu.alive:
                raise ConnectionError("the connection was lost")
            assert channel.memory is not None
            qemu.memory = channel.memory
            qemu.become("paused")
            await arrival.loaded(False)
            channel.confirm()
        except OSError as error:
            raise LoadFailed(str(error)) from error
        finally:
            channel.cut()

    async def cancel(self, machine: VirtualMachine) -> None:
        qemu = _qemu(machine)
        if qemu is not None and self._agent.alive:
            outgoing, qemu.outgoing = qemu.outgoing, None
            if outgoing is not None:
                outgoing.cut()

    async def abandon(self, machine: VirtualMachine) -> None:
        await self.cancel(machine)

    async def give_rest(self, machine: VirtualMachine, moving: PostCopy) -> None:
        raise AssertionError("post-copy is not simulated")

    async def take_rest(self, machine: VirtualMachine, moving: PostCopy) -> None:
        raise AssertionError("post-copy is not simulated")


def _qemu(machine: VirtualMachine) -> SimulatedQemu | None:
    return cast(SimulatedMachine, cast(Any, machine)).qemu
