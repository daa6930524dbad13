"""What blocked an event loop is collected from each process once."""

from __future__ import annotations

import logging
from pathlib import Path

from lab.blocked_loops import REPORTS_MAX, BlockedLoops


def test_reports_come_from_this_process_and_from_the_logs_of_others(tmp_path: Path) -> None:
    blocked = BlockedLoops()
    report = "Executing <Task pending name='lease' coro=<Lease.run() running at lease.py:5>> took %.3f seconds"
    blocked.emit(logging.LogRecord("asyncio", logging.WARNING, "", 0, report, (0.25,), None))
    log = tmp_path / "agent.log"
    log.write_text(f"2026-11-29 [warning] {report % 0.5}\n2026-11-29 [info] started\n")
    blocked.read("host-a", log)
    blocked.read("host-a", log)
    assert list(blocked.reports) == [
        "tests: 0.250 s in <Task pending name='lease' coro=<Lease.run() running at lease.py:5>>",
        "host-a: 0.500 s in <Task pending name='lease' coro=<Lease.run() running at lease.py:5>>",
    ]


def test_no_more_are_kept_than_somebody_reads(tmp_path: Path) -> None:
    blocked = BlockedLoops()
    log = tmp_path / "server.log"
    log.write_text("".join(f"Executing <Handle {number}> took 0.2 seconds\n" for number in range(REPORTS_MAX + 5)))
    blocked.read("server", log)
    assert len(blocked.reports) == REPORTS_MAX
