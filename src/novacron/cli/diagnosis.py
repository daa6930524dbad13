"""Commands that help to find the cause of a problem."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from novacron.cli import output
from novacron.client.api import Client
from novacron.terminal import say


class LogLevelName(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def log_level(
    level: Annotated[LogLevelName | None, typer.Argument(help="lowest level to log", show_default=False)] = None,
    node: Annotated[str | None, typer.Option(help="change the agent on this node instead of the server")] = None,
) -> None:
    """Show or change the log level of the server or of a node's agent, until it restarts."""
    with output.errors():
        if level is None:
            say(Client().log_level())
            return
        Client().set_log_level(level.value, node)
        say(f"{node or 'the server'} logs {level.value} and above, until it restarts")
