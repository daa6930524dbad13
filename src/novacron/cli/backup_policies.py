"""``novacron backup policy``: what VMs are backed up when, and which of these backups are kept."""

from __future__ import annotations

import re
import shlex
from typing import Annotated

import typer

from novacron.cli import options, output, updates
from novacron.cli.lists import Listing
from novacron.cli.metadata import check_given, parse_tags
from novacron.cli.names import names_of
from novacron.cli.output import Columns, Object, Output, OutputFormat
from novacron.client import Client
from novacron.terminal import say

app = typer.Typer(no_args_is_help=True, help="Manage backup policies: which VMs are backed up, and when.")

PolicyRef = Annotated[
    str,
    typer.Argument(
        metavar="policy", help="name or id of the policy", autocompletion=names_of("backup-policies"),
        show_default=False,
    ),
]  # fmt: skip
DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?(s|m|h|d|w|)")
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
RULES = ("last", "hourly", "daily", "weekly", "monthly", "yearly")


def parse_duration(text: str) -> int:
    """Return the seconds of ``90``, ``30m``, ``26h`` or ``7d``. Raises typer.BadParameter."""
    match = DURATION.fullmatch(text.strip().lower())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a duration: write it like 30m, 26h or 7d")
    return int(float(match[1]) * SECONDS[match[2]])


def _or_none(text: str) -> int | None:
    return None if text.strip().lower() == "none" else parse_duration(text)


def parse_days(text: str) -> int | None:
    """Return a number of days; None for ``none``. Raises typer.BadParameter."""
    if text.strip().lower() == "none":
        return None
    if not text.strip().isdecimal():
        raise typer.BadParameter(f"{text!r} is not a number of days")
    return int(text)


def parse_command(text: str) -> list[str]:
    """Return a command and its arguments, split as a shell does. Raises typer.BadParameter."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a valid command: {error}") from None


def duration(seconds: float | None) -> str | None:
    """Return a duration as people read it."""
    if seconds is None:
        return None
    for unit in ("w", "d", "h", "m"):
        value = seconds / SECONDS[unit]
        if value >= 1 and value == round(value, 1):
            return f"{value:g}{unit}"
    return f"{seconds:g}s"


def keep(policy: Object) -> str:
    counts = policy["spec"]["keep"]
    return " ".join(f"{rule}={counts[rule]}" for rule in RULES if counts[rule]) or "all"


def probe(policy: Object) -> str:
    asked = policy["spec"]["probe"]
    shown = [f"command {shlex.join(asked['command'])}"] if asked["command"] else []
    shown += [f"line {asked['line']!r}"] if asked["line"] else []
    return f"{' and '.join(shown) or 'the guest agent'} within {duration(asked['timeout_s'])}"


def covers(policy: Object) -> str:
    spec = policy["spec"]
    named = [f"{len(spec['vms'])} named"] if spec["vms"] else []
    return ", ".join([*named, *(f"tag {tag}" for tag in spec["tags"])]) or "all VMs"


KEEP_OPTIONS = (
    options.option("keep.last", int, "--keep-last", min=0, help="number of newest backups to keep"),
    options.option(
        "keep.hourly", int, "--keep-hourly", min=0, help="number of hours of which to keep the newest backup"
    ),
    options.option(
        "keep.daily", int, "--keep-daily", min=0, help="number of days (UTC) of which to keep the newest backup"
    ),
    options.option(
        "keep.weekly", int, "--keep-weekly", min=0, help="number of weeks of which to keep the newest backup"
    ),
    options.option(
        "keep.monthly", int, "--keep-monthly", min=0, help="number of months of which to keep the newest backup"
    ),
    options.option(
        "keep.yearly", int, "--keep-yearly", min=0, help="number of years of which to keep the newest backup"
    ),
)
PROBE_OPTIONS = (
    options.option(
        "probe.command", str, "--probe-command", convert=parse_command, metavar="COMMAND",
        help="the VM has started once its guest agent can run this (no shell) with exit code 0",
    ),
    options.option(
        "probe.line", str, "--probe-line", metavar="TEXT",
        help="the VM has started once this text is on its serial console; without command and text: once its guest "
        "agent answers",
    ),
    options.option(
        "probe.timeout_s", str, "--probe-timeout", convert=parse_duration, metavar="TIME",
        help="how long the VM may take to start; by default 10m",
    ),
)  # fmt: skip
POLICY_OPTIONS = (
    options.option(
        "schedule", str, help="hourly, daily, weekly, monthly, or five fields as in crontab, such as '30 2 * * 1-5'"
    ),
    options.option("time_zone", str, help="time zone of the schedule, such as Europe/Paris; by default UTC"),
    options.option(
        "jitter_s", str, "--jitter", convert=parse_duration, metavar="TIME",
        help="time over which the VMs are spread after each scheduled time; by default 30m",
    ),
    options.option(
        "start_within_s", str, "--start-within", convert=_or_none, metavar="TIME",
        help="how late a missed backup may start; after that it waits for the next scheduled time; none: no limit",
    ),
    options.option(
        "max_age_s", str, "--max-age", convert=_or_none, metavar="TIME",
        help="age that no VM's newest backup may exceed; none: derived from the schedule",
    ),
    *KEEP_OPTIONS,
    options.option(
        "verify_days", str, "--verify-days", convert=parse_days, metavar="DAYS",
        help="days after which each backup is verified again; none: never; by default 30",
    ),
    options.option(
        "prove_days", str, "--prove-days", convert=parse_days, metavar="DAYS",
        help="days after which each backup is proved again, by starting a VM from it; none: never (default)",
    ),
    *PROBE_OPTIONS,
    options.option(
        "vms", list[str], "--vm", convert=options.without_empty, autocompletion=names_of("vms"),
        help="a VM to back up; can be repeated; without VMs and tags: all of the project",
    ),
    options.option("tags", str, "--tag", convert=parse_tags, help="VMs with any of these tags, comma-separated"),
)  # fmt: skip
ENABLED = options.option("enabled", bool, "--enabled/--disabled", help="enable or disable the policy")

COLUMNS: Columns = {
    "NAME": lambda p: p["name"],
    "SCHEDULE": lambda p: p["spec"]["schedule"] if p["spec"]["enabled"] else "disabled",
    "VMS": covers,
    "REPOSITORY": lambda p: p["repository_name"],
    "KEEP": keep,
    "PROMISE": lambda p: duration(p["promise_s"]),
    "PROBLEMS": lambda p: p["problem_count"] or None,
    "AGE": lambda p: output.age(p["created_at"]),
}
DETAILS: Columns = {
    **COLUMNS,
    "TIME ZONE": lambda p: p["spec"]["time_zone"],
    "JITTER": lambda p: duration(p["spec"]["jitter_s"]),
    "START WITHIN": lambda p: duration(p["spec"]["start_within_s"]) or "whenever it can",
    "VERIFIED": lambda p: f"every {days} days" if (days := p["spec"]["verify_days"]) else "never",
    "PROVED": lambda p: f"every {days} days, by {probe(p)}" if (days := p["spec"]["prove_days"]) else "never",
    "ASKED TO RUN": lambda p: output.when(p["run_at"]),
    "NOT BACKED UP": lambda p: [f"{problem['vm_name']}: {problem['error']}" for problem in p["problems"]],
    "ID": lambda p: p["id"],
    "PROJECT": lambda p: p["project"],
}


@app.command("list")
@options.expand
def list_(listing: Listing = Listing()) -> None:
    """List policies."""
    listing.show("backup-policies", COLUMNS)


@app.command()
def show(policy: PolicyRef, output_: Output = OutputFormat.TABLE) -> None:
    """Show a policy, and which of its VMs can't be backed up."""
    with output.errors():
        output.fields(Client().get("backup-policies", policy), DETAILS, output_)


