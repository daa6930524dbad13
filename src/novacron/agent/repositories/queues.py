"""Work on each repository one after the other, so that one that is slow or gone holds up no other."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Collection
from typing import TypeVar

from novacron.agent.fair_turns import FairTurns
from novacron.agent.repositories.directory import OpenRepository
from novacron.agent.repositories.threads import STALL_S_MAX, Stalled, Stopped, WorkStopped, in_thread

T = TypeVar("T")
WORK_S_MAX = 24 * 3600.0
"""Of one backup, from when its turn comes."""
REPOSITORIES_AT_ONCE, REPOSITORIES_OF_A_PROJECT = 4, 3
"""With which a node works, and at most of one project: the index of each is in memory."""


class RepositoryQueue:
    """Work on one repository. While a thread hangs in its storage, all other work on it fails at once."""

    def __init__(self, at_once: FairTurns, stall_s_max: float = STALL_S_MAX) -> None:
        """``at_once`` are the turns of all repositories."""
        self._turns, self._at_once = asyncio.Lock(), at_once
        self.stall_s_max = stall_s_max
        self._left: list[threading.Thread] = []

    @contextlib.asynccontextmanager
    async def turn(self, project: str) -> AsyncIterator[None]:
        """Have the repository of a project for oneself on this node. Raises Stalled once that takes too long."""
        async with self._turns, self._at_once.turn(project):
            limit = asyncio.timeout(WORK_S_MAX)
            try:
                async with limit:
                    yield
            except TimeoutError:
                if limit.expired():
                    raise Stalled(f"it took longer than {WORK_S_MAX / 3600:.0f} hours") from None
                raise

    @property
    def idle(self) -> bool:
        return not self._turns.locked() and not self._hanging()

    def _hanging(self) -> bool:
        self._left = [thread for thread in self._left if thread.is_alive()]
        return bool(self._left)

    async def run(self, work: Callable[[Stopped], T]) -> T:
        """Do work in a thread. Raises Stalled, and what it raises."""
        if self._hanging():
            raise Stalled("its repository has not answered yet: check its storage")
        return await in_thread(work, self._left, self.stall_s_max)

    @contextlib.asynccontextmanager
    async def opened(self, opening: Callable[[Stopped], OpenRepository]) -> AsyncIterator[OpenRepository]:
        """Have a repository open, and closed at the end whatever happens. Raises Stalled, and what it raises."""
        held = list[OpenRepository]()

        def work(stopped: Stopped) -> None:
            repository = opening(stopped)
            if stopped():
                repository.close()
                raise WorkStopped
            held.append(repository)

        try:
            await self.run(work)
            yield held[0]
        finally:
            for repository in held:
                repository.let_go()
                with contextlib.suppress(Stalled):
                    await self.run(repository.close_watched)


class RepositoryQueues:
    """The queues of all repositories, by id."""

    def __init__(self, stall_s_max: float = STALL_S_MAX) -> None:
        self._stall_s_max = stall_s_max
        self._at_once = FairTurns(REPOSITORIES_AT_ONCE, REPOSITORIES_OF_A_PROJECT)
        self._queues: dict[str, RepositoryQueue] = {}

    def of(self, repository: str) -> RepositoryQueue:
        if repository not in self._queues:
            self._queues[repository] = RepositoryQueue(self._at_once, self._stall_s_max)
        return self._queues[repository]

    def keep(self, repositories: Collection[str]) -> None:
        """Forget the queues of others in which nothing happens."""
        self._queues = {id: queue for id, queue in self._queues.items() if id in repositories or not queue.idle}
