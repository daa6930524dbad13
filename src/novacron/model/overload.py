"""Overload that is foreseen, and the moves that prevent it. Pure.

What a VM uses at an hour of the day is spread around a mean. Means and variances of VMs add up, so what a node will use
*after a move* is known before it, and for how many minutes that is more than it has:

    minutes of an hour = 60 * P(use > capacity), with use ~ Normal(sum of means, sum of variances)

Moves are chosen one after another, each by how many minutes of the next day's overload it prevents.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from novacron.model.placement import Fleet
from novacron.model.rebalance import SOURCES_MAX, Decision, Move, Settings, VmLoad, refusal

HOURS = 24
"""How far is looked ahead; the hours of a day."""
PERSISTENCE = 0.8
"""How much of a VM's difference from its usual load is left an hour later."""
FADES = tuple(PERSISTENCE**passed for passed in range(HOURS))
CERTAIN_SQUARED = 4.0**2
"""A capacity that is four standard deviations above the mean is not exceeded."""
UPPER_DEVIATIONS = 2.0
"""What a load stays below 98 % of the time, in standard deviations above its mean."""
TARGETS_MAX = 12
"""A VM's move is considered to this many nodes: of those that take it, the ones with the most room in their fullest
hour."""
JUDGED_MAX = 2000
"""So often a choice looks whether a node takes a VM, ..."""
JUDGED_OF_VM_MAX = 500
"""... and so often for one VM."""
CHOICES_MAX = 8
"""So many moves are chosen at once; the next ones a minute later. Meanwhile its process does nothing else."""
ASKED_MAX = 24
"""Moves are considered from this many nodes: the worst ``SOURCES_MAX`` first, others only where these can not be
helped."""
DEPARTURES_MAX = 20
"""Of this many VMs at a time it is looked at where they could go: so a choice takes about 40 ms."""
TARGET_SHARE_MAX = 0.8
"""A target may be overloaded for this share of the time from which a source is relieved, or of the time for which this
source would be: else the next VM would be moved from it."""
HARM_OF_MISSING = 1.0
"""How much a missing processor counts, beside the time for which any is missing."""
UNKNOWN_SPREAD = 0.5
"""Standard deviation of a load of which only the last hour is known, as a share of it."""


class HourlyUse(NamedTuple):
    """What a VM, or all VMs of a node together, use: processors."""

    now: float
    """On average over the last hour."""
    means: Sequence[float]
    """By hour of the day (UTC); so are the variances."""
    variances: Sequence[float]

    @classmethod
    def unusual(cls, now: float) -> HourlyUse:
        """Return what is taken to be usual where only the last hour is known: that it goes on."""
        return cls(now, (now,) * HOURS, ((UNKNOWN_SPREAD * now) ** 2,) * HOURS)

    def capped(self, cpus: float) -> HourlyUse:
        """Return the same of a VM that now has only so many processors: where it used more, its load shrinks as a
        whole, so the deviation does by the same factor."""
        if max(self.means) <= cpus:
            return self
        factors = [min(1.0, cpus / mean) if mean > 0.0 else 1.0 for mean in self.means]
        means = [mean * factor for mean, factor in zip(self.means, factors, strict=True)]
        return HourlyUse(
            self.now, means, [spread * factor**2 for spread, factor in zip(self.variances, factors, strict=True)]
        )


class Ahead(NamedTuple):
    """What will be used in the next hours, the present one first."""

    means: list[float]
    variances: list[float]

    def plus(self, other: Ahead) -> Ahead:
        return Ahead(
            [a + b for a, b in zip(self.means, other.means, strict=True)],
            [a + b for a, b in zip(self.variances, other.variances, strict=True)],
        )

    def minus(self, other: Ahead) -> Ahead:
        return Ahead(
            [max(0.0, a - b) for a, b in zip(self.means, other.means, strict=True)],
            [max(0.0, a - b) for a, b in zip(self.variances, other.variances, strict=True)],
        )

    def upper(self, passed: int) -> float:
        """Return what is hardly ever exceeded in an hour."""
        return self.means[passed] + UPPER_DEVIATIONS * math.sqrt(self.variances[passed])


def ahead(use: HourlyUse, hour: int) -> Ahead:
    """Return what is foreseen from ``hour`` of the day on: as usual, and less and less as in the last hour."""
    order = [(hour + passed) % HOURS for passed in range(HOURS)]
    differs = use.now - use.means[hour]
    means = [max(0.0, use.means[at] + differs * fade) for at, fade in zip(order, FADES, strict=True)]
    return Ahead(means, [use.variances[at] for at in order])


class Overload(NamedTuple):
    """How much more will be wanted than there is, over the next hours."""

    minutes: float
    """How long."""
    missing: float
    """How much: minutes of a processor."""

    @property
    def harm(self) -> float:
        """Return what moves are to make small. Time alone would not tell a lack of five processors from one of two,
        so that no first move would be worth it where two are needed."""
        return self.minutes + HARM_OF_MISSING * self.missing


