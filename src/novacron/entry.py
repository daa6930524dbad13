"""The program ``novacron``. It loads only the command that was typed: all of them take three times as long."""

from __future__ import annotations

import copy
import importlib
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer

GROUPS = {
    "audit": ("audit", "app"),
    "backup": ("backups", "app"),
    "second-factor": ("second_factors", "app"),
    "context": ("contexts", "app"),
    "drill": ("drills", "app"),
    "flavor": ("vm_templates", "flavors"),
    "floating-address": ("networks", "floating"),
    "forecast": ("forecasts", "app"),
    "forward": ("networks", "forwards"),
    "grant": ("access", "grants"),
    "image": ("images", "app"),
    "invitation": ("invitations", "app"),
    "key": ("keys", "app"),
    "link": ("links", "app"),
    "migration": ("migrations", "app"),
    "network": ("networks", "app"),
    "node": ("nodes", "app"),
    "pool": ("volumes", "pools"),
    "plan": ("plans", "app"),
    "platform-key": ("access", "platform_keys"),
    "project": ("access", "projects"),
    "rebalance": ("rebalance", "app"),
    "replica": ("replicas", "app"),
    "rollout": ("rollouts", "app"),
    "runbook": ("runbooks", "app"),
    "security-group": ("networks", "groups"),
    "site": ("sites", "app"),
    "snapshot": ("snapshots", "app"),
    "template": ("vm_templates", "templates"),
    "token": ("tokens", "app"),
    "user": ("access", "users"),
    "vm": ("vms", "app"),
    "volume": ("volumes", "app"),
}
"""Groups of commands: in which module of ``novacron.cli``, and under which name there."""
SINGLE = {
    "apply": ("apply", "apply"),
    "capacity": ("forecasts", "capacity"),
    "edit": ("objects", "edit"),
    "events": ("events", "events"),
    "explain": ("objects", "explain"),
    "get": ("objects", "get"),
    "login": ("login", "login"),
    "logout": ("login", "logout"),
    "whoami": ("access", "whoami"),
}
"""Commands of no group, likewise."""
LOOKS_AT_ALL = {("drill", "run")}
"""Commands that need all others to be loaded: runbooks are compared with them."""
WITH_VALUE = ("--project", "--context", "--time-zone")
COMPLETES = "_TYPER_COMPLETE_ARGS"
"""The variable that holds the command line while a shell asks how a word goes on."""


def typed() -> list[str]:
    """Return the words after the program's name, with those that a shell wants completed."""
    return os.environ[COMPLETES].split()[1:] if COMPLETES in os.environ else sys.argv[1:]


def names_in(words: list[str]) -> list[str]:
    """Return a command line without the options of all commands before it."""
    rest = iter(words)
    for word in rest:
        if word in WITH_VALUE:
            next(rest, None)
        elif not word.startswith(WITH_VALUE):
            return [word, *rest]
    return []


def command_in(words: list[str]) -> tuple[str, str] | None:
    """Return the group and the command that a command line names; None: no group with a command."""
    names = names_in(words)
    return (names[0], names[1]) if len(names) > 1 else None


def narrowed(words: list[str]) -> typer.Typer | None:
    """Return the program with only the command that is typed; None: it takes all of them."""
    first = next(iter(names_in(words)), "")
    if first in SINGLE:
        return _single(first)
    named = command_in(words)
    if named is None or named[0] not in GROUPS or named in LOOKS_AT_ALL:
        return None
    group, name = named
    module, attribute = GROUPS[group]
    whole: typer.Typer = getattr(importlib.import_module(f"novacron.cli.{module}"), attribute)
    from novacron.cli import root

    named_so = {info.name or _name(info.callback): info for info in whole.registered_commands}
    command = named_so.get(name) or named_so.get(root.HABITS.get(name, ""))
    if command is None:
        return None
    alone = copy.copy(whole)
    alone.registered_commands, alone.registered_groups = [command], []
    app = root.tree()
    app.add_typer(alone, name=group, cls=root.Group)
    return app


def _single(name: str) -> typer.Typer:
    module, attribute = SINGLE[name]
    command = getattr(importlib.import_module(f"novacron.cli.{module}"), attribute)
    from novacron.cli import root

    app = root.tree()
    app.callback()(root.root)  # with one command alone, Typer would take its name for an argument
    app.command(name)(command)
    return app


def _name(callback: object) -> str:
    return getattr(callback, "__name__", "").replace("_", "-")


def main() -> None:
    app = narrowed(typed())
    if app is None:
        from novacron.__main__ import app as whole

        app = whole
    app()
