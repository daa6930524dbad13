"""Works on a rollout of agents: what its steps need, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable

from novacron.rollout.agents.journal import AgentJournal
from novacron.rollout.agents.model import AgentRollout, NodeStage
from novacron.rollout.agents.node_work import AgentParts
from novacron.rollout.agents.work import WaveSettings, WaveSteps
from novacron.rollout.model import RolloutState
from novacron.rollout.notifications import Notifications
from novacron.rollout.step_engine import StepEngine


class AgentEngine(StepEngine[AgentRollout]):
    """Works on one rollout of agents."""

    def __init__(
        self, journal: AgentJournal, parts: AgentParts, settings: WaveSettings, telling: Notifications,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        super().__init__(journal, telling, say)
        self._steps = WaveSteps(journal, parts, settings, self._keeper.wait, self._keeper.keep)

    def _perform(self, rollout: AgentRollout) -> str:
        return self._steps.perform(rollout)

    def accept(self, rollout: AgentRollout, by: str) -> AgentRollout:
        """End a rollout that failed, with each node as it is."""
        rollout.become(RolloutState.DONE)
        rollout.reason += f"; then accepted by {by}"
        self._end(rollout)
        return rollout

    def _outcome(self, rollout: AgentRollout) -> str:
        left_out = sum(node.stage is NodeStage.LEFT_OUT for node in rollout.nodes)
        upgraded = sum(node.stage is NodeStage.UPGRADED for node in rollout.nodes)
        without = f"; left out: {left_out}" if left_out else ""
        return f"{upgraded} of {len(rollout.nodes)} nodes have {rollout.version}{without}"
