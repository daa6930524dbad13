"""``novacron drill``: what an installation rehearses on itself, and how that went."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from novacron.cli import options, output
from novacron.cli.backup_policies import parse_duration
from novacron.cli.output import Columns, Object, Output, OutputFormat
from novacron.client import Client
from novacron.client.choices import DrillName, DrillVerdict
from novacron.terminal import say

app = typer.Typer(no_args_is_help=True, help="Rehearse disasters, with drills that leave no lasting changes.")

RUNS_SHOWN = 12
Name = Annotated[DrillName, typer.Argument(help="the drill", show_default=False)]


def _last(drill: Object, field: str) -> object:
    return None if drill["last"] is None else drill["last"][field]


def _seconds(figures: Object | None, field: str) -> str | None:
    value = None if figures is None else figures[field]
    return None if value is None else f"{value:.1f} s"


def _age(drill: Object) -> str:
    if drill["last"] is None:
        return "never run"
    return output.age(drill["last"]["ended_at"])


CALENDAR: Columns = {
    "DRILL": lambda d: d["name"],
    "EVERY": lambda d: d["every"].removesuffix("ly") if d["every"] != "quarterly" else "quarter",
    "LAST RUN": _age,
    "VERDICT": lambda d: _last(d, "verdict"),
    "OVERDUE": lambda d: d["overdue"],
    "FOR": lambda d: d["what"],
}
REPORT: Columns = {
    "DRILL": lambda d: d["name"],
    "LAST RUN": lambda d: output.when(d["last"]["ended_at"]) if d["last"] else "never",
    "BY": lambda d: _last(d, "recorded_by"),
    "ON": lambda d: _last(d, "machine"),
    "VERDICT": lambda d: _last(d, "verdict"),
    "RECOVERED IN": lambda d: _seconds(d["last"] and d["last"]["measured"], "recover_s"),
    "PROMISED": lambda d: _seconds(d["last"] and d["last"]["promised"], "recover_s"),
    "LOST": lambda d: _seconds(d["last"] and d["last"]["measured"], "loss_s"),
    "AT MOST": lambda d: _seconds(d["last"] and d["last"]["promised"], "loss_s"),
    "OVERDUE": lambda d: d["overdue"],
}
RUNS: Columns = {
    "RUN": lambda r: r["id"],
    "ENDED": lambda r: output.when(r["ended_at"]),
    "BY": lambda r: r["recorded_by"],
    "ON": lambda r: r["machine"],
    "VERSION": lambda r: r["version"],
    "VERDICT": lambda r: r["verdict"],
    "RECOVERED IN": lambda r: _seconds(r["measured"], "recover_s"),
    "LOST": lambda r: _seconds(r["measured"], "loss_s"),
    "ERROR": lambda r: r["error"],
}
STEPS: Columns = {
    "STEP": lambda s: s["name"],
    "TOOK": lambda s: f"{s['took_s']:.2f} s",
    "PASSED": lambda s: s["passed"],
    "SAID": lambda s: s["said"],
}


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What a run is asked to do."""

    repository: Annotated[
        str, typer.Option(envvar="NOVACRON_BACKUP_REPOSITORY", help="for database-restore: location of the backups")
    ] = ""
    state_dir: Annotated[
        Path | None,
        typer.Option(envvar="NOVACRON_STATE_DIR", help="for database-restore: the server's state directory"),
    ] = None
    scratch: Annotated[
        Path | None, typer.Option(help="for database-restore: directory with room for a scratch database")
    ] = None
    vms: Annotated[int, typer.Option(min=1, max=50, help="for backup-proofs: number of VMs whose backups to prove")] = 3
    min_days: Annotated[
        int, typer.Option(min=1, max=365, help="for certificates: days for which each must still be valid")
    ] = 7
    promised: Annotated[str, typer.Option(help="promised time to recover")] = "1h"
    loss: Annotated[str, typer.Option(help="for database-restore: promised limit of data loss, such as 60s or 26h")] = (
        "60s"
    )
    no_record: Annotated[bool, typer.Option("--no-record", help="don't record the result on the server")] = False
    output: Output = OutputFormat.TABLE


@app.command("list")
def list_(output_: Output = OutputFormat.TABLE) -> None:
    """List drills, and when each was last run."""
    with output.errors():
        output.rows(Client().drill_calendar(), CALENDAR, output_)


@app.command()
def show(name: Name, output_: Output = OutputFormat.TABLE) -> None:
    """Show a drill: its last runs, and the steps of the last one."""
    with output.errors():
        client = Client()
        runs = list(client.list("drills", drill=name.value, limit=RUNS_SHOWN))
        if not output_.for_people:
            output.show(runs, output_)
            return
        output.rows(runs, RUNS, output_)
        if runs:
            say()
            output.rows(runs[0]["steps"], STEPS, output_)


@app.command()
@options.expand
def run(context: typer.Context, name: Name, how: RunOptions = RunOptions()) -> None:
    """Run a drill, and record the result. It makes no lasting changes, and fails if that can't be guaranteed."""
    from novacron.cli import drill_runs

    asked = drill_runs.DrillHow(
        how.repository, str(how.state_dir or ""), str(how.scratch or ""), how.vms, how.min_days,
        recover_promised_s=parse_duration(how.promised), loss_promised_s=parse_duration(how.loss),
        commands=context.find_root().command,
    )  # fmt: skip
    with output.errors():
        client = Client()
        say(f"drill {name.value}", err=True)
        done = drill_runs.run(name, client, asked)
        kept = done if how.no_record else client.record_drill(done)
        if how.output.for_people:
            say(f"drill {name.value} {done['verdict']}" + (f", recorded as {kept['id']}" if kept is not done else ""))
        else:
            output.show(kept, how.output)
        if done["verdict"] == DrillVerdict.FAILED:
            raise output.fail(f"drill {name.value}: {done['error']}", output.EXIT_FAILED)


@app.command()
def report(output_: Output = OutputFormat.TABLE) -> None:
    """Report on all drills: measured, promised, overdue. Exits with 1 while one has failed or is overdue."""
    with output.errors():
        drills = Client().drill_calendar()
        output.rows(drills, REPORT, output_)
        failed = [d["name"] for d in drills if _last(d, "verdict") == DrillVerdict.FAILED]
        overdue = [d["name"] for d in drills if d["overdue"]]
        if failed or overdue:
            words = [f"failed: {', '.join(failed)}"] if failed else []
            words += [f"overdue: {', '.join(overdue)}"] if overdue else []
            raise output.fail("; ".join(words), output.EXIT_FAILED, "run one with: novacron drill run DRILL")
