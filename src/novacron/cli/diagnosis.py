"""Commands for who looks for a cause."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from novacron.cli import output
from novacron.client.api import Client


class Level(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def log_level(
    level: Annotated[Level | None, typer.Argument(help="what to log, and what is worse", show_default=False)] = None,
    node: Annotated[str | None, typer.Option(help="of this node's agent, not of the server")] = None,
) -> None:
    """Show what the server logs, or let it, or a node's agent, log more or less until it ends."""
    with output.errors():
        if level is None:
            print(Client().log_level())
            return
        Client().set_log_level(level.value, node)
        print(f"{node or 'the server'} logs {level.value} and worse, until it ends")
