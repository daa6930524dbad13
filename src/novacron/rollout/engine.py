"""Takes a rollout from step to step, and back when one fails.

Before a step begins, the journal names it, durably. So a process that is killed at any moment is followed by another
one that does the same step again, and goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from novacron.rollout.journal import RolloutJournal
from novacron.rollout.keeper import Aborted, RolloutKeeper
from novacron.rollout.model import (
    GOING_BACK_STEPS,
    SHARE,
    WATCH,
    Rollout,
    RolloutState,
    StepFailed,
    next_step,
    steps,
)
from novacron.rollout.telling import Telling
from novacron.rollout.work import RolloutParts, RolloutSteps


class RolloutEngine:
    """Works on one rollout in this process, which has the journal's lock."""

    def __init__(self, journal: RolloutJournal, parts: RolloutParts, say: Callable[[str], None]) -> None:
        self._telling = Telling(parts.options)
        self._keeper = RolloutKeeper[Rollout](journal, self._telling, say)
        self._journal, self._say = journal, say
        self._steps = RolloutSteps(parts, self._keeper.wait, self._keeper.keep)

    def run(self, rollout: Rollout) -> Rollout:
        """Go on with a rollout until it has ended; return it. Raises RolloutError, OSError."""
        try:
            return self._run(rollout)
        except OSError:
            if rollout.step.startswith((SHARE, WATCH)) or rollout.step == GOING_BACK_STEPS[0]:
                # Nobody will watch the new version.
                self._say(f"{rollout.step}: the journal can't be written: {self._steps.withdraw(rollout)}")
            raise

    def _run(self, rollout: Rollout) -> Rollout:
        if not rollout.step:
            self._journal.forget_old()
            self._telling.webhook(rollout)
            self._keeper.enter(rollout, steps(rollout)[0])
        elif rollout.state is RolloutState.PAUSED:
            rollout.become(RolloutState.RUNNING)
            self._keeper.keep(rollout)
        while not rollout.ended:
            try:
                self._keeper.attend(rollout)
                said = self._steps.perform(rollout)
                self._note(rollout, said)
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

    def turn(self, rollout: Rollout, reason: str) -> None:
        """Decide that a rollout goes back."""
        rollout.note(time.time(), f"goes back: {reason}")
        self._say(f"{rollout.step}: goes back: {reason}")
        self._telling.annotate(rollout, f"{rollout.step}: goes back: {reason}")
        rollout.become(RolloutState.GOING_BACK)
        rollout.reason, rollout.ended_s, rollout.went_back_s = reason, 0.0, 0.0
        self._telling.webhook(rollout)
        self._keeper.enter(rollout, steps(rollout)[0])

    def accept(self, rollout: Rollout, by: str) -> Rollout:
        """Take what serves after a failure for the installation's version. Raises StepFailed if nothing does."""
        kept = self._steps.accept(rollout)
        self._note(rollout, f"{kept} has all requests, accepted by {by}; {self._steps.end(rollout, kept.other)}")
        rollout.become(RolloutState.DONE if kept is rollout.colour else RolloutState.ROLLED_BACK)
        rollout.reason += f"; then {kept} was accepted by {by}"
        self._end(rollout)
        return rollout

    def _advance(self, rollout: Rollout) -> None:
        following = next_step(rollout)
        if following is not None:
            self._keeper.enter(rollout, following)
            return
        back = rollout.state is RolloutState.GOING_BACK
        if rollout.state is RolloutState.PAUSED:  # asked for in the last step: there is nothing to wait for
            rollout.become(RolloutState.RUNNING)
        rollout.become(RolloutState.ROLLED_BACK if back else RolloutState.DONE)
        self._end(rollout)

    def _fail(self, rollout: Rollout, reason: str) -> None:
        self._note(rollout, f"can't go back: {reason}")
        rollout.become(RolloutState.FAILED)
        rollout.reason += f"; then it could not go back: {reason}"
        self._end(rollout)

    def _end(self, rollout: Rollout) -> None:
        rollout.ended_s = time.time()
        self._note(rollout, f"{rollout.state}: {self._serves(rollout)}")
        self._telling.webhook(rollout)
        self._keeper.keep(rollout)
        self._keeper.tell(rollout)

    def _serves(self, rollout: Rollout) -> str:
        if rollout.state is not RolloutState.FAILED:
            return f"{rollout.serving_version or 'nothing'} on {rollout.serving} serves"
        versions = {rollout.colour: rollout.version, rollout.stable: rollout.version_before}
        ready = " and ".join(f"{versions[colour]} on {colour}" for colour in self._steps.ready(rollout))
        return f"{ready} is ready" if ready else "no server is ready"

    def _note(self, rollout: Rollout, text: str) -> None:
        self._keeper.note(rollout, text)
        # While requests still go to a version that has to go, nobody is waited for.
        if rollout.state is not RolloutState.GOING_BACK or rollout.step != steps(rollout)[0] or rollout.went_back_s:
            self._keeper.tell(rollout)
