"""Nodes for rollouts of agents, in memory: hosts with packages, agents that come back or do not, guests that stop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from novacron.rollout.agents.engine import AgentEngine
from novacron.rollout.agents.gates import ActionFailed, GuestSeen, NodeSeen, WaveLimits
from novacron.rollout.agents.journal import AgentJournal
from novacron.rollout.agents.model import AgentRollout, in_waves
from novacron.rollout.agents.node_work import AgentParts, NodeLimits
from novacron.rollout.agents.packages import PackageFiles, agent_version, package_version
from novacron.rollout.agents.work import WaveSettings
from novacron.rollout.model import StepFailed
from novacron.rollout.notifications import Notifications
from novacron.rollout.options import RolloutOptions

OLD, NEW = "1.0.0-1+deb12", "1.1.0-1+deb12"
SETTINGS = WaveSettings(4, 0.01, WaveLimits(0, 0, 0.05), NodeLimits(0.3, 0.3, 5.0))


class Killed(BaseException):
    """The process that works on a rollout is killed."""


class UpgradedNodes:
    """A fleet and its hosts. ``after_install(node, version)`` is what a version does there."""

    def __init__(self, names: Sequence[str]) -> None:
        self.package = dict.fromkeys(names, OLD)
        self.off: set[str] = set()
        self.unreachable: set[str] = set()
        self.cordoned: set[str] = set()
        self.calls: list[tuple[str, str]] = []
        self.guest = {f"vm-{name}": GuestSeen(f"web-{name}", name, 0, "running") for name in names}
        self.failed: list[ActionFailed] = []
        self.after_install: Callable[[str, str], None] = lambda node, version: None
        self.killed_at: Callable[[str, str], bool] = lambda call, node: False
        self.brought: dict[str, set[str]] = {name: set() for name in names}
        self._lock = threading.Lock()

    def _call(self, call: str, node: str) -> None:
        with self._lock:
            self.calls.append((call, node))
        if self.killed_at(call, node):
            raise Killed(f"{call} {node}")
        if node in self.unreachable:
            raise StepFailed(f"{node}: ssh ended with 255")

    def called(self, call: str) -> list[str]:
        return [node for done, node in self.calls if done == call]

    def nodes(self) -> dict[str, NodeSeen]:
        return {
            name: NodeSeen(name not in self.off, agent_version(package), "is off", name in self.cordoned)
            for name, package in self.package.items()
        }

    def guests(self) -> dict[str, GuestSeen]:
        return dict(self.guest)

    def newest_event(self) -> int:
        return len(self.failed)

    def failures_since(self, event: int) -> list[ActionFailed]:
        return self.failed[event:]

    def drain(self, node: str, limit_s: float) -> None:
        self._call("drain", node)
        self.cordoned.add(node)

    def uncordon(self, node: str) -> None:
        self._call("uncordon", node)
        self.cordoned.discard(node)

    def debian(self, node: str) -> str:
        self._call("debian", node)
        return "12"

    def installed(self, node: str) -> str:
        self._call("installed", node)
        return self.package[node]

    def bring(self, node: str, files: Sequence[Path]) -> None:
        self._call("bring", node)
        self.brought[node] |= {file.name for file in files}

    def install(self, node: str, files: Sequence[Path]) -> None:
        self._call("install", node)
        assert {file.name for file in files} <= self.brought[node], "what is installed was brought"
        self.package[node] = package_version(files[-1])
        self.after_install(node, self.package[node])

    def upgrade_system(self, node: str, packages: Sequence[str]) -> None:
        self._call(f"upgrade {' '.join(packages)}", node)
        assert node in self.cordoned

    def boot_id(self, node: str) -> str:
        return f"boot-{self.called('restart').count(node)}"

    def restart(self, node: str) -> None:
        self._call("restart", node)
        assert node in self.cordoned


def packages(directory: Path, *versions: str) -> Path:
    """Make files that are named like packages."""
    directory.mkdir(exist_ok=True)
    for version in versions or (OLD, NEW):
        for name in ("novacron", "novacron-agent"):
            (directory / f"{name}_{version}_amd64.deb").write_bytes(b"")
    return directory


class WaveWorld:
    """A rollout to nodes in memory, with a journal in a folder."""

    def __init__(self, directory: Path, count: int = 6) -> None:
        self.names = [f"n{number:02}" for number in range(count)]
        self.at, self.said = UpgradedNodes(self.names), list[str]()
        self.journal = AgentJournal(directory)
        self.journal.open()
        self.packages = packages(directory / "packages")

    def engine(self, settings: WaveSettings = SETTINGS) -> AgentEngine:
        parts = AgentParts(self.at, self.at, PackageFiles(self.packages))
        return AgentEngine(self.journal, parts, settings, Notifications(RolloutOptions()), self.said.append)

    def new(self, waves: str = "1,50%,100%", **more: object) -> AgentRollout:
        rollout = AgentRollout(1, "1.1.0", in_waves(self.names, waves), 1.0, 0.02)
        for field, value in more.items():
            setattr(rollout, field, value)
        return rollout

    def run(self, settings: WaveSettings = SETTINGS, **more: object) -> AgentRollout:
        return self.engine(settings).run(self.new(**more))  # type: ignore[arg-type]

    def versions(self) -> set[str]:
        return set(self.at.package.values())
