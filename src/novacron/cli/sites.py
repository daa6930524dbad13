"""``novacron site``: sites, and how to drain one."""

from __future__ import annotations

from typing import Annotated

import typer

from novacron.cli import options, output
from novacron.cli.lists import Listing
from novacron.cli.names import names_of
from novacron.cli.nodes import BringBack, DrainPolicyOption, DrainTimeout, TimeLimit, drain_order, follow, follow_back
from novacron.cli.output import Columns
from novacron.client import Client
from novacron.client.choices import DrainPolicy
from novacron.terminal import say

app = typer.Typer(no_args_is_help=True, help="Show sites, and drain them.")

SiteName = Annotated[str, typer.Argument(help="name of the site", autocompletion=names_of("sites"), show_default=False)]

COLUMNS: Columns = {
    "SITE": lambda s: s["name"],
    "NODES": lambda s: s["nodes"],
    "READY": lambda s: s["ready"],
    "CORDONED": lambda s: s["cordoned"],
    "FORWARDED PORTS": lambda s: s["forward_ports"],
}


@app.command("list")
@options.expand
def list_(listing: Listing = Listing()) -> None:
    """List sites with the number of nodes in each."""
    listing.show("sites", COLUMNS)


@app.command("set")
def set_(
    site: SiteName,
    forward_ports: Annotated[
        str, typer.Option(help="ports of the site's gateways that projects may forward", show_default=False)
    ],
) -> None:
    """Set which ports of a site's gateways may be forwarded to VMs, such as 30000-32767."""
    with output.errors():
        done = Client().configure_site(site, forward_ports=forward_ports)
        say(f"{site}: ports {done['forward_ports']} may be forwarded")


@app.command()
def drain(
    site: SiteName,
    policy: DrainPolicyOption = DrainPolicy.THROTTLE,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="wait until it is empty")] = True,
    timeout: DrainTimeout = None,
    time_limit: TimeLimit = None,
) -> None:
    """Drain a site: move its VMs to other sites and place no new ones on it."""
    with output.errors():
        client = Client()
        order = drain_order(policy, time_limit)
        names = [node["name"] for node in client.act("sites", site, "drain", order)["items"]]
        if wait:
            follow(client, names, timeout)
        say(f"{site}: {'empty and cordoned' if wait else 'draining'}")


@app.command()
def uncordon(
    site: SiteName,
    bring_back: BringBack = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="wait until they are back")] = True,
    timeout: Annotated[float, typer.Option(min=1, help="longest wait, in seconds")] = 3600,
) -> None:
    """Uncordon a site: place VMs on all its nodes again."""
    with output.errors():
        client = Client()
        names = [node["name"] for node in client.act("sites", site, "uncordon", {"bring_back": bring_back})["items"]]
        if bring_back and wait:
            follow_back(client, names, timeout)
        say(f"{site}: ready")
