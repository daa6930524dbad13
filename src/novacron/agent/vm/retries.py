"""Pauses after attempts that failed: longer and longer, each error logged once, and none of them forever busy."""

from __future__ import annotations

from novacron.agent.host.clock import Clock
from novacron.dwcp.backoff import Backoff
from novacron.telemetry import logs

log = logs.get(__name__)

FIRST_S = 1.0
EXPECTED_S_MAX = 5.0
"""After an error that was foreseen, a link that is down for example: the guest may be waiting for what is retried."""
DEFECT_S_MAX = 60.0
"""After an error that nobody foresaw: the same would happen at once again."""


class Retries:
    """The attempts at one kind of work for one VM. There is no last attempt: a guest may depend on the work."""

    def __init__(self, vm: str, work: str, clock: Clock) -> None:
        self._vm, self._work, self._clock = vm, work, clock
        self._expected = Backoff(FIRST_S, EXPECTED_S_MAX)
        self._defect = Backoff(FIRST_S, DEFECT_S_MAX)
        self._last_error = ""

    def reset(self) -> None:
        """An attempt succeeded."""
        self._expected.reset()
        self._defect.reset()
        self._last_error = ""

    async def pause_after(self, error: Exception) -> None:
        """Wait after an error that was foreseen."""
        if self._is_new(error):
            log.warning("will be retried", vm=self._vm, work=self._work, error=str(error) or type(error).__name__)
        await self._clock.sleep(self._expected.next_s())

    async def pause_after_defect(self, error: Exception) -> None:
        """Wait after an error that was not foreseen: a defect of the agent, which must not make a busy loop."""
        if self._is_new(error):
            log.error("defect; will be retried", vm=self._vm, work=self._work, exc_info=error)
        await self._clock.sleep(self._defect.next_s())

    def _is_new(self, error: Exception) -> bool:
        """Say whether another error was logged last: the same one again and again is logged once."""
        text = repr(error)
        is_new, self._last_error = text != self._last_error, text
        return is_new
