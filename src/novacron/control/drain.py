"""Empties nodes that are draining, and brings their VMs back: a few migrations at a time, and never by force."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec

from novacron.control.objects import Objects
from novacron.model.drain import Drain, DrainPhase, DrainPolicy, Stays
from novacron.model.errors import NovaError
from novacron.model.migration import Cause
from novacron.model.probe import MoveForeseen
from novacron.store import drains, migrations, nodes, vms
from novacron.store.database import Database
from novacron.store.drains import Waiting
from novacron.store.fleet_index import FleetIndex
from novacron.telemetry import logs

log = logs.get(__name__)

MOVABLE = ("running", "paused", "stopped", "failed")
DRAINS_AT_ONCE = 16
DRAIN_S_MAX = 300.0
"""Time limit of one look at a drain, in which moves of several VMs may be measured."""

Foresee = Callable[[str, str, str], Awaitable[MoveForeseen]]
"""Measures what a VM's move from one node to another would be like. Raises NovaError."""


class Drains(msgspec.Struct, frozen=True):
    """``foresee`` is DWCP's forecast of a move; ``index`` has the fleet in memory."""

    foresee: Foresee
    index: FleetIndex | None = None

    async def step(self, database: Database, objects: Objects) -> None:
        """Look at each drain. No pass waits for that: a node may take long to measure moves, or not answer."""
        async with database.connection() as connection:
            active = {drain.id: drain for drain in await drains.active(connection)}

        async def advance(id: str) -> None:
            drain = active[id]
            if drain.policy is DrainPolicy.LEAVE and drain.phase is DrainPhase.DRAINING:
                await _leave(database, drain, objects)
            await _Round(database, drain.id, self, objects).run()

        objects.start(active, advance, count_max=DRAINS_AT_ONCE, limit_s=DRAIN_S_MAX)


async def _leave(database: Database, drain: Drain, objects: Objects) -> None:
    """Give up moves that do not come to an end."""
    async with database.connection() as connection:
        hopeless = {move.vm: move for move in await drains.hopeless(connection, drain)}

    async def give_up(vm: str) -> None:
        move = hopeless[vm]
        async with database.transaction() as connection:
            await migrations.fail(connection, move.migration, f"it does not converge: {move.why}")
            await drains.give_up(connection, drain, vm)

    await objects.each(hopeless, give_up)


class _Round(msgspec.Struct):
    """One look at a drain: begins the moves that may begin, and stores how far the drain is."""

    database: Database
    id: str
    by: Drains
    objects: Objects

    async def run(self) -> None:
        async with self.database.connection() as connection:
            drain = await drains.get(connection, self.id)
            leaves = drain.phase is DrainPhase.DRAINING
            waiting = await (drains.to_leave(connection, drain) if leaves else drains.to_return(connection, drain))
            moved = await drains.has_moved(connection, drain) if leaves else [vm.id for vm in waiting]
            room = await drains.slots(connection, await nodes.get(connection, drain.node))
        if not waiting:
            async with self.database.transaction() as connection:
                await drains.report(connection, drain, drains.DrainProgress(moved, waiting, [], 0))
                await drains.finish(connection, drain.id, DrainPhase.DRAINED if leaves else DrainPhase.RETURNED)
            log.info("a drain is over", node=drain.node, phase=drain.phase)
            return
        stays = await self._move_some(drain, waiting, room)
        async with self.database.transaction() as connection:
            done_mib = await vms.memory_mib(connection, moved) if leaves else 0
            await drains.report(connection, drain, drains.DrainProgress(moved, waiting, stays, done_mib))

    async def _move_some(self, drain: Drain, waiting: Sequence[Waiting], room: int) -> list[Stays]:
        """Begin up to ``room`` moves; return what stays for now, and why."""
        stays, recorded = [], {stay.vm: stay.why for stay in drain.stays}
        for vm in waiting:
            if vm.migration is not None:
                continue
            why = _rests(vm, drain)
            if why is None and room <= 0:
                continue
            if why is None:
                why = await self._move(drain, vm)
                room -= why is None
            if why is not None:
                stays.append(Stays(vm.id, vm.name, why))
                if recorded.get(vm.id) != why:
                    async with self.database.transaction() as connection:
                        await drains.blocked(connection, drain, vm, why)
        return stays

    async def _move(self, drain: Drain, vm: Waiting) -> str | None:
        """Begin to move a VM; return why it can't be moved, if so: then nothing changes."""
        why = await self.objects.reconcile(vm.id, lambda _: _move(self.database, drain, vm, self.by))
        failure = self.objects.failure(vm.id)
        return why if failure is None else f"it can't be moved now: {failure}"


def _rests(vm: Waiting, drain: Drain) -> str | None:
    """Say why a VM is not moved now, or None if it may be."""
    if vm.id in drain.given_up:
        return vm.error or next((stay.why for stay in drain.stays if stay.vm == vm.id), "it was given up")
    if vm.state not in MOVABLE:
        return f"it is {vm.state}"
    return vm.error if vm.rests_s > 0 else None


async def _move(database: Database, drain: Drain, vm: Waiting, by: Drains) -> str | None:
    """Begin to move a VM; return why it can't be moved, if so: then nothing changes."""
    leaves = drain.phase is DrainPhase.DRAINING
    target, cause = (None, Cause.DRAIN) if leaves else (drain.node, Cause.RETURN)
    try:
        if leaves and drain.policy is DrainPolicy.LEAVE and vm.state == "running":
            async with database.transaction() as connection:
                _, target = await migrations.choose(connection, vm.id, None, None, index=by.index)
            forecast = (await by.foresee(vm.id, drain.node, target)).forecast
            if not forecast.converges and forecast.downtime_ms > drains.DOWNTIME_MS_MAX:
                async with database.transaction() as connection:
                    await drains.give_up(connection, drain, vm.id)
                return f"it would not converge: {forecast.reason}"
        async with database.transaction() as connection:
            current = await vms.get(connection, vm.id)
            if (current.node == drain.node) is leaves:
                request = migrations.MoveRequest(
                    actor=f"drain of {drain.node}", target=target, policy=drain.policy.of_migrations, cause=cause
                )
                await migrations.create(connection, vm.id, request, by.index)
    except NovaError as error:
        return error.detail
    return None
