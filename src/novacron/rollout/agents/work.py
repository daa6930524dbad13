"""What each step of a rollout of agents does: many nodes at once, with a limit; what is watched after a wave."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import NamedTuple

from novacron.rollout.agents.gates import WaveBaseline, WaveLimits, failed_actions, few, refusals, silent, stopped
from novacron.rollout.agents.journal import AgentJournal
from novacron.rollout.agents.model import (
    INSTALL,
    PREPARE,
    RETURN,
    AgentRollout,
    NodeStage,
    WaveNode,
    to_return,
)
from novacron.rollout.agents.node_work import AgentParts, NodeLimits, NodeWork
from novacron.rollout.model import RolloutState, StepFailed

POLL_S = 0.05
TO_DO = frozenset({NodeStage.PREPARED, NodeStage.INSTALLING})


class WaveSettings(NamedTuple):
    """How waves are worked on."""

    at_once: int
    check_every_s: float
    gates: WaveLimits
    nodes: NodeLimits


class WaveSteps:
    """The steps. ``wait(rollout, seconds)`` waits, and raises what an operator asks for."""

    def __init__(
        self, journal: AgentJournal, parts: AgentParts, settings: WaveSettings,
        wait: Callable[[AgentRollout, float], None], kept: Callable[[AgentRollout], None],
    ) -> None:  # fmt: skip
        self._journal, self._parts, self._settings = journal, parts, settings
        self._wait, self._kept = wait, kept

    def perform(self, rollout: AgentRollout) -> str:
        """Do the present step and return what came of it. Raises StepFailed, OSError."""
        if rollout.step.startswith(PREPARE):
            return self._prepare(rollout)
        if rollout.step.startswith(INSTALL):
            return self._install(rollout)
        if rollout.step == RETURN:
            return self._return(rollout)
        return self._watch(rollout)

    def _work(self, rollout: AgentRollout) -> NodeWork:
        return NodeWork(rollout, self._parts, self._settings.nodes, lambda: self._kept(rollout))

    def _prepare(self, rollout: AgentRollout) -> str:
        nodes = [node for node in rollout.of_wave(rollout.wave) if node.stage is NodeStage.WAITING]
        failed = self._each(rollout, nodes, self._work(rollout).prepare)
        if len(failed) > self._settings.gates.failed_nodes_max:
            raise StepFailed(few(failed))
        ready = {node.name for node in rollout.of_wave(rollout.wave) if node.stage is NodeStage.PREPARED}
        guests = {vm: guest for vm, guest in self._parts.fleet.guests().items() if guest.node in ready}
        event = self._parts.fleet.newest_event()
        self._journal.save_baseline(WaveBaseline(rollout.number, rollout.wave, event, guests))
        return f"{_nodes(len(ready))} of wave {rollout.wave} prepared, with {len(guests)} VMs{_left_out(rollout)}"

    def _install(self, rollout: AgentRollout) -> str:
        began = time.monotonic()
        nodes = [node for node in rollout.of_wave(rollout.wave) if node.stage in TO_DO or node.drained]
        self._each(rollout, nodes, self._work(rollout).upgrade)
        failed = [node for node in rollout.of_wave(rollout.wave) if node.stage is NodeStage.FAILED]
        why = few([node.note for node in failed])
        if len(failed) > self._settings.gates.failed_nodes_max:
            raise StepFailed(why)
        if stuck := self._each(rollout, failed, self._work(rollout).bring_back):
            raise StepFailed(f"{why}; and there was no way back: {few(stuck)}")
        done = sum(node.stage is NodeStage.UPGRADED for node in rollout.of_wave(rollout.wave))
        return f"{_nodes(done)} of wave {rollout.wave} on {rollout.version} in {time.monotonic() - began:.0f} s"

    def _each(self, rollout: AgentRollout, nodes: list[WaveNode], work: Callable[[WaveNode], None]) -> list[str]:
        """Work on nodes, a few at once; return what failed. No further ones begin once too many have failed, or while
        the rollout is paused. Raises what an operator asks for, OSError."""
        left, failed = list(reversed(nodes)), list[str]()
        going_back = rollout.state is RolloutState.GOING_BACK
        running: set[Future[None]] = set()
        with ThreadPoolExecutor(self._settings.at_once, "node") as pool:
            while running or left:
                self._wait(rollout, POLL_S / 10)  # whoever aborts waits for the nodes that have begun
                enough = not going_back and len(failed) > self._settings.gates.failed_nodes_max
                while left and not enough and len(running) < self._settings.at_once:
                    if rollout.state is RolloutState.PAUSED:
                        break
                    running.add(pool.submit(work, left.pop()))
                if enough:
                    left.clear()
                done, running = wait(running, POLL_S, FIRST_COMPLETED)
                failed += [str(error) for future in done if (error := _failure(future)) is not None]
        self._kept(rollout)
        return failed

    def _watch(self, rollout: AgentRollout) -> str:
        if not any(node.stage is NodeStage.UPGRADED for node in rollout.of_wave(rollout.wave)):
            return "no node of this wave was upgraded"
        baseline = self._journal.baseline(rollout.number, rollout.wave)
        if baseline is None:
            raise StepFailed(f"what was so before wave {rollout.wave} is not known any more: {self._journal.directory}")
        silent_since: dict[str, float] = {}
        while True:
            last = rollout.watched_s >= rollout.watch_s
            self._check(rollout, baseline, silent_since, last=last)
            self._kept(rollout)
            if last and rollout.state is not RolloutState.PAUSED:
                break
            began, paused = time.monotonic(), rollout.state is RolloutState.PAUSED
            left_s = max(POLL_S, rollout.watch_s - rollout.watched_s)
            self._wait(rollout, min(self._settings.check_every_s, left_s))
            if not paused:
                rollout.watched_s += time.monotonic() - began
        return f"watched for {rollout.watched_s:.0f} s: all agents answer, no guest stopped"

    def _check(
        self, rollout: AgentRollout, baseline: WaveBaseline, silent_since: dict[str, float], *, last: bool
    ) -> None:
        """Look at what a wave has done. Raises StepFailed if it has to go back."""
        fleet, now_s = self._parts.fleet, time.monotonic()
        nodes = fleet.nodes()
        upgraded = [node.name for node in rollout.nodes if node.stage is NodeStage.UPGRADED]
        for name in upgraded:
            if name in nodes and nodes[name].ready:
                silent_since.pop(name, None)
            elif name in nodes:
                silent_since.setdefault(name, now_s)
        if last:  # a node that is silent now has not proved itself
            silent_since.update(dict.fromkeys(silent_since, float("-inf")))
        wave = [node.name for node in rollout.of_wave(rollout.wave) if node.stage is NodeStage.UPGRADED]
        why = refusals(
            silent(silent_since, now_s, self._settings.gates),
            stopped(baseline.guests, fleet.guests(), last=last),
            failed_actions(fleet.failures_since(baseline.event), wave, baseline.guests),
            self._settings.gates,
        )
        if why:
            raise StepFailed(why)

    def _return(self, rollout: AgentRollout) -> str:
        began = time.monotonic()
        nodes = to_return(rollout.nodes)
        failed = self._each(rollout, nodes, self._work(rollout).bring_back)
        if failed:
            raise StepFailed(few(failed))
        rollout.went_back_s = time.time() - rollout.step_began_s
        return f"{_nodes(len(nodes))} back in {time.monotonic() - began:.0f} s"


def _failure(future: Future[None]) -> BaseException | None:
    """Return what failed on a node. Raises anything that is no failure of a step: the journal's disk, or a defect."""
    error = future.exception()
    if error is not None and not isinstance(error, StepFailed):
        raise error
    return error


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def _left_out(rollout: AgentRollout) -> str:
    """Return which nodes of the present wave keep their version, and why."""
    out = [node for node in rollout.of_wave(rollout.wave) if node.stage is NodeStage.LEFT_OUT]
    return f"; left out: {few([f'{node.name} ({node.note})' for node in out])}" if out else ""
