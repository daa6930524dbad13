"""``novacron rebalance``: let the load of nodes be evened out."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from novacron.cli import output
from novacron.cli.output import Columns, Format, Output
from novacron.client import Client

app = typer.Typer(no_args_is_help=True, help="Let the load of nodes be evened out.")


class Mode(StrEnum):
    OFF = "off"
    ADVISE = "advise"
    AUTO = "auto"


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
def show(output_: Output = Format.TABLE) -> None:
    """Show how the fleet is rebalanced, and what was decided last, with its reasons."""
    with output.errors():
        output.fields(Client().rebalancing(), DETAILS, output_)


@app.command("set")
def set_(
    mode: Annotated[Mode | None, typer.Option(help="off; advise: only say what would be moved; auto: move it")] = None,
    imbalance: Annotated[float | None, typer.Option(help="deviation of loads below which nothing is done")] = None,
    rounds: Annotated[int | None, typer.Option(help="for how many minutes it must have been above that")] = None,
    cool_down: Annotated[int | None, typer.Option(help="seconds for which a VM is not moved again")] = None,
    concurrency: Annotated[int | None, typer.Option(help="moves under way at most")] = None,
    output_: Output = Format.TABLE,
) -> None:
    """Say how the fleet is rebalanced."""
    given: dict[str, Any] = {
        "mode": None if mode is None else mode.value, "imbalance_min": imbalance, "rounds": rounds,
        "cool_down_s": cool_down, "concurrency": concurrency,
    }  # fmt: skip
    with output.errors():
        client = Client()
        settings = client.rebalancing()["settings"]
        changes = {field: value for field, value in given.items() if value is not None}
        output.fields(client.configure_rebalancing(**{**settings, **changes}), DETAILS, output_)
