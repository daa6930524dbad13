"""``novacron vm load`` and ``novacron node load``: what was used in each of the past hours."""

from __future__ import annotations

from typing import Annotated

import typer

from novacron.cli import output
from novacron.cli.nodes import NodeName
from novacron.cli.output import Columns, Output, OutputFormat
from novacron.cli.vms import VmRef
from novacron.client import Client

COLUMNS: Columns = {
    "HOUR": lambda past: output.when(past["hour"]),
    "CPU PEAK": lambda past: f"{past['cpu_peak']:.2f}",
    "CPU MEAN": lambda past: f"{past['cpu_mean']:.2f}",
}
Days = Annotated[int, typer.Option(min=1, max=60, help="how many days to look back")]


def of_vm(
    vm: VmRef,
    days: Days = 1,
    output_: Output = OutputFormat.TABLE,
) -> None:
    """Show a VM's CPU use in each past hour: the busiest half minute, and the average."""
    with output.errors():
        output.rows(Client().vm_load(vm, days), COLUMNS, output_)


def of_node(
    node: NodeName,
    days: Days = 1,
    output_: Output = OutputFormat.TABLE,
) -> None:
    """Show the CPU use of a node's VMs in each past hour: peak and average."""
    with output.errors():
        output.rows(Client().node_load(node, days), COLUMNS, output_)
