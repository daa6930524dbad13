"""What a rollout of agents does with one node: prepares it, installs a version, waits for its agent, brings it back.

Every part can be done again: a process that was killed in it leaves it so. Several threads work, each on other nodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from novacron.rollout.agents.fleet import RolloutFleet
from novacron.rollout.agents.gates import NodeSeen
from novacron.rollout.agents.hosts import Hosts
from novacron.rollout.agents.model import AgentRollout, NodeStage, WaveNode
from novacron.rollout.agents.packages import PackageFiles, agent_version, package_version
from novacron.rollout.model import StepFailed

POLL_S = 0.5
NOWHERE = NodeSeen(ready=False, agent_version="", reason="the node was removed")


class AgentParts(NamedTuple):
    """What a rollout of agents works with."""

    fleet: RolloutFleet
    hosts: Hosts
    packages: PackageFiles


class NodeLimits(NamedTuple):
    """How long a node may take."""

    back_s_max: float
    """From the end of the installation until its agent is connected."""
    restart_s_max: float
    drain_s_max: float


class NodeWork:
    """Works on nodes of one rollout. ``kept()`` writes the journal, whichever thread calls it."""

    def __init__(self, rollout: AgentRollout, parts: AgentParts, limits: NodeLimits, kept: Callable[[], None]) -> None:
        self._rollout, self._limits, self._kept = rollout, limits, kept
        self._fleet, self._hosts, self._packages = parts

    def seen(self, node: WaveNode) -> NodeSeen:
        return self._fleet.nodes().get(node.name, NOWHERE)

    def prepare(self, node: WaveNode) -> None:
        """Learn what a host has, and bring it the packages of both versions. Raises StepFailed."""
        seen = self.seen(node)
        if not seen.ready:
            self._leave_out(node, f"it was off: {seen.reason}")
            return
        try:
            node.debian = self._hosts.debian(node.name)
            node.package_before = self._hosts.installed(node.name)
            if not node.package_before:
                raise StepFailed(f"{node.name}: no package novacron-agent is installed there: its agent came otherwise")
            new, old = self._files(node, self._rollout.version), self._files(node, node.package_before)
            if node.package_before == package_version(new[-1]):
                self._leave_out(node, f"it has version {node.package_before} already")
                return
            self._hosts.bring(node.name, [*old, *new])
        except StepFailed as error:
            self._leave_out(node, str(error))
            raise
        node.stage = NodeStage.PREPARED

    def _leave_out(self, node: WaveNode, note: str) -> None:
        node.stage, node.note = NodeStage.LEFT_OUT, note

    def _files(self, node: WaveNode, version: str) -> list[Path]:
        return self._packages.of(version, node.debian)

    def upgrade(self, node: WaveNode) -> None:
        """Bring a node to the new version, and wait until its agent is connected. Raises StepFailed."""
        if node.stage is NodeStage.UPGRADED:  # killed before it had VMs again
            self._fill_again(node)
            return
        if node.stage is NodeStage.PREPARED and not self.seen(node).ready:
            self._leave_out(node, f"it was off when its turn came: {self.seen(node).reason}")
            return
        if node.stage is NodeStage.PREPARED and (kept := self._kept_there(node)):
            self._leave_out(node, f"somebody has cordoned it with {kept} on it, whose host can't be restarted")
            return
        try:
            self._empty(node)
            node.stage = NodeStage.INSTALLING
            self._kept()
            self._install(node, self._files(node, self._rollout.version))
            self._while_empty(node)
            self._until_back(node, package_version(self._files(node, self._rollout.version)[-1]))
            node.stage = NodeStage.UPGRADED
            self._fill_again(node)
        except StepFailed as error:
            node.stage, node.note = NodeStage.FAILED, str(error)
            raise

    def _kept_there(self, node: WaveNode) -> str:
        """Say which VMs would end with a node's host, because an operator's cordon keeps the rollout from draining it;
        nothing if there are none."""
        host_ends = self._rollout.restart or self._rollout.system
        if not host_ends or node.drained or not self.seen(node).cordoned:
            return ""
        guests = [guest for guest in self._fleet.guests().values() if guest.node == node.name]
        vms = sorted(guest.name for guest in guests if guest.should_run)
        return f"{len(vms)} VMs ({', '.join(vms[:3])}{', ...' if len(vms) > 3 else ''})" if vms else ""

    def _empty(self, node: WaveNode) -> None:
        """Drain a node if that is asked for and nobody has cordoned it."""
        if not self._rollout.drain or (self.seen(node).cordoned and not node.drained):
            return
        node.drained = True
        self._kept()
        self._fleet.drain(node.name, self._limits.drain_s_max)

    def _fill_again(self, node: WaveNode) -> None:
        if node.drained:
            self._kept()  # once it has VMs, its host is not restarted again
            self._fleet.uncordon(node.name)
            node.drained = False

    def _install(self, node: WaveNode, files: list[Path]) -> None:
        if self._hosts.installed(node.name) != package_version(files[-1]):
            self._hosts.install(node.name, files)

    def _while_empty(self, node: WaveNode) -> None:
        """Upgrade the system and restart the host, if that is asked for."""
        if self._rollout.system:
            self._hosts.upgrade_system(node.name, self._rollout.system)
        if not self._rollout.restart:
            return
        before, deadline = self._hosts.boot_id(node.name), time.monotonic() + self._limits.restart_s_max
        self._hosts.restart(node.name)
        while self._booted(node) in ("", before):
            if time.monotonic() > deadline:
                raise StepFailed(f"{node.name}: its host has not started within {self._limits.restart_s_max:.0f} s")
            time.sleep(POLL_S)

    def _booted(self, node: WaveNode) -> str:
        try:
            return self._hosts.boot_id(node.name)
        except StepFailed:
            return ""  # it is starting

    def _until_back(self, node: WaveNode, package: str) -> None:
        """Wait until the agent of a package's version is connected. Raises StepFailed."""
        deadline, expected_version = time.monotonic() + self._limits.back_s_max, agent_version(package)
        while True:
            seen = self.seen(node)
            if seen.ready and seen.agent_version == expected_version:
                break
            if time.monotonic() > deadline:
                how = f"has version {seen.agent_version}" if seen.ready else f"is not connected: {seen.reason}"
                raise StepFailed(f"{node.name}: {self._limits.back_s_max:.0f} s after {package} was installed it {how}")
            time.sleep(POLL_S)
        installed = self._hosts.installed(node.name)
        if installed != package:
            version = installed or "none, or half of one"
            raise StepFailed(f"{node.name}: its package has version {version}, not {package}")

    def bring_back(self, node: WaveNode) -> None:
        """Install the version that a node had before. Raises StepFailed."""
        try:
            if node.stage is not NodeStage.PREPARED:
                files = self._files(node, node.package_before)
                if self._hosts.installed(node.name) != node.package_before:
                    self._hosts.bring(node.name, files)
                    self._hosts.install(node.name, files)
                self._until_back(node, node.package_before)
            self._fill_again(node)
        except StepFailed as error:
            node.stage, node.note = NodeStage.STUCK, str(error)
            raise
        node.stage = NodeStage.WENT_BACK
