"""``novacron migration``: show migrations and abort them."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from novacron.cli import options, output, progress
from novacron.cli.lists import Listing
from novacron.cli.options import Wait
from novacron.cli.output import Columns, Object, Output, OutputFormat
from novacron.client import Client
from novacron.terminal import say

app = typer.Typer(no_args_is_help=True, help="Show migrations of VMs, and abort them.")

Id = Annotated[str, typer.Argument(help="id of the migration", show_default=False)]


def ratio(m: Object) -> str | None:
    raw, wire = m["progress"]["raw_bytes"], m["progress"]["wire_bytes"]
    return f"{raw / wire:.1f}x" if wire else None


def downtime(m: Object) -> str | None:
    value = m["progress"]["downtime_ms"]
    return None if value is None else f"{value:.0f} ms"


def forecast(estimate: Object | None) -> str | None:
    """Return a forecast in words."""
    if estimate is None:
        return None
    if not estimate["converges"]:
        return f"does not converge: {estimate['reason']}"
    return f"converges in {estimate['total_s']:.1f} s with {estimate['downtime_ms']:.0f} ms of downtime"


def forecast_error(error: Object | None) -> str | None:
    """Return how far off the first forecast was, in words."""
    if error is None:
        return None
    return f"{error['total_s']:+.1f} s, {error['downtime_ms']:+.0f} ms of downtime against the first forecast"


SAVINGS = ("zero", "session", "image", "sibling", "checkpoint", "difference", "compression")
"""Ways in which pages are sent other than as they are."""
COLUMNS: Columns = {
    "ID": lambda m: m["id"],
    "VM": lambda m: m["vm_name"],
    "KIND": lambda m: m["kind"],
    "FROM": lambda m: m["source"],
    "TO": lambda m: m["target"],
    "PHASE": lambda m: m["phase"],
    "TIME": lambda m: f"{m['progress']['elapsed_s']:.1f} s",
    "SENT": lambda m: output.size(m["progress"]["wire_bytes"]),
    "DOWNTIME": downtime,
    "AGE": lambda m: output.age(m["created_at"]),
}
DETAILS: Columns = {
    **COLUMNS,
    "WAITS FOR": lambda m: m["waits_for"],
    "MAY USE": lambda m: output.rate(m["rate_bytes_per_s"]),
    "WEIGHT": lambda m: m["weight"],
    "POLICY": lambda m: m["policy"],
    "MEMORY": lambda m: output.size(m["progress"]["total_bytes"]),
    "DISK": lambda m: output.size(m["progress"]["disk_bytes"]),
    "DISK REMAINING": lambda m: output.size(m["progress"]["disk_remaining_bytes"]),
    "REMAINING": lambda m: output.size(m["progress"]["remaining_bytes"]),
    "FROM QEMU": lambda m: output.size(m["progress"]["raw_bytes"]),
    "RATIO": ratio,
    "DIRTY RATE": lambda m: output.size(m["progress"]["dirty_bytes_per_s"]) + "/s",
    "PASSES": lambda m: m["progress"]["passes"],
    "STREAMS": lambda m: m["progress"]["streams"],
    "ROUND TRIP": lambda m: f"{m['progress']['rtt_ms']:.1f} ms",
    "RETRANSMITS": lambda m: m["progress"]["retransmits"],
    "RESUMED": lambda m: m["progress"]["resumed"],
    "REPAIRED PAGES": lambda m: m["progress"]["repaired_pages"],
    "THROTTLED": lambda m: f"{m['progress']['throttle_percent']} %",
    "FORECAST AT FIRST": lambda m: forecast(m["progress"]["first_forecast"]),
    "FORECAST": lambda m: forecast(m["progress"]["forecast"]),
    "FORECAST ERROR": lambda m: forecast_error(m["progress"]["forecast_error"]),
    **{
        f"SAVED: {name.upper()}": lambda m, name=name: output.size(m["progress"]["savings"][name])  # type: ignore[misc]
        for name in SAVINGS
    },
    "ERROR": lambda m: m["error"],
}


ESTIMATE: Columns = {
    "VM": lambda f: f["vm_name"],
    "FROM": lambda f: f["source"],
    "TO": lambda f: f["target"],
    "VERDICT": lambda f: forecast(f["move"]["forecast"]),
    "TO SEND": lambda f: output.size(f["move"]["memory_bytes"]),
    "COMPRESSED TO": lambda f: f"{f['move']['ratio']:.0%}",
    "DISKS": lambda f: output.size(f["move"]["disk_bytes"]),
    "DISKS COMPRESSED TO": lambda f: f"{f['move']['disk_ratio']:.0%}",
    "DIRTY RATE": lambda f: output.size(f["move"]["dirty_bytes_per_s"]) + "/s",
    "LINK": lambda f: f"{f['move']['path']['best_rate_bytes_per_s'] * 8 / 1e6:.1f} Mbit/s",
    "ROUND TRIP": lambda f: f"{f['move']['path']['rtt_ms']:.1f} ms",
    "CHEAPEST": lambda f: f"{output.when(f['cheapest_at'])}: {f['cheapest_why']}" if f.get("cheapest_at") else None,
}


def finish(client: Client, migration: Object, wait: Wait) -> None:
    """Follow a migration if asked to, and say how it ended."""
    if wait.wait:
        migration = _followed(client, migration["id"], wait)
    if not wait.output.for_people:
        output.show(migration, wait.output)
    elif wait.wait:
        name, target = migration["vm_name"], migration["target"]
        say(
            f"{name}: on {target} after {migration['progress']['elapsed_s']:.1f} s, downtime "
            f"{downtime(migration) or '-'}, {output.size(migration['progress']['wire_bytes'])} sent"
        )
    else:
        say(f"{migration['id']}: follow it with: novacron migration show {migration['id']}")


def _followed(client: Client, id: str, wait: Wait) -> Object:
    migration = progress.migration(client, id, wait.timeout_s)
    if migration["phase"] != "completed":
        if not wait.output.for_people:
            output.show(migration, wait.output)
        raise output.fail(f"the migration {migration['phase']}: {migration['error']}", output.EXIT_FAILED)
    if migration["kind"] == "live" and migration["progress"]["downtime_ms"] is None:
        # The target reports that the guest runs a moment after the switchover.
        with contextlib.suppress(TimeoutError):
            migration = (
                client.wait("migrations", id, lambda m: m is None or m["progress"]["downtime_ms"] is not None, 3)
                or migration
            )
    return migration


@app.command("list")
@options.expand
def list_(
    vm: Annotated[str | None, typer.Option(help="only migrations of this VM")] = None,
    phase: Annotated[str | None, typer.Option(help="only migrations in this phase")] = None,
    listing: Listing = Listing(limit=50),
) -> None:
    """List migrations, newest first."""
    listing.show("migrations", COLUMNS, vm=vm, phase=phase)


@app.command()
def show(id: Id, output_: Output = OutputFormat.TABLE) -> None:
    """Show a migration in detail."""
    with output.errors():
        output.fields(Client().get("migrations", id), DETAILS, output_)


@app.command()
def abort(id: Id, output_: Output = OutputFormat.TABLE) -> None:
    """Abort a migration; the VM stays on its source node."""
    with output.errors():
        migration = Client().act("migrations", id, "abort")
        if not output_.for_people:
            output.show(migration, output_)
        else:
            say(f"{id}: {migration['phase']}, VM {migration['vm_name']} stays on {migration['source']}")
