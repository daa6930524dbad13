"""What asyncio's debug mode says of callbacks that blocked an event loop, in this process and in those it started."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

REPORTS_MAX = 200
TESTS = "tests"
"""What the process that collects is called: no VM's lease hangs on its loop."""
SAID = re.compile(r"Executing (<.+>) took ([0-9.]+) seconds")
DEBUG_MODE = bool(os.environ.get("PYTHONASYNCIODEBUG"))


class BlockedLoops(logging.Handler):
    """Keeps reports: those logged in this process, and those found in logs of others."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.reports: dict[str, float] = {}
        """Each once, in the order in which they came, with its seconds; of too many, the longest."""

    def emit(self, record: logging.LogRecord) -> None:
        self._keep(TESTS, record.getMessage())

    def read(self, process: str, log: Path) -> None:
        """Keep what the log of a process has of it."""
        with log.open(errors="replace") as lines:
            for line in lines:
                self._keep(process, line)

    def _keep(self, process: str, text: str) -> None:
        said = SAID.search(text)
        if said is not None:
            self.add(f"{process}: {said[2]} s in {said[1]}", float(said[2]))

    def add(self, report: str, seconds: float) -> None:
        """Keep a report, unless there are enough that are longer."""
        self.reports[report] = seconds
        if len(self.reports) > REPORTS_MAX:
            del self.reports[min(self.reports, key=self.reports.__getitem__)]

    def too_long(self, ms_max: float) -> list[str]:
        """Return the reports of agents and servers that blocked for longer than they may."""
        return [
            report for report, seconds in self.reports.items()
            if seconds * 1000 > ms_max and not report.startswith(f"{TESTS}: ")
        ]  # fmt: skip


blocked_loops = BlockedLoops()
