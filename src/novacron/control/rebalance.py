"""Rebalances the fleet: says what would be worth moving, or moves it."""

from __future__ import annotations

import msgspec

from novacron.control.drain import Foresee
from novacron.model.errors import NovaError
from novacron.model.migration import Cause
from novacron.model.rebalance import Decision, Mode, Move, decide
from novacron.store import fleet, migrations, rebalancing
from novacron.store.database import Database
from novacron.telemetry import logs

log = logs.get(__name__)


class Rebalance(msgspec.Struct):
    """``foresee`` is DWCP's forecast of a move."""

    foresee: Foresee

    async def step(self, database: Database) -> None:
        async with database.connection() as connection:
            now = await rebalancing.get(connection)
            if now.settings.mode is Mode.OFF:
                return
            known = await fleet.load(connection, images_come=False)
            vms = await rebalancing.loads(connection)
            under_way = await rebalancing.under_way(connection)
        decision = decide(known, vms, now.settings, now.rounds, under_way)
        if now.settings.mode is Mode.AUTO:
            worth = {vm.wish.id: vm.move_s for vm in vms}
            moves = [await self._move(database, move, worth[move.vm], now) for move in decision.moves]
            begun = [move for move in moves if move is not None]
            decision = msgspec.structs.replace(decision, moves=tuple(begun))
        async with database.transaction() as connection:
            known_already = now.decision is not None and _same(now.decision, decision)
            await rebalancing.decided(connection, decision)
            if decision.moves and not known_already:
                await rebalancing.record(connection, now.settings.mode, decision)

    async def _move(
        self, database: Database, move: Move, assumed_s: float, now: rebalancing.Rebalancing
    ) -> Move | None:
        """Begin a move, if it is worth what it is foreseen to take."""
        try:
            foreseen = (await self.foresee(move.vm, move.source, move.target)).forecast
            cost = now.settings.cost_per_s * (foreseen.total_s - assumed_s)
            if not foreseen.converges or move.gain - cost <= now.settings.gain_min:
                why = foreseen.reason or f"it would take {foreseen.total_s:.0f} s"
                log.info("a move is not worth its cost", vm=move.vm_name, target=move.target, why=why)
                return None
            async with database.transaction() as connection:
                await migrations.create(
                    connection, move.vm, move.target, None, "rebalancing", cause=Cause.REBALANCE
                )  # fmt: skip
        except NovaError as error:
            log.info("a move could not begin", vm=move.vm_name, target=move.target, why=error.detail)
            return None
        return msgspec.structs.replace(move, why=f"{move.why}; foreseen: {foreseen.total_s:.0f} s")


def _same(one: Decision, other: Decision) -> bool:
    return {(move.vm, move.target) for move in one.moves} == {(move.vm, move.target) for move in other.moves}
