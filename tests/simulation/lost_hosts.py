"""What operators do about hosts that are lost, by force, and in what order: carefully, or in error.

Careful ones make sure that a host is off, and say so by its name. Others say nothing: then it must have been cut off.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from novacron.model.errors import NovaError
from novacron.model.waiting import WaitCode
from novacron.store import lost_nodes, replica_failover, vms
from novacron.store.database import Connection
from novacron.store.replica_failover import FailoverRequest
from tests.simulation.disks import DISCARDED, GONE
from tests.simulation.host import SimulatedHost
from tests.simulation.world import World

TRIES_CHANCE = 0.15
"""In each tick, whoever sees to a host that is off tries it."""
OFF_S = (18.0, 50.0)


class Forced(NamedTuple):
    """What an operator wants to do about a host. ``confirm``: what is given as its name."""

    host: SimulatedHost
    confirm: str | None
    discards: bool = False


Way = Callable[[Forced], Awaitable[None]]


class LostHosts:
    """The operators. ``say`` writes down what was done."""

    only: tuple[str, ...] = ()
    """The ways that there are, if not all."""

    def __init__(self, world: World, chance: random.Random, say: Callable[[str], None]) -> None:
        self._world, self._random, self._say = world, chance, say
        self.ways: dict[str, Way] = {
            "removes-node": self.removes_node, "recovers-vm": self.recovers_vm, "deletes-vm": self.deletes_vm,
            "fails-over": self.fails_over,
        }  # fmt: skip
        self._sees_to: dict[str, str] = {}
        """How an operator goes about hosts that are off."""

    async def lose(self, host: SimulatedHost) -> None:
        """A host loses its power for longer, and an operator sees to it."""
        await host.switch_off(self._random.uniform(*OFF_S))
        self._sees_to[host.name] = self._any_way()

    async def force(self, host: SimulatedHost) -> None:
        """An operator does something by force, without looking whether a host is off."""
        await self._do(self._any_way(), Forced(host, None, self._random.random() < 0.5))

    def _any_way(self) -> str:
        return self._random.choice(self.only or sorted(self.ways))

    async def attend(self) -> None:
        """Somebody may see to a host that is off."""
        for name, way in list(self._sees_to.items()):
            host = self._world.hosts[name]
            if not host.is_off or (self._random.random() < TRIES_CHANCE and await self._do(way, Forced(host, name))):
                del self._sees_to[name]

    async def help(self) -> None:
        """Do what the VM's status asks for."""
        world = self._world
        async with world.database.connection() as connection:
            vm = await vms.get(connection, world.vm)
        host = world.hosts[vm.node or vm.lost_on or world.names[0]]
        is_lost = world.disks.current.get(vm.id) == GONE or vm.id in world.disks.endangered
        if vm.lost_on is not None:
            if not await self._do("recovers-vm", Forced(host, None)) and is_lost:
                await self._do("recovers-vm", Forced(host, None, discards=True))
        elif vm.unreconciled is not None and host.is_off:  # nobody decides before it was heard, or is removed
            await self._do("removes-node", Forced(host, host.name))
        elif vm.status.reason_code in (WaitCode.DISK_LOST, WaitCode.FILE_LOST):
            # As long as its node is heard nobody takes a VM from it, though its disk is not there.
            for way in ("fails-over", "recovers-vm") if is_lost else ("fails-over",):
                if await self._do(way, Forced(host, host.name if host.is_off else None, discards=True)):
                    return
            if not host.is_off:
                await host.switch_off(OFF_S[1])

    async def _do(self, way: str, forced: Forced) -> bool:
        """Say whether it was done; what is refused is right to be."""
        try:
            await self.ways[way](forced)
        except NovaError:
            return False
        self._say(f"{way} {forced.host.name}{' discards' if forced.discards else ''} {forced.confirm or 'unasked'}")
        return True

    async def removes_node(self, forced: Forced) -> None:
        """``node remove --force``."""
        world, name = self._world, forced.host.name

        async def work(connection: Connection) -> bool:
            vm = await vms.get(connection, world.vm)
            await lost_nodes.remove_node(connection, name, forced.confirm, "test")
            return name in (vm.node, vm.lost_on)

        if not await world.transact(work):  # an older database: nobody knows that the VM's disk is there
            world.disks.take_away(world.vm, forced.host.directory)
        world.link_ends(name)

    async def recovers_vm(self, forced: Forced) -> None:
        """``vm recover``."""
        world = self._world

        async def work(connection: Connection) -> bool:
            before = await vms.get(connection, world.vm)
            lost = before.node is None or await lost_nodes.only_there(connection, before) is not None
            await lost_nodes.recover_vm(connection, world.vm, forced.confirm, "test", discard_disk=forced.discards)
            return lost and forced.discards

        if await world.transact(work):
            world.disks.current[world.vm] = DISCARDED

    async def deletes_vm(self, forced: Forced) -> None:
        """``vm delete --force``, and another one is made."""
        world = self._world
        await world.replace_vm(lambda c: lost_nodes.delete_vm(c, world.vm, None, forced.confirm, "test"))

    async def fails_over(self, forced: Forced) -> None:
        """``vm failover``."""
        asked = FailoverRequest(confirm=forced.confirm)
        await self._world.transact(lambda c: replica_failover.fail_over(c, self._world.vm, asked, "test"))
