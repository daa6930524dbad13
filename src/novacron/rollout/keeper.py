"""Keeps the record of a rollout that is worked on: writes it, tells who is to be told, hears what operators ask."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from novacron.rollout.agents.model import AgentRollout
from novacron.rollout.journal import OperatorAsk, RecordJournal
from novacron.rollout.model import WATCH, Rollout, RolloutState
from novacron.rollout.telling import Telling

ALIVE_S = 5.0
"""Between two signs of life, at most."""
POLL_S = 0.2

R = TypeVar("R", Rollout, AgentRollout)


class Aborted(Exception):
    """An operator wants a rollout to go back."""


class RolloutKeeper(Generic[R]):
    """The record of one rollout, in this process, which has the journal's lock. ``say`` prints a line."""

    def __init__(self, journal: RecordJournal[R], telling: Telling, say: Callable[[str], None]) -> None:
        self.journal: RecordJournal[R] = journal
        self.telling, self.say = telling, say
        self._alive_at = 0.0
        self._lock = threading.RLock()

    def note(self, rollout: R, text: str) -> None:
        """Say what has happened, and add it to the record."""
        rollout.note(time.time(), text)
        self.say(f"{rollout.step}: {text}" if rollout.step else text)
        self.telling.annotate(rollout, f"{rollout.step}: {text}")

    def tell(self, rollout: R) -> None:
        """Tell everybody what is to be told, now."""
        self.telling.flush(rollout, self._warn)

    def _warn(self, rollout: Rollout | AgentRollout, text: str) -> None:
        rollout.note(time.time(), text)
        self.say(text)

    def enter(self, rollout: R, step: str) -> None:
        """Begin a step: the record names it first. Raises OSError."""
        rollout.step, rollout.step_began_s, rollout.watched_s = step, time.time(), 0.0
        self.keep(rollout)

    def keep(self, rollout: R) -> None:
        """Write the record, whichever thread calls it. Raises OSError."""
        with self._lock:
            self.journal.save(rollout)
            self._be_seen(rollout)

    def _be_seen(self, rollout: R) -> None:
        with self._lock:
            self._alive_at = time.monotonic()
            problem = self.telling.measure(rollout)
        if problem:
            self.say(problem)

    def wait(self, rollout: R, seconds: float) -> None:
        """Wait, and do what operators ask for meanwhile. Raises Aborted."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.hear(rollout)
            if time.monotonic() - self._alive_at > ALIVE_S:
                self._be_seen(rollout)
            time.sleep(min(POLL_S, left))

    def attend(self, rollout: R) -> None:
        """Do what operators ask for between two steps; a pause lasts until they say so. Raises Aborted."""
        self.hear(rollout)
        while rollout.state is RolloutState.PAUSED and not rollout.step.startswith(WATCH):
            self.wait(rollout, POLL_S)

    def hear(self, rollout: R) -> None:
        """Take what is asked. Raises Aborted."""
        request = self.journal.asked(rollout.number)
        if request is None:
            return
        self.journal.answered()
        if rollout.state in (RolloutState.GOING_BACK, RolloutState.FAILED):
            return
        if request.ask is OperatorAsk.ABORT:
            raise Aborted(f"aborted by {request.by}")
        wanted = RolloutState.PAUSED if request.ask is OperatorAsk.PAUSE else RolloutState.RUNNING
        if rollout.state is not wanted:
            rollout.become(wanted)
            self.note(rollout, f"{wanted} by {request.by}")
            self.tell(rollout)
            self.keep(rollout)
