"""When sites, pools, quotas and the database are full, in dates and in words. Pure.

What is foreseen is arithmetic: what is free now divided by the growth a day. It says what happens if all goes on as it
did, not what will happen; and nothing of fragmentation, of nodes that fail, or of rules of placement.
"""

from __future__ import annotations

import math
from calendar import month_name
from datetime import date, timedelta
from enum import StrEnum

import msgspec

KNOWN_DAYS_MIN = 14
HORIZON_DAYS = 3650
"""What is full later than that is not foreseen."""
MORE_NODES = (1, 2)


class CapacityResource(StrEnum):
    """A resource that can fill up or expire."""

    SITE_MEMORY = "site-memory"
    """Memory that is placed on the nodes of a site, of what may be placed there, both without huge pages. In MiB."""
    SITE_VCPUS = "site-vcpus"
    """vCPUs likewise. A dedicated one takes a CPU, which no others share."""
    SITE_HUGE_2M = "site-huge-2m"
    """Huge pages of 2 MiB of the nodes of a site, which count for VMs that consist of them only. In MiB."""
    SITE_HUGE_1G = "site-huge-1g"
    """Huge pages of 1 GiB likewise."""
    POOL = "pool"
    """Bytes of a storage pool, as its node sees it."""
    QUOTA = "quota"
    """What a project uses of a quota."""
    DATABASE = "database"
    """Bytes of the server's database."""
    CERTIFICATE = "certificate"
    """The node certificate that ends first."""


class GrowthRate(msgspec.Struct, frozen=True):
    """Daily growth: a robust slope, with a 90 % interval."""

    a_day: float
    lower: float
    upper: float


class NodeGain(msgspec.Struct, frozen=True):
    """When it is full with this many more nodes of the site's usual size; null: beyond ten years."""

    nodes: int
    until: date | None


class CapacityForecast(msgspec.Struct, frozen=True):
    """When a resource will be full at its current growth."""

    resource: CapacityResource
    name: str
    """Of the site, pool (NODE/POOL, or POOL if nodes share it), quota (PROJECT/FIELD) or node."""
    words: str
    used: float
    size: float | None
    """null: not known."""
    known_days: int
    growth: GrowthRate | None = None
    """null: too few days are known."""
    full_on: date | None = None
    """null: no forecast within ten years. Of a certificate: when it ends."""
    full_earliest: date | None = None
    full_latest: date | None = None
    """With ``full_earliest``, what the growth's interval allows; null: it may never be full."""
    usual_node: float | None = None
    """What a node of the usual size adds, for sites."""
    with_more_nodes: tuple[NodeGain, ...] = ()


class ResourceHistory(msgspec.Struct, frozen=True):
    """What is known of a resource: what it has now, and on how many days it was looked at."""

    resource: CapacityResource
    name: str
    used: float
    size: float | None
    known_days: int
    usual_node: float | None = None


def forecast_of(known: ResourceHistory, growth: GrowthRate | None, today: date) -> CapacityForecast:
    """Return when a resource is full. ``growth`` counts only if enough days are known."""
    if known.known_days < KNOWN_DAYS_MIN:
        growth = None
    on = early = late = None
    gains: tuple[NodeGain, ...] = ()
    if growth is not None and known.size is not None:
        free = known.size - known.used
        on, early, late = (day_full(free, rate, today) for rate in (growth.a_day, growth.upper, growth.lower))
        if known.usual_node and on is not None:
            gains = tuple(
                NodeGain(count, day_full(free + count * known.usual_node, growth.a_day, today)) for count in MORE_NODES
            )
    forecast = CapacityForecast(
        known.resource, known.name, "", known.used, known.size, known.known_days, growth, on, early, late,
        known.usual_node, gains,
    )  # fmt: skip
    return msgspec.structs.replace(forecast, words=words(forecast))


def day_full(free: float, a_day: float, today: date) -> date | None:
    """Return the first day on which nothing is free; None: not within ten years."""
    if free <= 0:
        return today
    if a_day <= 0 or free / a_day > HORIZON_DAYS:
        return None
    return today + timedelta(days=math.ceil(free / a_day))


