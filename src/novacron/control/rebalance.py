"""Rebalances the fleet: says what would be worth moving, or moves it."""

from __future__ import annotations

import msgspec

from novacron.control.drain import Foresee
from novacron.control.objects import Objects
from novacron.model.errors import NovaError
from novacron.model.migration import Cause
from novacron.model.rebalance import Decision, Move, RebalanceMode, Since, decide, sources
from novacron.store import events, fleet, migrations, rebalancing
from novacron.store.database import Database
from novacron.store.fleet_index import FleetIndex
from novacron.telemetry import logs

log = logs.get(__name__)

MOVE_S_MAX = 60.0
"""Time limit of measuring what a move would be like, and of asking for it."""


class Rebalance(msgspec.Struct):
    """``foresee`` is DWCP's forecast of a move; ``index`` has the fleet in memory."""

    foresee: Foresee
    index: FleetIndex | None = None

    async def step(self, database: Database, objects: Objects) -> None:
        async with database.connection() as connection:
            now = await rebalancing.get(connection)
            if now.settings.mode is RebalanceMode.OFF:
                return
            nodes = await fleet.load(connection) if self.index is None or not self.index.ready else self.index.fleet
            uses = await rebalancing.uses(connection)
            since = Since(now.rounds, await rebalancing.under_way(connection))
            vms = await rebalancing.loads(connection, sources(nodes, uses, now.settings.concurrency))
        decision = decide(nodes, uses, vms, now.settings, since)
        if now.settings.mode is RebalanceMode.AUTO:
            worth = {vm.wish.id: vm.move_s for vm in vms}
            planned = {move.vm: move for move in decision.moves}
            begun: list[Move] = []

            async def begin(vm: str) -> None:
                move = await self._move(database, planned[vm], worth[vm], now)
                if move is not None:
                    begun.append(move)

            await objects.each(planned, begin, limit_s=MOVE_S_MAX)
            decision = msgspec.structs.replace(decision, moves=tuple(begun))
        async with database.transaction() as connection:
            known_already = now.decision is not None and _same(now.decision, decision)
            await rebalancing.decided(connection, decision)
            if decision.moves and not known_already:
                await rebalancing.record(connection, now.settings.mode, decision)

    async def _move(
        self, database: Database, move: Move, assumed_s: float, now: rebalancing.Rebalancing
    ) -> Move | None:
        """Begin a move, if its benefit is worth its forecast cost."""
        try:
            foreseen = (await self.foresee(move.vm, move.source, move.target)).forecast
            cost = now.settings.cost_per_s * (foreseen.total_s - assumed_s)
            if not foreseen.converges or move.gain - cost <= now.settings.gain_min:
                why = foreseen.reason or f"it would take {foreseen.total_s:.0f} s"
                log.info("a move is not worth its cost", vm=move.vm_name, target=move.target, why=why)
                return None
            async with database.transaction() as connection:
                request = migrations.MoveRequest(actor=events.REBALANCING, target=move.target, cause=Cause.REBALANCE)
                await migrations.create(connection, move.vm, request)
        except NovaError as error:
            log.info("a move could not begin", vm=move.vm_name, target=move.target, why=error.detail)
            return None
        return msgspec.structs.replace(move, why=f"{move.why}; foreseen: {foreseen.total_s:.0f} s")


def _same(before: Decision, now: Decision) -> bool:
    return {(move.vm, move.target) for move in before.moves} == {(move.vm, move.target) for move in now.moves}
