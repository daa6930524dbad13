"""``novacron runbook``: procedures that are pages, run step by step."""

from __future__ import annotations

import dataclasses
import getpass
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from novacron import __version__
from novacron.cli import options, output
from novacron.cli.output import Columns, Object, Output, OutputFormat
from novacron.terminal import say

if TYPE_CHECKING:  # loaded where they are needed: other commands start faster
    from novacron.runbooks.model import Runbook, RunbookStep
    from novacron.runbooks.run_log import RunLog
    from novacron.runbooks.runner import AskedFor, OperatorAnswer

app = typer.Typer(no_args_is_help=True, help="Run runbooks: procedures whose steps are commands and checks.")


class HerePlace(StrEnum):
    """A machine of an installation that this one can be."""

    SERVER = "server"
    NODE = "node"
    DATABASE = "database"


COLUMNS: Columns = {
    "NAME": lambda r: r["name"],
    "FOR": lambda r: r["purpose"],
    "SEVERITY": lambda r: r["severity"],
    "TAKES": lambda r: r["time"],
    "ALERTS": lambda r: r["alerts"],
}


@dataclasses.dataclass(frozen=True)
class RunHow:
    """What a run was asked to do."""

    begin: Annotated[str | None, typer.Option("--from", metavar="STEP", help="start with this step")] = None
    values: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="a value for the runbook; can be repeated")
    ] = None
    alert: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|URL", help="alert that the runbook handles: fills in values, and selects the runbook"
        ),
    ] = None
    here: Annotated[
        list[HerePlace] | None,
        typer.Option(help="role of this machine: steps for this role run here; can be repeated"),
    ] = None
    answered: Annotated[
        list[str] | None,
        typer.Option(metavar="STEP", help="step whose question to answer with yes; can be repeated"),
    ] = None
    stop_alerts: Annotated[
        str | None,
        typer.Option(metavar="FILE|URL", help="firing alerts: a new one in the runbook's stop-on ends the run"),
    ] = None
    log: Annotated[Path | None, typer.Option(help="log to write; default: below ~/.local/state/novacron")] = None
    resume: Annotated[Path | None, typer.Option(help="log of a run to resume")] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show what would run")] = False
    yes: Annotated[bool, typer.Option("--yes", help="don't ask before destructive steps")] = False


@contextmanager
def _errors() -> Iterator[None]:
    """Turn what is wrong with a page, a value or a file into a message."""
    from novacron.runbooks.model import RunbookError

    with output.errors():
        try:
            yield
        except RunbookError as error:
            raise output.fail(str(error), output.EXIT_USAGE) from None


def _row(runbook: Runbook) -> Object:
    front = runbook.front
    return {
        "name": runbook.name, "title": runbook.title, "purpose": front.purpose, "severity": front.severity.value,
        "time": front.time, "risk": front.risk, "roles": list(front.roles), "alerts": list(front.alerts),
        "tested": front.tested, "stop_on": list(front.stop_on),
        "values": {name: value.what for name, value in front.values.items()},
    }  # fmt: skip


@app.command("list")
def list_(
    alert: Annotated[str | None, typer.Option(help="only the runbook for this alert")] = None,
    output_: Output = OutputFormat.TABLE,
) -> None:
    """List runbooks."""
    from novacron.runbooks import library

    with _errors():
        runbooks = library.everything() if alert is None else [library.for_alert(alert)]
        output.rows([_row(runbook) for runbook in runbooks], COLUMNS, output_)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="name of the runbook", show_default=False)],
    output_: Output = OutputFormat.TABLE,
) -> None:
    """Show a runbook: its purpose, and its steps."""
    import msgspec

    from novacron.runbooks import library, runner

    with _errors():
        runbook = library.read(name)
        row = _row(runbook)
        if not output_.for_people:
            output.show({**row, "steps": msgspec.to_builtins(runbook.steps)}, output_)
            return
        output.fields(row, {key.upper().replace("_", " "): _field(key) for key in row}, output_)
        for step in runbook.steps:
            say()
            for line in runner.describe(step):
                say(line)


def _field(key: str) -> Callable[[Object], object]:
    return lambda row: [f"{name}: {what}" for name, what in row[key].items()] if key == "values" else row[key]


