"""``novacron token``: API tokens."""

from __future__ import annotations

from typing import Annotated

import typer

from novacron.cli import options, output
from novacron.cli.lists import Listing
from novacron.cli.output import Columns
from novacron.client import Client
from novacron.terminal import say

app = typer.Typer(no_args_is_help=True, help="Manage API tokens.")

COLUMNS: Columns = {
    "ID": lambda t: t["id"],
    "NAME": lambda t: t["name"],
    "USER": lambda t: t["user_name"],
    "KIND": lambda t: t["kind"],
    "SCOPES": lambda t: "all" if t["scopes"] is None else t["scopes"],
    "PROJECT": lambda t: t["project"] or "all",
    "EXPIRES": lambda t: output.when(t["expires_at"]) or "never",
    "USED": lambda t: t["used_at"] and f"{output.age(t['used_at'])} ago from {t['used_from']}",
    "REVOKED": lambda t: t["revoked"],
    "AGE": lambda t: output.age(t["created_at"]),
}


@app.command("list")
@options.expand
def list_(listing: Listing = Listing()) -> None:
    """List API tokens, without their secrets."""
    listing.show("tokens", COLUMNS)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="name of the token", show_default=False)],
    user: Annotated[str | None, typer.Option(help="user of the token; default: yourself")] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(help="limit it to read, write, operate, manage, console, metrics, join; can be repeated"),
    ] = None,
    only_in: Annotated[str | None, typer.Option(help="limit it to this project")] = None,
    days: Annotated[float | None, typer.Option(help="days until it expires; default: never")] = None,
) -> None:
    """Create an API token and print its secret, which is not shown again."""
    with output.errors():
        token = Client().create_token(
            name, user=user, scopes=scope or None, project=only_in,
            expires_in_s=None if days is None else int(days * 86400),
        )  # fmt: skip
        say(token["secret"])


@app.command()
def revoke(id: Annotated[str, typer.Argument(help="id of the token", show_default=False)]) -> None:
    """Revoke an API token immediately."""
    with output.errors():
        Client().delete("tokens", id)
        say(f"{id}: revoked")
