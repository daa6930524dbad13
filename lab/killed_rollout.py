"""``novacron rollout`` that is killed (SIGKILL) at a step: ``NOVACRON_LAB_KILL=STEP:begun`` once the journal names the
step, ``STEP:done`` when the step is done and the journal does not say so yet."""

from __future__ import annotations

import os
import signal

from novacron.rollout.journal import RolloutJournal
from novacron.rollout.model import Rollout


def main() -> None:
    step, _, moment = os.environ["NOVACRON_LAB_KILL"].partition(":")
    save = RolloutJournal.save
    reached = [False]

    def killed(self: RolloutJournal, rollout: Rollout) -> None:
        if moment == "done" and reached[0] and (rollout.step != step or rollout.ended):
            os.kill(os.getpid(), signal.SIGKILL)
        save(self, rollout)
        reached[0] = rollout.step == step
        if moment == "begun" and reached[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    RolloutJournal.save = killed  # type: ignore[method-assign,assignment]
    from novacron.entry import main as run

    run()


if __name__ == "__main__":
    main()