@app.command()
@options.expand
def run(
    name: Annotated[str | None, typer.Argument(help="name of the runbook; default: that of the alert")] = None,
    how: RunHow = RunHow(),
) -> None:
    """Run a runbook: show each step, ask before destructive ones, and stop at the first failure (exit code 1)."""
    from novacron.runbooks import programs, run_log, runner
    from novacron.runbooks.alerts import stop_condition

    with _errors():
        runbook, labels = _chosen(name, how)
        steps = runbook.steps[runbook.index_of(how.begin) if how.begin else 0 :]
        if how.resume is not None:
            log, state = run_log.RunLog.resume(how.resume)
            run_log.check_resumable(state, runbook)
            values = runner.values_for(runbook, {}, {**state.values, **_given(how)})
            steps = tuple(step for step in steps if step.name not in state.done)
        else:
            values = runner.values_for(runbook, labels, _given(how))
            log = None
        if how.dry_run:
            _show_steps(runbook, steps, values)
            return
        stop = stop_condition(runbook.front.stop_on, how.stop_alerts) if how.stop_alerts else lambda: ""
        path = how.resume or how.log or _log_path(runbook)
        with closing(log or run_log.RunLog.begin(path)) as writing:
            _begin(writing, runbook, values, steps)
            places = {"": programs.execute_here, **{place.value: programs.execute for place in how.here or []}}
            operator = _Terminal(how.yes, frozenset(how.answered or []))
            result = runner.run(steps, values, runner.World(operator, writing, places, stop))
        say(f"log: {path}", err=True)
        if result.outcome is not runner.StepOutcome.DONE:
            raise output.fail(
                result.why, output.EXIT_FAILED, f"resume with: novacron runbook run {runbook.name} --resume {path}"
            )
        say(f"runbook {runbook.name} is done")


def _chosen(name: str | None, how: RunHow) -> tuple[Runbook, dict[str, str]]:
    """Return the runbook to run, and the labels of the alert that it is for. Raises RunbookError."""
    from novacron.runbooks import alerts, library
    from novacron.runbooks.model import RunbookError

    if how.alert is None:
        if name is None:
            raise RunbookError("name a runbook, or give an alert with --alert: see novacron runbook list")
        return library.read(name), {}
    firing = alerts.load(how.alert)
    candidates = [library.read(name)] if name else library.everything()
    for alert in firing:
        for runbook in candidates:
            if alert.name in runbook.front.alerts:
                return runbook, alert.labels
    named = ", ".join(sorted({alert.name for alert in firing})) or "none"
    raise RunbookError(f"no alert that fires there ({named[:200]}) leads to {name or 'a runbook'}")


def _given(how: RunHow) -> dict[str, str]:
    """Return the values of ``--set``. Raises BadParameter."""
    given = dict[str, str]()
    for text in how.values or []:
        value_name, sign, value = text.partition("=")
        if not sign or not value_name:
            raise typer.BadParameter(f"{text!r}: write it like node=host-a", param_hint="'--set'")
        given[value_name] = value
    return given


def _show_steps(runbook: Runbook, steps: tuple[RunbookStep, ...], values: dict[str, str]) -> None:
    from novacron.runbooks import runner

    say(f"{runbook.title}: dry run, nothing is executed")
    for step in steps:
        say()
        for line in runner.describe(runner.with_values(step, values)):
            say(line)


def _log_path(runbook: Runbook) -> Path:
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    return state / "novacron/runbooks" / f"{stamp}-{runbook.name.replace('/', '-')}.jsonl"


def _begin(log: RunLog, runbook: Runbook, values: dict[str, str], steps: tuple[RunbookStep, ...]) -> None:
    log.write(
        "begun",
        runbook=runbook.name,
        digest=runbook.digest,
        values=values,
        steps=[step.name for step in steps],
        version=__version__,
        user=getpass.getuser(),
        host=socket.gethostname(),
    )


class _Terminal:
    """The operator at this terminal; where there is none, only what was answered beforehand."""

    def __init__(self, destructive: bool, answered: frozenset[str]) -> None:
        self._destructive, self._answered = destructive, answered

    def show(self, line: str) -> None:
        say(line, flush=True)

    def may(self, step: RunbookStep, question: str, asked: AskedFor) -> OperatorAnswer:
        from novacron.runbooks.runner import AskedFor, OperatorAnswer

        leave = asked is AskedFor.LEAVE
        if (self._destructive and leave) or (step.name in self._answered and not leave):
            say(f"  {question} yes, as given on the command line")
            return OperatorAnswer.YES
        if not sys.stdin.isatty():
            option = "--yes" if leave else f"--answered {step.name}"
            say(f"  {question} there is no terminal: {option} answers with yes", err=True)
            return OperatorAnswer.NO
        say(f"  {question} [y/N/skip] ", err=True, flush=True)
        said = sys.stdin.readline(100).strip().lower()
        return {"y": OperatorAnswer.YES, "yes": OperatorAnswer.YES, "s": OperatorAnswer.SKIP,
                "skip": OperatorAnswer.SKIP}.get(said, OperatorAnswer.NO)  # fmt: skip
