"""Works on a rollout of servers: its steps, what it leaves, and what happens when its journal can't be written."""

from __future__ import annotations

from collections.abc import Callable

from novacron.rollout.journal import RolloutJournal
from novacron.rollout.model import GOING_BACK_STEPS, SHARE, WATCH, Rollout, RolloutState
from novacron.rollout.notifications import Notifications
from novacron.rollout.step_engine import StepEngine
from novacron.rollout.work import RolloutParts, RolloutSteps


class RolloutEngine(StepEngine[Rollout]):
    """Works on one rollout of servers."""

    def __init__(self, journal: RolloutJournal, parts: RolloutParts, say: Callable[[str], None]) -> None:
        super().__init__(journal, Notifications(parts.options), say)
        self._steps = RolloutSteps(parts, self._keeper.wait, self._keeper.keep)

    def run(self, rollout: Rollout) -> Rollout:
        try:
            return super().run(rollout)
        except OSError:
            if rollout.step.startswith((SHARE, WATCH)) or rollout.step == GOING_BACK_STEPS[0]:
                # Nobody will watch the new version.
                self._say(f"{rollout.step}: the journal can't be written: {self._steps.withdraw(rollout)}")
            raise

    def _perform(self, rollout: Rollout) -> str:
        return self._steps.perform(rollout)

    def accept(self, rollout: Rollout, by: str) -> Rollout:
        """Take what serves after a failure for the installation's version. Raises StepFailed if nothing does."""
        kept = self._steps.accept(rollout)
        self._note(rollout, f"{kept} has all requests, accepted by {by}; {self._steps.end(rollout, kept.other)}")
        rollout.become(RolloutState.DONE if kept is rollout.colour else RolloutState.ROLLED_BACK)
        rollout.reason += f"; then {kept} was accepted by {by}"
        self._end(rollout)
        return rollout

    def _outcome(self, rollout: Rollout) -> str:
        if rollout.state is not RolloutState.FAILED:
            return f"{rollout.serving_version or 'nothing'} on {rollout.serving} serves"
        versions = {rollout.colour: rollout.version, rollout.stable: rollout.version_before}
        ready = " and ".join(f"{versions[colour]} on {colour}" for colour in self._steps.ready(rollout))
        return f"{ready} is ready" if ready else "no server is ready"

    def _note(self, rollout: Rollout, text: str) -> None:
        self._keeper.note(rollout, text)
        # While requests still go to a version that has to go, nobody is waited for.
        if rollout.state is not RolloutState.GOING_BACK or rollout.step != GOING_BACK_STEPS[0] or rollout.went_back_s:
            self._keeper.tell(rollout)
