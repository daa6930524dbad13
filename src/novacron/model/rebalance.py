"""Rebalancing: few and worthwhile moves, decided from measured load. Pure.

``model.overload`` decides by forecasts; here are decisions by averages, and what both need. A node's load combines the
share of its processors that its VMs use and the share of its memory that they have. Moves are chosen one after another,
each by how much it reduces the sum of the squares of the loads. Loads are averages over an hour, so that a short peak
moves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from novacron.model import fit
from novacron.model.fit import capacity
from novacron.model.node import Node, ordinary_memory_mib
from novacron.model.placement import Fleet, Wish

CPU_SHARE, MEMORY_SHARE = 0.7, 0.3
"""Weights of processors and memory in a node's load."""
AVERAGE_S = 3600.0
"""Time over which loads are averaged."""
SOURCES_MAX, TARGETS_MAX = 4, 6
"""Moves are considered from this many of the most loaded nodes, to this many of the least loaded ones."""


class RebalanceMode(StrEnum):
    """What is done about an imbalance."""

    OFF = "off"
    ADVISE = "advise"
    """Report which VMs would be moved, and why."""
    AUTO = "auto"
    """Move VMs."""


class RebalanceBasis(StrEnum):
    """What decides about moves."""

    FORECAST = "forecast"
    """The overload of nodes that is foreseen for the next day, without a move and with it."""
    AVERAGE = "average"
    """How unevenly nodes were loaded, on average over the last hour."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The policy by which the fleet is rebalanced."""

    mode: RebalanceMode = RebalanceMode.OFF
    imbalance_min: Annotated[float, Meta(ge=0.01, le=1.0)] = 0.04
    """Nothing is moved while the standard deviation of the nodes' loads is at most this."""
    rounds: Annotated[int, Meta(ge=1, le=100)] = 3
    """The deviation must be greater in this many consecutive rounds before a VM is moved."""
    gain_min: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.003
    """The least gain of a move, after its cost: by how much it reduces the sum of the squares of the loads."""
    cost_per_s: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0001
    """The cost of a second of a migration, subtracted from the gain."""
    cool_down_s: Annotated[int, Meta(ge=60, le=7 * 24 * 3600)] = 12 * 3600
    """A VM is not moved again for this long."""
    concurrency: Annotated[int, Meta(ge=1, le=64)] = 4
    """The most moves at the same time."""
    basis: RebalanceBasis = RebalanceBasis.FORECAST
    """What decides about moves. ``imbalance_min``, ``rounds``, ``gain_min`` and ``cost_per_s`` count for the average
    only, what follows for the forecast only."""
    cpu_share: Annotated[float, Meta(ge=0.1, le=2.0)] = 0.95
    """A node is overloaded while its VMs want more than this share of its processors."""
    overload_minutes_min: Annotated[float, Meta(ge=0.5, le=1440.0)] = 10.0
    """Nothing is moved from a node that is foreseen to be overloaded for fewer minutes of the next day."""
    relief_minutes_min: Annotated[float, Meta(ge=0.1, le=1440.0)] = 4.0
    """The least minutes of overload that a move has to prevent, after its cost."""
    cost_per_minute: Annotated[float, Meta(ge=0.0, le=60.0)] = 0.2
    """The cost of a minute of a migration, in minutes of overload."""


class VmLoad(msgspec.Struct, frozen=True):
    """A VM with its measured load."""

    wish: Wish
    """Includes the node that the VM is on."""
    name: str
    cpus: float
    """How many processors the VM uses, on average."""
    moved_s: float = math.inf
    """Seconds since the VM last moved."""
    movable: bool = True
    move_s: float = 0.0
    """Estimated seconds that a move takes."""
    barred: frozenset[str] = frozenset()
    """Nodes to which a move was refused a short while ago."""


class Move(msgspec.Struct, frozen=True):
    """A worthwhile move, and its reason."""

    vm: str
    vm_name: str
    source: str
    target: str
    gain: float
    """What it is worth: minutes of overload that it prevents, or by how much the sum of squared loads falls."""
    why: str


