"""``novacron rebalance``: rebalance the load of nodes."""

from __future__ import annotations

from typing import Annotated

import typer

from novacron.cli import options, output
from novacron.cli.output import Columns, Object, Output, OutputFormat
from novacron.client import Client
from novacron.client.choices import RebalanceBasis, RebalanceMode

app = typer.Typer(no_args_is_help=True, help="Rebalance the load of nodes.")


DETAILS: Columns = {
    "MODE": lambda r: r["settings"]["mode"],
    "BASIS": lambda r: _basis(r["settings"]),
    "OVERLOAD": lambda r: _overload(r["decision"]),
    "IMBALANCE": lambda r: None if _is_by_forecast(r) or r["decision"] is None else f"{r['decision']['imbalance']:.3f}",
    "ACTS ABOVE": lambda r: _threshold(r["settings"]),
    "ROUNDS": lambda r: r["rounds"],
    "DECIDED": lambda r: None if r["decided_at"] is None else f"{output.age(r['decided_at'])} ago",
    "WHY": lambda r: None if r["decision"] is None else r["decision"]["why"],
    "MOVES": lambda r: [f"{m['vm_name']} to {m['target']}: {m['why']}" for m in (r["decision"] or {}).get("moves", ())],
    "COOL-DOWN": lambda r: f"{r['settings']['cool_down_s']} s",
    "CONCURRENCY": lambda r: r["settings"]["concurrency"],
}


def _basis(settings: Object) -> str:
    """Return what decides: the average, where a server is older and does not say it."""
    return str(settings.get("basis", RebalanceBasis.AVERAGE.value))


def _is_by_forecast(rebalancing: Object) -> bool:
    return _basis(rebalancing["settings"]) == RebalanceBasis.FORECAST


def _overload(decision: Object | None) -> str | None:
    if decision is None or decision.get("overload_minutes") is None:
        return None
    return f"{decision['overload_minutes']:.0f} minutes of all nodes in the next day"


def _threshold(settings: Object) -> str:
    if _basis(settings) == RebalanceBasis.FORECAST:
        return f"{settings['overload_minutes_min']:g} minutes of a node over {100 * settings['cpu_share']:.0f} % CPU"
    return f"{settings['imbalance_min']:g}, for {settings['rounds']} rounds"


@app.command()
def show(output_: Output = OutputFormat.TABLE) -> None:
    """Show the settings of rebalancing, and the last decision with its reasons."""
    with output.errors():
        output.fields(Client().rebalancing(), DETAILS, output_)


SET_OPTIONS = (
    options.option("mode", RebalanceMode, help="off; advise: only report proposed moves; auto: move VMs"),
    options.option("basis", RebalanceBasis, help="forecast: move VMs before an overload; average: balance averages"),
    options.option("overload_minutes_min", float, "--overload-minutes", help="expected overload from which VMs move"),
    options.option("relief_minutes_min", float, "--relief-minutes", help="minutes of overload a move must prevent"),
    options.option("cpu_share", float, help="share of a node's CPUs above which it is overloaded"),
    options.option("imbalance_min", float, "--imbalance", help="for averages: imbalance above which VMs move"),
    options.option("rounds", int, help="for averages: minutes for which the imbalance must last"),
    options.option("cool_down_s", int, "--cool-down", help="seconds before a VM moves again"),
    options.option("concurrency", int, help="limit of concurrent moves"),
)  # fmt: skip


@app.command("set")
@options.expand
def set_(changes: Annotated[Object, SET_OPTIONS], output_: Output = OutputFormat.TABLE) -> None:
    """Change the settings of rebalancing."""
    with output.errors():
        client = Client()
        settings = client.rebalancing()["settings"]
        output.fields(client.configure_rebalancing(**{**settings, **changes}), DETAILS, output_)
