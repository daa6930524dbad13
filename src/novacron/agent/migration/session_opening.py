"""The opening of a migration's memory session, perhaps before the target is ready: then it costs no time of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from novacron import pki
from novacron.agent.host.endpoint import parse_endpoint
from novacron.dwcp.connection import ConnectionPool
from novacron.dwcp.sender import Sender, SendFailed, SendOptions
from novacron.telemetry import traces
from novacron.wire.messages import Task

REOPEN_S = 0.05
"""How soon a target that is not ready yet is asked again."""
OPENING_TIMEOUT_S = 15.0


class _Opening:
    """One session that is being opened."""

    def __init__(self, task: Task, endpoint: str, *, early: bool) -> None:
        self.migration, self.endpoint = task.migration, endpoint
        self._early, self._trace = early, task.trace
        self._peer_host = pki.node_host(task.peer)
        self._work: asyncio.Task[Sender] | None = None

    def start(self, connections: ConnectionPool, options: Callable[[], Awaitable[SendOptions]]) -> None:
        self._work = asyncio.create_task(self._open(connections, options), name=f"open-{self.migration}")

    async def _open(self, connections: ConnectionPool, options: Callable[[], Awaitable[SendOptions]]) -> Sender:
        session_options = await options()
        while True:
            sender = Sender(
                parse_endpoint(self.endpoint), self._peer_host, self.migration, connections, session_options
            )
            try:
                with traces.span("migration's session is opened", parent=self._trace, migration=self.migration):
                    return await sender.__aenter__()
            except SendFailed:
                if not self._early:
                    raise
            await asyncio.sleep(REOPEN_S)

    async def result(self) -> Sender:
        """Return the session once it is open, to be entered by the caller. Raises SendFailed, TimeoutError."""
        assert self._work is not None
        try:
            return await asyncio.wait_for(asyncio.shield(self._work), OPENING_TIMEOUT_S)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Give the session up, open or not."""
        assert self._work is not None
        self._work.cancel()
        sender = (await asyncio.gather(self._work, return_exceptions=True))[0]
        if isinstance(sender, Sender):
            await sender.__aexit__(SendFailed)


class SessionOpener:
    """Opens the memory sessions of one VM's migrations, one at a time. ``options`` are those of a new session."""

    def __init__(self, connections: ConnectionPool, options: Callable[[], Awaitable[SendOptions]]) -> None:
        self._connections = connections
        self._options = options
        self._opening: _Opening | None = None

    def begin_early(self, task: Task, endpoint: str) -> None:
        """Begin to open a migration's session where its target will be; it is tried until the target is ready."""
        self._begin(task, endpoint, early=True)

    def _begin(self, task: Task, endpoint: str, *, early: bool) -> _Opening:
        if self._opening is None or self._opening.migration != task.migration:
            self._opening = _Opening(task, endpoint, early=early)
            self._opening.start(self._connections, self._options)
        return self._opening

    async def open(self, task: Task) -> Sender:
        """Return the migration's session, open. Raises SendFailed, TimeoutError."""
        assert task.endpoint is not None
        if self._opening is not None and self._opening.endpoint != task.endpoint:
            await self.close()
        opening = self._begin(task, task.endpoint, early=False)
        try:
            return await opening.result()
        finally:
            self._opening = None

    async def close(self) -> None:
        """Give up what is being opened, if anything is."""
        opening, self._opening = self._opening, None
        if opening is not None:
            await opening.close()
