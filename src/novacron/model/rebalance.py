"""Rebalancing: few and worthwhile moves, from measured load. Pure: what is known in, what is decided out.

A node's load is the share of its processors that its VMs use, and of its memory that they have. Moves are chosen one
after another, each by how much evener it makes the loads as they will be after it: by how much less the sum of their
squares is. What a guest used just now counts little: loads are averages over an hour, so that a peak moves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from novacron.model.fit import capacity
from novacron.model.placement import Fleet, Wish

CPU_SHARE, MEMORY_SHARE = 0.7, 0.3
"""What of a node's load its processors and its memory are."""
AVERAGE_S = 3600.0
"""Over how long loads are averaged."""
SOURCES_MAX, TARGETS_MAX = 4, 6
"""Of how many of the most loaded nodes, and to how many of the least loaded ones, moves are looked for."""


class RebalanceMode(StrEnum):
    OFF = "off"
    ADVISE = "advise"
    """Say what would be moved, and why."""
    AUTO = "auto"
    """Move it."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the fleet is rebalanced."""

    mode: RebalanceMode = RebalanceMode.OFF
    imbalance_min: Annotated[float, Meta(ge=0.01, le=1.0)] = 0.04
    """Standard deviation of the nodes' loads below which nothing is done."""
    rounds: Annotated[int, Meta(ge=1, le=100)] = 3
    """In how many rounds, one after another, it must have been above that."""
    gain_min: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.003
    """How much evener a move must make the two nodes, beyond its cost."""
    cost_per_s: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0001
    """What a second of a migration counts for, against that."""
    cool_down_s: Annotated[int, Meta(ge=60, le=7 * 24 * 3600)] = 12 * 3600
    """A VM is not moved again for so long."""
    concurrency: Annotated[int, Meta(ge=1, le=64)] = 4
    """How many such moves are under way at most."""


class VmLoad(msgspec.Struct, frozen=True):
    """A VM as rebalancing sees it."""

    wish: Wish
    """With the node that it is on."""
    name: str
    cpus: float
    """How many processors it uses, on average."""
    moved_s: float = math.inf
    """How long ago it was moved last."""
    movable: bool = True
    move_s: float = 0.0
    """How long a move takes, as foreseen."""


class Move(msgspec.Struct, frozen=True):
    """A move that is worth it, and why."""

    vm: str
    vm_name: str
    source: str
    target: str
    gain: float
    why: str


class Decision(msgspec.Struct, frozen=True):
    """What was decided in a round."""

    imbalance: float
    """Standard deviation of the nodes' loads."""
    rounds: int
    """In how many rounds it has been too high, this one included."""
    moves: tuple[Move, ...]
    why: str


def smoothed(old: float | None, new: float, passed_s: float) -> float:
    """Return an average over ``AVERAGE_S`` that goes on (exponentially weighted) with a value of ``passed_s``."""
    if old is None:
        return new
    return old + (new - old) * (1.0 - math.exp(-passed_s / AVERAGE_S))


def deviation(loads: Mapping[str, float]) -> float:
    """Return the standard deviation of loads."""
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
    """What a node's VMs use together, on average."""

    cpus: float = 0.0
    memory_mib: int = 0


def uses_of(vms: Iterable[VmLoad]) -> dict[str, NodeUse]:
    """Return what the VMs of each node use together."""
    uses: dict[str, NodeUse] = {}
    for vm in vms:
        if vm.wish.at is not None:
            before = uses.get(vm.wish.at, NodeUse())
            uses[vm.wish.at] = NodeUse(before.cpus + vm.cpus, before.memory_mib + vm.wish.spec.memory_mib)
    return uses


def loads_of(fleet: Fleet, uses: Mapping[str, NodeUse]) -> dict[str, float]:
    """Return the load of every node that is well: ready and not cordoned.

    Others count for nothing here, and nothing is moved from or to them: what they do now, and what they will have to
    take back, is unsure.
    """
    return {
        name: _part(fleet, name, *uses.get(name, NodeUse()))
        for name, node in fleet.nodes.items()
        if node.status.ready and not node.spec.cordoned
    }


def sources(fleet: Fleet, uses: Mapping[str, NodeUse], moves_max: int) -> list[str]:
    """Return the most loaded nodes: all those whose VMs ``decide`` may look at, for so many moves."""
    loads = loads_of(fleet, uses)
    return sorted(loads, key=lambda name: (loads[name], name))[-(SOURCES_MAX + moves_max) :]


class Since(NamedTuple):
    """In how many rounds before this one the loads were too uneven, and how many moves are under way."""

    rounds: int
    under_way: int


def decide(
    fleet: Fleet, uses: Mapping[str, NodeUse], vms: Sequence[VmLoad], settings: Settings, since: Since
) -> Decision:
    """Return what to move now. ``uses``: of all nodes; ``vms``: at least those of the ``sources``."""
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
            loads[move.source] -= _part(fleet, move.source, vm.cpus, vm.wish.spec.memory_mib)
            loads[move.target] += _part(fleet, move.target, vm.cpus, vm.wish.spec.memory_mib)
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
        less = _part(fleet, source, vm.cpus, vm.wish.spec.memory_mib)
        more = _part(fleet, target, vm.cpus, vm.wish.spec.memory_mib)
        gain = loads[source] ** 2 + loads[target] ** 2
        gain -= (loads[source] - less) ** 2 + (loads[target] + more) ** 2
        gain -= settings.cost_per_s * vm.move_s
        if gain <= settings.gain_min or (best is not None and gain <= best[0]):
            continue
        if loads[target] + more < loads[source] and fleet.judge(vm.wish, target).refusal is None:
            best = gain, vm, source, target
    if best is None:
        return None
    gain, vm, source, target = best
    after = (
        loads[source] - _part(fleet, source, vm.cpus, vm.wish.spec.memory_mib),
        loads[target] + _part(fleet, target, vm.cpus, vm.wish.spec.memory_mib),
    )
    why = (
        f"{source} is loaded by {loads[source]:.2f} and {target} by {loads[target]:.2f};"
        f" with {vm.name} there, {after[0]:.2f} and {after[1]:.2f}; the move takes about {vm.move_s:.0f} s"
    )
    return vm, Move(vm.wish.id, vm.name, source, target, round(gain, 5), why)


def _candidates(there: Mapping[str, list[VmLoad]], loads: Mapping[str, float]) -> Iterator[tuple[str, str, VmLoad]]:
    """Return each VM of the most loaded nodes with its node and every less loaded one to which it could go."""
    order = sorted(loads, key=lambda name: (loads[name], name))
    for source in reversed(order[-SOURCES_MAX:]):
        for target in order[:TARGETS_MAX]:
            if loads[source] > loads[target]:
                for vm in there.get(source, ()):
                    yield source, target, vm
