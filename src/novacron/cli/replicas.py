"""``novacron replica``, ``vm replicate`` and ``vm failover``: copies of VMs' disks on other sites, that follow."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from novacron.cli import options, output, progress
from novacron.cli.backup_policies import parse_duration
from novacron.cli.lists import Listing
from novacron.cli.metadata import check_given
from novacron.cli.options import QuietWait, Wait
from novacron.cli.output import Columns, Object, Output, OutputFormat
from novacron.cli.vms import VmRef, finish
from novacron.client import Client
from novacron.terminal import say

app = typer.Typer(
    no_args_is_help=True, help="Show replicas: copies of VMs' disks that are kept up to date on other sites."
)

ReplicaId = Annotated[str, typer.Argument(metavar="replica", help="id of the replica", show_default=False)]
RPO = options.option(
    "rpo_s", str, "--rpo", convert=parse_duration, metavar="TIME",
    help="interval between two rounds, from 5s to 24h; by default 30s",
)  # fmt: skip
POINTS = options.option("points", int, "--points", help="number of points to keep, 1 to 6; by default 3")
REPLICATE = (
    options.option("site", str, "--to-site", help="site that gets the replica; the platform chooses the node"),
    options.option("node", str, "--to-node", help="node that gets the replica"),
    RPO,
    POINTS,
)

COLUMNS: Columns = {
    "REPLICA": lambda r: r["id"],
    "VM": lambda r: r["vm_name"],
    "SITE": lambda r: r["site"],
    "NODE": lambda r: r["node"],
    "STATE": lambda r: state(r),
    "POINT": lambda r: f"{output.age(r['points'][-1]['at'])} ago" if r["points"] else "none yet",
    "RPO": lambda r: f"{r['rpo_s']} s",
    "USED": lambda r: output.size(r["used_bytes"]),
    "ERROR": lambda r: r["error"],
}
DETAILS: Columns = {
    **COLUMNS,
    "POINTS": lambda r: [_point(point) for point in reversed(r["points"])],
    "LAST ROUND": lambda r: _round(r),
    "KEEPS": lambda r: f"{r['points_kept']} points",
    "AGE": lambda r: output.age(r["created_at"]),
}


def state(replica: Object) -> str:
    """Say in a word how a replica is."""
    if replica["phase"] == "deleting":
        return "deleting"
    if replica["late_at"] and output.is_past(replica["late_at"]):
        return "late"
    if replica["late_at"] is None and replica["points"]:
        return "not followed"
    return "current" if replica["points"] else "first copy"


def _round(replica: Object) -> str:
    """Say how it was known what the last round had to bring, and why if that was not recorded."""
    kind, reason = replica["round_kind"], replica["round_reason"]
    return "-" if kind is None else f"{kind}: {reason}" if reason else str(kind)


def _point(point: Object) -> str:
    quiesced = ", quiesced" if point["quiesced"] else ""
    sent = output.size(point["sent_bytes"])
    return f"{point['number']}: {output.when(point['at'])}, {output.age(point['at'])} ago, {sent} sent{quiesced}"


@app.command("list")
@options.expand
def list_(
    vm: Annotated[str | None, typer.Option(help="only replicas of this VM")] = None,
    node: Annotated[str | None, typer.Option(help="only replicas on this node")] = None,
    listing: Listing = Listing(),
) -> None:
    """List replicas, oldest first, with the age of each one's newest point."""
    listing.show("replicas", COLUMNS, vm=vm, node=node)


@app.command()
def show(replica: ReplicaId, output_: Output = OutputFormat.TABLE) -> None:
    """Show a replica and its points in time, from which the VM can continue."""
    with output.errors():
        output.fields(Client().get("replicas", replica), DETAILS, output_)


@app.command("set")
@options.expand
def set_(replica: ReplicaId, changes: Annotated[Object, (RPO, POINTS)]) -> None:
    """Change a replica's interval, and the number of points that it keeps."""
    with output.errors():
        check_given(changes)
        Client().configure_replica(replica, **changes)
        say(f"{replica}: changed")


@app.command()
@options.expand
def delete(replica: ReplicaId, wait: QuietWait = QuietWait()) -> None:
    """Delete a replica. A VM that was created from it keeps its disk."""
    with output.errors():
        client = Client()
        client.delete("replicas", replica)
        if wait.wait:
            progress.waiting(
                client, "replicas", replica, f"deleting {replica}", lambda now: now is None, wait.timeout_s
            )
        say(f"{replica}: {'deleted' if wait.wait else 'deleting'}")


@app.command("try")
@options.expand
def try_(
    replica: ReplicaId,
    name: Annotated[str, typer.Argument(help="name of the new VM", show_default=False)],
    point: Annotated[int | None, typer.Option(help="number of the point; the newest if not given")] = None,
    wait: Wait = Wait(wait=True, timeout_s=3600),
) -> None:
    """Start an isolated VM from a replica, to check that it boots. Replication continues."""
    with output.errors():
        client = Client()
        finish(client, client.try_replica(replica, name, point=point), ("running",), wait)


@options.expand
def replicate(vm: VmRef, asked: Annotated[Object, REPLICATE], wait: QuietWait = QuietWait(timeout_s=3600)) -> None:
    """Replicate a VM's disk to another site, in rounds, and wait for the first point."""
    with output.errors():
        client = Client()
        replica = client.replicate_vm(vm, **asked)
        if not wait.wait:
            say(f"{vm}: replica {replica['id']} on {replica['node']}")
            return
        last = progress.waiting(
            client, "replicas", replica["id"], f"first copy to {replica['node']}",
            lambda now: now is None or bool(now["points"]), wait.timeout_s,
        )  # fmt: skip
        if last is None:
            raise output.fail(f"replica {replica['id']} was deleted", output.EXIT_FAILED)
        say(f"{vm}: replica {replica['id']} on {replica['node']} follows every {last['rpo_s']} s")


@options.expand
def failover(
    vm: VmRef,
    replica: Annotated[
        str | None, typer.Option(help="id of the replica; the one with the newest point if not given")
    ] = None,
    point: Annotated[int | None, typer.Option(help="number of the point; the newest if not given")] = None,
    confirm: options.Confirm = None,
    wait: Wait = Wait(wait=True, timeout_s=600),
) -> None:
    """Continue a VM whose node is gone from a replica. Its writes after that point are lost."""
    with output.errors():
        client = Client()
        current = client.get("vms", vm)
        if confirm is None and current["node"] is not None:
            confirm = options.ask_for_word(current["node"])
        began = time.monotonic()
        moved = client.fail_over_vm(current["id"], replica=replica, point=point, confirm=confirm)
        finish(client, moved, (moved["spec"]["power"],), wait)
        if wait.wait and wait.output.for_people:
            say(f"{vm}: after {time.monotonic() - began:.0f} s")
