"""``novacron key``: the platform's own keys, and their rotation."""

from __future__ import annotations

from typing import Annotated

import typer

from novacron.cli import options, output
from novacron.cli.lists import Listing
from novacron.cli.output import Columns
from novacron.client import Client
from novacron.client.choices import KeyName
from novacron.terminal import say

app = typer.Typer(no_args_is_help=True, help="Show and rotate the platform's own keys.")


KeyArgument = Annotated[
    KeyName, typer.Argument(metavar="KEY", help="ca, page, seal, idempotency or factor", show_default=False)
]

COLUMNS: Columns = {
    "KEY": lambda k: k["name"],
    "GENERATION": lambda k: k["generation"],
    "CREATED": lambda k: k["created_at"],
    "PHASE": lambda k: k["phase"],
    "ACCEPTED": lambda k: k["generations"],
    "WAITS FOR": lambda k: "; ".join(k["waits_for"]),
}


@app.command("list")
@options.expand
def list_(listing: Listing = Listing()) -> None:
    """List the keys, and the progress of their rotations."""
    listing.show("keys", COLUMNS)


@app.command()
def rotate(key: KeyArgument) -> None:
    """Start to rotate a key. The previous generation is accepted until you finish the rotation."""
    with output.errors():
        Client().rotate_key(key.value)
        say(f"{key.value}: a new generation is being taken over by servers; see: novacron key list")
        say(f"once nothing is waiting: novacron key finish {key.value}")


@app.command()
def finish(
    key: KeyArgument,
    force: Annotated[
        bool, typer.Option("--force", help="finish even if something still needs the previous generation")
    ] = False,
) -> None:
    """Finish the rotation of a key: its previous generation is no longer accepted."""
    with output.errors():
        done = Client().finish_key(key.value, force=force)
        retiring = done["phase"] == "retiring"
        say(f"{key.value}: {'the previous generation is being retired' if retiring else 'rotated'}")
