"""``novacron image``: what VMs boot from."""

from __future__ import annotations

from typing import Annotated

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


@app.command()
def copy(
    name: Annotated[str, typer.Argument(help="image", show_default=False)],
    target: Annotated[str, typer.Argument(help="node that is to have it", show_default=False)],
    source: Annotated[
        str | None, typer.Option("--from", help="node that gives it; the nearest that has it if not said")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="until it has arrived")] = True,
    timeout: Annotated[float, typer.Option(min=1, help="seconds to wait at most; the copy goes on after them")] = 3600,
) -> None:
    """Copy an image to a node, from one that has it."""
    with output.errors():
        client = Client()
        begun = client.copy_image(name, target, source)
        print(f"copying image {name} ({output.size(begun['size_bytes'])}) from {begun['source']} to {target}")
        if wait:
            event = client.wait_for_copy(begun, timeout)
            print(event["message"])
            if event["reason"] != "ImageCopied":
                raise typer.Exit(1)
