"""What a history is about, and what all of its acts use."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lab.histories import census, copies
from lab.histories.copies import Copies
from lab.histories.operator import Operator
from lab.histories.themes import THEMES
from lab.platform import Platform, Service
from novacron.client import ApiError, Unreachable

T = TypeVar("T")


class Scene:
    """A platform that is at rest and empty, and what has become of it."""

    def __init__(self, platform: Platform, seed: int) -> None:
        self.platform, self.seed = platform, seed
        self.random = random.Random(seed)  # noqa: S311 (a history, not a secret)
        self.done: list[str] = []
        """What was done, for whoever reads of a violation."""
        self.made: dict[str, str] = {}
        """VMs whose creation was acknowledged and whose deletion was not asked for, with their names."""
        self.gone: set[str] = set()
        self.folders_lost = False
        self.guests_seen = (0, 0)
        """In how many looks at QEMUs a guest was seen to run, of how many."""
        self.theme = self.random.choices(list(THEMES), [has.chance for has in THEMES.values()])[0]
        self.failovers = 0
        """How often a VM of it was started elsewhere because its node was away."""
        self._names = 0
        self._away: dict[str, float] = {}
        """Until when nodes are off or cut off, though others are mended."""
        self.agents_of_copies = Copies(platform)
        self._aside: list[Path] = []
        self._copies: dict[str, Path] = {}
        self._backup: tuple[dict[str, str], Path] | None = None
        self._began_s = time.monotonic()

    def _note(self, act: str, said: str | None) -> None:
        self.done.append(f"{time.monotonic() - self._began_s:.1f} {act} {said or ''}".rstrip())

    def _ask(self, work: Callable[[], T]) -> T | None:
        """Ask the server for something, which may be right to refuse it; None: it did, or did not answer."""
        if not self.platform.server.running:
            return None
        with contextlib.suppress(ApiError, Unreachable):
            return work()
        return None

    def _a_vm(self) -> str:
        return self.random.choice(list(self.made.values()) or ["none"])

    def _a_node(self) -> str:
        return self.random.choice(list(self.platform.agents))

    def _a_node_here(self) -> str:
        """Return a node that is not away, if there is one."""
        return self.random.choice([name for name in self.platform.agents if not self._is_away(name)] or ["none"])

    def _is_away(self, node: str) -> bool:
        return time.monotonic() < self._away.get(node, 0.0)

    def _control_plane(self) -> None:
        Operator(self.platform, self.gone).start_control_plane()

    def _state(self, node: str) -> Path:
        return census.state_dir_of(self.platform.directory, node)

    def _put_aside(self, node: str) -> None:
        state = self._state(node)
        aside = state.with_name(f"agent-aside-{len(self._aside)}")
        self._aside.append(aside)
        if state.exists():
            state.rename(aside)

    def _join(self, agent: Service, node: str) -> None:
        """Start an agent; with a token, if the server is there to make one."""
        agent.start(*(self._ask(lambda: self.platform.join(node)) or ()))

    def _loses_power(self, node: str) -> None:
        self.platform.agents[node].kill()
        self.agents_of_copies.end_beside(node, with_vms=True)
        copies.end_processes(self.platform.directory, node)

    def _copies_folder(self) -> str:
        node = self._a_node()
        self._copy_of(node)
        return f"of {node}"

    def _copy_of(self, node: str, *, older: bool = False) -> Path:
        """Return a copy of a node's state folder: an ``older`` one, if there is one, or a new one."""
        copy = self._copies.setdefault(node, self._state(node).with_name("agent-copy"))
        if not older or not copy.exists():
            copies.copy(self._state(node), copy)
        return copy
