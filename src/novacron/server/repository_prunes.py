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
        self._asked: dict[str, tuple[backup_repositories.DuePrune, str]] = {}
        """What nodes were asked for, with the ids of the requests, by repository and node."""

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
            due = await backup_repositories.due(connection, nodes)
        # What was asked for is followed to its end, also where it is not due meanwhile: a backup waits behind it.
        self._asked = {key: asked for key, asked in self._asked.items() if asked[0].node in nodes}
        for item in due:
            self._asked.setdefault(f"{item.repository} {item.node}", (item, secrets.token_hex(8)))
        await objects.each(list(self._asked), self._follow, at_once=AT_ONCE)
        await objects.end()

    async def _follow(self, key: str) -> None:
        asked, request = self._asked[key]
        async with self._database.connection() as connection:
            keys = await self._secrets.data_keys(connection, [asked.key])
        if asked.key not in keys:
            del self._asked[key]
            raise Unavailable(f"the key of backup repository {asked.repository} can't be unwrapped now")
        try:
            question = PruneRepository(asked.repository, keys[asked.key], request, asked.project)
            state = await self._questions.ask(asked.node, question)
        except InvalidInput as error:  # the node can't: it has not that directory
            state = PruneState(error=error.detail)
        if state.running:
            return
        del self._asked[key]
        async with self._database.transaction() as connection:
            await backup_repositories.pruned(connection, asked, state.freed, state.error)
