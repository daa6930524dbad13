"""All commands that talk to the API."""

from __future__ import annotations

import typer

from novacron.cli import events, images, migrations, nodes, tokens, vms

app = typer.Typer(
    name="novacron",
    no_args_is_help=True,
    help="Run virtual machines on many hosts, and move them live between sites.",
    pretty_exceptions_enable=False,
)
app.add_typer(vms.app, name="vm")
app.add_typer(nodes.app, name="node")
app.add_typer(migrations.app, name="migration")
app.add_typer(images.app, name="image")
app.add_typer(tokens.app, name="token")
app.command("events")(events.events)
