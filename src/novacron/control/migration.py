"""Starts migrations within the limits of nodes and links, shares those among them, and ends those that can't go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from novacron.model.link_sharing import Demand, allot, budgets, crowding, uses
from novacron.model.migration import Migration, Phase
from novacron.store import links, migrations, nodes
from novacron.store.database import Database
from novacron.telemetry import traces


class Plan(msgspec.Struct, frozen=True):
    """What may be used now, in bytes a second, by migrations that run or are to begin, and why others wait."""

    begin: list[str]
    rates: dict[str, int | None]
    waits_for: dict[str, str | None]


def plan(
    active: Sequence[Migration],
    sites: Mapping[str, str],
    budgets: Mapping[str, float],
    at_once: Mapping[str, int],
) -> Plan:
    """Share ``budgets`` among running migrations and those that may begin, oldest first. ``at_once`` says how many may
    touch each node."""
    demands = {m.id: Demand(m.id, uses(m.source, m.target, sites), m.weight, m.rate_limit_bytes_per_s) for m in active}
    running = [demands[m.id] for m in active if m.phase is not Phase.PENDING]
    busy = Counter(name for m in active if m.phase is not Phase.PENDING for name in (m.source, m.target))
    begin: list[str] = []
    waits_for: dict[str, str | None] = {}
    for m in active:
        if m.phase is not Phase.PENDING:
            continue
        full = next((name for name in (m.source, m.target) if busy[name] >= at_once.get(name, 1)), None)
        crowded = crowding(demands[m.id], running, budgets)
        if full is not None:
            waits_for[m.id] = f"node {full} has {busy[full]} migrations under way"
        elif crowded is not None:
            waits_for[m.id] = f"{crowded} has no room for one more"
        else:
            busy.update((m.source, m.target))
            running.append(demands[m.id])
            begin.append(m.id)
    rates = {id: None if rate is None else max(1, int(rate)) for id, rate in allot(running, budgets).items()}
    return Plan(begin, rates, waits_for)


async def step(database: Database) -> None:
    async with database.connection() as connection:
        active = await migrations.active(connection)
        if not active:
            return
        stalled = await migrations.stalled(connection)
        known = await nodes.all(connection)
        limited = budgets(known, await links.all(connection), datetime.now(UTC))
    belongs = {m.id: m.trace for m in active}
    for id, why in stalled:
        with traces.span("migration is given up", parent=belongs[id], migration=id):
            async with database.transaction() as connection:
                await migrations.fail(connection, id, why)
    lost = {id for id, _ in stalled}
    found = plan(
        [m for m in active if m.id not in lost],
        {node.name: node.spec.site for node in known},
        limited,
        {node.name: node.migrations_at_once for node in known},
    )
    async with database.transaction() as connection:
        await migrations.share(connection, found.rates, found.waits_for)
    for id in found.begin:
        with traces.span("migration begins", parent=belongs[id], migration=id):
            async with database.transaction() as connection:
                await migrations.begin(connection, id)
