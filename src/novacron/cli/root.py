"""What every command line of ``novacron`` begins with: options for all commands."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from novacron import __version__
from novacron.cli import output, quick_values
from novacron.terminal import say

HELP = "Run virtual machines on many hosts, and move them live between sites."


def _show_version(show: bool) -> None:
    if show:
        say(f"novacron {__version__}")
        raise typer.Exit


def root(
    project: Annotated[
        str | None,
        typer.Option(
            envvar="NOVACRON_PROJECT",
            help="project to work in; default: your own for new objects, and all that you can see for lists",
        ),
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(envvar="NOVACRON_CONTEXT", help="context to use: see novacron context list"),
    ] = None,
    time_zone: Annotated[
        str | None,
        typer.Option(
            envvar="NOVACRON_TIME_ZONE",
            show_default=False,
            help="time zone of the times in tables, such as Europe/Berlin or UTC; by default this machine's",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="show the version")
    ] = False,
) -> None:
    """Run virtual machines on many hosts, and move them live between sites."""
    if project:
        os.environ["NOVACRON_PROJECT"] = project
    if time_zone is not None:
        os.environ["NOVACRON_TIME_ZONE"] = time_zone
        output.time_zone.cache_clear()
        output.time_zone()
    if context:
        os.environ["NOVACRON_CONTEXT"] = context


HABITS = {"ls": "list", "rm": "delete", "remove": "delete", "info": "show", "get": "show", "restart": "reboot"}
"""What users of other programs type, and what it is called here."""


class Group(TyperGroup):
    """Commands that can be called by their names in other programs, too."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401 - private classes of Typer's
        return super().get_command(ctx, cmd_name) or super().get_command(ctx, HABITS.get(cmd_name, cmd_name))


def tree() -> typer.Typer:
    """Return the command without any below it."""
    quick_values.use()
    app = typer.Typer(
        name="novacron", no_args_is_help=True, help=HELP, pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )  # fmt: skip
    app.callback()(root)
    return app
