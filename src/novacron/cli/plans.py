"""``novacron plan``: many VMs go on from their replicas, in order."""

from __future__ import annotations

from typing import Annotated

import typer

from novacron.cli import options, output, progress
from novacron.cli.backup_policies import parse_duration
from novacron.cli.lists import Listing
from novacron.cli.names import names_of
from novacron.cli.options import QuietWait
from novacron.cli.output import Columns, Object, Output, OutputFormat
from novacron.client import Client
from novacron.terminal import say

app = typer.Typer(
    no_args_is_help=True, help="Manage recovery plans: VMs that are started from their replicas, in order."
)

PlanRef = Annotated[
    str,
    typer.Argument(
        metavar="plan", help="name or id of the plan", autocompletion=names_of("plans"), show_default=False
    ),
]  # fmt: skip
SETTINGS = {"delay": "delay_s", "wait": "wait_for", "timeout": "timeout_s"}

COLUMNS: Columns = {
    "NAME": lambda p: p["name"],
    "VMS": lambda p: len(p["vms"]),
    "LAST RUN": lambda p: _last(p),
    "AGE": lambda p: output.age(p["created_at"]),
}
DETAILS: Columns = {
    "NAME": lambda p: p["name"],
    "ID": lambda p: p["id"],
    "VMS": lambda p: [_vm(vm) for vm in p["vms"]],
    "RUNS": lambda p: [line for run in p["runs"] for line in report(run)],
}


def _vm(vm: Object) -> str:
    return f"{vm['vm']}: {vm['wait_for']} within {vm['timeout_s']} s, {vm['delay_s']} s after the one before"


def _last(plan: Object) -> str:
    if not plan["runs"]:
        return "never"
    run = plan["runs"][0]
    return f"{run['action']}, {_state(run)}, {output.age(run['began_at'])} ago"


def _state(run: Object) -> str:
    if run["ended_at"] is None:
        return "under way"
    ready = sum(step["phase"] == "ready" for step in run["steps"])
    return "well" if ready == len(run["steps"]) else f"{ready} of {len(run['steps'])} well"


def report(run: Object) -> list[str]:
    """Return a run's report, line by line."""
    lines = [f"{run['action']} {run['id']} of {output.when(run['began_at'])}, by {run['actor']}: {_state(run)}"]
    for step in run["steps"]:
        took = "" if step["took_s"] is None else f", well after {step['took_s']:.0f} s"
        lost = "" if step["lost_s"] is None else f", from {step['lost_s']:.0f} s before (point {step['point']})"
        if step["lost_s"] is not None and not step["point"]:
            lost = ", nothing lost"
        error = f": {step['error']}" if step["error"] else ""
        where = f" on {step['node']}" if step["node"] else ""
        lines.append(f"  {step['vm_name']}: {step['phase']}{where}{took}{lost}{error}")
    return lines


def parse_vm(text: str) -> Object:
    """Return a VM of a plan, written like ``web,delay=30s,wait=guest-agent,timeout=10m``. Raises typer.BadParameter."""
    name, *settings = text.split(",")
    vm: Object = {"vm": name.strip()}
    for setting in settings:
        key, _, value = setting.partition("=")
        if key.strip() not in SETTINGS or not value:
            raise typer.BadParameter(f"{setting!r} is not one of delay=TIME, wait=running|guest-agent, timeout=TIME")
        field = SETTINGS[key.strip()]
        vm[field] = value.strip() if field == "wait_for" else parse_duration(value)
    return vm


@app.command("list")
@options.expand
def list_(listing: Listing = Listing()) -> None:
    """List recovery plans, and the results of their last runs."""
    listing.show("plans", COLUMNS)


@app.command()
def show(plan: PlanRef, output_: Output = OutputFormat.TABLE) -> None:
    """Show a recovery plan, and the reports of its last runs."""
    with output.errors():
        output.fields(Client().get("plans", plan), DETAILS, output_)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="lower-case letters, digits and hyphens", show_default=False)],
    vm: Annotated[
        list[str],
        typer.Option(
            help="VM, as NAME[,delay=TIME][,wait=running|guest-agent][,timeout=TIME]; repeat it for each VM, in order",
            show_default=False,
        ),
    ],
) -> None:
    """Create a recovery plan of VMs that have replicas."""
    with output.errors():
        created = Client().create_plan(name, [parse_vm(text) for text in vm])
        say(f"{name}: created, with {len(created['vms'])} VMs; test it: novacron plan test {name}")


@app.command()
@options.expand
def test(plan: PlanRef, wait: QuietWait = QuietWait(timeout_s=7200)) -> None:
    """Test a plan: start isolated VMs from all of its replicas, check them, and delete them."""
    with output.errors():
        client = Client()
        _follow(client, client.test_plan(plan), wait)


@app.command()
@options.expand
def failover(
    plan: PlanRef,
    confirm: Annotated[
        list[str] | None, typer.Option(help="name of a node that is gone, whose host is off; can be repeated")
    ] = None,
    wait: QuietWait = QuietWait(timeout_s=7200),
) -> None:
    """Start all VMs of a plan from their replicas, in order. Their writes after the last points are lost."""
    with output.errors():
        client = Client()
        _follow(client, client.fail_over_plan(plan, confirm or ()), wait)


@app.command()
@options.expand
def switch(plan: PlanRef, wait: QuietWait = QuietWait(timeout_s=7200)) -> None:
    """Migrate all VMs of a plan to the nodes of their replicas, in order. Running VMs keep running; nothing is lost."""
    with output.errors():
        client = Client()
        _follow(client, client.switch_plan(plan), wait)


@app.command()
@options.expand
def failback(plan: PlanRef, wait: QuietWait = QuietWait(timeout_s=7200)) -> None:
    """Return all VMs of a plan to where they were before its last failover or switch. Nothing is lost."""
    with output.errors():
        client = Client()
        _follow(client, client.fail_back_plan(plan), wait)


@app.command()
def stop(plan: PlanRef) -> None:
    """Start no further VM in the current run of a plan; a test also deletes its VMs."""
    with output.errors():
        Client().stop_plan(plan)
        say(f"{plan}: stopped")


@app.command()
def delete(plan: PlanRef) -> None:
    """Delete a recovery plan with its reports. Its VMs and their replicas stay."""
    with output.errors():
        Client().delete("plans", plan)
        say(f"{plan}: deleted")


def _follow(client: Client, plan: Object, wait: QuietWait) -> None:
    """Wait, if asked to, until the run has ended, and show its report; exit with 1 if a VM was not well."""
    run = plan["runs"][0]
    if not wait.wait:
        say(f"{plan['name']}: {run['action']} {run['id']} has begun")
        return
    last = progress.waiting(
        client, "plans", plan["id"], f"{run['action']} of {plan['name']}",
        lambda now: now is None or now["runs"][0]["ended_at"] is not None, wait.timeout_s,
    )  # fmt: skip
    if last is None:
        raise output.fail(f"plan {plan['name']} was deleted", output.EXIT_FAILED)
    ended = last["runs"][0]
    for line in report(ended):
        say(line)
    if any(step["phase"] != "ready" for step in ended["steps"]):
        raise output.fail(f"some VMs of plan {plan['name']} failed their checks", output.EXIT_FAILED)
