"""``novacron invitation``: roles that users are offered."""

from __future__ import annotations

from typing import Annotated

import typer

from novacron.cli import options, output
from novacron.cli.access import GRANTS
from novacron.cli.lists import Listing
from novacron.cli.output import Columns, Output, OutputFormat
from novacron.client import Client
from novacron.terminal import say

app = typer.Typer(no_args_is_help=True, help="Accept or decline invitations to projects.")

INVITATIONS: Columns = {
    "ID": lambda i: i["id"],
    "USER": lambda i: i["user_name"],
    "ROLE": lambda i: i["role"],
    "PROJECT": lambda i: i["project"],
    "BY": lambda i: i["actor"],
    "AGE": lambda i: output.age(i["created_at"]),
}
Id = Annotated[str, typer.Argument(help="id of the invitation", show_default=False)]


@app.command("list")
@options.expand
def list_invitations(listing: Listing = Listing()) -> None:
    """List your open invitations, and those to projects that you manage."""
    listing.show("invitations", INVITATIONS)


@app.command("accept")
def accept(id: Id, output_: Output = OutputFormat.TABLE) -> None:
    """Accept an invitation. You get the role immediately."""
    with output.errors():
        output.fields(Client().act("invitations", id, "accept"), GRANTS, output_)


@app.command("delete")
def delete(id: Id) -> None:
    """Decline an invitation, or withdraw one to a project that you manage."""
    with output.errors():
        Client().delete("invitations", id)
        say(f"{id}: deleted")
