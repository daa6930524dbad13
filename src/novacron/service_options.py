"""The options of ``novacron server`` and ``novacron agent``: each is listed once, and becomes a setting."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar, get_type_hints

import typer

if TYPE_CHECKING:  # imported where they are needed: commands that need neither start faster
    from novacron.agent.settings import AgentSettings
    from novacron.server.settings import ServerSettings

STATE_DIR = Path("/var/lib/novacron")
REUSABLE = frozenset({"image", "sibling", "checkpoint"})

StateDir = Annotated[Path | None, typer.Option(help="where its files are; default: /var/lib/novacron as root")]
Advertise = Annotated[str | None, typer.Option(help="name or address by which others reach this host")]

T = TypeVar("T")


def default_state_dir() -> Path:
    """Return where files are if no option says so."""
    base = STATE_DIR if os.geteuid() == 0 else Path.home() / ".local" / "share" / "novacron"
    return Path(os.environ.get("NOVACRON_STATE_DIR") or base)


def takes_options(options: type[T]) -> Callable[[Callable[[T], None]], Callable[..., None]]:
    """Give a command the fields of a dataclass as its options."""
    hints = get_type_hints(options, include_extras=True)
    parameters = [
        inspect.Parameter(field.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=field.default,
                          annotation=hints[field.name])
        for field in dataclasses.fields(options)  # type: ignore[arg-type] # a dataclass
    ]  # fmt: skip

    def decorate(command: Callable[[T], None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**values: object) -> None:
            command(options(**values))

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # which Typer goes by
        run.__annotations__ = hints
        return run

    return decorate


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """How a server is started."""

    database: Annotated[
        str | None,
        typer.Option(envvar="NOVACRON_DATABASE_URL", help="URL of PostgreSQL 15 or later; default: an embedded one"),
    ] = None
    state_dir: StateDir = None
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1"
    port: Annotated[int, typer.Option(help="port of the API")] = 7443
    link_port: Annotated[int, typer.Option(help="port of the agents' link")] = 7444
    advertise: Advertise = None
    reads_per_s: Annotated[float, typer.Option(min=0.5, help="requests that read, of one token")] = 5000
    writes_per_s: Annotated[float, typer.Option(min=0.5, help="requests that change something, of one token")] = 500
    strangers_per_s: Annotated[
        float, typer.Option(min=0.5, help="requests without a valid token, from one address")
    ] = 100
    redis: Annotated[
        str | None, typer.Option(envvar="NOVACRON_REDIS_URL", help="Redis or Valkey that processes share limits in")
    ] = None
    workers: Annotated[int, typer.Option(min=1, max=64, help="processes that answer people")] = 1
    pool: Annotated[int, typer.Option(min=5, max=100, help="connections of each process to the database")] = 25
    leave_s: Annotated[
        float,
        typer.Option("--leave-after", help="seconds to serve on, not ready, when told to end: for rolling restarts"),
    ] = 0
    oidc: Annotated[
        Path | None,
        typer.Option(help="file that names who vouches for people (OpenID Connect); see docs/how-to/access.md"),
    ] = None
    fence: Annotated[
        Path | None, typer.Option(help="program that cuts off the node that it is given, when that has failed")
    ] = None

    def settings(self, database: str, state_dir: Path, cli_config: Path) -> ServerSettings:
        """Return the settings of a server with a database at this URL."""
        from novacron.api.edge.rate_limits import RateSettings
        from novacron.server.settings import ServerSettings

        same = ("host", "port", "link_port", "advertise", "leave_s", "workers", "pool", "oidc", "fence")
        return ServerSettings(
            database_url=database,
            state_dir=state_dir,
            rates=RateSettings(self.reads_per_s, self.writes_per_s, self.strangers_per_s),
            redis_url=self.redis,
            cli_config=cli_config,
            **{name: getattr(self, name) for name in same},
        )


@dataclasses.dataclass(frozen=True)
class AgentOptions:
    """How an agent is started."""

    join: Annotated[str | None, typer.Option(help="join token, or @FILE with it; needed once")] = None
    state_dir: StateDir = None
    images_dir: Annotated[Path | None, typer.Option(help="images; default: images/ in the state directory")] = None
    name: Annotated[str | None, typer.Option(help="name of this node; default: the host's name")] = None
    bridge: Annotated[str | None, typer.Option(help="host bridge for the VMs' interfaces")] = None
    advertise: Advertise = None
    dwcp_port: Annotated[int, typer.Option(help="port on which other nodes' migrations arrive")] = 7445
    outage: Annotated[float, typer.Option(help="seconds that a link may be dead before migrations over it fail")] = 60
    reuse: Annotated[
        str, typer.Option(help="which pages that are here need not be sent: of images, running VMs, VMs that left")
    ] = "image,sibling,checkpoint"
    pages_limit: Annotated[int, typer.Option(help="MiB on disk for what VMs that left had in memory")] = 8192
    imports_dir: Annotated[
        Path | None, typer.Option(help="files that may be imported by path; by default imports beside the images")
    ] = None
    imports_local: Annotated[
        bool, typer.Option("--imports-local", help="let images be fetched from this host and its own link, too")
    ] = False
    pool: Annotated[list[str] | None, typer.Option(help="directory for volumes, as NAME=PATH; can be repeated")] = None
    shared_pool: Annotated[
        list[str] | None, typer.Option(help="directory for volumes that other nodes have too, as NAME=PATH")
    ] = None
    keep_images: Annotated[
        float, typer.Option(min=0, help="hours for which an image that came for a VM stays when no VM here has it")
    ] = 24
    mask_cpu_flag: Annotated[
        list[str] | None, typer.Option(help="what guests' processors shall not have here; can be repeated")
    ] = None
    uid_base: Annotated[
        int, typer.Option(min=1, max=2**31 - 65_537, help="first of the 65,536 user numbers that are the VMs'")
    ] = 1_879_048_192

    def settings(self) -> AgentSettings:
        """Return the agent's settings. Raises BadParameter."""
        from novacron.agent.host.inventory import default_name
        from novacron.agent.settings import AgentSettings
        from novacron.qemu.confine import can_confine

        state_dir = (self.state_dir or default_state_dir()) / "agent"
        return AgentSettings(
            state_dir=state_dir,
            images_dir=self.images_dir or state_dir.parent / "images",
            name=self.name or default_name(),
            bridge=self.bridge,
            advertise=self.advertise,
            dwcp_port=self.dwcp_port,
            outage_s=self.outage,
            reuse=_reused(self.reuse),
            pages_bytes_max=self.pages_limit << 20,
            imports=self.imports_dir,
            imports_local=self.imports_local,
            keep_images_s=3600 * self.keep_images,
            pools=_pools(self.pool, "--pool"),
            shared_pools=_pools(self.shared_pool, "--shared-pool"),
            masked_cpu_flags=frozenset(self.mask_cpu_flag or ()),
            uid_base=self.uid_base if can_confine() else None,
        )


def _reused(text: str) -> frozenset[str]:
    """Return which pages may stand in for sending them. Raises BadParameter."""
    reused = frozenset(text.split(",")) - {"none", ""}
    unknown = reused - REUSABLE
    if unknown:
        raise typer.BadParameter(
            f"{', '.join(sorted(unknown))}: not image, sibling or checkpoint", param_hint="--reuse"
        )
    return reused


def _pools(options: list[str] | None, option: str) -> dict[str, Path]:
    """Return directories by the names of their pools. Raises BadParameter."""
    from novacron.model.errors import InvalidInput
    from novacron.model.limits import LOCAL_POOL
    from novacron.model.vm import check_name

    pools: dict[str, Path] = {}
    for text in options or ():
        name, _, path = text.partition("=")
        try:
            check_name(name)
        except InvalidInput as error:
            raise typer.BadParameter(error.detail, param_hint=option) from None
        if not Path(path).is_absolute() or not Path(path).is_dir():
            raise typer.BadParameter(f"{path!r} is no directory; write it like data=/srv/volumes", param_hint=option)
        if name == LOCAL_POOL or name in pools:
            raise typer.BadParameter(f"pool {name} is there already", param_hint=option)
        pools[name] = Path(path)
    return pools