class Decision(msgspec.Struct, frozen=True):
    """The decision of a round."""

    imbalance: float
    """Standard deviation of the nodes' loads."""
    rounds: int
    """Consecutive rounds in which the imbalance was too high, including this one."""
    moves: tuple[Move, ...]
    why: str
    overload_minutes: float | None = None
    """Minutes of the next day for which nodes are foreseen to be overloaded, added up; null: the average decides."""


def memory_refusal(node: Node, given_mib: int, more_mib: int) -> str | None:
    """Return why a node has no room for so much more memory, beside huge pages, or None if it has.

    Rebalancing takes no risk with memory: it never overcommits, whatever placement may do. Huge pages can't be
    overcommitted: placement counts them.
    """
    inventory = node.status.inventory
    size_mib = 0 if inventory is None else fit.ordinary_memory_mib(inventory)
    if not more_mib or given_mib + more_mib <= size_mib:
        return None
    return (
        f"node {node.name} has {size_mib} MiB of memory for VMs, {given_mib} MiB of which are given to VMs:"
        f" {more_mib} MiB more do not fit, and rebalancing never overcommits memory"
    )


def refusal(fleet: Fleet, vm: VmLoad, target: str) -> str | None:
    """Return why rebalancing does not move a VM to a node, or None."""
    if target in vm.barred:
        return f"a move of {vm.name} to {target} was refused a short while ago"
    given_mib, more_mib = fleet.loads[target].memory_mib, ordinary_memory_mib(vm.wish.spec)
    return memory_refusal(fleet.nodes[target], given_mib, more_mib) or fleet.judge(vm.wish, target).refusal


def is_worth(settings: Settings, gain: float, longer_s: float) -> bool:
    """Say whether a move with this gain is still worth it, if it takes so much longer than was assumed."""
    if settings.basis is RebalanceBasis.AVERAGE:
        return gain - settings.cost_per_s * longer_s > settings.gain_min
    return gain - settings.cost_per_minute * longer_s / 60.0 > settings.relief_minutes_min


def smoothed(old: float | None, new: float, passed_s: float) -> float:
    """Return the exponentially weighted average over ``AVERAGE_S``, updated with the value of the last ``passed_s``."""
    if old is None:
        return new
    return old + (new - old) * (1.0 - math.exp(-passed_s / AVERAGE_S))


def deviation(loads: Mapping[str, float]) -> float:
    """Return the standard deviation of the loads."""
    if not loads:
        return 0.0
    mean = math.fsum(loads.values()) / len(loads)
    return math.sqrt(math.fsum((load - mean) ** 2 for load in loads.values()) / len(loads))


def _part(fleet: Fleet, node: str, cpus: float, memory_mib: float) -> float:
    memory, _ = capacity(fleet.nodes[node])
    inventory = fleet.nodes[node].status.inventory
    if inventory is None:
        return 0.0
    return CPU_SHARE * cpus / max(1, inventory.cpus) + MEMORY_SHARE * memory_mib / max(1.0, memory)


class NodeUse(NamedTuple):
    """The average use of all VMs of a node."""

    cpus: float = 0.0
    memory_mib: int = 0
    """Without that which consists of huge pages."""


def loads_of(fleet: Fleet, uses: Mapping[str, NodeUse]) -> dict[str, float]:
    """Return the load of every node that is ready and not cordoned.

    Other nodes are disregarded, and nothing is moved from or to them: their load, now and later, is not known.
    """
    return {
        name: _part(fleet, name, *uses.get(name, NodeUse()))
        for name, node in fleet.nodes.items()
        if node.status.ready and not node.spec.cordoned
    }


def sources(fleet: Fleet, uses: Mapping[str, NodeUse], moves_max: int) -> list[str]:
    """Return the most loaded nodes: those whose VMs ``decide`` may look at, for up to ``moves_max`` moves."""
    loads = loads_of(fleet, uses)
    return sorted(loads, key=lambda name: (loads[name], name))[-(SOURCES_MAX + moves_max) :]


class Since(NamedTuple):
    """Consecutive earlier rounds in which the imbalance was too high, and the moves that are under way."""

    rounds: int
    under_way: int


