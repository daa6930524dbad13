"""The records of rollouts of agents, and what was so before the wave that is under way."""

from __future__ import annotations

from pathlib import Path

import msgspec

from novacron import private_file
from novacron.rollout.agents.gates import WaveBaseline
from novacron.rollout.agents.model import AgentRollout
from novacron.rollout.journal import RecordJournal

FOLDER = "agents"
"""Below the folder of the rollouts of servers."""
BASELINE_BYTES_MAX = 64 << 20


class AgentJournal(RecordJournal[AgentRollout]):
    """The records of the rollouts of agents. ``directory``: of the rollouts of servers."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory / FOLDER, AgentRollout)
        self._baseline = self.directory / "baseline.json"

    def save_baseline(self, baseline: WaveBaseline) -> None:
        """Write what is so before a wave. Raises OSError."""
        private_file.write(self._baseline, msgspec.json.encode(baseline))

    def baseline(self, number: int, wave: int) -> WaveBaseline | None:
        """Return what was so before a wave; None: it is not written down. Raises OSError."""
        try:
            if self._baseline.stat().st_size > BASELINE_BYTES_MAX:
                return None
            baseline = msgspec.json.decode(self._baseline.read_bytes(), type=WaveBaseline)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None
        return baseline if (baseline.number, baseline.wave) == (number, wave) else None
