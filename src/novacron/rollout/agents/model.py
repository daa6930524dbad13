"""What a rollout of agents is: its waves, steps, nodes and records. Pure: no I/O, no clock."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from enum import StrEnum

import msgspec

from novacron.rollout.model import RolloutError, RolloutEvent, RolloutRecord, RolloutState

NODES_MAX = 10_000
WAVES_MAX = 20
PREPARE, INSTALL, WATCH, RETURN = "prepare-", "install-", "watch-", "return"
WAVE = re.compile(r"^([1-9][0-9]{0,4})(%?)\Z")


class NodeStage(StrEnum):
    """How far a node is in a rollout of agents."""

    WAITING = "waiting"
    PREPARED = "prepared"
    """Packages of both versions are on the host, and it is known which one is installed."""
    INSTALLING = "installing"
    """From here on the host may have the new version."""
    UPGRADED = "upgraded"
    """The agent is connected again, with the new version."""
    LEFT_OUT = "left-out"
    """The host was off: it keeps its version."""
    FAILED = "failed"
    """The new version could not be installed, or its agent did not come back."""
    WENT_BACK = "went-back"
    STUCK = "stuck"
    """The old version could not be installed again: somebody has to look."""


CHANGED = frozenset({NodeStage.INSTALLING, NodeStage.UPGRADED, NodeStage.FAILED, NodeStage.STUCK})
"""Nodes that have the new version, or may have it."""


class WaveNode(msgspec.Struct):
    """A node in a rollout."""

    name: str
    wave: int
    """From 1."""
    stage: NodeStage = NodeStage.WAITING
    package_before: str = ""
    """The version of its package novacron-agent before; empty: not known yet."""
    debian: str = ""
    """The release of Debian on the host, such as 12."""
    note: str = ""
    """Why it is left out, failed or is stuck."""
    drained: bool = False
    """The rollout has drained it, and is to uncordon it."""


class AgentRollout(RolloutRecord, msgspec.Struct):
    """A rollout of agents, as its journal has it."""

    number: int
    version: str
    nodes: list[WaveNode]
    began_s: float
    watch_s: float
    by: str = ""
    drain: bool = False
    """Nodes are drained before their agents are upgraded."""
    restart: bool = False
    """Their hosts are restarted after that, while they are empty."""
    system: tuple[str, ...] = ()
    """Packages of the system that are upgraded while they are empty."""
    state: RolloutState = RolloutState.RUNNING
    step: str = ""
    step_began_s: float = 0.0
    watched_s: float = 0.0
    reason: str = ""
    went_back_s: float = 0.0
    ended_s: float = 0.0
    events: list[RolloutEvent] = []

    @property
    def title(self) -> str:
        return f"rollout {self.number} of agents"

    @property
    def strategy(self) -> str:
        """Return what notices call it, beside the strategies of servers."""
        return "agents"

    @property
    def version_before(self) -> str:
        """Return the versions that the nodes had."""
        return ", ".join(sorted({node.package_before for node in self.nodes if node.package_before}))

    @property
    def waves(self) -> int:
        return max((node.wave for node in self.nodes), default=0)

    @property
    def wave(self) -> int:
        """Return the wave that the present step is about; 0: none."""
        number = self.step.rpartition("-")[2]
        return int(number) if number.isdecimal() else 0

    def of_wave(self, number: int) -> list[WaveNode]:
        return [node for node in self.nodes if node.wave == number]

    def counts(self) -> dict[str, int]:
        """Return how many nodes are at each stage."""
        counts = Counter(node.stage for node in self.nodes)
        return {stage.value: counts[stage] for stage in NodeStage if counts[stage]}

    @property
    def steps(self) -> tuple[str, ...]:
        if self.goes_back:
            return (RETURN,)
        return tuple(f"{step}{wave}" for wave in range(1, self.waves + 1) for step in (PREPARE, INSTALL, WATCH))


def wave_ends(text: str, nodes: int) -> list[int]:
    """Return how many nodes have been in a wave after each of the waves; ``text`` is like ``1,10%,50%,100%``.

    Waves that would bring no further node are left out. Raises RolloutError.
    """
    parts = [WAVE.match(part.strip()) for part in text.split(",")]
    wrong = RolloutError(
        f"waves: {text!r} are no rising numbers or percentages of nodes that end with 100%; write it like"
        " 1,10%,50%,100%"
    )
    if not all(parts) or text.split(",")[-1].strip() != "100%" or len(parts) > WAVES_MAX:
        raise wrong
    ends, percent_before = [0], 0
    for part in parts:
        assert part is not None
        amount = int(part[1])
        if part[2] and not percent_before < amount <= 100:
            raise wrong
        percent_before = amount if part[2] else percent_before
        ends.append(max(ends[-1], min(nodes, math.ceil(nodes * amount / 100) if part[2] else amount)))
    return [end for before, end in itertools.pairwise(ends) if end > before]


def in_waves(names: Sequence[str], text: str) -> list[WaveNode]:
    """Return the nodes with their waves. Raises RolloutError."""
    if len(names) > NODES_MAX:
        raise RolloutError(f"agent-nodes: {len(names)} nodes are more than {NODES_MAX} at once; name some of them")
    records, begun = [], 0
    for wave, end in enumerate(wave_ends(text, len(names)), 1):
        records += [WaveNode(name, wave) for name in names[begun:end]]
        begun = end
    return records


def to_return(nodes: Iterable[WaveNode]) -> list[WaveNode]:
    """Return the nodes that may have the new version, or are still drained, those of the latest wave first."""
    return sorted((node for node in nodes if node.stage in CHANGED or node.drained), key=lambda node: -node.wave)
