"""Starts migrations within the limits of nodes and links, shares those among them, and ends those that can't go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from novacron.control.objects import Objects
from novacron.model.link_sharing import Demand, allot, budgets, crowding, uses
from novacron.model.migration import Migration, MigrationPhase
from novacron.store import links, migrations, nodes
from novacron.store.database import Database
from novacron.telemetry import traces

LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


class MigrationPlan(msgspec.Struct, frozen=True):
    """What may be used now, in bytes a second, by migrations that run or are to begin, and why others wait."""

    begin: list[str]
    rates: dict[str, int | None]
    waits_for: dict[str, str | None]


def plan(
    active: Sequence[Migration],
    sites: Mapping[str, str],
    budgets: Mapping[str, float],
    at_once: Mapping[str, int],
    last_began: Mapping[str, datetime] | None = None,
) -> MigrationPlan:
    """Share ``budgets`` among running migrations and those that may begin: projects in rotation, of each the oldest
    first. ``at_once`` says how many may touch each node, ``last_began`` when one of each project began last."""
    demands = {m.id: Demand(m.id, uses(m.source, m.target, sites), m.weight, m.rate_limit_bytes_per_s) for m in active}
    running = [demands[m.id] for m in active if m.phase is not MigrationPhase.PENDING]
    busy = Counter(name for m in active if m.phase is not MigrationPhase.PENDING for name in (m.source, m.target))
    begin: list[str] = []
    waits_for: dict[str, str | None] = {}
    for m in _in_rotation(active, last_began or {}):
        full = next((name for name in (m.source, m.target) if busy[name] >= at_once.get(name, 1)), None)
        if full is not None:
            waits_for[m.id] = f"node {full} has {busy[full]} migrations in progress"
        elif (crowded := crowding(demands[m.id], running, budgets)) is not None:
            waits_for[m.id] = f"{crowded} has no bandwidth left for another migration"
        else:
            busy.update((m.source, m.target))
            running.append(demands[m.id])
            begin.append(m.id)
    rates = {id: None if rate is None else max(1, int(rate)) for id, rate in allot(running, budgets).items()}
    return MigrationPlan(begin, rates, waits_for)


def _in_rotation(active: Sequence[Migration], last_began: Mapping[str, datetime]) -> list[Migration]:
    """Return the migrations that wait, in the order of their turns: those of the project with the fewest under way
    first, and among equals of the one whose last began longest ago."""
    turns = Counter(m.project for m in active if m.phase is not MigrationPhase.PENDING)
    waiting = list[tuple[int, datetime, int, Migration]]()
    for place, m in enumerate(active):
        if m.phase is MigrationPhase.PENDING:
            waiting.append((turns[m.project], last_began.get(m.project, LONG_AGO), place, m))
            turns[m.project] += 1
    return [m for *_, m in sorted(waiting, key=lambda turn: turn[:3])]


class _Pass(msgspec.Struct, frozen=True):
    """What one pass has found: the migrations that have not ended, why some must end, and what the others get."""

    active: Mapping[str, Migration]
    stalled: Mapping[str, str]
    plan: MigrationPlan


async def step(database: Database, objects: Objects) -> None:
    now = await _look(database)
    if not now.active:
        return

    async def share(ids: Sequence[str], *, begins: bool = False) -> None:
        async with database.transaction() as connection:
            await migrations.share(
                connection,
                {id: now.plan.rates[id] for id in ids if id in now.plan.rates},
                {id: now.plan.waits_for[id] for id in ids if id in now.plan.waits_for},
            )
            for id in ids if begins else ():
                await migrations.begin(connection, id)

    async def begin(id: str) -> None:
        with traces.span("migration begins", parent=now.active[id].trace, migration=id):
            await share([id], begins=True)

    async def give_up(id: str) -> None:
        with traces.span("migration is given up", parent=now.active[id].trace, migration=id):
            async with database.transaction() as connection:
                await migrations.fail(connection, id, now.stalled[id])

    await objects.each(now.stalled, give_up)
    shared = (now.plan.rates.keys() | now.plan.waits_for.keys()) - set(now.plan.begin)
    await objects.together(sorted(shared), share, lambda id: share([id]))
    await objects.each(now.plan.begin, begin)


async def _look(database: Database) -> _Pass:
    async with database.connection() as connection:
        active = {m.id: m for m in await migrations.active(connection)}
        if not active:
            return _Pass({}, {}, MigrationPlan([], {}, {}))
        stalled = {id: reason for id, reason in await migrations.stalled(connection) if id in active}
        waiting = {m.project for m in active.values() if m.phase is MigrationPhase.PENDING}
        last_began = await migrations.last_began(connection) if len(waiting) > 1 else {}
        all_nodes = await nodes.all(connection)
        limited = budgets(all_nodes, await links.all(connection), datetime.now(UTC))
    return _Pass(
        active,
        stalled,
        plan(
            [m for m in active.values() if m.id not in stalled],
            {node.name: node.spec.site for node in all_nodes},
            limited,
            {node.name: node.migrations_at_once for node in all_nodes},
            last_began,
        ),
    )
