"""The ``novacron`` command: the CLI, and the services that a host runs."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from novacron import settings_file
from novacron.cli import images, output
from novacron.cli.app import app
from novacron.cli.options import expand
from novacron.client.api import config_path
from novacron.extras import Extra, installed, require
from novacron.local import database_commands
from novacron.local.setup import commands as setup_commands
from novacron.service_options import AgentOptions, ServerOptions, StateDir, default_state_dir
from novacron.terminal import say

__all__ = ["app", "main"]


class Recipe(StrEnum):
    """A guest that is built from this host's own packages."""

    TINY = "tiny"
    DEBIAN = "debian"


@images.app.command()
def build(
    recipe: Annotated[Recipe, typer.Argument(help="tiny boots in two seconds; debian is a complete system")],
    name: Annotated[str | None, typer.Option(help="name of the image; default: the recipe's")] = None,
    images_dir: Annotated[Path | None, typer.Option(help="images; default: images/ in the state directory")] = None,
) -> None:
    """Build an image on this node from Debian's packages; its agent finds it within seconds."""
    require(Extra.AGENT)
    from novacron.disk import debian, tiny
    from novacron.model.errors import NovaError
    from novacron.model.vm import check_name

    try:
        target = (images_dir or default_state_dir() / "images") / check_name(name or recipe.value)
        (tiny.build if recipe is Recipe.TINY else debian.build)(target)
    except (NovaError, debian.BuildFailed, OSError) as error:
        say(f"error: {error}", err=True)
        sys.exit(1)
    say(f"image {target.name} is in {target.parent}")


@app.command()
def up(
    state_dir: StateDir = None,
    images_dir: Annotated[Path | None, typer.Option(help="images; default: images/ in the state directory")] = None,
    bridge: Annotated[str | None, typer.Option(help="host bridge for the VMs' network interfaces")] = None,
    port: Annotated[int, typer.Option(help="port of the API; the agents' link and DWCP use the next two")] = 7443,
    dwcp_host: Annotated[str, typer.Option(help="address to listen on for other nodes' migrations")] = "127.0.0.1",
    network: Annotated[
        bool,
        typer.Option("--network/--no-network", help="create a default network for VMs that name none"),
    ] = True,
) -> None:
    """Run everything on this machine: embedded PostgreSQL, the server, and one agent."""
    require(Extra.SERVER, Extra.AGENT)
    from novacron.local import up as local

    state = state_dir or default_state_dir()
    how = local.How(bridge, port, dwcp_host, network)
    sys.exit(local.run(state, images_dir or state / "images", config_path(), how))


@app.command()
def doctor(
    state_dir: StateDir = None,
    database: Annotated[
        str | None, typer.Option(envvar="NOVACRON_DATABASE_URL", help="URL of a database to check too")
    ] = None,
    output_: output.Output = output.OutputFormat.TABLE,
) -> None:
    """Check this machine and the platform that it can reach, and say what to do. Changes nothing."""
    import asyncio

    import msgspec

    from novacron.local import doctor as doctors

    findings = asyncio.run(doctors.examine(doctors.Subject(state_dir or default_state_dir(), database)))
    columns: output.Columns = {
        "": lambda row: {"ok": "ok", "warning": "!", "bad": "BAD"}[row["grade"]],
        "ABOUT": lambda row: row["about"],
        "FOUND": lambda row: row["found"],
    }
    rows = [msgspec.to_builtins(finding) for finding in findings]
    output.rows(rows, columns, output_)
    advised = [row for row in rows if row["advice"]]
    if output_.for_people and advised:
        say()
        say("What to do:")
        for row in advised:
            say(f"  {row['about']}: {row['advice']}")
    sys.exit(1 if any(finding.grade is doctors.Grade.BAD for finding in findings) else 0)


@app.command("support-bundle")
def support_bundle(
    file: Annotated[Path | None, typer.Argument(help="file to write; default: novacron-support-TIME.tar.gz")] = None,
    state_dir: StateDir = None,
    log: Annotated[list[Path] | None, typer.Option(help="log file whose end to include; can be repeated")] = None,
) -> None:
    """Collect diagnostic data for support: metrics, states, events and the ends of logs, without secrets."""
    if not installed(Extra.SERVER):
        require(Extra.AGENT)
    from novacron.local import bundle

    try:
        path, kept = bundle.write(file, state_dir or default_state_dir(), log or [])
    except OSError as error:
        say(f"error: {error}", err=True)
        sys.exit(1)
    for name, size in kept:
        say(f"{size:>10}  {name}")
    say(f"{path}: review it before you share it: it has names of VMs, nodes and users")


servers = typer.Typer(invoke_without_command=True)
app.add_typer(servers, name="server")


