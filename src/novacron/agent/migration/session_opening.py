"""The opening of a migration's memory session, perhaps before the target is ready: then it costs no time of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from novacron import pki
from novacron.agent.host.clock import Clock, wait_at_most
from novacron.agent.host.endpoint import parse_endpoint
from novacron.dwcp.backoff import Backoff
from novacron.dwcp.connection import ConnectionPool
from novacron.dwcp.sender import Sender, SendFailed, SendOptions
from novacron.model import limits
from novacron.telemetry import traces
from novacron.wire.messages import Task

REOPEN_S, REOPEN_S_MAX = 0.05, 0.5
"""How soon a target that is not ready yet is tried again: the first pause and the longest."""
EARLY_S_MAX = limits.MIGRATION_PREPARE_S_MAX
"""For how long it is tried. By then the server ends the migration, and the target may be ready nevertheless: then one
attempt is made as usual."""
OPENING_TIMEOUT_S = 15.0


class _Opening:
    """One session that is being opened."""

    def __init__(self, task: Task, endpoint: str, clock: Clock) -> None:
        self.migration, self.endpoint = task.migration, endpoint
        self.target_ready = asyncio.Event()
        """The target has said so: an attempt that begins now is the last."""
        self._trace, self._clock = task.trace, clock
        self._peer_host = pki.node_host(task.peer)
        self._work: asyncio.Task[Sender] | None = None

    def start(self, connections: ConnectionPool, options: Callable[[], Awaitable[SendOptions]]) -> None:
        self._work = asyncio.create_task(self._open(connections, options), name=f"open-{self.migration}")

    async def _open(self, connections: ConnectionPool, options: Callable[[], Awaitable[SendOptions]]) -> Sender:
        session_options = await options()
        backoff, give_up_at = Backoff(REOPEN_S, REOPEN_S_MAX), self._clock.monotonic() + EARLY_S_MAX
        while True:
            is_last = self.target_ready.is_set() or self._clock.monotonic() >= give_up_at
            sender = Sender(
                parse_endpoint(self.endpoint), self._peer_host, self.migration, connections, session_options
            )
            try:
                with traces.span("migration's session is opened", parent=self._trace, migration=self.migration):
                    return await sender.__aenter__()
            except SendFailed:
                if is_last:
                    raise
            await wait_at_most(self._clock, self.target_ready, backoff.next_s())

    @property
    def has_failed(self) -> bool:
        """Say whether the attempts have ended without a session."""
        work = self._work
        return work is not None and work.done() and (work.cancelled() or work.exception() is not None)

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

    def __init__(
        self, connections: ConnectionPool, options: Callable[[], Awaitable[SendOptions]], clock: Clock
    ) -> None:  # fmt: skip
        self._connections = connections
        self._options = options
        self._clock = clock
        self._opening: _Opening | None = None

    def begin_early(self, task: Task, endpoint: str) -> None:
        """Begin to open a migration's session where its target will be; it is tried until the target is ready.

        Attempts that have ended without a session are not begun again: ``open`` makes the next one.
        """
        self._begin(task, endpoint)

    def _begin(self, task: Task, endpoint: str) -> _Opening:
        if self._opening is None or self._opening.migration != task.migration:
            self._opening = _Opening(task, endpoint, self._clock)
            self._opening.start(self._connections, self._options)
        return self._opening

    async def open(self, task: Task) -> Sender:
        """Return the migration's session, open. Raises SendFailed, TimeoutError."""
        assert task.endpoint is not None
        if self._opening is not None and (self._opening.endpoint != task.endpoint or self._opening.has_failed):
            await self.close()
        opening = self._begin(task, task.endpoint)
        opening.target_ready.set()
        try:
            return await opening.result()
        finally:
            self._opening = None

    async def close(self) -> None:
        """Give up the session that is being opened, if any."""
        opening, self._opening = self._opening, None
        if opening is not None:
            await opening.close()
