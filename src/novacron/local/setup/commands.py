"""``novacron setup``: makes this host a server or a node. Asks nothing, and can be run again at any time."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from novacron.cli.options import expand
from novacron.extras import Extra, require
from novacron.service_options import AgentOptions, ServerOptions
from novacron.terminal import say

if TYPE_CHECKING:
    from novacron.local.setup.flow import OptionsT, ServiceSetup, SettingsT

app = typer.Typer(
    no_args_is_help=True,
    help="Make this host, with NovaCron's Debian packages, a server or a node. Asks nothing; run again, it goes on"
    " where it was interrupted, or changes nothing.",
)

Replace = Annotated[
    bool, typer.Option("--replace", help="change settings that the file has otherwise; without it, that is refused")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print what would be done, and change nothing")]


@app.command("server")
@expand
def setup_server(
    context: typer.Context, options: ServerOptions, replace: Replace = False, dry_run: DryRun = False
) -> None:
    """Make this host a server: check it, write its settings, start the unit, wait until it answers."""
    require(Extra.SERVER)
    from novacron.local.setup.server import ServerSetup

    _set_up(ServerSetup(), context, options, replace=replace, dry_run=dry_run)


@app.command("agent")
@expand
def setup_agent(
    context: typer.Context, options: AgentOptions, replace: Replace = False, dry_run: DryRun = False
) -> None:
    """Make this host a node: check it, write its settings, and let it join with a token."""
    require(Extra.AGENT)
    from novacron.local.setup.agent import AgentSetup

    _set_up(AgentSetup(options.join), context, options, replace=replace, dry_run=dry_run)


def _set_up(
    kind: ServiceSetup[OptionsT, SettingsT], context: typer.Context, options: object, *, replace: bool, dry_run: bool
) -> None:
    from novacron.local.setup import flow
    from novacron.local.setup.host import LocalHost, SetupFailed
    from novacron.local.setup.plan import SetupRefused

    host = LocalHost()
    try:
        if dry_run:
            prepared = flow.prepare(kind, host, context, options, replace=replace)
            _warn(prepared.warnings)
            for step in prepared.steps:
                _say_lines(f"would do: {step}")
            say("nothing was changed" if prepared.steps else f"{kind.service.name} is set up: nothing would be changed")
            return
        lock = flow.alone()
        try:
            prepared = flow.prepare(kind, host, context, options, replace=replace)
            _warn(prepared.warnings)
            made, ended = flow.perform(kind, host, prepared, _say_lines)
        finally:
            lock.release()
    except SetupRefused as refused:
        for problem in refused.problems:
            say(f"error: {problem}", err=True)
        say("nothing was changed", err=True)
        sys.exit(1)
    except SetupFailed as failed:
        _say_lines(f"error: {failed}", err=True)
        say("what was done stays; mend this, and run the same command again: it goes on from here", err=True)
        sys.exit(1)
    for change in ended.changes:
        say(change)
    if not made and not ended.changes:
        say(f"{kind.service.name} is set up: nothing was changed")
    say(ended.following)


def _say_lines(text: str, *, err: bool = False) -> None:
    for line in text.splitlines():
        say(line, err=err, flush=True)  # also where nobody sees it line by line: what is done takes a while


def _warn(warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        say(f"warning: {warning}", err=True)