def certificate(node: str, ends_on: date, today: date) -> CapacityForecast:
    """Return when the node certificate that ends first does."""
    late = "; its agent has not renewed it" if ends_on < today else ", unless its agent renews it, as agents do"
    said = f"the certificate of node {node} {'ended' if ends_on < today else 'ends'} on {day(ends_on)}{late}"
    return CapacityForecast(CapacityResource.CERTIFICATE, node, said, 0, None, 0, full_on=ends_on)


def words(forecast: CapacityForecast) -> str:
    """Say it in a sentence."""
    subject = title(forecast)
    amount = f"{amount_of(forecast, forecast.used)} used"
    if forecast.size is not None:
        amount = f"{amount_of(forecast, forecast.used)} of {amount_of(forecast, forecast.size)} used"
        if forecast.used >= forecast.size:
            return f"{subject} is full: {amount}"
    if forecast.growth is None:
        known = f"{forecast.known_days} of {KNOWN_DAYS_MIN} days are known that it takes to say how it grows"
        return f"{subject}: {amount}; {known}"
    rate = f"{amount_of(forecast, abs(forecast.growth.a_day))} a day"
    if forecast.size is None:
        verb = "grows" if forecast.growth.a_day >= 0 else "shrinks"
        return f"{subject}: {amount}, {verb} by {rate}; how much room it has is not known here"
    if forecast.growth.a_day <= 0:
        return f"{subject} does not grow: {amount}{may_be_full(forecast)}"
    if forecast.full_on is None:
        return f"{subject} grows by {rate}: {amount}, not full within ten years{may_be_full(forecast)}"
    said = f"{subject} is full on {day(forecast.full_on)} at this growth of {rate}{between(forecast)}: {amount}"
    return said + more_nodes(forecast)


def title(forecast: CapacityForecast) -> str:
    match forecast.resource:
        case CapacityResource.SITE_MEMORY:
            return f"room for memory of site {forecast.name}"
        case CapacityResource.SITE_VCPUS:
            return f"room for vCPUs of site {forecast.name}"
        case CapacityResource.SITE_HUGE_2M | CapacityResource.SITE_HUGE_1G:
            size = "2 MiB" if forecast.resource is CapacityResource.SITE_HUGE_2M else "1 GiB"
            return f"room in huge pages of {size} of site {forecast.name}"
        case CapacityResource.POOL:
            return f"pool {forecast.name}"
        case CapacityResource.QUOTA:
            project, _, field = forecast.name.partition("/")
            return f"the quota {field} of project {project}"
        case CapacityResource.DATABASE:
            return "the database"
        case CapacityResource.CERTIFICATE:
            return f"the certificate of node {forecast.name}"


def may_be_full(forecast: CapacityForecast) -> str:
    early = forecast.full_earliest
    return "" if early is None else f" (with the most growth that fits what is known: full on {day(early)})"


def between(forecast: CapacityForecast) -> str:
    if forecast.full_earliest is None:
        return ""
    late = "never" if forecast.full_latest is None else day(forecast.full_latest)
    return f" (90 %: {day(forecast.full_earliest)} to {late})"


def more_nodes(forecast: CapacityForecast) -> str:
    if not forecast.with_more_nodes or forecast.usual_node is None:
        return ""
    size = amount_of(forecast, forecast.usual_node)
    lasts = ", ".join(
        f"{'one' if gain.nodes == 1 else 'two'} more {'node' if gain.nodes == 1 else 'nodes'} until"
        f" {'beyond ten years' if gain.until is None else day(gain.until)}"
        for gain in forecast.with_more_nodes
    )
    return f"; with nodes of the usual size ({size}): {lasts}"


def amount_of(forecast: CapacityForecast, amount: float) -> str:
    """Return an amount with its unit."""
    match forecast.resource:
        case CapacityResource.SITE_MEMORY | CapacityResource.SITE_HUGE_2M | CapacityResource.SITE_HUGE_1G:
            return binary(amount * 2**20)
        case CapacityResource.POOL | CapacityResource.DATABASE:
            return binary(amount)
        case CapacityResource.QUOTA if forecast.name.endswith("_mib"):
            return binary(amount * 2**20)
        case CapacityResource.SITE_VCPUS:
            return f"{plain(amount)} vCPUs"
        case _:
            return plain(amount)


def plain(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 10 or amount == int(amount) else f"{amount:.1f}"


def binary(size_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:,.1f} TiB"


def day(at: date) -> str:
    return f"{at.day} {month_name[at.month]} {at.year}"
