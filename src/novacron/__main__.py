"""The ``novacron`` command: the CLI, and the services that a host runs."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from novacron.cli import images, output
from novacron.cli.app import app
from novacron.client.api import config_path

STATE_DIR = Path("/var/lib/novacron")


def _state_dir() -> Path:
    import os

    base = STATE_DIR if os.geteuid() == 0 else Path.home() / ".local" / "share" / "novacron"
    return Path(os.environ.get("NOVACRON_STATE_DIR") or base)


StateDir = Annotated[Path | None, typer.Option(help="where its files are; default: /var/lib/novacron as root")]
Advertise = Annotated[str | None, typer.Option(help="name or address by which others reach this host")]


class Recipe(StrEnum):
    """A guest that is made of this host's own packages."""

    TINY = "tiny"
    DEBIAN = "debian"


@images.app.command()
def build(
    recipe: Annotated[Recipe, typer.Argument(help="tiny boots in two seconds; debian is a whole system")],
    name: Annotated[str | None, typer.Option(help="of the image; the recipe's if not given")] = None,
    images_dir: Annotated[Path | None, typer.Option(help="images; default: images/ in the state directory")] = None,
) -> None:
    """Make an image on this node, of Debian's packages; its agent finds it within seconds."""
    from novacron.disk import debian, tiny
    from novacron.model.errors import NovaError
    from novacron.model.vm import check_name

    try:
        target = (images_dir or _state_dir() / "images") / check_name(name or recipe.value)
        (tiny.build if recipe is Recipe.TINY else debian.build)(target)
    except (NovaError, debian.BuildFailed, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print(f"image {target.name} is in {target.parent}")


@app.command()
def up(
    state_dir: StateDir = None,
    images_dir: Annotated[Path | None, typer.Option(help="images; default: images/ in the state directory")] = None,
    bridge: Annotated[str | None, typer.Option(help="host bridge for the VMs' interfaces")] = None,
    port: Annotated[int, typer.Option(help="port of the API; the link uses the next one")] = 7443,
) -> None:
    """Run everything on this machine: embedded PostgreSQL, the server, and one agent."""
    from novacron.local import up as local

    state = state_dir or _state_dir()
    sys.exit(local.run(state, images_dir or state / "images", bridge, port, config_path()))


@app.command()
def doctor(
    state_dir: StateDir = None,
    database: Annotated[
        str | None, typer.Option(envvar="NOVACRON_DATABASE_URL", help="URL of a database that is to be looked at, too")
    ] = None,
    output_: output.Output = output.Format.TABLE,
) -> None:
    """Look at this machine, and at the platform that it can reach, and say what to do. Nothing is changed."""
    import asyncio

    import msgspec

    from novacron.local import doctor as doctors

    found = asyncio.run(doctors.examine(doctors.Subject(state_dir or _state_dir(), database)))
    columns: output.Columns = {
        "": lambda one: {"ok": "ok", "warning": "!", "bad": "BAD"}[one["grade"]],
        "ABOUT": lambda one: one["about"],
        "FOUND": lambda one: one["found"],
    }
    rows = [msgspec.to_builtins(one) for one in found]
    output.rows(rows, columns, output_)
    advised = [one for one in rows if one["advice"]]
    if output_ is output.Format.TABLE and advised:
        print("\nWhat to do:")
        for one in advised:
            print(f"  {one['about']}: {one['advice']}")
    sys.exit(1 if any(one.grade is doctors.Grade.BAD for one in found) else 0)


@app.command("support-bundle")
def support_bundle(
    file: Annotated[Path | None, typer.Argument(help="where to; default: novacron-support-TIME.tar.gz")] = None,
    state_dir: StateDir = None,
    log: Annotated[
        list[Path] | None, typer.Option(help="a log file, of which the end goes in, too; can be repeated")
    ] = None,
) -> None:
    """Collect what a maintainer needs to find a cause: figures, states, events and ends of logs, without secrets."""
    from novacron.local import bundle

    try:
        path, kept = bundle.write(file, state_dir or _state_dir(), log or [])
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    for name, size in kept:
        print(f"{size:>10}  {name}")
    print(f"{path}: look through it before you give it away; names of VMs, nodes and users are in it")


@app.command()
def server(
    database: Annotated[
        str | None,
        typer.Option(envvar="NOVACRON_DATABASE_URL", help="URL of PostgreSQL 15 or later; default: an embedded one"),
    ] = None,
    state_dir: StateDir = None,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port of the API")] = 7443,
    link_port: Annotated[int, typer.Option(help="port of the agents' link")] = 7444,
    advertise: Advertise = None,
    reads_per_s: Annotated[float, typer.Option(min=0.5, help="requests that read, of one token")] = 5000,
    writes_per_s: Annotated[float, typer.Option(min=0.5, help="requests that change something, of one token")] = 500,
    strangers_per_s: Annotated[
        float, typer.Option(min=0.5, help="requests without a valid token, from one address")
    ] = 100,
    redis: Annotated[
        str | None, typer.Option(envvar="NOVACRON_REDIS_URL", help="Redis or Valkey that processes share limits in")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="processes that answer people")] = 1,
    pool: Annotated[int, typer.Option(min=5, max=100, help="connections of each process to the database")] = 25,
    leave_s: Annotated[
        float,
        typer.Option("--leave-after", help="seconds to serve on, not ready, when told to end: for rolling restarts"),
    ] = 0,
    oidc: Annotated[
        Path | None,
        typer.Option(help="file that names who vouches for people (OpenID Connect); see docs/how-to/access.md"),
    ] = None,
    fence: Annotated[
        Path | None, typer.Option(help="program that cuts off the node that it is given, when that has failed")
    ] = None,
) -> None:
    """Run the control plane: API, controllers, and the agents' link."""
    from novacron.api.edge.rate_limits import RateSettings
    from novacron.local.postgres import Postgres
    from novacron.model.errors import NovaError
    from novacron.server.main import run
    from novacron.server.settings import Settings

    state = (state_dir or _state_dir()) / "server"
    postgres = None
    if database is None:
        postgres = Postgres(state.parent / "postgres")
        database = postgres.start()
    try:
        rates = RateSettings(reads_per_s, writes_per_s, strangers_per_s)
        run(
            Settings(
                database,
                state,
                host,
                port,
                link_port,
                advertise,
                rates,
                leave_s,
                workers,
                pool,
                redis,
                oidc,
                fence,
                config_path(),
            )
        )
    except NovaError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    finally:
        if postgres is not None:
            postgres.stop()


