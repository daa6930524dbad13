"""``novacron forecast`` and ``novacron capacity``: what is foreseen of load and room, and how good that was."""

from __future__ import annotations

from typing import Annotated

import typer

from novacron.cli import options, output
from novacron.cli.lists import Listing
from novacron.cli.output import Columns, Object, Output, OutputFormat
from novacron.client import Client
from novacron.client.choices import CapacityResource
from novacron.terminal import say

app = typer.Typer(
    no_args_is_help=True, help="Forecast the load of nodes and VMs, and compare past forecasts with actual values."
)


def _of(item: Object, field: str) -> object:
    return None if item["forecast"] is None else item["forecast"][field]


def _between(item: Object, field: str) -> str | None:
    lower, upper = _of(item, f"{field}_lower"), _of(item, f"{field}_upper")
    return None if lower is None or upper is None else f"{lower:.1f} to {upper:.1f}"


def _cpus(item: Object, field: str) -> str | None:
    value = _of(item, field)
    return None if value is None else f"{value:.1f}"


def _memory(item: Object) -> str | None:
    memory_mib = _of(item, "memory_mib")
    return None if not isinstance(memory_mib, int) else output.size(memory_mib * 2**20)


NODES: Columns = {
    "NODE": lambda n: n["name"],
    "SITE": lambda n: n["site"],
    "FROM": lambda n: output.when(n["forecast"]["hour"]) if n["forecast"] else None,
    "CPU PEAK": lambda n: _cpus(n, "cpu_peak"),
    "90 %": lambda n: _between(n, "cpu_peak"),
    "OF": lambda n: n["cpus"],
    "MEMORY": _memory,
    "MADE FROM": lambda n: _of(n, "why") or "nothing is known of its load lately",
}
VMS: Columns = {
    "VM": lambda v: v["name"],
    "NODE": lambda v: v["node"],
    "FROM": lambda v: _of(v, "day"),
    "CPU MAXIMUM": lambda v: _cpus(v, "cpu_max"),
    "90 %": lambda v: _between(v, "cpu_max"),
    "OF": lambda v: v["vcpus"],
    "UNUSUAL": lambda v: v["unusual"]["words"] if v["unusual"] else None,
    "MADE FROM": lambda v: _of(v, "why") or "nothing is known of its load lately",
}


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.1f} %"


ACCURACY: Columns = {
    "FORECAST": lambda a: a["kind"],
    "SCORED": lambda a: a["scored"],
    "ERROR": lambda a: _percent(a["error"]),
    "NAIVE": lambda a: _percent(a["last_error"]),
    "LEARNED": lambda a: _percent(a["learned_error"]),
    "IN 90 %": lambda a: _percent(a["coverage"]),
    "LEAD": lambda a: None if a["lead_s"] is None else f"{a['lead_s'] / 3600:.1f} h",
    "SET ASIDE": lambda a: output.when(a["aside_since"]),
}


@app.command()
@options.expand
def nodes(
    listing: Listing = Listing(),
    site: Annotated[str | None, typer.Option(help="only nodes of this site", show_default=False)] = None,
) -> None:
    """Forecast the peak CPU use of nodes in the next hour, with a 90 % interval."""
    listing.show("forecasts/nodes", NODES, site=site)


@app.command()
@options.expand
def vms(
    listing: Listing = Listing(),
    node: Annotated[str | None, typer.Option(help="only VMs of this node", show_default=False)] = None,
    unusual: Annotated[bool, typer.Option("--unusual", help="only VMs that use more or less CPU than usual")] = False,
) -> None:
    """Forecast the peak CPU use of VMs in the next seven days, with a 90 % interval."""
    listing.show("forecasts/vms", VMS, node=node, unusual="true" if unusual else None)


@app.command()
def accuracy(
    days: Annotated[int, typer.Option(min=1, max=3650, help="how many days to look back")] = 7,
    output_: Output = OutputFormat.TABLE,
) -> None:
    """Compare past forecasts with actual values: relative errors, and the share within the 90 % interval."""
    with output.errors():
        items = Client().forecast_accuracy(days)
        output.rows(items, ACCURACY, output_)
        if output_.for_people:
            for item in items:
                say(f"{item['kind']}: {item['words']}")


def capacity(
    resource: Annotated[CapacityResource | None, typer.Option(help="only this kind", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="show at most this many, soonest first")] = 40,
    name: Annotated[
        str | None, typer.Option(help="only this site, pool (NODE/POOL), quota (PROJECT/FIELD) or node",
                                 show_default=False)
    ] = None,
    output_: Output = OutputFormat.TABLE,
) -> None:  # fmt: skip
    """Forecast when sites, pools, quotas and the database will be full, soonest first."""
    with output.errors():
        given = {"resource": resource, "name": name}
        forecasts = list(Client().list("capacity", None, **{field: value for field, value in given.items() if value}))
        forecasts.sort(key=lambda item: (item["full_on"] is None, item["full_on"] or ""))
        shown = forecasts[:limit]
        if not output_.for_people:
            output.show(shown, output_)
            return
        for item in shown:
            say(item["words"])
        if len(forecasts) > limit:
            say(f"... and {len(forecasts) - limit} more, which --limit shows")
        if not forecasts:
            say("there are no forecasts yet: the server makes them once an hour")