def expected(load: Ahead, capacity: float) -> Overload:
    """Return what is expected, if no more than ``capacity`` processors are there."""
    minutes = missing = 0.0
    for mean, variance in zip(load.means, load.variances, strict=True):
        room = capacity - mean
        if room > 0.0 and room * room >= CERTAIN_SQUARED * variance:
            continue
        if variance <= 0.0:
            minutes += 60.0 * (room < 0.0)
            missing -= 60.0 * min(0.0, room)
            continue
        chance = 0.5 * math.erfc(room / math.sqrt(2.0 * variance))
        density = math.exp(-room * room / (2.0 * variance)) * math.sqrt(variance / (2.0 * math.pi))
        minutes += 60.0 * chance
        missing += 60.0 * max(0.0, density - room * chance)
    return Overload(minutes, missing)


class VmAhead(NamedTuple):
    """A VM, and what it uses."""

    load: VmLoad
    use: HourlyUse


class _LoadAhead(NamedTuple):
    """A node's load, and its overload."""

    load: Ahead
    over: Overload


class _Departure(NamedTuple):
    """A VM that may leave, and its node without it."""

    vm: VmAhead
    source: str
    left: _LoadAhead
    gain: float
    """What that prevents, less what the move costs: a target makes it smaller, never greater."""


class _Change(NamedTuple):
    """A possible move, with both nodes as they will be."""

    vm: VmAhead
    source: str
    target: str
    left: _LoadAhead
    filled: _LoadAhead
    gain: float


class NodesAhead:
    """What is foreseen of every node that is ready and not cordoned, while moves are chosen."""

    def __init__(self, fleet: Fleet, uses: Mapping[str, HourlyUse], settings: Settings, hour: int) -> None:
        """``uses``: of all nodes; one that is not there has no load. ``hour``: of the day (UTC)."""
        self.fleet, self.settings, self.hour = fleet, settings, hour
        nothing = HourlyUse.unusual(0.0)
        self.nodes: dict[str, _LoadAhead] = {}
        for name, node in fleet.nodes.items():
            if node.status.ready and not node.spec.cordoned and node.status.inventory is not None:
                self.nodes[name] = self._load_ahead(name, ahead(uses.get(name, nothing), hour))
        self._vms: dict[str, Ahead] = {}
        self._with: dict[tuple[str, str], _LoadAhead] = {}
        """Of each VM and node: the node without it, if it is there, else with it."""
        self._rooms: dict[str, float] = {}

    @property
    def total(self) -> float:
        return math.fsum(node.over.minutes for node in self.nodes.values())

    def capacity(self, name: str) -> float:
        inventory = self.fleet.nodes[name].status.inventory
        return 0.0 if inventory is None else inventory.cpus * self.settings.cpu_share

    def overloaded(self) -> list[str]:
        """Return the nodes that will be overloaded, the worst first."""
        least = self.settings.overload_minutes_min
        hurt = [name for name, node in self.nodes.items() if node.over.minutes >= least]
        return sorted(hurt, key=lambda name: (-self.nodes[name].over.harm, name))

    def asked(self) -> list[str]:
        """Return the nodes whose VMs ``prevent`` may look at."""
        return self.overloaded()[:ASKED_MAX]

    def targets(self) -> list[str]:
        """Return all nodes, those with the most room in their fullest hour first."""
        return sorted(self.nodes, key=lambda name: (-self._room(name), name))

    def _room(self, name: str) -> float:
        if name not in self._rooms:
            load = self.nodes[name].load
            self._rooms[name] = self.capacity(name) - max(load.upper(passed) for passed in range(HOURS))
        return self._rooms[name]

    def departures(self, sources: Sequence[str], there: Mapping[str, list[VmAhead]]) -> list[_Departure]:
        """Return what the departure of each VM of some nodes would prevent, most first."""
        departures = []
        for source in sources:
            before = self.nodes[source].over.harm
            for vm in there.get(source, ()):
                left = self._changed(vm, source)
                cost = self.settings.cost_per_minute * vm.load.move_s / 60.0
                departures.append(_Departure(vm, source, left, before - left.over.harm - cost))
        return sorted(departures, key=lambda departure: -departure.gain)

    def change(self, departure: _Departure, target: str, least: float) -> _Change | None:
        """Return what a move would change; None unless it prevents more than ``least``."""
        vm, source = departure.vm, departure.source
        filled = self._changed(vm, target)
        gain = departure.gain - (filled.over.harm - self.nodes[target].over.harm)
        bearable = TARGET_SHARE_MAX * max(self.settings.overload_minutes_min, self.nodes[source].over.minutes)
        if gain <= least or filled.over.minutes > bearable:
            return None
        return _Change(vm, source, target, departure.left, filled, gain)

    def apply(self, change: _Change) -> None:
        for name, node in ((change.source, change.left), (change.target, change.filled)):
            self.nodes[name] = node
            self._rooms.pop(name, None)
            for key in [key for key in self._with if key[1] == name]:
                del self._with[key]

    def words(self, change: _Change) -> str:
        """Return what a move is good for."""
        vm, source, before = change.vm.load, change.source, self.nodes[change.source]
        worst = max(range(HOURS), key=before.load.upper)
        return (
            f"{source} would be overloaded for {before.over.minutes:.0f} minutes of the next day, most at"
            f" {(self.hour + worst) % HOURS:02}:00 UTC with up to {before.load.upper(worst):.1f} of"
            f" {self.capacity(source):.1f} processors; without {vm.name}, which moves in about {vm.move_s:.0f} s, it is"
            f" {change.left.over.minutes:.0f} minutes and {change.left.load.upper(worst):.1f} processors, and"
            f" {change.filled.over.minutes:.0f} minutes on {change.target}"
        )

    def _load_ahead(self, name: str, load: Ahead) -> _LoadAhead:
        return _LoadAhead(load, expected(load, self.capacity(name)))

    def _changed(self, vm: VmAhead, name: str) -> _LoadAhead:
        id = vm.load.wish.id
        if (id, name) not in self._with:
            if id not in self._vms:
                self._vms[id] = ahead(vm.use, self.hour)
            load = self.nodes[name].load
            change = load.minus if name == vm.load.wish.at else load.plus
            self._with[id, name] = self._load_ahead(name, change(self._vms[id]))
        return self._with[id, name]


