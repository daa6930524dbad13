"""What asyncio's debug mode says of callbacks that blocked an event loop, in this process and in those it started."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

REPORTS_MAX = 200
SAID = re.compile(r"Executing (<.+>) took ([0-9.]+) seconds")
DEBUG_MODE = bool(os.environ.get("PYTHONASYNCIODEBUG"))


class BlockedLoops(logging.Handler):
    """Keeps reports: those logged in this process, and those found in logs of others."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.reports: dict[str, None] = {}
        """In the order in which they came, each once."""

    def emit(self, record: logging.LogRecord) -> None:
        self._keep("tests", record.getMessage())

    def read(self, process: str, log: Path) -> None:
        """Keep what the log of a process has of it."""
        with log.open(errors="replace") as lines:
            for line in lines:
                self._keep(process, line)

    def _keep(self, process: str, text: str) -> None:
        said = SAID.search(text)
        if said is not None and len(self.reports) < REPORTS_MAX:
            self.reports[f"{process}: {said[2]} s in {said[1]}"] = None


blocked_loops = BlockedLoops()
