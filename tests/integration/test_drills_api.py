"""Drills that an installation runs on itself: recorded over the API, run by the command, seen by Prometheus."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer.main

from lab import runbook_runs
from lab.drills.installation import Installation, installed
from lab.platform import open_directory, until
from lab.replicas import Served, serving
from novacron.__main__ import app
from novacron.cli import drill_runs
from novacron.client import ApiError, NotFoundError, choices
from novacron.local import database_rehearsal
from novacron.local.database_backup import BackupPlace
from novacron.local.postgres import Postgres
from novacron.model.drill import OVERDUE_DAYS, DrillName
from novacron.runbooks import library, runner
from novacron.runbooks.runner import StepOutcome
from novacron.state_lock import FolderLock

Object = dict[str, Any]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as served:
        yield served


def run_of(drill: str = "certificates", ago: timedelta = timedelta(), **fields: Any) -> Object:
    ended = datetime.now(UTC) - ago
    run = {
        "drill": drill, "verdict": "passed", "started_at": (ended - timedelta(minutes=1)).isoformat(),
        "ended_at": ended.isoformat(), "version": "1", "machine": "here",
    }  # fmt: skip
    return {**run, **fields}


def calendar(served: Served) -> dict[str, Object]:
    return {state["name"]: state for state in served.client.drill_calendar()}


def metrics(served: Served) -> str:
    return str(served.client.metrics())


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "novacron", "drill", *words], capture_output=True, text=True, check=False, timeout=120,
        env=dict(os.environ),
    )  # fmt: skip


def test_a_drill_that_was_never_run_is_known_and_one_that_was_is_in_calendar_list_and_metrics(served: Served) -> None:
    assert set(calendar(served)) == set(DrillName)
    before = calendar(served)["backup-proofs"]
    assert before["last"] is None and not before["overdue"], "the installation is young"
    figures = {"recover_s": 12.5, "loss_s": 3.0}
    kept = served.client.record_drill(
        run_of("backup-proofs", measured=figures, promised={"recover_s": 60.0}, steps=[{"name": "start", "took_s": 12}])
    )
    assert kept["recorded_by"] and kept["measured"] == {"detect_s": None, **figures}
    assert served.client.get("drills", kept["id"])["steps"] == kept["steps"]
    assert calendar(served)["backup-proofs"]["last"]["id"] == kept["id"]
    text = metrics(served)
    assert 'novacron_drill_recover_seconds{drill="backup-proofs"} 12.5' in text
    assert 'novacron_drill_failed{drill="backup-proofs"} 0' in text
    assert 'novacron_drill_age_seconds{drill="database-restore"}' in text, "it was never run, and grows old"
    assert 'novacron_runbook_tested_timestamp_seconds{runbook="incidents/node-down"} 1.7' in text


def test_a_failed_and_an_old_drill_are_said_and_a_run_that_passes_ends_that(served: Served) -> None:
    served.client.record_drill(run_of(ago=timedelta(days=OVERDUE_DAYS, hours=1), verdict="failed", error="it ends"))
    assert 'novacron_drill_failed{drill="certificates"} 1' in metrics(served)
    assert calendar(served)["certificates"]["overdue"]
    reported = command("report")
    assert reported.returncode == 1 and "failed: certificates; overdue: certificates" in reported.stderr
    assert "it ends" in command("show", "certificates").stdout
    done = command("run", "certificates")
    assert done.returncode == 0 and "passed, recorded as drill-" in done.stdout, done.stderr
    assert calendar(served)["certificates"]["last"]["verdict"] == "passed"
    assert command("report").returncode == 0
    assert 'novacron_drill_failed{drill="certificates"} 0' in metrics(served)
    events = [event for event in served.client.list("events") if event["name"] == "certificates"]
    assert {event["reason"] for event in events} >= {"DrillFailed", "DrillPassed"}


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"verdict": "failed"}, "error", "give a reason if it failed"),
        ({"error": "it failed"}, "error", "verdict passed"),
        ({"started_at": "2999-01-01T00:00:00Z"}, "ended_at", "before started_at"),
        ({"started_at": "2999-01-01T00:00:00Z", "ended_at": "2999-01-01T00:00:01Z"}, "ended_at", "in the future"),
        ({"ended_at": "2026-01-01T00:00:00"}, "ended_at", "time zone"),
        ({"drill": "site-lost"}, "drill", "none of the allowed values"),
        ({"measured": {"recover_s": -1}}, "measured.recover_s", "at least"),
        ({"steps": [{"name": "", "took_s": 1}]}, "steps", "at least 1"),
    ],
)
def test_a_run_that_can_not_be_is_refused_with_its_field(
    served: Served, fields: Object, field: str, words: str
) -> None:
    with pytest.raises(ApiError) as refused:
        served.client.record_drill(run_of(**fields))
    assert refused.value.status == 400 and refused.value.field == field
    assert words in str(refused.value)


def test_only_the_last_runs_are_kept_and_a_run_that_is_gone_is_not_found(served: Served) -> None:
    for number in range(38):
        served.client.record_drill(run_of("runbooks", ago=timedelta(hours=number)))
    runs = list(served.client.list("drills", drill="runbooks"))
    assert len(runs) == 36
    assert [run["ended_at"] for run in runs] == sorted((run["ended_at"] for run in runs), reverse=True)
    with pytest.raises(NotFoundError):
        served.client.get("drills", "drill-0000000000000000")


def test_the_drill_of_runbooks_finds_a_command_that_is_not_there(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = drill_runs.DrillHow(commands=typer.main.get_command(app))
    passed = drill_runs.run(choices.DrillName.RUNBOOKS, served.client, how)
    assert passed["verdict"] == "passed", passed["error"]
    page = runbook_runs.PAGES / "incidents/node-down.md"
    (tmp_path / "incidents").mkdir()
    (tmp_path / "incidents/node-down.md").write_text(
        page.read_text().replace("novacron node list", "novacron node lost")
    )
    monkeypatch.setattr("novacron.runbooks.page_files.INSTALLED", tmp_path)
    failed = drill_runs.run(choices.DrillName.RUNBOOKS, served.client, how)
    assert failed["verdict"] == "failed" and "incidents/node-down: novacron node lost" in failed["error"]


def test_certificates_that_end_sooner_than_wanted_fail_their_drill(served: Served) -> None:
    failed = drill_runs.run(choices.DrillName.CERTIFICATES, served.client, drill_runs.DrillHow(min_days=365 * 3))
    assert failed["verdict"] == "failed" and "the server's certificate ends in" in failed["error"]


def test_a_drill_is_run_by_its_runbook(served: Served, tmp_path: Path) -> None:
    runbook = library.read("maintenance/drills", runbook_runs.PAGES)
    values = runner.values_for(runbook, {"drill": "runbooks"}, {})
    result, said = runbook_runs.run_steps(runbook.steps, values, tmp_path / "log", runbook_runs.lab_server({}))
    assert result.outcome is StepOutcome.DONE, said


@pytest.fixture(scope="module")
def archived() -> Iterator[Installation]:
    with open_directory("nvda-") as directory, installed(directory) as made:
        made.wait_archived(datetime.now(UTC))
        yield made


def restore(*more: str) -> subprocess.CompletedProcess[str]:
    return command("run", "database-restore", "-o", "json", *more)


def test_the_newest_backup_of_the_database_is_restored_looked_at_and_thrown_away(
    archived: Installation,
) -> None:
    data = archived.postgres.data.stat().st_ino
    with open_directory("nvds-") as scratch:
        done = restore("--repository", str(archived.repository), "--scratch", str(scratch))
        assert done.returncode == 0, done.stderr
        assert list(scratch.iterdir()) == [], "nothing is left of it"
    run = json.loads(done.stdout)
    assert run["verdict"] == "passed" and run["measured"]["recover_s"] > 0 and run["measured"]["loss_s"] <= 60
    assert "marks of 1 servers" in run["steps"][0]["said"]
    assert archived.answers() and archived.postgres.data.stat().st_ino == data, "the database is untouched"
    backup = run["steps"][0]["said"].split()[1].rstrip(",")
    assert backup in archived.database("list"), "so is the repository"


def test_a_restore_that_can_not_be_rehearsed_fails_with_why(archived: Installation, tmp_path: Path) -> None:
    nothing = restore()
    assert nothing.returncode == 1 and "with --repository" in nothing.stderr
    other = restore("--repository", str(tmp_path / "none"))
    assert other.returncode == 1 and "is not a repository" in other.stderr
    assert json.loads(other.stdout)["verdict"] == "failed"
    away = restore("--repository", str(archived.repository), "--scratch", str(tmp_path / "none"))
    assert away.returncode == 1 and "--scratch" in away.stderr


def test_a_drill_that_is_interrupted_leaves_no_copy_of_the_database(archived: Installation) -> None:
    with open_directory("nvds-") as scratch:
        words = ("run", "database-restore", "--repository", str(archived.repository), "--scratch", str(scratch))
        line = (sys.executable, "-m", "novacron", "drill", *words)
        with subprocess.Popen(line, stderr=subprocess.DEVNULL) as process:
            until(lambda: list(scratch.glob("*/postgres")) != [], "the backup is being restored", 60)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) != 0
        assert list(scratch.iterdir()) == []


@pytest.mark.slow
def test_a_rehearsal_that_was_killed_leaves_nothing_once_there_is_another(archived: Installation) -> None:
    place = BackupPlace(archived.repository, archived.state / "backup.password")
    with open_directory("nvds-") as scratch:
        left = Path(tempfile.mkdtemp(prefix=database_rehearsal.PREFIX, dir=scratch))
        left.chmod(0o755)
        FolderLock(left, database_rehearsal.LOCK).release()
        server = Postgres(left / "postgres")
        server.start()
        assert server.process is not None
        server._release()  # as its process would by being killed
        used = Path(tempfile.mkdtemp(prefix=database_rehearsal.PREFIX, dir=scratch))
        lock = FolderLock(used, database_rehearsal.LOCK)
        found = database_rehearsal.rehearse(place, scratch)
        assert found.tables["users"] > 0
        assert list(scratch.iterdir()) == [used], "one that is under way is left alone"
        until(lambda: server.process is not None and server.process.poll() is not None, "its PostgreSQL has ended")
        lock.release()
