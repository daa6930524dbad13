"""Empties nodes that are draining, and brings their VMs back: a few migrations at a time, and never by force."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

import msgspec

from novacron.control.objects import Objects
from novacron.model.drain import Drain, DrainPhase, DrainPolicy, Stays, Why, is_resting, tried_in_vain
from novacron.model.errors import NoCapacity, NovaError
from novacron.model.migration import Cause
from novacron.model.probe import MoveForeseen
from novacron.model.waiting import WaitCode
from novacron.store import drains, events, migrations, nodes, vms
from novacron.store.database import Database
from novacron.store.drains import Waiting
from novacron.store.fleet_index import FleetIndex
from novacron.telemetry import logs

log = logs.get(__name__)

MOVABLE = ("running", "paused", "stopped", "failed")
DRAINS_AT_ONCE = 16
DRAIN_S_MAX = 300.0
"""Time limit of one look at a drain, in which moves of several VMs may be measured."""

MoveEstimator = Callable[[str, str, str], Awaitable[MoveForeseen]]
"""Measures what a VM's move from one node to another would be like. Raises NovaError."""


class Drains(msgspec.Struct, frozen=True):
    """``estimate_move`` is DWCP's forecast of a move; ``index`` has the fleet in memory."""

    estimate_move: MoveEstimator
    index: FleetIndex | None = None

    async def step(self, database: Database, objects: Objects) -> None:
        """Look at each drain. No pass waits for that: a node may take long to measure moves, or not answer."""
        async with database.connection() as connection:
            active = {drain.id: drain for drain in await drains.active(connection)}

        async def advance(id: str) -> None:
            drain = active[id]
            if drain.policy is DrainPolicy.LEAVE and drain.leaves:
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
            waiting = await (
                drains.to_leave(connection, drain) if drain.leaves else drains.to_return(connection, drain)
            )
            moved = await drains.has_moved(connection, drain) if drain.leaves else [vm.id for vm in waiting]
            room = await drains.slots(connection, await nodes.get(connection, drain.node))
            now = await drains.clock(connection)
        if not waiting:
            async with self.database.transaction() as connection:
                await drains.report(connection, drain, drains.DrainProgress(moved, waiting, [], 0))
                await drains.finish(connection, drain.id, DrainPhase.DRAINED if drain.leaves else DrainPhase.RETURNED)
            log.info("a drain is over", node=drain.node, phase=drain.phase)
            return
        late = drain.is_late(now)
        stays, begun = await self._move_some(drain, waiting, 0 if late else room, now)
        async with self.database.transaction() as connection:
            done_mib = await vms.memory_mib(connection, moved) if drain.leaves else 0
            await drains.report(connection, drain, drains.DrainProgress(moved, waiting, stays, done_mib, begun))
            if late:
                await drains.fail(connection, drain, _with_others(stays, waiting), len(waiting))
        if late:
            log.warning("a drain has failed", node=drain.node, time_limit_s=drain.time_limit_s, left=len(waiting))

    async def _move_some(
        self, drain: Drain, waiting: Sequence[Waiting], room: int, now: datetime
    ) -> tuple[list[Stays], int]:
        """Begin up to ``room`` moves; return what stays for now, with the reason, and how many moves have begun."""
        stays, begun, recorded = [], 0, {stay.vm: stay for stay in drain.stays}
        for vm in waiting:
            if vm.migration is None:
                stay, begins = await self._see_to(drain, vm, recorded.get(vm.id), now, may_begin=begun < room)
                stays += [] if stay is None else [stay]
                begun += begins
        return stays, begun

    async def _see_to(
        self, drain: Drain, vm: Waiting, before: Stays | None, now: datetime, *, may_begin: bool
    ) -> tuple[Stays | None, bool]:
        """Begin to move a VM if that is due; return why it stays, if so, and whether its move has begun."""
        why = _rests(vm, drain)
        if why is not None:
            stay = Stays(vm.id, vm.name, why.words, why.code)
        elif is_resting(before, now) or not may_begin:
            return before, False
        else:
            why = await self._move(drain, vm)
            if why is None:
                return None, True
            stay = tried_in_vain(before, vm.id, vm.name, why, now)
        if before is None or before.why != why.words:
            async with self.database.transaction() as connection:
                await drains.blocked(connection, drain, vm, why)
        return stay, False

    async def _move(self, drain: Drain, vm: Waiting) -> Why | None:
        """Begin to move a VM; return why it can't be moved, if so: then nothing changes."""
        why = await self.objects.reconcile(vm.id, lambda _: _move(self.database, drain, vm, self.by))
        failure = self.objects.failure(vm.id)
        return why if failure is None else Why(WaitCode.STEP_FAILED, f"it can't be moved now: {failure}")


def _with_others(stays: Sequence[Stays], waiting: Sequence[Waiting]) -> list[Stays]:
    """Return a reason for each VM that is left when the time limit has passed."""
    said = {stay.vm for stay in stays}
    others = [
        Stays(
            vm.id, vm.name,
            "the time limit passed before its turn" if vm.migration is None else "its migration continues",
            WaitCode.TIME_LIMIT,
        )
        for vm in waiting if vm.id not in said
    ]  # fmt: skip
    return [*stays, *others]


def _rests(vm: Waiting, drain: Drain) -> Why | None:
    """Say why a VM is not moved now whatever is tried, or None if it may be."""
    if vm.id in drain.given_up:
        words = vm.error or next((stay.why for stay in drain.stays if stay.vm == vm.id), "it was given up")
        return Why(WaitCode.WOULD_NOT_CONVERGE, words)
    if vm.state not in MOVABLE:
        return Why(WaitCode.MOVE_REFUSED, f"it is {vm.state}")
    return Why(WaitCode.MOVE_FAILED, vm.error) if vm.rests_s > 0 and vm.error else None


class _Ended(Exception):
    """A drain was ended since it was read: it begins no more moves."""


async def _move(database: Database, drain: Drain, vm: Waiting, by: Drains) -> Why | None:
    """Begin to move a VM; return why it can't be moved, if so: then nothing changes."""
    target, cause = (None, Cause.DRAIN) if drain.leaves else (drain.node, Cause.RETURN)
    try:
        if drain.leaves and drain.policy is DrainPolicy.LEAVE and vm.state == "running":
            async with database.transaction() as connection:
                _, target = await migrations.choose(connection, vm.id, None, None, index=by.index)
            forecast = (await by.estimate_move(vm.id, drain.node, target)).forecast
            if not forecast.converges and forecast.downtime_ms > drains.DOWNTIME_MS_MAX:
                async with database.transaction() as connection:
                    await drains.give_up(connection, drain, vm.id)
                return Why(WaitCode.WOULD_NOT_CONVERGE, f"it would not converge: {forecast.reason}")
        async with database.transaction() as connection:
            current = await vms.get(connection, vm.id)
            if (current.node == drain.node) is drain.leaves:
                request = migrations.MoveRequest(
                    actor=events.DRAIN_OF + drain.node, target=target, policy=drain.policy.of_migrations, cause=cause
                )
                await migrations.create(connection, vm.id, request, by.index)
                if not await drains.goes_on(connection, drain):  # last: an uncordon locks the node before it
                    raise _Ended
    except _Ended:
        return None
    except NovaError as error:
        return Why(WaitCode.UNPLACED if isinstance(error, NoCapacity) else WaitCode.MOVE_REFUSED, error.detail)
    return None
