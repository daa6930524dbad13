"""Calls in progress: requests, streams of changes, consoles. Each ends within a second after its caller lost a right
that it had when the call began."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator

from novacron.api.read_model.principals import Caller, Callers
from novacron.model.access import Access
from novacron.model.errors import Forbidden, NovaError, Unauthenticated

CHECK_S = 0.2
GRACE_S = 0.5
"""How much longer a request may take: one that ends its own caller, such as a logout, still gets its answer."""


class CallEnded(Exception):
    """A call was ended early. ``reason`` says why."""

    def __init__(self, reason: NovaError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class LiveCall:
    """A call in progress."""

    __slots__ = ("caller", "ended", "expires_at_s", "grace_s", "limit", "lost_at", "needs")

    def __init__(self, caller: Caller, needs: Access, limit: asyncio.Timeout, grace_s: float) -> None:
        self.caller, self.needs, self.limit, self.grace_s = caller.id, needs, limit, grace_s
        self.expires_at_s = caller.expires_at_s
        self.lost_at: float | None = None
        self.ended: NovaError | None = None
        """Why it was ended early; None: it was not."""


class LiveCalls:
    """All calls in progress in this process. ``run`` must run, or none is ended."""

    def __init__(self, callers: Callers) -> None:
        self._callers = callers
        self._calls: set[LiveCall] = set()
        self._checked = -1

    def __len__(self) -> int:
        return len(self._calls)

    def in_progress(self) -> set[str]:
        """Return the tokens and sessions, by id, whose calls go on."""
        return {call.caller for call in self._calls}

    @contextlib.contextmanager
    def watched(
        self, caller: Caller, limit: asyncio.Timeout, *, needs: Access | None = None, grace_s: float = 0
    ) -> Iterator[LiveCall]:
        """Let ``limit`` expire when the caller ends or has no longer all of the rights ``needs`` (default: those that
        the caller has now); the call then says why it ``ended``."""
        call = LiveCall(caller, caller.access if needs is None else needs, limit, grace_s)
        self._calls.add(call)
        self._checked = -1  # rights may have changed since the caller was looked up
        try:
            yield call
        finally:
            self._calls.discard(call)

    async def run(self) -> None:
        """End calls whose callers lost their rights, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_S)
            self.check(time.time(), asyncio.get_running_loop().time())

    def check(self, wall_s: float, loop_s: float) -> None:
        """End the calls whose callers lost their rights; times are since 1970 and of the event loop."""
        changed = self._callers.version != self._checked
        self._checked = self._callers.version
        for call in self._calls:
            if changed or call.expires_at_s <= wall_s or call.lost_at is not None:
                self._check(call, wall_s, loop_s)

    def _check(self, call: LiveCall, wall_s: float, loop_s: float) -> None:
        reason = self._lost(call, wall_s)
        if reason is None:
            call.lost_at = None
            return
        call.lost_at = loop_s if call.lost_at is None else call.lost_at
        if call.ended is None and loop_s - call.lost_at >= call.grace_s:
            call.ended = reason
            call.limit.reschedule(loop_s)

    def _lost(self, call: LiveCall, wall_s: float) -> NovaError | None:
        caller = self._callers.by_id(call.caller)
        if caller is None or caller.expires_at_s <= wall_s:
            return Unauthenticated("the token or session has ended", hint="log in again, or use another token")
        if not caller.access.covers(call.needs):
            return Forbidden("the caller's rights have changed during the request", hint="try again")
        return None