def decide(
    fleet: Fleet, uses: Mapping[str, NodeUse], vms: Sequence[VmLoad], settings: Settings, since: Since
) -> Decision:
    """Return which VMs to move now. ``uses``: of all nodes; ``vms``: at least the VMs of the ``sources``."""
    rounds, under_way = since
    loads = loads_of(fleet, uses)
    imbalance = round(deviation(loads), 4)
    lost = sum(not node.status.ready for node in fleet.nodes.values())
    aside = f" (lost nodes left out: {lost})" if lost else ""
    if imbalance <= settings.imbalance_min:
        return Decision(imbalance, 0, (), f"the loads of nodes deviate by {imbalance:.3f}: even enough{aside}")
    rounds += 1
    if rounds < settings.rounds:
        return Decision(imbalance, rounds, (), f"the loads deviate by {imbalance:.3f} for {rounds} rounds{aside}")
    room = settings.concurrency - under_way
    if room <= 0:
        return Decision(imbalance, rounds, (), f"{under_way} moves are under way already")
    there: dict[str, list[VmLoad]] = {}
    for vm in vms:
        if vm.wish.at is not None and vm.movable and vm.moved_s >= settings.cool_down_s:
            there.setdefault(vm.wish.at, []).append(vm)
    moves: list[Move] = []
    taken: list[tuple[VmLoad, str]] = []
    try:
        while len(moves) < room and deviation(loads) > settings.imbalance_min:
            best = _best(fleet, there, loads, settings)
            if best is None:
                break
            vm, move = best
            moves.append(move)
            there[move.source].remove(vm)
            loads[move.source] -= _part(fleet, move.source, vm.cpus, ordinary_memory_mib(vm.wish.spec))
            loads[move.target] += _part(fleet, move.target, vm.cpus, ordinary_memory_mib(vm.wish.spec))
            fleet.take(vm.wish, move.target)
            taken.append((vm, move.target))
    finally:  # the fleet is as it was: the moves have yet to be asked for
        for vm, target in reversed(taken):
            fleet.take(vm.wish._replace(at=target), str(vm.wish.at))
    why = f"the loads deviate by {imbalance:.3f} for {rounds} rounds{aside}"
    return Decision(imbalance, rounds, tuple(moves), why + ("" if moves else "; no move would be worth its cost"))


def _best(
    fleet: Fleet, there: Mapping[str, list[VmLoad]], loads: Mapping[str, float], settings: Settings
) -> tuple[VmLoad, Move] | None:
    best: tuple[float, VmLoad, str, str] | None = None
    for source, target, vm in _candidates(there, loads):
        less = _part(fleet, source, vm.cpus, ordinary_memory_mib(vm.wish.spec))
        more = _part(fleet, target, vm.cpus, ordinary_memory_mib(vm.wish.spec))
        gain = loads[source] ** 2 + loads[target] ** 2
        gain -= (loads[source] - less) ** 2 + (loads[target] + more) ** 2
        gain -= settings.cost_per_s * vm.move_s
        if gain <= settings.gain_min or (best is not None and gain <= best[0]):
            continue
        if loads[target] + more < loads[source] and refusal(fleet, vm, target) is None:
            best = gain, vm, source, target
    if best is None:
        return None
    gain, vm, source, target = best
    after = (
        loads[source] - _part(fleet, source, vm.cpus, ordinary_memory_mib(vm.wish.spec)),
        loads[target] + _part(fleet, target, vm.cpus, ordinary_memory_mib(vm.wish.spec)),
    )
    why = (
        f"{source} is loaded by {loads[source]:.2f} and {target} by {loads[target]:.2f};"
        f" with {vm.name} there, {after[0]:.2f} and {after[1]:.2f}; the move takes about {vm.move_s:.0f} s"
    )
    return vm, Move(vm.wish.id, vm.name, source, target, round(gain, 5), why)


def _candidates(there: Mapping[str, list[VmLoad]], loads: Mapping[str, float]) -> Iterator[tuple[str, str, VmLoad]]:
    """Yield each VM of the most loaded nodes with its node and each of the least loaded nodes."""
    order = sorted(loads, key=lambda name: (loads[name], name))
    for source in reversed(order[-SOURCES_MAX:]):
        for target in order[:TARGETS_MAX]:
            if loads[source] > loads[target]:
                for vm in there.get(source, ()):
                    yield source, target, vm
