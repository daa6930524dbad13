"""``novacron second-factor``: authenticator apps, security keys and recovery codes, which go with passwords."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from novacron.cli import output
from novacron.cli.output import Columns, Output, OutputFormat
from novacron.client import Client
from novacron.terminal import say

app = typer.Typer(no_args_is_help=True, help="Manage second factors of logins: apps, security keys, recovery codes.")

FACTORS: Columns = {
    "NAME": lambda f: f["name"],
    "KIND": lambda f: f["kind"],
    "AGE": lambda f: output.age(f["created_at"]),
    "LAST USED": lambda f: output.age(f["used_at"]) + " ago" if f["used_at"] else "never",
}
FactorRef = Annotated[str, typer.Argument(help="name or id of the second factor", show_default=False)]


def _asked(what: str) -> str:
    """Return what a person types, unseen, or a line of standard input."""
    return getpass.getpass(f"{what}: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")


def _show_codes(codes: Sequence[str]) -> None:
    say("Recovery codes: each replaces the second factor for one login. Store them safely; they are shown only once.",
        err=True)  # fmt: skip
    for code in codes:
        say(code)


@app.command("list")
def list_factors(
    user: Annotated[str | None, typer.Option(help="list another user's second factors (administrators only)")] = None,
    output_: Output = OutputFormat.TABLE,
) -> None:
    """List second factors, and how many recovery codes are left."""
    with output.errors():
        has = Client().second_factors(user)
        if not output_.for_people:
            output.show(has, output_)
            return
        output.table(has["items"], FACTORS)
        say(f"recovery codes: {has['recovery_codes']}; required: {output.text(has['required'])}"
            + ("; codes of apps are refused, because too many were wrong" if has["locked"] else ""))  # fmt: skip


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="name of the app, such as phone", show_default=False)],
) -> None:
    """Add an authenticator app. Asks for your password, shows the secret, and asks for the app's code.

    Use a browser to add security keys: see the API.
    """
    with output.errors():
        client = Client()
        begun = client.begin_second_factor("totp", name, _asked("password"))
        say(f"Enter this secret into the app, or make a QR code of the address:\n{begun['secret']}\n{begun['uri']}")
        done = client.confirm_second_factor(begun["id"], code=_asked("code"))
        say(f"{name}: added", err=True)
        if done["recovery_codes"]:
            _show_codes(done["recovery_codes"])


@app.command("remove")
def remove(factor: FactorRef) -> None:
    """Remove one of your second factors. Asks for your password."""
    with output.errors():
        Client().remove_second_factor(factor, _asked("password"))
        say(f"{factor}: removed")


@app.command("recovery-codes")
def recovery_codes() -> None:
    """Create new recovery codes. Asks for your password. Earlier codes become invalid."""
    with output.errors():
        _show_codes(Client().renew_recovery_codes(_asked("password"))["recovery_codes"])


@app.command("reset")
def reset(
    user: Annotated[str, typer.Argument(help="name or id of the user", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Remove all second factors and recovery codes of a user who has lost them. Their sessions end."""
    if not yes:
        typer.confirm(f"Remove all second factors of {user}?", abort=True, err=True)
    with output.errors():
        Client().reset_second_factors(user)
        say(f"{user}: the next login needs only the password, and must add a new second factor if one is required")
