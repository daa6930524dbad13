"""What blocked an event loop is collected from each process once."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.blocked_loops import REPORTS_MAX, BlockedLoops


def test_reports_come_from_this_process_and_from_the_logs_of_others(tmp_path: Path) -> None:
    blocked = BlockedLoops()
    report = "Executing <Task pending name='lease' coro=<Lease.run() running at lease.py:5>> took %.3f seconds"
    blocked.emit(logging.LogRecord("asyncio", logging.WARNING, "", 0, report, (0.25,), None))
    log = tmp_path / "agent.log"
    log.write_text(f"2026-11-29 [warning] {report % 0.5}\n2026-11-29 [info] started\n")
    blocked.read("host-a", log)
    blocked.read("host-a", log)
    host_a = "host-a: 0.500 s in <Task pending name='lease' coro=<Lease.run() running at lease.py:5>>"
    assert list(blocked.reports) == [
        "tests: 0.250 s in <Task pending name='lease' coro=<Lease.run() running at lease.py:5>>",
        host_a,
    ]
    assert blocked.too_long(499) == [host_a], "what tests themselves do blocks no agent"
    assert blocked.too_long(501) == []


def test_no_more_are_kept_than_somebody_reads(tmp_path: Path) -> None:
    blocked = BlockedLoops()
    log = tmp_path / "server.log"
    said = [f"Executing <Handle {number}> took 0.2 seconds\n" for number in range(REPORTS_MAX + 5)]
    log.write_text("".join(["Executing <Handle first> took 0.1 seconds\n", *said, "Executing <Last> took 3 seconds\n"]))
    blocked.read("server", log)
    assert len(blocked.reports) == REPORTS_MAX
    assert blocked.too_long(250) == ["server: 3 s in <Last>"] and not any("first" in each for each in blocked.reports)


@pytest.mark.parametrize(("process", "ms_max", "code"), [("host-a", 250, 1), ("host-a", 600, 0)])
def test_a_run_in_debug_mode_fails_if_an_agent_or_a_server_blocked_its_loop(
    tmp_path: Path, process: str, ms_max: int, code: int
) -> None:
    """The hooks of this suite, in a run of its own."""
    root = Path(__file__).parents[2]
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")
    (tmp_path / "test_blocks.py").write_text(
        f"from lab.blocked_loops import blocked_loops\n"
        f"def test_it() -> None:\n    blocked_loops.add('{process}: 0.5 s in <Handle>', 0.5)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(root / "pyproject.toml")]
    done = subprocess.run(
        [*command, "--rootdir", str(tmp_path), "-o", f"blocked_loop_ms_max={ms_max}", str(tmp_path)], cwd=tmp_path,
        env={**os.environ, "PYTHONASYNCIODEBUG": "1", "PYTHONPATH": str(root)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == code and f"{process}: 0.5 s in <Handle>" in done.stdout, done.stdout + done.stderr
    assert ("longer than" in done.stdout) is (code == 1)
