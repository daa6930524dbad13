"""The engine of runbooks: what a page may say, and what a run does with it."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from novacron.runbooks import alerts, pages, programs, runner
from novacron.runbooks.command_lines import check_value, filled, words_of
from novacron.runbooks.expectations import expected_line, missing
from novacron.runbooks.model import Runbook, RunbookError, RunbookStep
from novacron.runbooks.programs import CommandResult
from novacron.runbooks.run_log import RunLog, RunState, check_resumable
from novacron.runbooks.runner import AskedFor, OperatorAnswer, StepOutcome, World

FRONT = """---
purpose: try it
severity: warning
time: 1 min
risk: none
roles: [viewer]
tested: here
alerts: [NodeDown]
stop-on: [DatabaseUnavailable]
values:
  node: {what: the name of the node}
---
# A page
"""
STEPS = """
## Diagnosis
```console step=look
$ novacron node show {node}
{node} is ...
```
```console
$ this is prose | and not run
```
## Recovery
```text ask=sure
Are you
sure?
```
```console step=remove destructive limit=10s
$ novacron node remove {node}
```
```console step=by-hand on=node exit=any
$ systemctl restart novacron-agent
```
## Verification
```console check=gone wait=1m exit=3
$ novacron node show {node}
```
"""


def page(steps: str = STEPS, front: str = FRONT) -> str:
    """Return a page with all sections, of which some have steps."""
    body = front
    given = {part.partition("\n")[0]: part.partition("\n")[2] for part in steps.split("## ")[1:]}
    for section in pages.SECTIONS:
        body += f"\n## {section}\n\n{given.get(section, 'Words.')}\n"
    return body


def read(steps: str = STEPS, front: str = FRONT) -> Runbook:
    return pages.parse("group/page", page(steps, front))


class Desk:
    """An operator, a log and a machine that do as a test says."""

    def __init__(self, *results: CommandResult, **answers: OperatorAnswer) -> None:
        self.results, self.answers = list(results), answers
        self.ran: list[tuple[str, ...]] = []
        self.asked: list[tuple[str, AskedFor]] = []
        self.said: list[str] = []
        self.written: list[dict[str, Any]] = []
        self.now_s, self.stopped = 0.0, ""

    def show(self, line: str) -> None:
        self.said.append(line)

    def may(self, step: RunbookStep, question: str, asked: AskedFor) -> OperatorAnswer:
        self.asked.append((step.name, asked))
        return self.answers.get(step.name.replace("-", "_"), OperatorAnswer.YES)

    def write(self, event: str, **fields: Any) -> None:
        self.written.append({"event": event, **fields})

    def execute(self, words: tuple[str, ...], limit_s: float, show: Callable[[str], None]) -> CommandResult:
        self.ran.append(words)
        return self.results.pop(0) if self.results else CommandResult(0, "")

    def pause(self, seconds: float) -> None:
        self.now_s += seconds

    def run(self, runbook: Runbook, **places: programs.Execute) -> runner.StepResult:
        world = World(self, self, {"": self.execute, **places}, lambda: self.stopped, lambda: self.now_s, self.pause)
        return runner.run(runbook.steps, {"node": "host-a"}, world)


LOOKED, GONE = CommandResult(0, "host-a is lost\n"), CommandResult(3, "error: no such node\n")


def test_steps_of_a_page_are_run_in_order_and_prose_is_not() -> None:
    desk = Desk(LOOKED, CommandResult(0, ""), GONE)
    assert desk.run(read()) == (StepOutcome.DONE, "")
    shown = ("novacron", "node", "show", "host-a")
    assert desk.ran == [shown, ("novacron", "node", "remove", "host-a"), shown]
    assert desk.asked == [
        ("sure", AskedFor.JUDGEMENT), ("remove", AskedFor.LEAVE), ("by-hand", AskedFor.HAND),
    ]  # fmt: skip
    assert [line["step"] for line in desk.written if line["event"] == "step"] == [
        "look", "sure", "remove", "by-hand", "gone",
    ]  # fmt: skip
    assert "  ? Are you sure?" in desk.said and "  $ novacron node remove host-a" in desk.said


def test_what_is_destructive_or_asked_does_not_go_on_without_a_yes() -> None:
    for step, answer in (("sure", OperatorAnswer.NO), ("sure", OperatorAnswer.SKIP), ("remove", OperatorAnswer.NO)):
        desk = Desk(LOOKED, **{step: answer})
        assert desk.run(read()).outcome is StepOutcome.DECLINED
        assert desk.ran == [("novacron", "node", "show", "host-a")], f"{step}: {answer}"
    desk = Desk(LOOKED, GONE, remove=OperatorAnswer.SKIP)
    assert desk.run(read()).outcome is StepOutcome.DONE
    assert desk.written[-2]["event"] == "step" and len(desk.ran) == 2, "what is skipped is not run"


def test_a_run_stops_at_the_first_command_that_is_not_as_expected_and_says_how() -> None:
    for result, why in (
        (CommandResult(1, "error: no answer\n"), "ended with 1, not 0: error: no answer"),
        (CommandResult(0, "host-b is lost\n"), "the output is not as expected: host-a is ..."),
        (CommandResult(-9, "", timed_out=True), "took longer than 120 s"),
    ):
        desk = Desk(result)
        outcome, said = desk.run(read())
        assert outcome is StepOutcome.FAILED and why in said and said.startswith("step look: novacron node show host-a")
        assert len(desk.ran) == 1 and desk.written[-1]["event"] == "ended"


def test_a_check_waits_with_ever_longer_pauses_and_only_so_long() -> None:
    desk = Desk(LOOKED, CommandResult(0, ""), LOOKED, LOOKED, GONE)
    assert desk.run(read()).outcome is StepOutcome.DONE and desk.now_s == 2.5
    desk = Desk(LOOKED, CommandResult(0, ""), *[LOOKED] * 50)
    outcome, why = desk.run(read())
    assert outcome is StepOutcome.FAILED and "(for 60 s)" in why and desk.now_s == 60
    assert len(desk.ran) < 15


def test_an_alert_that_begins_to_fire_stops_a_run_between_steps_and_while_it_waits(tmp_path: Path) -> None:
    desk = Desk(LOOKED)
    desk.stopped = "the alert DatabaseUnavailable fires"
    assert desk.run(read()) == (StepOutcome.STOPPED, "step look: the alert DatabaseUnavailable fires")
    assert desk.ran == []

    file = tmp_path / "alerts"
    fires = [{"labels": {"alertname": "VMsCrash"}}, {"labels": {"alertname": "HostMemoryLow"}}]
    file.write_text(json.dumps(fires))
    look = alerts.stop_condition(["VMsCrash", "NodeDown"], str(file))
    assert look() == "", "what fired before does not count"
    file.write_text(json.dumps([*fires, {"labels": {"alertname": "NodeDown"}, "status": {"state": "active"}}]))
    assert look() == "the alert NodeDown fires"
    file.unlink()
    assert "can't read alerts" in look(), "nobody knows: that is a reason to stop"


def test_commands_on_another_machine_run_only_where_this_one_is_it() -> None:
    desk = Desk(LOOKED, CommandResult(0, ""), CommandResult(1, "ends with whatever it likes"), GONE)
    assert desk.run(read(), node=desk.execute).outcome is StepOutcome.DONE
    assert ("systemctl", "restart", "novacron-agent") in desk.ran
    assert ("by-hand", AskedFor.HAND) not in desk.asked


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("novacron vm list | grep web", "pipes"), ("novacron vm list > file", "pipes"), ("novacron a; b", "pipes"),
        ("novacron a && novacron b", "pipes"), ("novacron vm show $NODE", "expanded"), ("novacron a `b`", "expanded"),
        ("novacron a $(b)", "expanded"), ('novacron a "$HOME"', "expanded"), ("novacron vm list 'a", "not closed"),
        ("novacron vm list web*", "expanded"), ("rm -r /", "only these programs"), ("systemctl stop x", "only these"),
        ("sh -c 'novacron vm list'", "only these programs"), ("", "only these"), ("novacron a # b", "not expanded"),
        ("novacron a --node={node}", "whole argument"), ("novacron " + "a" * 300, "300 characters"),
    ],
)  # fmt: skip
def test_a_command_line_that_a_shell_would_read_otherwise_is_refused(line: str, why: str) -> None:
    with pytest.raises(RunbookError, match=why):
        words_of(line)


def test_a_command_line_becomes_the_words_that_a_shell_would_make_of_it() -> None:
    line = "novacron vm list -o 'jsonpath=$[?(@.a > 1)].name' --tag \"a b\" --filter a!=b"
    assert words_of(line) == (
        "novacron",
        "vm",
        "list",
        "-o",
        "jsonpath=$[?(@.a > 1)].name",
        "--tag",
        "a b",
        "--filter",
        "a!=b",
    )


def test_a_value_is_one_argument_and_no_option_whatever_an_alert_says() -> None:
    words = words_of("novacron node show {node}")
    assert filled(words, {"node": "a; rm {node}"}) == ("novacron", "node", "show", "a; rm {node}")
    for hostile in ("--force", "-rf", "a b", "a;b", "$(a)", "", "a\nb", "\u202ea", "a" * 300, "'"):
        with pytest.raises(RunbookError):
            check_value("node", hostile)
        with pytest.raises(RunbookError):
            runner.values_for(read(), {"node": hostile}, {})
    assert runner.values_for(read(), {"node": "host-a", "site": "--x"}, {}) == {"node": "host-a"}
    assert runner.values_for(read(), {"node": "host-a"}, {"node": "host-b"}) == {"node": "host-b"}
    with pytest.raises(RunbookError, match="no value 'vm'; it has: node"):
        runner.values_for(read(), {}, {"vm": "web"})
    with pytest.raises(RunbookError, match="needs the name of the node: --set node=VALUE"):
        runner.values_for(read(), {}, {})


@pytest.mark.parametrize(
    ("expected", "output", "holds"),
    [
        (["active"], "active\n", True), (["active"], "inactive\n", False), (["a ... c"], "x\na   b  c\n", True),
        (["one", "two"], "one\nand\ntwo", True), (["one", "two"], "two\none", False), (["~ ^r.*y$"], "ready", True),
        (["~ ^r.*y$"], "already", False), (["! BAD ..."], "BAD disk", False), (["! BAD ..."], "ok", True),
        (["! ..."], "", True), (["! ..."], "host-a", False), (["a", "! b"], "b\na", False), ([], "whatever", True),
    ],
)  # fmt: skip
def test_output_is_as_expected(expected: list[str], output: str, holds: bool) -> None:
    assert (missing([expected_line(line) for line in expected], output) is None) is holds


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("step=look", "step=look wait=1m", "step=look can't have: wait"),
        ("check=gone wait=1m", "check=gone destructive", "check=gone can't have: destructive"),
        ("step=remove destructive", "step=remove destructive=no", "destructive has no value"),
        ("step=look", "step=look step=look", "no attribute twice"),
        ("step=look", "step=look check=look", "one of"),
        ("step=look", "colour=red", "one of"),
        ("step=look", "step=Look", "no name of a step"),
        ("step=look", "step=remove", "steps of the same name: remove"),
        ("on=node", "on=moon", "moon"),
        ("wait=1m", "wait=forever", "no duration"),
        ("wait=1m", "wait=25h", "no duration"),
        ("exit=3", "exit=few", "few"),
        ("check=gone wait=1m", "step=gone", "needs a check"),
        ("text ask=sure", "console ask=sure", "language text"),
        ("$ systemctl", "$ cat", "only these programs"),
        ("$ novacron node remove {node}", "novacron node remove {node}", "after '\\$ '"),
        ("$ novacron node remove {node}", "$ novacron node remove {vm}", "used: vm"),
        ("{node} is ...", "~ [", "no regular expression"),
        ("## Recovery", "## Recovering", "step sure must be in|its sections must be"),
        ("severity: warning", "severity: bad", "the front matter is wrong"),
        ("purpose: try it", "purpose: try it\nsurprise: 1", "the front matter is wrong"),
        ("purpose: try it", "purpose: [", "the front matter is wrong"),
        ("---\npurpose", "purpose", "must begin with front matter"),
    ],
)  # fmt: skip
def test_a_page_that_is_wrong_is_refused_with_the_reason(old: str, new: str, why: str) -> None:
    text = page()
    assert old in text
    with pytest.raises(RunbookError, match=why):
        pages.parse("group/page", text.replace(old, new, 1) if old != "## Recovery" else text.replace(old, new))


def test_a_wrong_step_is_named_by_its_line() -> None:
    text = page().replace("wait=1m", "wait=forever")
    line = next(number for number, said in enumerate(text.splitlines(), 1) if "wait=forever" in said)
    with pytest.raises(RunbookError, match=f"^group/page, line {line}: "):
        pages.parse("group/page", text)


def test_a_log_is_private_and_a_run_goes_on_behind_what_it_says_is_done(tmp_path: Path) -> None:
    path, runbook = tmp_path / "a/log", read()
    log = RunLog.begin(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    log.write("begun", runbook=runbook.name, digest=runbook.digest, values={"node": "host-a"})
    for step, outcome in (("look", "done"), ("sure", "skipped"), ("remove", "failed")):
        log.write("step", step=step, outcome=outcome)
    with pytest.raises(RunbookError, match="another run"):
        RunLog.resume(path)
    log.close()
    with path.open("ab") as file:
        file.write(b'{"event": "step", "ste')  # the machine ended
    again, state = RunLog.resume(path)
    again.write("step", step="remove", outcome="done")
    again.close()
    later, later_state = RunLog.resume(path)
    later.close()
    assert later_state.done == state.done | {"remove"}, "what follows a line that was cut off counts"
    assert state == RunState(runbook.name, runbook.digest, {"node": "host-a"}, frozenset({"look", "sure"}))
    check_resumable(state, runbook)
    with pytest.raises(RunbookError, match="has changed since"):
        check_resumable(state, read(STEPS.replace("remove {node}", "remove --force {node}")))
    other = tmp_path / "other"
    other.write_text("{}")
    with pytest.raises(RunbookError, match="is no log of a runbook"):
        RunLog.resume(other)
    assert other.read_text() == "{}"
    with pytest.raises(RunbookError, match="can't write the log"):
        RunLog.begin(path)


def test_steps_are_the_same_wherever_they_stand_on_the_page() -> None:
    assert read().digest == read(STEPS.replace("## Recovery\n", "## Recovery\nMore words.\n\n")).digest
    assert read().digest != read(STEPS.replace("limit=10s", "limit=11s")).digest


@pytest.mark.parametrize(
    "document",
    [
        {"alerts": [{"status": "firing", "labels": {"alertname": "NodeDown", "node": "a"}}, {"status": "resolved",
         "labels": {"alertname": "X"}}]},
        [{"labels": {"alertname": "NodeDown", "node": "a"}, "status": {"state": "active"}}],
        {"status": "success", "data": {"alerts": [{"labels": {"alertname": "NodeDown", "node": "a"}, "state": "firing"},
         {"labels": {"alertname": "Y"}, "state": "pending"}]}},
        {"labels": {"alertname": "NodeDown", "node": "a"}},
    ],
)  # fmt: skip
def test_alerts_are_read_as_alertmanager_and_prometheus_tell_of_them(document: object) -> None:
    assert alerts.decode(document) == [("NodeDown", {"alertname": "NodeDown", "node": "a"})]


@pytest.mark.parametrize("document", [None, 5, "x", [5], {"labels": 5}, {"alerts": 5}, {"data": 5}, {}])
def test_what_is_no_alert_is_refused(document: object) -> None:
    with pytest.raises(ValueError, match="alert"):
        alerts.decode(document)


def test_a_command_that_takes_too_long_is_ended_with_all_that_it_started() -> None:
    shown: list[str] = []
    ended = programs.execute(("sh", "-c", "echo begun; sleep 600 & wait"), 2.0, shown.append)
    assert ended.timed_out and ended.exit_code < 0 and set(shown) <= {"begun"}, "nothing holds its output any more"


CLEANS_UP = 'trap "echo done > $0; exit 3" INT; echo begun; for i in $(seq 600); do sleep 0.1; done'


def test_a_command_that_takes_too_long_may_clean_up(tmp_path: Path) -> None:
    ended = programs.execute(("sh", "-c", CLEANS_UP, str(tmp_path / "cleaned")), 1.0, lambda line: None)
    assert ended.timed_out and (tmp_path / "cleaned").read_text() == "done\n"


def test_a_command_whose_caller_is_interrupted_may_clean_up(tmp_path: Path) -> None:
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        programs.execute(("sh", "-c", CLEANS_UP, str(tmp_path / "cleaned")), 60.0, interrupt)
    assert (tmp_path / "cleaned").read_text() == "done\n"


def test_a_command_that_does_not_heed_an_interrupt_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "INTERRUPTED_S_MAX", 0.5)
    ended = programs.execute(("sh", "-c", "trap '' INT; sleep 600"), 0.5, lambda line: None)
    assert ended.timed_out and ended.exit_code == -signal.SIGKILL


def test_errors_can_be_kept_apart_from_what_a_command_answers(tmp_path: Path) -> None:
    command = ("sh", "-c", "echo warning >&2; echo answer")
    assert programs.execute(command, 60.0, lambda line: None).output == "warning\nanswer\n"
    with (tmp_path / "errors").open("wb") as errors:
        assert programs.execute(command, 60.0, lambda line: None, errors).output == "answer\n"
    assert (tmp_path / "errors").read_text() == "warning\n"


def test_the_command_lists_shows_and_refuses(tmp_path: Path) -> None:
    def novacron(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "novacron", "runbook", *words], capture_output=True, text=True, timeout=120,
            check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    alert = tmp_path / "alert"
    alert.write_text(json.dumps({"labels": {"alertname": "NodeDown", "node": "host-a"}}))
    dry = novacron("run", "--alert", str(alert), "--dry-run", "--from", "connected")
    assert "$ novacron node show host-a -o 'jsonpath=$.status.ready'" in dry.stdout and dry.returncode == 0, dry.stderr
    assert "start-agent" not in dry.stdout

    log = tmp_path / "log"
    missing_value = novacron("run", "node-down", "--log", str(log))
    assert missing_value.returncode == 2 and "--set node=VALUE" in missing_value.stderr and not log.exists()
    failed = novacron("run", "maintenance/backup", "--from", "backup", "--log", str(log))
    assert failed.returncode == 1 and "--answered backup" in failed.stderr, failed.stderr
    assert [json.loads(line)["event"] for line in log.read_text().splitlines()] == ["begun", "answer", "step", "ended"]
    assert novacron("show", "nothing").returncode == 2
