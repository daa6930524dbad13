"""Drills of the lab: what they promise, the page of their results, and what is asked of practice."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from lab.drills import __main__ as command
from lab.drills import catalogue, execution, practice, results
from lab.drills.model import LabDrill, LabDrillRun
from lab.drills.promises import misses
from lab.drills.recorder import Recorder
from novacron.cli.drill_runs import to_prove
from novacron.model.drill import DrillEvery, DrillFigures, DrillStep, DrillVerdict
from novacron.runbooks import library

AT = datetime(2026, 11, 30, 5, tzinfo=UTC)


def run_of(drill: str, measured: DrillFigures, promised: DrillFigures, error: str = "") -> LabDrillRun:
    verdict = DrillVerdict.FAILED if error else DrillVerdict.PASSED
    return LabDrillRun(
        drill, verdict, AT, AT, "ann", "1", "a machine", measured, promised, (DrillStep("it runs", 1.0),), error
    )


def test_the_page_of_results_is_what_the_kept_runs_say() -> None:
    assert results.PAGE.read_text() == results.page(results.kept()), "script/drill --page"


def test_a_kept_run_of_a_drill_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of("no-such-drill", DrillFigures(), DrillFigures())
    (tmp_path / "no-such-drill.json").write_bytes(msgspec.json.encode(run))
    monkeypatch.setattr(results, "DIRECTORY", tmp_path)
    with pytest.raises(ValueError, match="there is no drill 'no-such-drill'"):
        results.kept()


def test_the_page_says_what_was_not_kept_and_what_was_not_run() -> None:
    promised = DrillFigures(detect_s=10, recover_s=60, loss_s=0)
    page = results.page([run_of("database-killed", DrillFigures(detect_s=1, recover_s=61.25), promised, "too | late")])
    row = next(line for line in page.splitlines() if line.startswith("| `database-killed` | 2026"))
    assert "1.0 s (at most 10 s) | **61.2 s**, not at most 60 s | not measured (at most 0 s)" in row
    assert "It failed: too \\| late" in page
    assert "| `node-lost` | not run yet |" in page


@pytest.mark.parametrize("drill", catalogue.ALL, ids=catalogue.NAMES)
def test_each_drill_promises_a_time_and_names_a_runbook_that_there_is(drill: LabDrill) -> None:
    assert drill.promised.recover_s is not None and drill.limit_s > drill.promised.recover_s
    assert f"`{drill.name}`" in results.calendar() and drill.every in DrillEvery
    if drill.runbook:
        assert library.read(drill.runbook).steps


def test_names_of_drills_and_exercises_are_unique() -> None:
    every = (*catalogue.NAMES, *practice.NAMES, "practice")
    assert len(set(every)) == len(every)


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        (DrillFigures(1, 60, 0), []),
        (DrillFigures(1, 60.5, 0), ["it was well again after 60.5 s, and 60 s are promised"]),
        (DrillFigures(1, 60, 0.5), ["what was lost reached back after 0.5 s, and 0 s are promised"]),
        (DrillFigures(1, None, 0), ["recover_s was not measured, and at most 60 s are promised"]),
    ],
)
def test_a_promise_that_was_not_kept_is_said(measured: DrillFigures, said: list[str]) -> None:
    assert misses(measured, DrillFigures(10, 60, 0)) == said


def drill_of(run: object, limit_s: float = 5.0) -> LabDrill:
    return LabDrill("a-drill", "what", DrillEvery.MONTHLY, DrillFigures(recover_s=60), run, limit_s)  # type: ignore[arg-type]


def test_a_drill_that_fails_undoes_what_it_has_made_and_says_where(tmp_path: Path) -> None:
    undone: list[str] = []

    def run(recorder: Recorder) -> None:
        recorder.callback(lambda: undone.append("it"))
        with recorder.step("it works"):
            pass
        with recorder.fault("it breaks"):
            raise AssertionError("it is broken")

    done = execution.run(drill_of(run))
    assert done.verdict is DrillVerdict.FAILED and done.error == "AssertionError: it is broken" and undone == ["it"]
    assert [(step.name, step.passed) for step in done.steps] == [("it works", True), ("fault: it breaks", False)]


def test_a_drill_that_takes_too_long_is_ended() -> None:
    def run(recorder: Recorder) -> None:
        with recorder.step("it waits"):
            while True:
                pass

    done = execution.run(drill_of(run, limit_s=0.2))
    assert done.verdict is DrillVerdict.FAILED and "longer than 0 s" in done.error


def test_a_drill_that_recovers_without_a_measured_time_has_not_passed() -> None:
    done = execution.run(drill_of(lambda _: None))
    assert done.verdict is DrillVerdict.FAILED and "recover_s was not measured" in done.error


def test_drills_are_listed_with_practice_and_an_unknown_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    said = capsys.readouterr().out
    assert all(f"`{name}`" in said for name in catalogue.NAMES)
    assert all(f"practice {name}" in said for name in practice.NAMES)
    for words, why in (
        (["no-such"], "there is no drill 'no-such'; there are: database-killed"),
        (["practice"], "name an exercise: stopped-agent"),
        (["--all", "--json", "x"], "--json takes the run of one drill"),
    ):
        with pytest.raises(SystemExit):
            command.main(words)
        assert why in capsys.readouterr().err


@pytest.mark.parametrize("exercise", practice.ALL, ids=practice.NAMES)
def test_the_alert_of_each_exercise_leads_to_a_runbook(exercise: practice.Exercise) -> None:
    told = practice.alert(exercise)["alerts"]
    assert isinstance(told, list)
    assert library.for_alert(told[0]["labels"]["alertname"]).steps
    guide = (Path(__file__).parents[2] / "docs/runbooks/guide.md").read_text()
    assert f"script/drill practice {exercise.name}" in guide


def test_the_backups_are_proved_that_were_proved_never_or_longest_ago() -> None:
    def backup(id: str, vm: str, at: int, since: str | None, phase: str = "kept") -> dict[str, object]:
        proof = None if since is None else {"since": since}
        return {"id": id, "vm": vm, "created_at": f"2026-01-{at:02d}", "phase": phase, "proof": proof}

    backups = [
        backup("old", "a", 1, None), backup("new", "a", 2, "2026-01-09"), backup("broken", "a", 3, None, "failed"),
        backup("never", "b", 1, None), backup("long-ago", "c", 1, "2026-01-02"),
    ]  # fmt: skip
    assert [chosen["id"] for chosen in to_prove(backups, 2)] == ["never", "long-ago"]
    assert [chosen["id"] for chosen in to_prove(backups, 9)] == ["never", "long-ago", "new"]
