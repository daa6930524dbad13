"""How concurrent migrations share nodes and links: pure arithmetic.

Each migration gets its weighted max-min fair share of every budget that it uses (Bertsekas and Gallager, "Data
Networks", 6.5.2): all rates grow together, each in proportion to its weight, until a budget is used up. Migrations that
use that budget keep their rate, and the others go on growing. Rates are in bytes a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from math import inf
from typing import Annotated

import msgspec
from msgspec import Meta

from novacron.model import limits
from novacron.model.names import NAME_PATTERN
from novacron.model.node import Node

Rate = Annotated[int, Meta(ge=limits.RATE_BYTES_PER_S_MIN, le=limits.RATE_BYTES_PER_S_MAX)]
Weight = Annotated[int, Meta(ge=1, le=100)]
SiteName = Annotated[str, Meta(pattern=NAME_PATTERN, max_length=limits.NAME_LENGTH_MAX)]
TimeOfDay = Annotated[str, Meta(pattern="^([01][0-9]|2[0-3]):[0-5][0-9]\\Z")]
Day = Annotated[int, Meta(ge=1, le=7)]

FULL = 0.999
"""A budget counts as used up if more than this share of it is used."""
EVERY_DAY = (1, 2, 3, 4, 5, 6, 7)


class Window(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A time of day with a lower rate. Times are UTC. A window whose end is before its start ends on the next day."""

    start: TimeOfDay
    end: TimeOfDay
    rate_bytes_per_s: Rate
    days: tuple[Day, ...] = EVERY_DAY
    """The days on which the window starts; 1 is Monday."""

    def holds(self, now: datetime) -> bool:
        time, day = now.strftime("%H:%M"), now.isoweekday()
        if self.start <= self.end:
            return day in self.days and self.start <= time < self.end
        yesterday = (day - 2) % 7 + 1
        return (day in self.days and time >= self.start) or (yesterday in self.days and time < self.end)


class LinkSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rate that all migrations between two sites share."""

    rate_bytes_per_s: Rate
    schedule: Annotated[tuple[Window, ...], Meta(max_length=limits.LINK_WINDOWS_MAX)] = ()
    """Windows can only lower the rate. If several apply, the lowest counts."""

    def rate_at(self, now: datetime) -> int:
        return min([self.rate_bytes_per_s, *(window.rate_bytes_per_s for window in self.schedule if window.holds(now))])


class Link(msgspec.Struct, frozen=True):
    """The budget between two sites, as stored; of a site with itself: the budget of its own network."""

    id: str
    sites: tuple[str, str]
    spec: LinkSpec
    revision: int
    created_at: datetime


def link_id(site: str, other: str) -> str:
    """Return the id of the link between two sites, whichever is named first."""
    return "/".join(sorted((site, other)))


class Demand(msgspec.Struct, frozen=True):
    """A migration that takes all it can get of the budgets that it uses, up to its own limit."""

    id: str
    uses: tuple[str, ...]
    weight: int = 1
    limit: float | None = None


def budgets(nodes: Iterable[Node], links: Iterable[Link], now: datetime) -> dict[str, float]:
    """Return the budgets of nodes and links, by the names that messages give them, such as ``node host-a``."""
    rates: dict[str, float] = {f"link {link.id}": link.spec.rate_at(now) for link in links}
    for node in nodes:
        if node.spec.migration_rate_bytes_per_s is not None:
            rates[f"node {node.name}"] = node.spec.migration_rate_bytes_per_s
    return rates


def uses(source: str, target: str, sites: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of the budgets that a migration between two nodes uses. ``sites``: the site of each node."""
    return f"node {source}", f"node {target}", f"link {link_id(sites.get(source, ''), sites.get(target, ''))}"


def lowest(source: Node, target: Node, links: Iterable[Link], now: datetime) -> int | None:
    """Return the smallest budget for traffic between two nodes, or None if nothing limits it."""
    limited = budgets((source, target), links, now)
    used = uses(source.name, target.name, {node.name: node.spec.site for node in (source, target)})
    return min((int(limited[budget]) for budget in used if budget in limited), default=None)


def allot(demands: Iterable[Demand], budgets: Mapping[str, float]) -> dict[str, float | None]:
    """Return the rate of each demand, None if nothing limits it. A budget that is missing is unlimited."""
    rates: dict[str, float | None] = {}
    remaining = dict(budgets)
    growing = {d.id: d for d in demands}
    while growing:
        levels = _levels(growing.values(), remaining)
        if not levels:
            return rates | dict.fromkeys(growing)
        level = min(levels.values())
        for d in [growing.pop(id) for id, own in levels.items() if own <= level]:
            rates[d.id] = level * d.weight
            for budget in filter(remaining.__contains__, d.uses):
                remaining[budget] = max(0.0, remaining[budget] - level * d.weight)
    return rates


def _levels(growing: Collection[Demand], remaining: Mapping[str, float]) -> dict[str, float]:
    """Return the rate per weight at which each demand meets its first limit, without demands that have no limit."""
    weights: Counter[str] = Counter()
    for d in growing:
        for budget in d.uses:
            weights[budget] += d.weight
    levels = {}
    for d in growing:
        bounds = [remaining[budget] / weights[budget] for budget in d.uses if budget in remaining]
        if d.limit is not None:
            bounds.append(d.limit / d.weight)
        if bounds:
            levels[d.id] = min(bounds)
    return levels


def crowding(candidate: Demand, running: Sequence[Demand], budgets: Mapping[str, float]) -> str | None:
    """Return which budget is too small for one more migration, or None if ``candidate`` may begin beside ``running``.

    A migration that shares no budget with others may always begin, however small its budgets are.
    """
    shared = [b for b in candidate.uses if b in budgets and any(b in d.uses for d in running)]
    if not shared:
        return None
    everyone = [*running, candidate]
    rates = allot(everyone, budgets)
    for budget in shared:
        users = {d.id: rates[d.id] or 0.0 for d in everyone if budget in d.uses}
        if sum(users.values()) >= budgets[budget] * FULL and _starves([d for d in everyone if d.id in users], users):
            return budget
    return None


def _starves(users: Sequence[Demand], rates: Mapping[str, float]) -> bool:
    """Say whether a used-up budget leaves one of its users a rate that is too low to be useful.

    The budget holds back those of its users that have the highest rate per weight.
    """
    levels = {d.id: rates[d.id] / d.weight for d in users}
    highest = max(levels.values())
    return any(
        levels[d.id] >= highest * FULL and rates[d.id] < min(limits.RATE_BYTES_PER_S_USEFUL, d.limit or inf)
        for d in users
    )