@app.command()
def agent(
    join: Annotated[str | None, typer.Option(help="join token, or @FILE with it; needed once")] = None,
    state_dir: StateDir = None,
    images_dir: Annotated[Path | None, typer.Option(help="images; default: images/ in the state directory")] = None,
    name: Annotated[str | None, typer.Option(help="name of this node; default: the host's name")] = None,
    bridge: Annotated[str | None, typer.Option(help="host bridge for the VMs' interfaces")] = None,
    advertise: Advertise = None,
    dwcp_port: Annotated[int, typer.Option(help="port on which other nodes' migrations arrive")] = 7445,
    outage: Annotated[float, typer.Option(help="seconds that a link may be dead before migrations over it fail")] = 60,
    reuse: Annotated[
        str, typer.Option(help="which pages that are here need not be sent: of images, running VMs, VMs that left")
    ] = "image,sibling,checkpoint",
    pages_limit: Annotated[int, typer.Option(help="MiB on disk for what VMs that left had in memory")] = 8192,
    imports_dir: Annotated[
        Path | None, typer.Option(help="files that may be imported by path; by default imports beside the images")
    ] = None,
    imports_local: Annotated[
        bool, typer.Option("--imports-local", help="let images be fetched from this host and its own link, too")
    ] = False,
    pool: Annotated[list[str] | None, typer.Option(help="directory for volumes, as NAME=PATH; can be repeated")] = None,
    shared_pool: Annotated[
        list[str] | None, typer.Option(help="directory for volumes that other nodes have too, as NAME=PATH")
    ] = None,
    keep_images: Annotated[
        float, typer.Option(min=0, help="hours for which an image that came for a VM stays when no VM here has it")
    ] = 24,
    mask_cpu_flag: Annotated[
        list[str] | None, typer.Option(help="what guests' processors shall not have here; can be repeated")
    ] = None,
    uid_base: Annotated[
        int, typer.Option(min=1, max=2**31 - 65_537, help="first of the 65,536 user numbers that are the VMs'")
    ] = 1_879_048_192,
) -> None:
    """Run this host's VMs as the control plane says."""
    from novacron.agent.host.inventory import default_name
    from novacron.agent.main import run
    from novacron.agent.settings import Settings
    from novacron.model.errors import NovaError
    from novacron.qemu.confine import can_confine

    state = (state_dir or _state_dir()) / "agent"
    settings = Settings(
        state_dir=state,
        images_dir=images_dir or state.parent / "images",
        name=name or default_name(),
        bridge=bridge,
        advertise=advertise,
        dwcp_port=dwcp_port,
        outage_s=outage,
        reuse=frozenset(reuse.split(",")) - {"none", ""},
        pages_bytes_max=pages_limit << 20,
        imports=imports_dir,
        imports_local=imports_local,
        keep_images_s=3600 * keep_images,
        pools=_pools(pool, "--pool"),
        shared_pools=_pools(shared_pool, "--shared-pool"),
        masked_cpu_flags=frozenset(mask_cpu_flag or ()),
        uid_base=uid_base if can_confine() else None,
    )
    unknown = settings.reuse - {"image", "sibling", "checkpoint"}
    if unknown:
        raise typer.BadParameter(
            f"{', '.join(sorted(unknown))}: not image, sibling or checkpoint", param_hint="--reuse"
        )
    try:
        run(settings, join)
    except NovaError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _pools(given: list[str] | None, option: str) -> dict[str, Path]:
    from novacron.model.errors import InvalidInput
    from novacron.model.limits import LOCAL_POOL
    from novacron.model.vm import check_name

    found = {}
    for one in given or ():
        name, _, path = one.partition("=")
        try:
            check_name(name)
        except InvalidInput as error:
            raise typer.BadParameter(error.detail, param_hint=option) from None
        if not Path(path).is_absolute() or not Path(path).is_dir():
            raise typer.BadParameter(f"{path!r} is no directory; write it like data=/srv/volumes", param_hint=option)
        if name == LOCAL_POOL or name in found:
            raise typer.BadParameter(f"pool {name} is there already", param_hint=option)
        found[name] = Path(path)
    return found


def main() -> None:
    app()


if __name__ == "__main__":
    main()