@servers.callback()
@expand
def server(context: typer.Context, options: ServerOptions) -> None:
    """Run the control plane: API, controllers, and the agent link."""
    if context.invoked_subcommand is not None:
        return
    require(Extra.SERVER)
    from novacron.local.archiver_process import archiving
    from novacron.local.postgres import Postgres, PostgresFailed
    from novacron.model.errors import NovaError
    from novacron.server.main import run

    state_dir = options.state_dir or default_state_dir()
    try:
        settings = options.settings(options.database or "", state_dir / "server", config_path())
        archiver = options.archiver_settings(options.database or "", state_dir)
        if options.check_settings:
            _show_settings(context, options)
        elif options.database is not None:
            with archiving(archiver):
                run(settings)
        else:
            postgres = Postgres(state_dir / "postgres")
            url = postgres.start()
            with postgres.kept_running(), archiving(options.archiver_settings(url, state_dir)):
                run(options.settings(url, state_dir / "server", config_path()))
    except typer.BadParameter as error:
        settings_file.fail(settings_file.blamed(context, error))
    except (NovaError, PostgresFailed) as error:
        say(f"error: {error}", err=True)
        sys.exit(1)


@servers.command("recover-admin")
def recover_admin(
    state_dir: StateDir = None,
    database: Annotated[
        str | None, typer.Option(envvar="NOVACRON_DATABASE_URL", help="URL of PostgreSQL; default: the embedded one")
    ] = None,
    user: Annotated[str, typer.Option(help="user who is to be an administrator; made if there is none")] = (
        "administrator"
    ),
    revoke_others: Annotated[
        bool, typer.Option("--revoke-others", help="revoke the user's other tokens, and end the user's sessions")
    ] = False,
    url: Annotated[str, typer.Option(help="URL of the API, for the CLI's new context")] = "https://127.0.0.1:7443",
) -> None:
    """Create a new administrator token on the server's machine, if the only one is lost."""
    require(Extra.SERVER)
    import asyncio

    from novacron.local import recovery
    from novacron.model.errors import NovaError

    try:
        recovered = asyncio.run(recovery.recover(state_dir or default_state_dir(), database, user, revoke_others))
        context = recovery.keep(config_path(), url, recovered.secret, state_dir or default_state_dir())
    except (NovaError, recovery.RecoveryFailed) as error:
        say(f"error: {error}", err=True)
        sys.exit(1)
    say(recovered.secret)
    say(f"token of administrator {recovered.user}, shown once; {recovered.revoked} others revoked", err=True)
    say(context, err=True)


@servers.command("seal-platform-key")
def seal_platform_key(
    key: Annotated[Path, typer.Argument(metavar="FILE", help="file with the platform key, in base64")],
    into: Annotated[Path, typer.Argument(metavar="INTO", help="new file, which only this host's TPM can open")],
) -> None:
    """Seal the platform key with this host's TPM, for --platform-key tpm:INTO."""
    require(Extra.SERVER)
    from novacron.local import key_sealing
    from novacron.model.errors import NovaError

    try:
        id = key_sealing.seal(key, into)
    except (NovaError, OSError) as error:
        say(f"error: {error}", err=True)
        sys.exit(1)
    say(f"sealed {id} into {into}; start this server with --platform-key tpm:{into.absolute()}")
    say(f"keep a copy of {key} in a safe place: without it, a TPM that is lost or cleared costs all encrypted data")


app.add_typer(database_commands.app, name="database")
app.add_typer(setup_commands.app, name="setup")


@app.command()
@expand
def agent(context: typer.Context, options: AgentOptions) -> None:
    """Run this host's VMs for the control plane."""
    require(Extra.AGENT)
    from novacron.agent.main import run
    from novacron.model.errors import NovaError

    try:
        settings = options.settings()
        if options.check_settings:
            _show_settings(context, options)
        elif options.rejoin is not None:
            _rejoin(settings.state_dir / "identity", options.rejoin)
        elif options.state_moved:
            _take_state(settings.state_dir, settings.host_path)
        else:
            run(settings, options.join)
    except typer.BadParameter as error:
        settings_file.fail(settings_file.blamed(context, error))
    except NovaError as error:
        say(f"error: {error}", err=True)
        sys.exit(1)


def _show_settings(context: typer.Context, options: object) -> None:
    rows = [
        {"name": n, "value": value, "from": source} for n, value, source in settings_file.effective(context, options)
    ]
    columns: output.Columns = {
        "SETTING": lambda row: row["name"],
        "VALUE": lambda row: row["value"],
        "FROM": lambda row: row["from"],
    }
    output.rows(rows, columns, output.OutputFormat.TABLE)


def _rejoin(identity_dir: Path, token: str) -> None:
    """Get a node another certificate. Raises InvalidInput."""
    from novacron import pki
    from novacron.agent import identity as identities

    ticket = identities.offered(token).ticket()
    assert ticket is not None
    identity = identities.rejoin(identity_dir, ticket)
    until = pki.utc(pki.expires_at_s(identity.certificate.read_bytes()))
    say(f"node {identity.name} has a certificate until {until}")
    say("its agent uses it within minutes if it runs; if not: systemctl start novacron-agent")


def _take_state(state_dir: Path, host_path: Path) -> None:
    """Let a state folder belong to this host. Raises InvalidInput."""
    from novacron.agent.host import host_identity
    from novacron.model.errors import InvalidInput

    if not state_dir.is_dir():
        raise InvalidInput(f"there is no state folder {state_dir}", field="state-dir")
    try:
        host_identity.note(host_path)
    except OSError as error:
        raise InvalidInput(f"can't write {host_path}: {error.strerror}", field="state-dir") from None
    say(f"{state_dir} belongs to this host now")
    say("start its agent: systemctl start novacron-agent")


def main() -> None:
    app()


if __name__ == "__main__":
    main()
