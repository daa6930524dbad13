"""A month of other people's VMs on 100 nodes: overload without rebalancing, with that by averages, and by forecasts.

The decisions are the product's own (``model.rebalance.decide``, ``model.overload.prevent``), and so are averages,
profiles and placement. Simulated are only the nodes: while its VMs want more than a node has, each gets its share, and
is measured with it. A VM is where it is to go with the next sample, five minutes later.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from bench.fleet_load import node
from bench.onsets import SAMPLES_AN_HOUR
from bench.report import Figure
from novacron.model.limits import NODE_MEMORY_RESERVE_MIB
from novacron.model.overload import HourlyUse, NodesAhead, VmAhead, prevent
from novacron.model.placement import Fleet, Wish
from novacron.model.rebalance import (
    Decision,
    NodeUse,
    RebalanceBasis,
    Settings,
    Since,
    VmLoad,
    decide,
    smoothed,
    sources,
)
from novacron.model.vm import VmSpec
from novacron.prediction.load import Floats
from novacron.prediction.profiles import PROFILE_DAYS, Profiles, usual

STEP_S = 300
DAY = 24 * SAMPLES_AN_HOUR
WEEK = 7 * DAY
MHZ_A_PROCESSOR = 2700.0
LINK_BYTES_PER_S = 100e6
MEMORY_MIB = (1024, 2048, 4096, 8192)
MEMORY_ROOM = 1.4
"""A node's memory as a multiple of its share of all VMs' memory."""
HALVED = 0.5
SAMPLE_WEIGHT = smoothed(0.0, 1.0, STEP_S)
"""How much a sample counts in the average of a VM."""


class ReplaySize(NamedTuple):
    nodes: int
    vms: int
    days: int
    used: float
    """The mean of what is wanted, as a share of all processors."""


FULL = (ReplaySize(100, 2000, 30, 0.35), ReplaySize(100, 2000, 30, 0.25))
SMOKE = (ReplaySize(6, 100, 1, 0.35),)


class Stage(NamedTuple):
    """What is replayed: processors that VMs want, ``[vm, sample]``, and the nodes, all of one size."""

    wanted: Floats
    memory_mib: list[int]
    nodes: int
    cpus: int
    node_memory_mib: int
    taught: int
    """Samples before the ones that count."""


class Outcome(NamedTuple):
    """What came of the days that count."""

    overload_minutes: int
    """Minutes in which the VMs of a node wanted more than it has, added up over nodes."""
    moves: int
    moves_of_one_max: int
    back_and_forth: int
    """Moves of a VM to the node that it had left last."""
    overfilled: int
    """Moves after which a node had given away more memory than it has."""


def staged(mhz: Floats, size: ReplaySize) -> Stage:
    """Make a fleet of VMs. Where there are too few, each is there several times, whole weeks apart."""
    weeks = mhz.shape[1] // WEEK
    known = mhz[:, : weeks * WEEK].copy()
    for at in range(known.shape[1]):  # a gap is as the day before
        gap = np.isnan(known[:, at])
        known[gap, at] = known[gap, at - DAY] if at >= DAY else 0.0
    copies = math.ceil(size.vms / len(known))
    wanted = np.concatenate([np.roll(known, copy * WEEK, axis=1) for copy in range(copies)])[: size.vms]
    wanted = wanted[:, : (PROFILE_DAYS + size.days) * DAY] / MHZ_A_PROCESSOR
    memory = [int(value) for value in np.random.default_rng(1).choice(MEMORY_MIB, len(wanted))]
    cpus = math.ceil(wanted.mean(1).sum() / size.nodes / size.used)
    node_memory_mib = int(MEMORY_ROOM * sum(memory) / size.nodes)
    return Stage(wanted, memory, size.nodes, cpus, node_memory_mib, PROFILE_DAYS * DAY)


class Replay:
    """A fleet, sample by sample. ``settings``: None moves nothing."""

    def __init__(self, stage: Stage, settings: Settings | None) -> None:
        self._stage, self._settings = stage, settings
        self._names = [f"node-{number:03}" for number in range(stage.nodes)]
        memory_mib = stage.node_memory_mib + NODE_MEMORY_RESERVE_MIB
        self._fleet = Fleet([node(name, memory_mib, stage.cpus) for name in self._names])
        self._specs = [VmSpec("debian", memory_mib=size) for size in stage.memory_mib]
        vms = len(self._specs)
        self._where = np.array([self._place(number) for number in range(vms)])
        self._average = np.zeros(vms)
        self._samples: list[Floats] = []
        self._means, self._peaks = np.zeros((0, vms)), np.zeros((0, vms))
        self._profiles = Profiles(np.zeros((vms, 24)), np.zeros((vms, 24)))
        self._moved_at_s, self._left = np.full(vms, -np.inf), np.full(vms, -1)
        self._moves = np.zeros(vms, dtype=np.int64)
        self._rounds = self._overloaded = self._back = self._overfilled = 0

    def run(self) -> Outcome:
        for at in range(self._stage.wanted.shape[1]):
            self._use(at)
            if at >= self._stage.taught and self._settings is not None:
                self._carry_out(self._decide(self._settings, at), at)
        return Outcome(
            self._overloaded * STEP_S // 60, int(self._moves.sum()), int(self._moves.max()), self._back,
            self._overfilled,
        )  # fmt: skip

    def _place(self, number: int) -> int:
        placed = self._fleet.place(Wish(str(number), self._specs[number]))
        if placed is None:
            raise RuntimeError(f"there is no room for VM {number}")
        return self._names.index(placed)

    def _use(self, at: int) -> None:
        """Let VMs run for a sample, and measure them."""
        wanted = self._stage.wanted[:, at]
        loads = np.bincount(self._where, wanted, self._stage.nodes)
        if at >= self._stage.taught:
            self._overloaded += int((loads > self._stage.cpus).sum())
        used = wanted * np.minimum(1.0, self._stage.cpus / np.maximum(loads, 1e-9))[self._where]
        self._average = self._average + (used - self._average) * SAMPLE_WEIGHT
        self._samples.append(used)
        if (at + 1) % SAMPLES_AN_HOUR:
            return
        hour = np.stack(self._samples)
        self._samples.clear()
        kept = PROFILE_DAYS * 24
        self._means = np.concatenate([self._means, hour.mean(0)[None]])[-kept:]
        self._peaks = np.concatenate([self._peaks, hour.max(0)[None]])[-kept:]
        if (at + 1) % DAY == 0:
            means, peaks = (values.T.reshape(len(self._specs), -1, 24) for values in (self._means, self._peaks))
            self._profiles = usual(means, peaks)

    def _decide(self, settings: Settings, at: int) -> Decision:
        if settings.basis is RebalanceBasis.AVERAGE:
            return self._decide_by_average(settings, at)
        means, variances = self._profiles
        hour, shape = at // SAMPLES_AN_HOUR % 24, (self._stage.nodes, 24)
        now, mean, variance = self._of_nodes(self._average), np.zeros(shape), np.zeros(shape)
        np.add.at(mean, self._where, means)
        np.add.at(variance, self._where, variances)
        uses = {name: _use(now, mean, variance, number) for number, name in enumerate(self._names)}
        outlook = NodesAhead(self._fleet, uses, settings, hour)
        asked = outlook.asked()
        vms = [VmAhead(self._load(n, at), _use(self._average, means, variances, n)) for n in self._on(asked)]
        return prevent(outlook, vms, 0)

    def _decide_by_average(self, settings: Settings, at: int) -> Decision:
        cpus = self._of_nodes(self._average)
        uses = {
            name: NodeUse(float(cpus[number]), self._fleet.loads[name].memory_mib)
            for number, name in enumerate(self._names)
        }
        asked = sources(self._fleet, uses, settings.concurrency)
        vms = [self._load(number, at) for number in self._on(asked)]
        decision = decide(self._fleet, uses, vms, settings, Since(self._rounds, 0))
        self._rounds = decision.rounds
        return decision

    def _of_nodes(self, values: Floats) -> Floats:
        loads: Floats = np.bincount(self._where, values, self._stage.nodes).astype(np.float64)
        return loads

    def _on(self, nodes: Iterable[str]) -> list[int]:
        return np.flatnonzero(np.isin(self._where, [self._names.index(name) for name in nodes])).tolist()

    def _load(self, number: int, at: int) -> VmLoad:
        spec = self._specs[number]
        return VmLoad(
            Wish(str(number), spec, self._names[self._where[number]]), f"vm-{number}", float(self._average[number]),
            at * STEP_S - float(self._moved_at_s[number]), move_s=spec.memory_mib * 2**20 / LINK_BYTES_PER_S,
        )  # fmt: skip

    def _carry_out(self, decision: Decision, at: int) -> None:
        for move in decision.moves:
            number, target = int(move.vm), self._names.index(move.target)
            self._fleet.take(Wish(move.vm, self._specs[number], move.source), move.target)
            self._back += int(self._left[number] == target)
            self._left[number], self._where[number] = self._where[number], target
            self._moved_at_s[number] = at * STEP_S
            self._moves[number] += 1
            self._overfilled += self._fleet.loads[move.target].memory_mib > self._stage.node_memory_mib


def _use(now: Floats, means: Floats, variances: Floats, number: int) -> HourlyUse:
    return HourlyUse(float(now[number]), means[number].tolist(), variances[number].tolist())


def replay_figures(mhz: Floats, sizes: Iterable[ReplaySize]) -> list[Figure]:
    """Replay a month, on nodes that are used more and less."""
    figures = []
    for size in sizes:
        stage = staged(mhz, size)
        average = Settings(basis=RebalanceBasis.AVERAGE, rounds=1)
        nothing, by_average, by_forecast = (Replay(stage, chosen).run() for chosen in (None, average, Settings()))
        bounds = (HALVED, by_average.moves) if by_average.overload_minutes else (None, None)
        name = f"{size.days} days, {size.nodes} nodes, {100 * size.used:.0f} % used: overload by forecasts / averages"
        figures += [
            Figure(name,
                   by_forecast.overload_minutes / max(1, by_average.overload_minutes), "x", bounds[0]),
            Figure("  ... overload without rebalancing", nothing.overload_minutes, "min"),
            Figure("  ... by averages", by_average.overload_minutes, "min"),
            Figure("  ... by forecasts", by_forecast.overload_minutes, "min"),
            Figure("  ... moves by averages", by_average.moves, ""),
            Figure("  ... moves by forecasts", by_forecast.moves, "", bounds[1]),
            Figure("  ... moves back to the node that was left, by forecasts", by_forecast.back_and_forth, ""),
            Figure("  ... moves that overfilled a node's memory, by forecasts", by_forecast.overfilled, "", 0),
        ]  # fmt: skip
    return figures