def prevent(outlook: NodesAhead, vms: Sequence[VmAhead], under_way: int) -> Decision:
    """Return which VMs to move now, so that nodes will not be overloaded. ``vms``: at least those of the nodes that
    ``NodesAhead.asked`` returns."""
    fleet, settings, total = outlook.fleet, outlook.settings, round(outlook.total, 1)
    hurt = outlook.overloaded()
    if not hurt:
        least = settings.overload_minutes_min
        return Decision(0.0, 0, (), f"no node will be overloaded for {least:g} minutes of the next day", total)
    why = (
        f"{len(hurt)} of {len(outlook.nodes)} nodes will be overloaded, most {hurt[0]}, for"
        f" {outlook.nodes[hurt[0]].over.minutes:.0f} minutes of the next day"
    )
    room = min(CHOICES_MAX, settings.concurrency - under_way)
    if room <= 0:
        return Decision(0.0, 0, (), f"{why}; {under_way} moves are under way already", total)
    there: dict[str, list[VmAhead]] = {}
    for vm in vms:
        if vm.load.wish.at in outlook.nodes and vm.load.movable and vm.load.moved_s >= settings.cool_down_s:
            there.setdefault(vm.load.wish.at, []).append(vm)
    moves: list[Move] = []
    taken: list[_Change] = []
    try:
        while len(moves) < room:
            best = _best(outlook, there)
            if best is None:
                break
            chosen, gain = best.vm.load, round(best.gain, 2)
            moves.append(Move(chosen.wish.id, chosen.name, best.source, best.target, gain, outlook.words(best)))
            there[best.source].remove(best.vm)
            outlook.apply(best)
            fleet.take(chosen.wish, best.target)
            taken.append(best)
    finally:  # the fleet is as it was: the moves have yet to be asked for
        for change in reversed(taken):
            fleet.take(change.vm.load.wish._replace(at=change.target), change.source)
    return Decision(0.0, 0, tuple(moves), why + ("" if moves else "; no move would prevent enough of it"), total)


def _best(outlook: NodesAhead, there: Mapping[str, list[VmAhead]]) -> _Change | None:
    """Return the best move from the worst nodes that can be helped."""
    judge, worst = _Judge(outlook), outlook.asked()
    for first in range(0, len(worst), SOURCES_MAX):
        departures = outlook.departures(worst[first : first + SOURCES_MAX], there)
        best = _best_of(outlook, departures[:DEPARTURES_MAX], judge)
        if best is not None:
            return best
    return None


class _Judge:
    """Says which nodes take a VM, a limited number of times."""

    def __init__(self, outlook: NodesAhead) -> None:
        self._outlook, self._targets, self._left = outlook, outlook.targets(), JUDGED_MAX

    def roomiest(self, departure: _Departure) -> Iterator[str]:
        """Yield the nodes with the most room of those that take a VM."""
        source, vm, targets = departure.source, departure.vm.load, 0
        others = (name for name in self._targets if name != source)
        for target in itertools.islice(others, min(JUDGED_OF_VM_MAX, self._left)):
            self._left -= 1
            if refusal(self._outlook.fleet, vm, target) is None:
                yield target
                targets += 1
                if targets == TARGETS_MAX:
                    return


def _best_of(outlook: NodesAhead, departures: Sequence[_Departure], judge: _Judge) -> _Change | None:
    best, least = None, outlook.settings.relief_minutes_min
    for departure in departures:
        if departure.gain <= least:
            break
        for target in judge.roomiest(departure):
            change = outlook.change(departure, target, least)
            if change is not None:
                best, least = change, change.gain
    return best
