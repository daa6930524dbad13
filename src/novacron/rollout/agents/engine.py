"""Takes a rollout of agents from step to step, and back when one fails. The journal names a step before it begins."""

from __future__ import annotations

import time
from collections.abc import Callable

from novacron.rollout.agents.journal import AgentJournal
from novacron.rollout.agents.model import AgentRollout, NodeStage, next_step, steps
from novacron.rollout.agents.node_work import AgentParts
from novacron.rollout.agents.work import WaveSettings, WaveSteps
from novacron.rollout.keeper import Aborted, RolloutKeeper
from novacron.rollout.model import RolloutState, StepFailed
from novacron.rollout.telling import Telling


class AgentEngine:
    """Works on one rollout in this process, which has the journal's lock. ``say`` prints a line."""

    def __init__(
        self, journal: AgentJournal, parts: AgentParts, settings: WaveSettings, telling: Telling,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._journal, self._telling = journal, telling
        self._keeper = RolloutKeeper[AgentRollout](journal, telling, say)
        self._steps = WaveSteps(journal, parts, settings, self._keeper.wait, self._keeper.keep)

    def run(self, rollout: AgentRollout) -> AgentRollout:
        """Go on with a rollout until it has ended; return it. Raises RolloutError, OSError."""
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

    def turn(self, rollout: AgentRollout, reason: str) -> None:
        """Decide that a rollout goes back."""
        self._keeper.note(rollout, f"goes back: {reason}")
        rollout.become(RolloutState.GOING_BACK)
        rollout.reason, rollout.ended_s, rollout.went_back_s = reason, 0.0, 0.0
        self._telling.webhook(rollout)
        self._keeper.enter(rollout, steps(rollout)[0])

    def accept(self, rollout: AgentRollout, by: str) -> AgentRollout:
        """End a rollout that failed, with each node as it is."""
        rollout.become(RolloutState.DONE)
        rollout.reason += f"; then accepted by {by}"
        self._end(rollout)
        return rollout

    def _advance(self, rollout: AgentRollout) -> None:
        following = next_step(rollout)
        if following is not None:
            self._keeper.enter(rollout, following)
            return
        back = rollout.state is RolloutState.GOING_BACK
        if rollout.state is RolloutState.PAUSED:  # asked for in the last step: there is nothing to wait for
            rollout.become(RolloutState.RUNNING)
        rollout.become(RolloutState.ROLLED_BACK if back else RolloutState.DONE)
        self._end(rollout)

    def _fail(self, rollout: AgentRollout, reason: str) -> None:
        self._note(rollout, f"can't go back: {reason}")
        rollout.become(RolloutState.FAILED)
        rollout.reason += f"; then it could not go back: {reason}"
        self._end(rollout)

    def _end(self, rollout: AgentRollout) -> None:
        rollout.ended_s = time.time()
        out = sum(node.stage is NodeStage.LEFT_OUT for node in rollout.nodes)
        kept = f"; left out: {out}" if out else ""
        new = sum(node.stage is NodeStage.UPGRADED for node in rollout.nodes)
        self._note(rollout, f"{rollout.state}: {new} of {len(rollout.nodes)} nodes have {rollout.version}{kept}")
        self._telling.webhook(rollout)
        self._keeper.keep(rollout)
        self._keeper.tell(rollout)

    def _note(self, rollout: AgentRollout, text: str) -> None:
        self._keeper.note(rollout, text)
        self._keeper.tell(rollout)
