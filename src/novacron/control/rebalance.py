"""Rebalances the fleet: says what would be worth moving, or moves it."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from novacron.control.drain import MoveEstimator
from novacron.control.objects import Objects
from novacron.model.errors import Conflict, NovaError, Unavailable
from novacron.model.migration import Cause
from novacron.model.overload import UNKNOWN_SPREAD, NodesAhead, prevent
from novacron.model.placement import Fleet
from novacron.model.rebalance import (
    Decision,
    Move,
    RebalanceBasis,
    RebalanceMode,
    Since,
    VmLoad,
    decide,
    is_worth,
    sources,
)
from novacron.model.refused_moves import PlannedMove, RefusedMoves
from novacron.store import events, fleet, load_profiles, migrations, rebalancing
from novacron.store.database import Connection, Database
from novacron.store.fleet_index import FleetIndex
from novacron.telemetry import logs

log = logs.get(__name__)

MOVE_S_MAX = 60.0
"""Time limit of measuring what a move would be like, and of asking for it."""
UNUSUAL_SHARE_MAX = 0.5
"""While nothing usual is known of a greater share of VMs, as after an update, moves by forecasts are only advised."""
CHOICES_MAX = 3
"""In a round moves are chosen so often, the later times in the place of those that were refused."""


class MovesChosen(NamedTuple):
    """What was decided, and how long each VM was taken to move, in seconds."""

    decision: Decision
    move_s: dict[str, float]
    known_enough: bool = True
    """False: moves are only advised, whatever the mode."""


_Chosen = tuple[rebalancing.Rebalancing, MovesChosen]
"""How rebalancing was set up, and what that led to."""


class _RoundSoFar(msgspec.Struct):
    """What was begun and what was refused in a round."""

    moves_wanted: int
    """As many moves as were chosen first."""
    begun: list[Move] = []
    refused: set[str] = set()
    """VMs: in this round, others are tried."""


class Rebalance(msgspec.Struct):
    """``estimate_move`` is DWCP's forecast of a move; ``index`` has the fleet in memory; ``clock`` says seconds since
    1970."""

    estimate_move: MoveEstimator
    index: FleetIndex | None = None
    clock: Callable[[], float] = time.time
    refused: RefusedMoves = msgspec.field(default_factory=RefusedMoves)

    async def step(self, database: Database, objects: Objects) -> None:
        chosen = await self._choose(database, objects, frozenset())
        if chosen is None:
            return
        now, (decision, _, known_enough) = chosen
        mode = now.settings.mode if known_enough else RebalanceMode.ADVISE
        if mode is RebalanceMode.AUTO:
            decision = msgspec.structs.replace(decision, moves=tuple(await self._begin(database, objects, chosen)))
        decision = msgspec.structs.replace(decision, why=decision.why + self.refused.words(self.clock()))
        async with database.transaction() as connection:
            known_already = now.decision is not None and _same(now.decision, decision)
            await rebalancing.decided(connection, decision)
            if decision.moves and (mode is RebalanceMode.AUTO or not known_already):
                await rebalancing.record(connection, mode, decision)

    async def _begin(self, database: Database, objects: Objects, first: _Chosen) -> list[Move]:
        """Begin the moves that were chosen, and others in the place of those that were refused; return which began."""
        round_ = _RoundSoFar(len(first[1].decision.moves))
        await self._carry_out(database, objects, round_, first)
        for _ in range(CHOICES_MAX - 1):
            if len(round_.begun) >= round_.moves_wanted:
                break
            again = await self._choose(database, objects, round_.refused)
            if again is None or again[0].settings != first[0].settings or not again[1].decision.moves:
                break
            await self._carry_out(database, objects, round_, again)
        return round_.begun

    async def _choose(self, database: Database, objects: Objects, refused: AbstractSet[str]) -> _Chosen | None:
        """Return what is decided now, without some VMs; None while rebalancing is off."""
        async with database.connection() as connection:
            now = await rebalancing.get(connection)
            if now.settings.mode is RebalanceMode.OFF:
                return None
            nodes = await fleet.load(connection) if self.index is None or not self.index.ready else self.index.fleet
            rests = refused | set(objects.resting())
            by_forecast = now.settings.basis is RebalanceBasis.FORECAST
            choose = self._choose_by_forecast if by_forecast else self._choose_by_average
            return now, await choose(connection, nodes, now, rests)

    async def _carry_out(self, database: Database, objects: Objects, round_: _RoundSoFar, chosen: _Chosen) -> None:
        """Begin the moves that were chosen; remember which ones were refused."""
        now, (decision, move_s, _) = chosen
        planned = {move.vm: move for move in decision.moves[: round_.moves_wanted - len(round_.begun)]}
        begun: dict[str, Move] = {}
        refused: dict[str, str] = {}

        async def begin(vm: str) -> None:
            try:
                begun[vm] = await self._move(database, planned[vm], move_s[vm], now)
            except Unavailable:
                raise
            except NovaError as error:
                refused[vm] = error.detail

        await objects.each(planned, begin, limit_s=MOVE_S_MAX)
        for vm, move in planned.items():
            if vm in begun:
                self.refused.forget(vm)
                continue
            why = refused.get(vm) or objects.failure(vm)
            log.info("a move could not begin", vm=move.vm_name, target=move.target, why=why)
            if why is not None:  # else the database was away
                self.refused.refuse(PlannedMove(vm, move.vm_name, move.target), why, self.clock())
            round_.refused.add(vm)
        round_.begun += begun.values()

    async def _choose_by_forecast(
        self, connection: Connection, nodes: Fleet, now: rebalancing.Rebalancing, rests: AbstractSet[str]
    ) -> MovesChosen:
        at = datetime.fromtimestamp(self.clock(), UTC)
        uses = await load_profiles.uses(connection, UNKNOWN_SPREAD, at.date())
        outlook = NodesAhead(nodes, uses.of, now.settings, at.hour)
        vms = await rebalancing.vms_ahead(connection, outlook.asked(), at.date())
        loads = self._movable([vm.load for vm in vms], rests)
        vms = [vm._replace(load=load) for vm, load in zip(vms, loads, strict=True)]
        decision = prevent(outlook, vms, await rebalancing.under_way(connection))
        known_enough = uses.unusual <= UNUSUAL_SHARE_MAX * uses.vms
        if uses.unusual:
            thin = f"; {uses.unusual} of {uses.vms} VMs are assumed to continue as in the last hour: too little history"
            if now.settings.mode is RebalanceMode.AUTO and not known_enough:
                thin += ", so moves are only advised until half of the VMs have two days of history"
            decision = msgspec.structs.replace(decision, why=decision.why + thin)
        return MovesChosen(decision, {vm.load.wish.id: vm.load.move_s for vm in vms}, known_enough)

    async def _choose_by_average(
        self, connection: Connection, nodes: Fleet, now: rebalancing.Rebalancing, rests: AbstractSet[str]
    ) -> MovesChosen:
        uses = await rebalancing.uses(connection)
        since = Since(now.rounds, await rebalancing.under_way(connection))
        vms = await rebalancing.loads(connection, sources(nodes, uses, now.settings.concurrency))
        vms = self._movable(vms, rests)
        return MovesChosen(decide(nodes, uses, vms, now.settings, since), {vm.wish.id: vm.move_s for vm in vms})

    def _movable(self, vms: list[VmLoad], rests: AbstractSet[str]) -> list[VmLoad]:
        """Return the VMs; those that rest, and moves that were refused, are not chosen."""
        return [
            msgspec.structs.replace(vm, movable=False) if vm.wish.id in rests else vm
            for vm in self.refused.without(vms, self.clock())
        ]

    async def _move(self, database: Database, move: Move, assumed_s: float, now: rebalancing.Rebalancing) -> Move:
        """Begin a move, if its benefit is worth its forecast cost. Raises NovaError if it is not, or is refused."""
        try:
            foreseen = (await self.estimate_move(move.vm, move.source, move.target)).forecast
        except Unavailable as error:  # a node is, not the database
            raise Conflict(error.detail) from error
        if not foreseen.converges:
            raise Conflict(f"it would not converge: {foreseen.reason or 'the guest writes faster than the link sends'}")
        if not is_worth(now.settings, move.gain, foreseen.total_s - assumed_s):
            raise Conflict(f"its benefit is not worth the {foreseen.total_s:.0f} s that it would take")
        async with database.transaction() as connection:
            request = migrations.MoveRequest(actor=events.REBALANCING, target=move.target, cause=Cause.REBALANCE)
            await migrations.create(connection, move.vm, request)
            await rebalancing.check_memory(connection, move.target, move.vm)
        return msgspec.structs.replace(move, why=f"{move.why}; foreseen: {foreseen.total_s:.0f} s")


def _same(before: Decision, now: Decision) -> bool:
    return {(move.vm, move.target) for move in before.moves} == {(move.vm, move.target) for move in now.moves}
