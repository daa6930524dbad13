"""``novacron setup``: makes this host a server, a node or a place of the database. Asks nothing; can be run again."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from novacron.cli.options import expand
from novacron.extras import Extra, require
from novacron.local.database_cluster_commands import ClusterOptions, PrivateNetwork, SetAside
from novacron.service_options import AgentOptions, ServerOptions
from novacron.terminal import say

if TYPE_CHECKING:
    from novacron.local.setup.database import PreparedMember, WantedMember
    from novacron.local.setup.flow import Ended, OptionsT, ServiceSetup, SettingsT

app = typer.Typer(
    no_args_is_help=True,
    help="Set up this host, with NovaCron's Debian packages, as a server, a node or a database member. Asks nothing;"
    " a second run resumes an interrupted setup, or changes nothing.",
)

Replace = Annotated[
    bool, typer.Option("--replace", help="overwrite settings that differ in the file; without it, they are refused")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print what would be done, and change nothing")]


DATABASE = "novacron-database"


@dataclasses.dataclass(frozen=True)
class DatabaseOptions:
    """What the member of this host is; all of it is known once it has been set up."""

    host: Annotated[str | None, typer.Option(help="address of this host, for the other members and the servers")] = None
    member: Annotated[str | None, typer.Option(help="name of this member, such as database-1")] = None
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="port of PostgreSQL; default: 5432", show_default=False)
    ] = None
    api_port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="port of Patroni's API, for the other members; default: 8008", show_default=False
        ),
    ] = None
    private_network: PrivateNetwork = False

    def wanted_member(self, cluster: ClusterOptions, join: str | None, set_aside: bool) -> WantedMember:
        """Return what is wanted. Raises SetupRefused."""
        from novacron.local.setup.database import WantedMember

        content = None if join is None else _join_file(join)
        return WantedMember(
            self.member, self.host, self.port, self.api_port, self.private_network, cluster.words(), content, set_aside
        )


@app.command("server")
@expand
def setup_server(
    context: typer.Context, options: ServerOptions, replace: Replace = False, dry_run: DryRun = False
) -> None:
    """Make this host a server: check it, write its settings, start the unit, and wait until it answers."""
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


@app.command("database")
@expand
def setup_database(
    options: DatabaseOptions,
    cluster: ClusterOptions,
    join: Annotated[
        str | None,
        typer.Option(metavar="@FILE|-", help="cluster.join of another member, whose data is copied; - for stdin"),
    ] = None,
    set_aside: SetAside = False,
    dry_run: DryRun = False,
) -> None:
    """Make this host a member of the database cluster: the first, with this host's embedded database, or with
    --join a further one. Run it again on the first when all have joined: its server then knows all of them."""
    require(Extra.SERVER, Extra.CLUSTER)
    from novacron.local.setup.database import DatabaseSetup
    from novacron.local.setup.host import LocalHost

    kind = DatabaseSetup(LocalHost())

    def prepare() -> PreparedMember:
        return kind.prepare(options.wanted_member(cluster, join, set_aside))

    with _explained():
        if dry_run:
            planned = prepare()
            _warn(planned.warnings)
            _would_do(DATABASE, [*planned.steps, *(f"then {words}" for words in planned.later)])
            return
        with _alone():
            prepared = prepare()
            _warn(prepared.warnings)
            made, ended = kind.perform(prepared, _say_lines)
        _end(DATABASE, made, ended)


def _set_up(
    kind: ServiceSetup[OptionsT, SettingsT], context: typer.Context, options: object, *, replace: bool, dry_run: bool
) -> None:
    from novacron.local.setup import flow
    from novacron.local.setup.host import LocalHost

    host = LocalHost()
    with _explained():
        if dry_run:
            planned = flow.prepare(kind, host, context, options, replace=replace)
            _warn(planned.warnings)
            _would_do(kind.service.name, planned.steps)
            return
        with _alone():
            prepared = flow.prepare(kind, host, context, options, replace=replace)
            _warn(prepared.warnings)
            made, ended = flow.perform(kind, host, prepared, _say_lines)
        _end(kind.service.name, made, ended)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keep others from setting this host up meanwhile. Raises SetupRefused."""
    from novacron.local.setup import flow

    lock = flow.alone()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Say in words what is in the way or failed, and end."""
    from novacron.local.setup.host import SetupFailed
    from novacron.local.setup.plan import SetupRefused

    try:
        yield
    except SetupRefused as refused:
        for problem in refused.problems:
            say(f"error: {problem}", err=True)
        say("nothing was changed", err=True)
        sys.exit(1)
    except SetupFailed as failed:
        _say_lines(f"error: {failed}", err=True)
        say("completed steps are kept; fix this, and run the same command again: it continues from here", err=True)
        sys.exit(1)


def _join_file(source: str) -> bytes:
    """Return the content of ``@FILE``, or of standard input for ``-``. Raises SetupRefused."""
    from novacron import private_file
    from novacron.local.database_cluster.files import JOIN_BYTES_MAX
    from novacron.local.setup.plan import SetupRefused

    if source == "-":
        return sys.stdin.buffer.read(JOIN_BYTES_MAX)
    path = Path(source.removeprefix("@"))
    try:
        if private_file.readable_by_others(path):
            raise SetupRefused(f"--join: {path} holds passwords, and others can read it: chmod 600 {path}")
        with path.open("rb") as file:
            return file.read(JOIN_BYTES_MAX)
    except OSError as error:
        raise SetupRefused(f"--join: can't read {path}: {error.strerror}") from None


def _would_do(name: str, steps: Sequence[object]) -> None:
    for step in steps:
        _say_lines(f"would do: {step}")
    say("nothing was changed" if steps else f"{name} is set up: nothing would be changed")


def _end(name: str, made: int, ended: Ended) -> None:
    for change in ended.changes:
        say(change)
    if not made and not ended.changes:
        say(f"{name} is set up: nothing was changed")
    say(ended.following)


def _say_lines(text: str, *, err: bool = False) -> None:
    for line in text.splitlines():
        say(line, err=err, flush=True)  # also where nobody sees it line by line: what is done takes a while


def _warn(warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        say(f"warning: {warning}", err=True)
