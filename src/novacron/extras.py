"""Which parts of NovaCron are installed: the CLI and the SDK always, server and agent as extras of the package."""

from __future__ import annotations

import importlib.util
import sys
from enum import StrEnum

from novacron.terminal import say


class Extra(StrEnum):
    """An extra in ``pyproject.toml``."""

    AGENT = "agent"
    SERVER = "server"
    CLUSTER = "cluster"


NEEDED_PACKAGE = {Extra.AGENT: "pyroute2", Extra.SERVER: "litestar", Extra.CLUSTER: "patroni"}
"""A package that only this extra brings."""


def installed(extra: Extra) -> bool:
    return importlib.util.find_spec(NEEDED_PACKAGE[extra]) is not None


def require(*extras: Extra) -> None:
    """End the command with an explanation if one of its extras is not installed."""
    missing = [extra.value for extra in extras if not installed(extra)]
    if missing:
        names = " and ".join(missing)
        say(
            f"error: this command needs the {names} part of NovaCron, and only the client is installed here:"
            f" install novacron[{','.join(missing)}]",
            err=True,
        )
        sys.exit(1)
