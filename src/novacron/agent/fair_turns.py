"""Turns at work of which a node does little at once: projects have theirs in rotation, whoever asked first."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Iterable

from novacron.model import limits


class Rotation:
    """Which project is next: the one with the fewest turns now, and of those the one whose last began longest ago."""

    def __init__(self) -> None:
        self._held = Counter[str]()
        self._last = OrderedDict[str, int]()
        """When the last turn of each project began, as a number; the oldest is forgotten first."""
        self._numbers = itertools.count(1)

    def held(self, project: str) -> int:
        """Return how many turns a project has now."""
        return self._held[project]

    def next(self, projects: Iterable[str]) -> str:
        """Return which of these projects is next; there is at least one."""
        return min(projects, key=lambda project: (self._held[project], self._last.get(project, 0)))

    def begin(self, project: str) -> None:
        """A project has one turn more."""
        self._held[project] += 1
        self._last.pop(project, None)
        self._last[project] = next(self._numbers)
        while len(self._last) > limits.PROJECTS_MAX:
            self._last.popitem(last=False)

    def end(self, project: str) -> None:
        """A project has one turn less."""
        self._held[project] -= 1
        if self._held[project] <= 0:
            del self._held[project]


class FairTurns:
    """At most ``at_once`` turns at the same time, and ``share`` of one project: the rest is for others at any time.

    Whoever waits is a task with an owner and a limit of its own; nothing is kept here of one that was cancelled."""

    def __init__(self, at_once: int, share: int | None = None) -> None:
        self._free, self._share = at_once, at_once if share is None else share
        self._rotation = Rotation()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @contextlib.asynccontextmanager
    async def turn(self, project: str) -> AsyncIterator[None]:
        """Wait for a turn, and have it for as long as the block runs."""
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(project, deque())
        waiting.append(granted)
        self._grant()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self._give_back(project)
            else:
                self._forget(project, granted)
            raise
        try:
            yield
        finally:
            self._give_back(project)

    def _forget(self, project: str, granted: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(project)
        if waiting is not None and granted in waiting:
            waiting.remove(granted)
            if not waiting:
                del self._waiting[project]

    def _give_back(self, project: str) -> None:
        self._free += 1
        self._rotation.end(project)
        self._grant()

    def _grant(self) -> None:
        while self._free:
            able = [project for project in self._waiting if self._rotation.held(project) < self._share]
            if not able:
                return
            project = self._rotation.next(able)
            waiting = self._waiting[project]
            granted = waiting.popleft()
            if not waiting:
                del self._waiting[project]
            if not granted.done():
                self._free -= 1
                self._rotation.begin(project)
                granted.set_result(None)
