"""``novacron token``: who may call the API."""

from __future__ import annotations

from typing import Annotated

import typer

from novacron.cli import output
from novacron.cli.output import Columns, Format, Output
from novacron.client import Client

app = typer.Typer(no_args_is_help=True, help="Say who may call the API.")

COLUMNS: Columns = {
    "ID": lambda t: t["id"],
    "NAME": lambda t: t["name"],
    "REVOKED": lambda t: t["revoked"],
    "AGE": lambda t: output.age(t["created_at"]),
}


@app.command("list")
def list_(
    output_: Output = Format.TABLE,
) -> None:
    """List API tokens, never their secrets."""
    with output.errors():
        output.rows(Client().list("tokens"), COLUMNS, output_)


@app.command()
def create(name: Annotated[str, typer.Argument(help="what it is for", show_default=False)]) -> None:
    """Create an API token and print its secret, this once."""
    with output.errors():
        print(Client().request("POST", "/api/v1/tokens", {"name": name})["secret"])


@app.command()
def revoke(id: Annotated[str, typer.Argument(help="id of the token", show_default=False)]) -> None:
    """Revoke an API token, at once and for good."""
    with output.errors():
        Client().delete("tokens", id)
        print(f"{id}: revoked")
