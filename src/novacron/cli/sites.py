"""``novacron site``: where nodes stand, and how all of a site are emptied."""

from __future__ import annotations

from typing import Annotated

import typer

from novacron.cli import output
from novacron.cli.nodes import BringBack, DrainPolicy, Policy, follow, follow_back
from novacron.cli.output import Columns, Format, Output
from novacron.client import Client

app = typer.Typer(no_args_is_help=True, help="Look at sites, and empty them.")

Site = Annotated[str, typer.Argument(help="name of the site", show_default=False)]

COLUMNS: Columns = {
    "SITE": lambda s: s["name"],
    "NODES": lambda s: s["nodes"],
    "READY": lambda s: s["ready"],
    "CORDONED": lambda s: s["cordoned"],
}


@app.command("list")
def list_(output_: Output = Format.TABLE) -> None:
    """List sites, and their nodes."""
    with output.errors():
        output.rows(Client().list("sites"), COLUMNS, output_)


@app.command()
def drain(
    site: Site,
    policy: Policy = DrainPolicy.THROTTLE,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="wait until it is empty")] = True,
    timeout: Annotated[float, typer.Option(min=1, help="longest wait, in seconds")] = 3600,
) -> None:
    """Move every VM of a site to other sites, and place nothing new there."""
    with output.errors():
        client = Client()
        names = [node["name"] for node in client.act("sites", site, "drain", {"policy": policy.value})["items"]]
        if wait:
            follow(client, names, timeout)
        print(f"{site}: {'empty and cordoned' if wait else 'draining'}")


@app.command()
def uncordon(
    site: Site,
    bring_back: BringBack = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="wait until they are back")] = True,
    timeout: Annotated[float, typer.Option(min=1, help="longest wait, in seconds")] = 3600,
) -> None:
    """Place VMs on all nodes of a site again."""
    with output.errors():
        client = Client()
        names = [node["name"] for node in client.act("sites", site, "uncordon", {"bring_back": bring_back})["items"]]
        if bring_back and wait:
            follow_back(client, names, timeout)
        print(f"{site}: ready")
