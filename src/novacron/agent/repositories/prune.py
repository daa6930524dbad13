"""Frees the room of what was deleted from this node's repositories, for the server, which asks how far that is."""

from __future__ import annotations

from pathlib import Path

from novacron.agent.repositories.directory import root_of
from novacron.agent.repositories.queues import RepositoryQueues
from novacron.agent.repositories.threads import Stalled
from novacron.agent.settings import AgentSettings
from novacron.backup import restic
from novacron.backup.errors import RepositoryError
from novacron.backup.places import Place
from novacron.backup.restic import PruneLimits
from novacron.backup.storage import Kind
from novacron.disk.errors import Unacceptable
from novacron.model.backup import PRUNE_WORDS_MAX
from novacron.model.waiting import WaitCode
from novacron.supervise import FewTasks
from novacron.telemetry import logs
from novacron.wire.questions import PruneRepository, PruneState

log = logs.get(__name__)

LIMITS = PruneLimits(12 * 3600.0)
"""So that no run writes for days."""
REMEMBERED_MAX = 1000
PRUNES_MAX = 1024
"""That wait for their turns on this node."""


class RepositoryPrunes:
    """Those that run on this node, and how the last one of each repository ended."""

    def __init__(self, settings: AgentSettings, queues: RepositoryQueues) -> None:
        """``queues``: of what else is done with repositories; a prune has its repository for itself."""
        self._settings, self._queues = settings, queues
        self._last: dict[str, tuple[str, PruneState]] = {}
        """How far the last request of each repository is, with its id."""
        self._tasks = FewTasks("prunes", PRUNES_MAX)

    def answer(self, question: PruneRepository) -> PruneState:
        """Begin to prune, unless that is under way or was done for this request; say how far it is.

        Raises Unacceptable.
        """
        asked, state = self._last.get(question.repository, ("", PruneState()))
        if state.running or (asked and asked == question.request):
            return state
        root = root_of(self._settings, question.repository)
        if isinstance(root, Path) and not (root / Kind.CONFIG.value).exists():
            raise Unacceptable(
                f"the repository is not in {root}: check that {root.parent} is mounted", WaitCode.FILE_LOST
            )
        if not self._tasks.start(self._work(question, root)):  # it is asked again, and has its turn then
            return PruneState(running=True)
        while len(self._last) >= REMEMBERED_MAX:
            del self._last[next(iter(self._last))]
        self._last[question.repository] = question.request, PruneState(running=True)
        return self._last[question.repository][1]

    async def end(self) -> None:
        """End what runs: restic stops, and the repository stays whole."""
        await self._tasks.end()

    async def _work(self, question: PruneRepository, root: Place) -> None:
        ended = PruneState(error="internal error in its agent; see its log")
        try:
            async with self._queues.of(question.repository).turn(question.project):
                ended = PruneState(freed=await restic.prune(root, question.key.passphrase(), LIMITS))
        except (RepositoryError, Stalled, OSError, TimeoutError) as error:
            ended = PruneState(error=(str(error) or type(error).__name__)[:PRUNE_WORDS_MAX])
            log.warning("a repository is not pruned", repository=question.repository, error=str(error))
        finally:
            self._last[question.repository] = question.request, ended
