"""Agents that work from copies of state folders: beside the original, in its place, or on other hardware.

What keeps two of a node apart is the product's: locks and QEMUs that are found on one host, what a folder notes of its
host, and that the server takes no other host for the node while that one is heard.
"""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path

from novacron.model.lease import MARGIN_S
from novacron.store.leases import ANOTHER_HOST_S
from tests.simulation.disks import GONE
from tests.simulation.host import Hardware, SimulatedHost
from tests.simulation.world import World

CLONE_S = 5.0
"""How long a host goes on asking to be a node that it can't be told from: less than that node has to be silent."""
HEARD_S = ANOTHER_HOST_S - CLONE_S - MARGIN_S
"""A node is copied to a clone of its host if it was heard so lately."""
RETURNS_CHANCE = 0.02
"""In each tick, the original comes into its own again."""


class CopiesAtWork:
    """Those of one history."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self._world, self._random = world, chance
        self._numbers = itertools.count(1)
        self._moved: dict[str, SimulatedHost] = {}
        """The hosts that are off, while others are their nodes."""
        self._until_s: dict[SimulatedHost, float] = {}
        """When those end that ask in vain."""

    def is_used(self, host: SimulatedHost) -> bool:
        """Say whether a copy of the node's folder is used somewhere."""
        asks = any(intruder.name == host.name for intruder in self._world.intruders)
        return asks or host.original is not None or host.name in self._moved

    async def begin_beside(self, host: SimulatedHost, copy: Path) -> str:
        """An agent begins with a copy on the node's own host; return why it does not."""
        directory = self._own_place(host, copy)
        if host.works:
            return await self._intrude(SimulatedHost(self._world, host.name, directory, host.hardware), math.inf)
        promised = set(host.promised)
        host.original, host.directory = host.directory, directory
        host.promised.clear()
        await host.begin_agent()
        if host.works:
            self._go_on(host.original, host.directory)
            return ""
        host.directory, host.original = host.original, None
        host.promised |= promised
        return host.refusal

    async def begin_elsewhere(self, host: SimulatedHost, copy: Path, *, clone: bool) -> str:
        """An agent begins with a copy on another host, which may have the same ids as the node's own: ``clone``. Return
        why it does not."""
        if clone and not await self._was_heard(host):
            return "its node is silent"
        hardware = self._new_hardware(host, system=host.hardware.identity.system if clone else "")
        intruder = SimulatedHost(self._world, host.name, self._own_place(host, copy), hardware)
        return await self._intrude(intruder, self._world.clock.now_s + CLONE_S if clone else math.inf)

    async def move(self, host: SimulatedHost, copy: Path) -> str:
        """The node's host is off for as long as another one goes on with a copy; return why that does not."""
        await host.switch_off(math.inf)
        other = SimulatedHost(self._world, host.name, self._own_place(host, copy), self._new_hardware(host))
        other.say_moved()
        self._world.hosts[host.name], self._moved[host.name] = other, host
        self._go_on(host.directory, other.directory)
        await other.begin_agent()
        return other.refusal

    async def attend(self) -> None:
        """Those end that have asked for long enough; and some day the original is used again."""
        for intruder, until_s in list(self._until_s.items()):
            if self._world.clock.now_s >= until_s:
                await self._expel(intruder)
        for host in list(self._world.hosts.values()):
            if self.is_used(host) and self._random.random() < RETURNS_CHANCE:
                await self._return(host)

    async def end(self) -> None:
        """All originals are used again."""
        for intruder in list(self._world.intruders):
            await self._expel(intruder)
        for host in list(self._world.hosts.values()):
            await self._return(host)

    async def _return(self, host: SimulatedHost) -> None:
        if host.original is not None:
            await host.end_agent()
            if self._random.random() < 0.5:  # else its VMs run on with the copy's files
                host.lose_power()
            copy, host.directory, host.original = host.directory, host.original, None
            host.promised.clear()
            self._go_on(copy, host.directory)
            await host.begin_agent()
        if host.name in self._moved:
            await host.end()
            original = self._world.hosts[host.name] = self._moved.pop(host.name)
            original.off_until_s = self._world.clock.now_s
            original.promised.clear()
            self._go_on(host.directory, original.directory)
            await original.begin_agent()

    async def _intrude(self, intruder: SimulatedHost, until_s: float) -> str:
        await intruder.begin_agent()
        if intruder.works:
            self._world.intruders.append(intruder)
            self._until_s[intruder] = until_s
        return intruder.refusal

    async def _expel(self, intruder: SimulatedHost) -> None:
        await intruder.end_agent()
        if intruder.hardware is not self._world.hosts[intruder.name].hardware:
            intruder.lose_power()
        self._world.intruders.remove(intruder)
        del self._until_s[intruder]

    async def _was_heard(self, host: SimulatedHost) -> bool:
        async with self._world.database.connection() as connection:
            heard: bool | None = await connection.fetchval(
                "SELECT boot = $2 AND renewed_at > clock_timestamp() - make_interval(secs => $3) FROM node_leases"
                " WHERE node = $1",
                host.name, host.hardware.name, HEARD_S,
            )  # fmt: skip
        return host.works and bool(heard)

    def _new_hardware(self, host: SimulatedHost, system: str = "") -> Hardware:
        return Hardware(f"{host.name}-{next(self._numbers)}", system)

    def _own_place(self, host: SimulatedHost, copy: Path) -> Path:
        """Let a copy be where an agent works with it."""
        return copy.rename(host.directory.with_name(f"{host.name}.used-{next(self._numbers)}"))

    def _go_on(self, before: Path, now: Path) -> None:
        """Another folder is used in the place of one: what disk of the VM is in it counts, if the one was used."""
        disks, vm = self._world.disks, self._world.vm
        is_gone = disks.current.get(vm) == GONE
        if disks.take_away(vm, before) and not is_gone:
            disks.put_back(vm, now)