@app.command()
@options.expand
def create(
    name: Annotated[str, typer.Argument(help="lower-case letters, digits and hyphens", show_default=False)],
    repository: Annotated[
        str,
        typer.Option(
            help="repository, by name or id", autocompletion=names_of("backup-repositories"), show_default=False
        ),
    ],
    fields: Annotated[Object, POLICY_OPTIONS],
) -> None:
    """Create a policy that backs up VMs automatically, daily if no schedule is given."""
    with output.errors():
        created = Client().create_backup_policy(name, repository, **fields)
        say(f"{name}: created; it promises that no VM's newest backup is older than {duration(created['promise_s'])}")


@app.command("set")
@options.expand
def set_(
    policy: PolicyRef,
    changes: Annotated[Object, (*POLICY_OPTIONS, ENABLED)],
    repository: Annotated[
        str | None, typer.Option(help="new repository, by name or id", autocompletion=names_of("backup-repositories"))
    ] = None,
) -> None:
    """Change a policy. Scheduled times that have already passed are skipped."""
    changes = changes if repository is None else {**changes, "repository": repository}
    with output.errors():
        check_given(changes)

        def of(now: Object) -> Object:
            parts: Object = {
                field: {**now["spec"][field], **changes[field]} for field in ("keep", "probe") if field in changes
            }
            return {**changes, **parts}

        updates.update(Client(), "backup-policies", policy, of)
        say(f"{policy}: changed")


@app.command()
def run(policy: PolicyRef) -> None:
    """Back up all VMs of a policy now."""
    with output.errors():
        Client().run_backup_policy(policy)
        say(f"{policy}: its VMs are being backed up; see: novacron backup list --policy {policy}")


@app.command()
def delete(policy: PolicyRef) -> None:
    """Delete a policy. The backups that it made stay."""
    with output.errors():
        Client().delete("backup-policies", policy)
        say(f"{policy}: deleted; its backups stay")
