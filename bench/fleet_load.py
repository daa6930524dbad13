"""A day of load for a fleet, the same for a seed: each VM has a rhythm, some have peaks, some change for good."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime
from typing import NamedTuple

from lab.vm_loads import uses_of
from novacron.model.node import (
    Accelerator,
    AcceleratorKind,
    ImageInfo,
    Inventory,
    Load,
    Node,
    NodeSpec,
    NodeStatus,
)
from novacron.model.placement import Fleet, Wish
from novacron.model.rebalance import Settings, Since, VmLoad, decide, deviation, loads_of, smoothed
from novacron.model.vm import VmSpec

DAY_S = 24 * 3600
ROUND_S = 300
LINK_BYTES_PER_S = 125e6
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def node(name: str, memory_mib: int, cpus: int, site: str = "a") -> Node:
    inventory = Inventory(
        cpus=cpus, memory_mib=memory_mib, architecture="x86_64", kernel="6.1", qemu_version="7.2",
        accelerator=Accelerator(AcceleratorKind.KVM, ""), images=(ImageInfo("debian", "0" * 64, 1, "disk"),),
        bridge=None, dwcp_endpoint="", agent_version="0",
    )  # fmt: skip
    return Node(name, NodeSpec(site=site), NodeStatus(True, "", inventory), 1, NOW)


class Rhythm(NamedTuple):
    """How much of its processors a VM uses over a day."""

    base: float
    swing: float
    peak_at: float
    changes_at: float
    changes_by: float

    def at(self, second: float, noise: random.Random) -> float:
        daily = self.swing * (1 + math.cos(2 * math.pi * (second - self.peak_at) / DAY_S)) / 2
        factor = self.changes_by if second > self.changes_at else 1.0
        burst = 3.0 if noise.random() < 0.02 else 1.0
        return min(1.0, (self.base + daily) * factor * burst * noise.uniform(0.7, 1.3))


class Day(NamedTuple):
    """What came of a day."""

    deviation_without: float
    """Of the nodes' loads, the mean over the day, were nothing moved."""
    deviation_with: float
    moves: int
    moves_of_one_max: int
    back_and_forth: int
    """Moves of a VM to the node that it had left before."""


def simulate(seed: int, nodes: int, vms: int, settings: Settings | None = None) -> Day:
    """Run a day, with rebalancing and without, on the same load."""
    settings = settings or Settings()
    rng = random.Random(seed)
    every = [node(f"n{number:03}", 256 * 1024, 64, f"s{number % 3}") for number in range(nodes)]
    specs = [
        VmSpec("debian", vcpus=rng.choice([1, 2, 4]), memory_mib=rng.choice([1024, 2048, 4096])) for _ in range(vms)
    ]
    office = rng.random
    rhythms = [
        Rhythm(
            rng.uniform(0.02, 0.2), rng.choice([0.0, 0.2, 0.6]), rng.gauss(13 * 3600, 3 * 3600),
            rng.uniform(0, DAY_S) if office() < 0.15 else math.inf, rng.choice([0.2, 4.0]),
        )
        for _ in range(vms)
    ]  # fmt: skip
    where = [f"n{min(nodes - 1, int(abs(rng.gauss(0, 0.5)) * nodes)) if rng.random() < 0.3 else number % nodes:03}"
             for number in range(vms)]  # fmt: skip
    begun, moved_at, left_node = list(where), [-math.inf] * vms, [""] * vms
    average: list[float | None] = [None] * vms
    count = [0] * vms
    back = rounds = 0
    with_, without = [], []
    for second in range(0, DAY_S, ROUND_S):
        used = [rhythm.at(second, rng) * spec.vcpus for rhythm, spec in zip(rhythms, specs, strict=True)]
        average = [smoothed(old, new, ROUND_S) for old, new in zip(average, used, strict=True)]
        loads: dict[str, Load] = {}
        for spec, at in zip(specs, where, strict=True):
            now = loads.get(at, Load())
            loads[at] = Load(now.vcpus + spec.vcpus, now.memory_mib + spec.memory_mib)
        fleet = Fleet(every, loads)

        def seen(places: list[str], cpus: list[float], at_s: int = second) -> list[VmLoad]:
            return [
                VmLoad(
                    Wish(str(number), specs[number], places[number]), f"vm-{number}", cpus[number],
                    at_s - moved_at[number], move_s=specs[number].memory_mib * 2**20 / LINK_BYTES_PER_S,
                )
                for number in range(vms)
            ]  # fmt: skip

        with_.append(deviation(loads_of(fleet, uses_of(seen(where, used)))))
        without.append(deviation(loads_of(fleet, uses_of(seen(begun, used)))))
        vm_loads = seen(where, [value or 0.0 for value in average])
        decision = decide(fleet, uses_of(vm_loads), vm_loads, settings, Since(rounds, 0))
        rounds = decision.rounds
        for move in decision.moves:
            number = int(move.vm)
            back += left_node[number] == move.target
            left_node[number], where[number], moved_at[number] = where[number], move.target, second
            count[number] += 1
    return Day(sum(without) / len(without), sum(with_) / len(with_), sum(count), max(count), back)
