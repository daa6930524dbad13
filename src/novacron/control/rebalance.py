"""Rebalances the fleet: says what would be worth moving, or moves it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from novacron.control.drain import Foresee
from novacron.control.objects import Objects
from novacron.model.errors import NovaError
from novacron.model.migration import Cause
from novacron.model.overload import UNKNOWN_SPREAD, NodesAhead, prevent
from novacron.model.placement import Fleet
from novacron.model.rebalance import (
    Decision,
    Move,
    RebalanceBasis,
    RebalanceMode,
    Since,
    decide,
    is_worth,
    sources,
)
from novacron.store import events, fleet, load_profiles, migrations, rebalancing
from novacron.store.database import Connection, Database
from novacron.store.fleet_index import FleetIndex
from novacron.telemetry import logs

log = logs.get(__name__)

MOVE_S_MAX = 60.0
"""Time limit of measuring what a move would be like, and of asking for it."""


class MovesChosen(NamedTuple):
    """What was decided, and how long each VM was taken to move, in seconds."""

    decision: Decision
    move_s: dict[str, float]


class Rebalance(msgspec.Struct):
    """``foresee`` is DWCP's forecast of a move; ``index`` has the fleet in memory; ``clock`` says seconds since
    1970."""

    foresee: Foresee
    index: FleetIndex | None = None
    clock: Callable[[], float] = time.time

    async def step(self, database: Database, objects: Objects) -> None:
        async with database.connection() as connection:
            now = await rebalancing.get(connection)
            if now.settings.mode is RebalanceMode.OFF:
                return
            nodes = await fleet.load(connection) if self.index is None or not self.index.ready else self.index.fleet
            by_forecast = now.settings.basis is RebalanceBasis.FORECAST
            choose = self._choose_by_forecast if by_forecast else _choose_by_average
            decision, move_s = await choose(connection, nodes, now)
        if now.settings.mode is RebalanceMode.AUTO:
            planned = {move.vm: move for move in decision.moves}
            begun: list[Move] = []

            async def begin(vm: str) -> None:
                move = await self._move(database, planned[vm], move_s[vm], now)
                if move is not None:
                    begun.append(move)

            await objects.each(planned, begin, limit_s=MOVE_S_MAX)
            decision = msgspec.structs.replace(decision, moves=tuple(begun))
        async with database.transaction() as connection:
            known_already = now.decision is not None and _same(now.decision, decision)
            await rebalancing.decided(connection, decision)
            if decision.moves and not known_already:
                await rebalancing.record(connection, now.settings.mode, decision)

    async def _choose_by_forecast(
        self, connection: Connection, nodes: Fleet, now: rebalancing.Rebalancing
    ) -> MovesChosen:
        hour = datetime.fromtimestamp(self.clock(), UTC).hour
        uses = await load_profiles.uses(connection, UNKNOWN_SPREAD)
        outlook = NodesAhead(nodes, uses.of, now.settings, hour)
        vms = await rebalancing.vms_ahead(connection, outlook.asked())
        decision = prevent(outlook, vms, await rebalancing.under_way(connection))
        if uses.unusual:
            thin = f"; {uses.unusual} of {uses.vms} VMs are taken to go on as in the last hour: too little is known"
            decision = msgspec.structs.replace(decision, why=decision.why + thin)
        return MovesChosen(decision, {vm.load.wish.id: vm.load.move_s for vm in vms})

    async def _move(
        self, database: Database, move: Move, assumed_s: float, now: rebalancing.Rebalancing
    ) -> Move | None:
        """Begin a move, if its benefit is worth its forecast cost."""
        try:
            foreseen = (await self.foresee(move.vm, move.source, move.target)).forecast
            if not foreseen.converges or not is_worth(now.settings, move.gain, foreseen.total_s - assumed_s):
                why = foreseen.reason or f"it would take {foreseen.total_s:.0f} s"
                log.info("a move is not worth its cost", vm=move.vm_name, target=move.target, why=why)
                return None
            async with database.transaction() as connection:
                request = migrations.MoveRequest(actor=events.REBALANCING, target=move.target, cause=Cause.REBALANCE)
                await migrations.create(connection, move.vm, request)
                await rebalancing.check_memory(connection, move.target, move.vm)
        except NovaError as error:
            log.info("a move could not begin", vm=move.vm_name, target=move.target, why=error.detail)
            return None
        return msgspec.structs.replace(move, why=f"{move.why}; foreseen: {foreseen.total_s:.0f} s")


async def _choose_by_average(connection: Connection, nodes: Fleet, now: rebalancing.Rebalancing) -> MovesChosen:
    uses = await rebalancing.uses(connection)
    since = Since(now.rounds, await rebalancing.under_way(connection))
    vms = await rebalancing.loads(connection, sources(nodes, uses, now.settings.concurrency))
    return MovesChosen(decide(nodes, uses, vms, now.settings, since), {vm.wish.id: vm.move_s for vm in vms})


def _same(before: Decision, now: Decision) -> bool:
    return {(move.vm, move.target) for move in before.moves} == {(move.vm, move.target) for move in now.moves}
