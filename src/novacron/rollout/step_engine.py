"""Takes a rollout from step to step and back, whatever it is of; keeps its record, and hears what operators ask.

Before a step begins, the journal names it, durably. So a process that is killed at any moment is followed by another
one that does the same step again, and goes on.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

from novacron.rollout.journal import OperatorAsk, RecordJournal
from novacron.rollout.model import WATCH, RolloutRecord, RolloutState, StepFailed
from novacron.rollout.notifications import Notifications

ALIVE_S = 5.0
"""Between two signs of life, at most."""
POLL_S = 0.2

R = TypeVar("R", bound=RolloutRecord)


class Aborted(Exception):
    """An operator wants a rollout to go back."""


class RolloutKeeper(Generic[R]):
    """The record of one rollout, in this process, which has the journal's lock. ``say`` prints a line."""

    def __init__(self, journal: RecordJournal[R], telling: Notifications, say: Callable[[str], None]) -> None:
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

    def _warn(self, rollout: RolloutRecord, text: str) -> None:
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
        state = RolloutState.PAUSED if request.ask is OperatorAsk.PAUSE else RolloutState.RUNNING
        if rollout.state is not state:
            rollout.become(state)
            self.note(rollout, f"{state} by {request.by}")
            self.tell(rollout)
            self.keep(rollout)


class StepEngine(ABC, Generic[R]):
    """Works on one rollout in this process, which has the journal's lock. ``say`` prints a line."""

    def __init__(self, journal: RecordJournal[R], telling: Notifications, say: Callable[[str], None]) -> None:
        self._journal: RecordJournal[R] = journal
        self._telling, self._say = telling, say
        self._keeper = RolloutKeeper[R](journal, telling, say)

    @abstractmethod
    def _perform(self, rollout: R) -> str:
        """Do the present step and return what came of it. Raises StepFailed, Aborted, OSError."""

    @abstractmethod
    def _outcome(self, rollout: R) -> str:
        """Return what a rollout that has ended leaves."""

    @abstractmethod
    def accept(self, rollout: R, by: str) -> R:
        """End a rollout that failed with what is there. Raises StepFailed if that can't be."""

    def run(self, rollout: R) -> R:
        """Go on with a rollout until it has ended; return it. Raises RolloutError, OSError."""
        if not rollout.step:
            self._journal.forget_old()
            self._telling.webhook(rollout)
            self._keeper.enter(rollout, rollout.steps[0])
        elif rollout.state is RolloutState.PAUSED:
            rollout.become(RolloutState.RUNNING)
            self._keeper.keep(rollout)
        while not rollout.ended:
            try:
                self._keeper.attend(rollout)
                self._note(rollout, self._perform(rollout))
                self._advance(rollout)
            except Aborted as aborted:
                self.turn(rollout, str(aborted))
            except StepFailed as failed:
                if rollout.state is RolloutState.GOING_BACK:
                    self._fail(rollout, str(failed))
                else:
                    self.turn(rollout, str(failed))
        self._journal.answered()
        return rollout

    def turn(self, rollout: R, reason: str) -> None:
        """Decide that a rollout goes back."""
        self._keeper.note(rollout, f"goes back: {reason}")
        rollout.become(RolloutState.GOING_BACK)
        rollout.reason, rollout.ended_s, rollout.went_back_s = reason, 0.0, 0.0
        self._telling.webhook(rollout)
        self._keeper.enter(rollout, rollout.steps[0])

    def _advance(self, rollout: R) -> None:
        following = rollout.next_step
        if following is not None:
            self._keeper.enter(rollout, following)
            return
        back = rollout.state is RolloutState.GOING_BACK
        if rollout.state is RolloutState.PAUSED:  # asked for in the last step: there is nothing to wait for
            rollout.become(RolloutState.RUNNING)
        rollout.become(RolloutState.ROLLED_BACK if back else RolloutState.DONE)
        self._end(rollout)

    def _fail(self, rollout: R, reason: str) -> None:
        self._note(rollout, f"can't go back: {reason}")
        rollout.become(RolloutState.FAILED)
        rollout.reason += f"; then it could not go back: {reason}"
        self._end(rollout)

    def _end(self, rollout: R) -> None:
        rollout.ended_s = time.time()
        self._note(rollout, f"{rollout.state}: {self._outcome(rollout)}")
        self._telling.webhook(rollout)
        self._keeper.keep(rollout)
        self._keeper.tell(rollout)

    def _note(self, rollout: R, text: str) -> None:
        self._keeper.note(rollout, text)
        self._keeper.tell(rollout)
