"""``novacron rebalance``: rebalance the load of nodes."""

from __future__ import annotations

from typing import Annotated

import typer

from novacron.cli import options, output
from novacron.cli.output import Columns, Object, Output, OutputFormat
from novacron.client import Client
from novacron.client.choices import RebalanceMode

app = typer.Typer(no_args_is_help=True, help="Rebalance the load of nodes.")


DETAILS: Columns = {
    "MODE": lambda r: r["settings"]["mode"],
    "IMBALANCE": lambda r: None if r["decision"] is None else f"{r['decision']['imbalance']:.3f}",
    "ACTS ABOVE": lambda r: f"{r['settings']['imbalance_min']:g}, for {r['settings']['rounds']} rounds",
    "ROUNDS": lambda r: r["rounds"],
    "DECIDED": lambda r: None if r["decided_at"] is None else f"{output.age(r['decided_at'])} ago",
    "WHY": lambda r: None if r["decision"] is None else r["decision"]["why"],
    "MOVES": lambda r: [f"{m['vm_name']} to {m['target']}: {m['why']}" for m in (r["decision"] or {}).get("moves", ())],
    "COOL-DOWN": lambda r: f"{r['settings']['cool_down_s']} s",
    "CONCURRENCY": lambda r: r["settings"]["concurrency"],
}


@app.command()
def show(output_: Output = OutputFormat.TABLE) -> None:
    """Show how the fleet is rebalanced, and the last decision with its reasons."""
    with output.errors():
        output.fields(Client().rebalancing(), DETAILS, output_)


SET_OPTIONS = (
    options.option("mode", RebalanceMode, help="off; advise: only report what it would move; auto: move VMs"),
    options.option("imbalance_min", float, "--imbalance", help="imbalance of loads above which VMs move"),
    options.option("rounds", int, help="minutes for which the imbalance must last"),
    options.option("cool_down_s", int, "--cool-down", help="seconds before a VM moves again"),
    options.option("concurrency", int, help="limit of concurrent moves"),
)  # fmt: skip


@app.command("set")
@options.expand
def set_(changes: Annotated[Object, SET_OPTIONS], output_: Output = OutputFormat.TABLE) -> None:
    """Change how the fleet is rebalanced."""
    with output.errors():
        client = Client()
        settings = client.rebalancing()["settings"]
        output.fields(client.configure_rebalancing(**{**settings, **changes}), DETAILS, output_)
