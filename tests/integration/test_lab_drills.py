"""Drills of the lab and practice, run as people run them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from lab.drills import catalogue, execution, practice
from lab.drills.model import LabDrillRun
from lab.drills.promises import misses
from lab.runbook_runs import lab_host
from novacron.model.drill import DrillVerdict

ROOT = Path(__file__).parents[2]
QUICK = "database-killed"


def run_drill(program: list[str], name: str, file: Path) -> LabDrillRun:
    done = subprocess.run(
        [*program, name, "--json", str(file)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=900,
        env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    run = msgspec.json.decode(file.read_bytes(), type=LabDrillRun)
    assert run.verdict is DrillVerdict.PASSED and misses(run.measured, run.promised) == []
    return run


def test_a_drill_kills_a_database_and_measures_what_its_runbook_does(tmp_path: Path) -> None:
    run = run_drill([sys.executable, "-m", "lab.drills"], QUICK, tmp_path / "run.json")
    assert run.measured.recover_s and run.measured.loss_s == 0
    assert [step.name for step in run.steps if step.name.startswith("runbook ")] == [
        "runbook incidents/database-issues"
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name in catalogue.NAMES if name != QUICK])
def test_each_drill_recovers_within_what_it_promises(name: str, tmp_path: Path) -> None:
    drill = next(drill for drill in catalogue.ALL if drill.name == name)
    if drill.needs_root and os.geteuid() != 0:
        pytest.skip("it mounts a disk, which takes root")
    run_drill(["script/drill"], name, tmp_path / "run.json")


@pytest.mark.slow
def test_a_drill_whose_runbook_mends_nothing_fails_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.drills.database.lab_host", lambda _: lab_host({}))
    drill = next(drill for drill in catalogue.ALL if drill.name == QUICK)
    run = execution.run(drill._replace(limit_s=20))
    assert run.verdict is DrillVerdict.FAILED and "longer than 20 s" in run.error
    assert run.measured.detect_s is not None and run.measured.recover_s is None
    assert not run.steps[-1].passed and run.steps[-1].name == "runbook incidents/database-issues"


class Engineer:
    """A person who practises: types what the task says, and what the runbook leads to."""

    def __init__(self, *answered: str, mends: str = "") -> None:
        self._answered, self._mends = answered, mends
        self.said = ""

    def begin(self, directory: Path) -> None:
        threading.Thread(target=self._work, args=(directory,)).start()

    def _work(self, directory: Path) -> None:
        environment = {**os.environ, "NOVACRON_CONFIG": str(directory / "p/cli.json")}
        environment["PATH"] = f"{directory / 'bin'}:{environment['PATH']}"
        if self._mends:
            (directory / self._mends).unlink()
        answers = [word for step in self._answered for word in ("--answered", step)]
        done = subprocess.run(
            [sys.executable, "-m", "novacron", "runbook", "run", "--alert", str(directory / "alert.json"),
             "--here", "node", "--here", "server", "--yes", "--log", str(directory / "log"), *answers],
            capture_output=True, text=True, check=False, env=environment, stdin=subprocess.DEVNULL, timeout=300,
        )  # fmt: skip
        self.said = done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_engineer_mends_a_stopped_agent_with_the_runbook_of_its_alert() -> None:
    exercise, engineer = next(each for each in practice.ALL if each.name == "stopped-agent"), Engineer()
    assert practice.run(exercise, 120, engineer.begin) is not None, engineer.said


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_engineer_mends_a_full_disk_with_the_runbook_of_its_alert() -> None:
    if os.geteuid() != 0:
        pytest.skip("it mounts a disk, which takes root")
    exercise = next(each for each in practice.ALL if each.name == "full-disk")
    engineer = Engineer("host-mended", mends="p/host-b/agent/ballast")
    assert practice.run(exercise, 180, engineer.begin) is not None, engineer.said


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_exercise_that_nobody_mends_ends_at_its_limit_as_not_mended() -> None:
    exercise = next(each for each in practice.ALL if each.name == "expired-certificate")
    assert practice.run(exercise, 5) is None
