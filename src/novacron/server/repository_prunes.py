"""Has the room of what was deleted from repositories freed, on the nodes that are connected to this server."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable

import asyncpg

from novacron.control.objects import Objects
from novacron.model.errors import InvalidInput, NovaError, Unavailable
from novacron.server.project_secrets import ProjectSecrets
from novacron.server.questions import Questions
from novacron.store import backup_repositories
from novacron.store.database import LOST, Database
from novacron.telemetry import logs
from novacron.wire.questions import PruneRepository, PruneState

log = logs.get(__name__)

INTERVAL_S, AT_ONCE = 20.0, 4


class RepositoryUpkeep:
    """Looks for what is due, again and again. Nodes remember what was asked, so that a new server goes on."""

    def __init__(
        self, database: Database, questions: Questions, project_secrets: ProjectSecrets,
        connected: Callable[[], Iterable[str]],
    ) -> None:  # fmt: skip
        self._database, self._questions, self._secrets = database, questions, project_secrets
        self._connected = connected
        self._requests: dict[str, str] = {}
        """Ids of the requests that nodes work on, by repository and node."""

    async def run(self) -> None:
        """Work until cancelled."""
        objects = Objects("repository-prunes")
        while True:
            try:
                await self.step(objects)
            except (NovaError, asyncpg.PostgresError, *LOST) as error:
                log.warning("repositories are not looked after", error=str(error))
            finally:
                objects.end_pass()
            await asyncio.sleep(INTERVAL_S)

    async def step(self, objects: Objects) -> None:
        """Ask for what is due, and how far that is which was asked for. Raises Unavailable."""
        nodes = sorted(self._connected())
        async with self._database.connection() as connection:
            due = {f"{item.repository} {item.node}": item for item in await backup_repositories.due(connection, nodes)}
        self._requests = {key: request for key, request in self._requests.items() if key in due}

        async def follow(key: str) -> None:
            state = await self._ask(key, due[key])
            if state.running:
                return
            self._requests.pop(key, None)
            async with self._database.transaction() as connection:
                await backup_repositories.pruned(connection, due[key], state.freed, state.error)

        await objects.each(due, follow, at_once=AT_ONCE)
        await objects.end()

    async def _ask(self, key: str, due: backup_repositories.DuePrune) -> PruneState:
        async with self._database.connection() as connection:
            keys = await self._secrets.data_keys(connection, [due.key])
        if due.key not in keys:
            raise Unavailable(f"the key of backup repository {due.repository} can't be unwrapped now")
        request = self._requests.setdefault(key, secrets.token_hex(8))
        try:
            return await self._questions.ask(due.node, PruneRepository(due.repository, keys[due.key], request))
        except InvalidInput as error:  # the node can't: it has no restic, or not that directory
            return PruneState(error=error.detail)
