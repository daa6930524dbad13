"""``novacron image``: what VMs boot from."""

from __future__ import annotations

import typer

from novacron.cli import output
from novacron.cli.output import Columns, Format, Output
from novacron.client import Client

app = typer.Typer(no_args_is_help=True, help="Look at what VMs boot from.")

COLUMNS: Columns = {
    "NAME": lambda i: i["name"],
    "KIND": lambda i: i["kind"],
    "SIZE": lambda i: output.size(i["size_bytes"]),
    "DIGEST": lambda i: i["digest"][:12],
    "NODES": lambda i: i["nodes"],
    "DESCRIPTION": lambda i: i["description"],
}


@app.command("list")
def list_(
    output_: Output = Format.TABLE,
) -> None:
    """List images and the nodes that hold them."""
    with output.errors():
        output.rows(Client().list("images"), COLUMNS, output_)
