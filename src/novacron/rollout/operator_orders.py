"""What operators order of a rollout that has begun, whatever it is of: resume, pause, abort, accept."""

from __future__ import annotations

import getpass
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Generic, NamedTuple, TypeVar

from novacron.rollout.journal import OperatorAsk, OperatorRequest, RecordJournal
from novacron.rollout.model import RolloutError, RolloutRecord, RolloutState
from novacron.rollout.options import VERSION, RolloutOptions
from novacron.rollout.step_engine import StepEngine

POLL_S = 0.2

R = TypeVar("R", bound=RolloutRecord)


class OrderTexts(NamedTuple):
    """What operators read where each kind of rollouts has words of its own."""

    kind: str
    """Follows "rollout"."""
    flag: str
    """Follows commands that are about this kind."""
    after_failure: str
    not_paused: str
    not_pausable: str
    nothing_to_abort: str
    nothing_to_accept: str
    process: str
    """Which process has ended; the rollout's title follows."""


class OrderLimits(NamedTuple):
    """How long the process that works may take."""

    heard_s_max: float
    """Until it has heard what it is asked."""
    ended_s_max: float
    """Until it has gone back."""


class OperatorOrders(ABC, Generic[R]):
    """What can be ordered, with these settings. ``say`` prints a line. All raise RolloutError, OSError."""

    texts: ClassVar[OrderTexts]
    limits: ClassVar[OrderLimits]

    def __init__(self, options: RolloutOptions, say: Callable[[str], None]) -> None:
        self.options, self.say = options, say

    @property
    @abstractmethod
    def journal(self) -> RecordJournal[R]:
        """Return where the records of this kind are."""

    @abstractmethod
    def _engine(self) -> StepEngine[R]:
        """Return what works on a rollout in this process."""

    @abstractmethod
    def _finishes_first(self, rollout: R) -> str:
        """Return what the process that works on a rollout does before it hears anybody."""

    def resume(self) -> R:
        """Let a rollout go on: one that is paused, or one whose process has ended."""
        journal = self.journal
        rollout = self._open_rollout()
        if journal.is_worked_on():
            if rollout.state is not RolloutState.PAUSED:
                raise RolloutError(f"{rollout.title} is worked on already, and {self.texts.not_paused}")
            return self._ask(
                rollout, OperatorAsk.RESUME, lambda now: now.state is not RolloutState.PAUSED, self.limits.heard_s_max
            )
        with journal.alone():
            return self._run(self._open_rollout())

    def pause(self) -> R:
        """Let a rollout wait where it is; what it watches is still watched."""
        rollout = self._open_rollout()
        if rollout.state is not RolloutState.RUNNING:
            raise RolloutError(f"{rollout.title} is {rollout.state}: it can't {self.texts.not_pausable}")
        if not self.journal.is_worked_on():
            raise RolloutError(
                f"no process works on {rollout.title}: it waits until novacron rollout resume{self.texts.flag}"
            )
        return self._ask(
            rollout, OperatorAsk.PAUSE, lambda now: now.state is not RolloutState.RUNNING, self.limits.heard_s_max
        )

    def abort(self) -> R:
        """Let a rollout go back, and wait until it has."""
        journal = self.journal
        rollout = journal.last()
        if rollout is None or (rollout.ended and rollout.state is not RolloutState.FAILED):
            raise RolloutError(self.texts.nothing_to_abort)
        if journal.is_worked_on():
            return self._ask(rollout, OperatorAsk.ABORT, lambda now: now.ended, self.limits.ended_s_max)
        with journal.alone():
            return self._go_back(rollout)

    def accept(self) -> R:
        """After a rollout that failed: keep what is there."""
        with self.journal.alone():
            rollout = self.journal.last()
            if rollout is None or rollout.state is not RolloutState.FAILED:
                raise RolloutError(self.texts.nothing_to_accept)
            self.journal.answered()
            return self._engine().accept(rollout, getpass.getuser())

    def _open_rollout(self) -> R:
        """Return the rollout that has not ended. Raises RolloutError."""
        rollout = self.journal.last()
        if rollout is None or rollout.ended:
            failed = rollout is not None and rollout.state is RolloutState.FAILED
            hint = f"; the last one has failed: {self.texts.after_failure}" if failed else ""
            raise RolloutError(f"no {self.texts.kind} is under way{hint}")
        return rollout

    def _check_version(self, version: str) -> None:
        if not VERSION.match(version):
            raise RolloutError(f"version: {version!r} is no version; write it like 1.2.0")

    def _check_ended(self, last: R | None) -> None:
        """Raise RolloutError if the last rollout has failed or is under way."""
        if last is not None and last.state is RolloutState.FAILED:
            raise RolloutError(f"{last.title} to {last.version} has failed: {self.texts.after_failure}")
        if last is not None and not last.ended:
            raise RolloutError(
                f"{last.title} to {last.version} is {last.state}: let it go on with novacron rollout"
                f" resume{self.texts.flag}, or back with novacron rollout abort{self.texts.flag}"
            )

    def _go_back(self, rollout: R) -> R:
        """Go back in this process, which has the lock."""
        self.journal.answered()
        engine = self._engine()
        if rollout.state is not RolloutState.GOING_BACK:
            engine.turn(rollout, f"aborted by {getpass.getuser()}")
        return engine.run(rollout)

    def _ask(self, rollout: R, ask: OperatorAsk, done: Callable[[R], bool], limit_s: float) -> R:
        """Ask the process that works, and wait until it has done so."""
        journal, deadline = self.journal, time.monotonic() + limit_s
        journal.ask(OperatorRequest(rollout.number, ask, getpass.getuser()))
        while not done(now := journal.get(rollout.number)):
            if time.monotonic() > deadline:
                raise RolloutError(
                    f"{rollout.title} has not done so within {limit_s:.0f} s: {self._finishes_first(now)}; see:"
                    f" novacron rollout status{self.texts.flag}"
                )
            if not journal.is_worked_on() and not done(journal.get(rollout.number)):
                raise RolloutError(f"{self.texts.process} {rollout.title} has ended: run this again")
            time.sleep(POLL_S)
        return now

    def _run(self, rollout: R) -> R:
        self.journal.answered()
        return self._engine().run(rollout)
