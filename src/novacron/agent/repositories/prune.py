"""Frees the room of what was deleted from repositories: restic prunes their directories on this node."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from pathlib import Path

from novacron import child_environment
from novacron.agent.repositories.directory import root_of
from novacron.agent.repositories.queues import REPOSITORIES_AT_ONCE, RepositoryQueues
from novacron.agent.repositories.threads import Stalled
from novacron.agent.settings import AgentSettings
from novacron.backup.storage import Kind
from novacron.disk.errors import Unacceptable
from novacron.model.backup import PRUNE_WORDS_MAX
from novacron.model.encryption import DataKey
from novacron.model.waiting import WaitCode
from novacron.supervise import FewTasks
from novacron.telemetry import logs
from novacron.wire.questions import PruneRepository, PruneState

log = logs.get(__name__)

PRUNE_S_MAX = 12 * 3600.0
END_S_MAX = 15.0
"""How long restic may take to give its lock up."""
OPTIONS = ("--max-unused", "5%", "--max-repack-size", "50G")
"""Packs that are mostly used stay as they are, and one run does not write for days."""
REMEMBERED_MAX = 1000
FREED = re.compile(r"^total prune:.*/ +([0-9.]+ \S+)\s*$", re.MULTILINE)


class RepositoryPrunes:
    """Those that run on this node, and how the last one of each repository ended."""

    def __init__(self, settings: AgentSettings, queues: RepositoryQueues) -> None:
        """``queues``: of what else is done with repositories; a prune has its repository for itself."""
        self._settings, self._queues = settings, queues
        self._last: dict[str, tuple[str, PruneState]] = {}
        """How far the last request of each repository is, with its id."""
        self._tasks = FewTasks("prunes", REPOSITORIES_AT_ONCE)

    def answer(self, question: PruneRepository) -> PruneState:
        """Begin to prune, unless that is under way or was done for this request; say how far it is.

        Raises Unacceptable.
        """
        asked, state = self._last.get(question.repository, ("", PruneState()))
        if state.running or (asked and asked == question.request):
            return state
        root = root_of(self._settings, question.repository)
        if not (root / Kind.CONFIG.value).exists():
            raise Unacceptable(f"the repository is not in {root}: is {root.parent} mounted?", WaitCode.FILE_LOST)
        if shutil.which("restic") is None:
            raise Unacceptable(
                f"node {self._settings.name} has no restic, which prunes repositories: apt-get install restic",
                WaitCode.STEP_FAILED,
            )
        if not self._tasks.start(self._work(question, root)):
            raise Unacceptable("enough repositories are being pruned on this node", WaitCode.STEP_FAILED)
        while len(self._last) >= REMEMBERED_MAX:
            del self._last[next(iter(self._last))]
        self._last[question.repository] = question.request, PruneState(running=True)
        return self._last[question.repository][1]

    async def end(self) -> None:
        """End what runs: restic stops, and the repository stays whole."""
        await self._tasks.end()

    async def _work(self, question: PruneRepository, root: Path) -> None:
        ended = PruneState(error="its agent has a defect; see its log")
        try:
            async with self._queues.of(question.repository).turn():
                ended = PruneState(freed=await prune(root, question.key))
        except (Unacceptable, Stalled, OSError, TimeoutError) as error:
            ended = PruneState(error=(str(error) or type(error).__name__)[:PRUNE_WORDS_MAX])
            log.warning("a repository is not pruned", repository=question.repository, error=str(error))
        finally:
            self._last[question.repository] = question.request, ended


async def prune(root: Path, key: DataKey, limit_s: float = PRUNE_S_MAX) -> str:
    """Let restic take out of a repository what no snapshot has; return how much room it says that this frees.

    Raises Unacceptable, OSError, TimeoutError.
    """
    await _restic(root, key, limit_s, "unlock")  # locks of processes that are gone, no others
    said = await _restic(root, key, limit_s, "prune", *OPTIONS)
    freed = FREED.search(said)
    return freed[1][:PRUNE_WORDS_MAX] if freed else ""


async def _restic(root: Path, key: DataKey, limit_s: float, *arguments: str) -> str:
    """Run restic on a repository, as low as it goes, and return what it says. The password comes in memory."""
    password = os.memfd_create("password")
    try:
        os.write(password, key.passphrase())
        process = await asyncio.create_subprocess_exec(
            "nice", "-n", "10", "ionice", "-c", "3", "restic", "--repo", str(root), "--no-cache",
            "--password-file", f"/proc/self/fd/{password}", *arguments,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            pass_fds=(password,), env=child_environment.clean(), cwd="/",
        )  # fmt: skip
    finally:
        os.close(password)
    try:
        async with asyncio.timeout(limit_s):
            said, _ = await process.communicate()
    except TimeoutError:
        raise TimeoutError(f"restic {arguments[0]} took longer than {limit_s / 3600:.1f} hours") from None
    finally:
        await _ended(process)
    text = said.decode(errors="replace")
    if process.returncode != 0:
        last = (text.strip().splitlines() or ["it said nothing"])[-1]
        raise Unacceptable(f"restic {arguments[0]} failed: {last[:PRUNE_WORDS_MAX]}", WaitCode.STEP_FAILED)
    return text


async def _ended(process: asyncio.subprocess.Process) -> None:
    """End a process that still runs, so that it gives its lock up."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), END_S_MAX)
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
