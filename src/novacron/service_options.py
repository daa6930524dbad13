"""The options of ``novacron server`` and ``novacron agent``: each is listed once, and becomes a setting."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar
from urllib.parse import urlsplit

import typer

from novacron import settings_file
from novacron.model import limits
from novacron.model.proxy_header import ProxyHeader

if TYPE_CHECKING:  # imported where they are needed: commands that need neither start faster
    from novacron.agent.settings import AgentSettings
    from novacron.backup.places import Place
    from novacron.local.database_archiver import ArchiverSettings
    from novacron.model.access import Role
    from novacron.server.given_certificate import GivenCertificate
    from novacron.server.settings import ServerSettings

STATE_DIR = Path("/var/lib/novacron")
HOUR_S = 3600.0
REUSABLE = frozenset({"image", "sibling", "checkpoint"})
Options = TypeVar("Options", bound=type)

StateDir = Annotated[Path | None, typer.Option(help="directory for its files; default: /var/lib/novacron as root")]
Advertise = Annotated[str | None, typer.Option(help="name or address that others use to reach this host")]
SettingsFile = Annotated[
    Path | None,
    typer.Option(
        "--settings", is_eager=True,
        help="TOML file with any of these options; the command line and the environment take precedence",
    ),
]  # fmt: skip
CheckSettings = Annotated[
    bool, typer.Option("--check-settings", help="print each setting and its source, and start nothing")
]


def default_state_dir() -> Path:
    """Return where files are if no option says so."""
    base = STATE_DIR if os.geteuid() == 0 else Path.home() / ".local" / "share" / "novacron"
    return Path(os.environ.get("NOVACRON_STATE_DIR") or base)


@settings_file.with_variables("NOVACRON_SERVER")
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
    link_port: Annotated[int, typer.Option(help="port for the agents' links")] = 7444
    advertise: Advertise = None
    tls_certificate: Annotated[
        Path | None,
        typer.Option(
            help="file with a certificate for the API from another authority, and its intermediate certificates (PEM);"
            " by default the server issues its own"
        ),
    ] = None
    tls_key: Annotated[Path | None, typer.Option(help="file with its key (PEM)")] = None
    tls_authority: Annotated[
        Path | None, typer.Option(help="file with that authority's certificate (PEM), if not a public one")
    ] = None
    reads_per_s: Annotated[float, typer.Option(min=0.5, help="limit of reading requests for each token")] = 5000
    writes_per_s: Annotated[float, typer.Option(min=0.5, help="limit of changing requests for each token")] = 500
    strangers_per_s: Annotated[
        float, typer.Option(min=0.5, help="limit of requests without a valid token, for each address")
    ] = 100
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CIDR",
            help="reverse proxy or load balancer in front of the API, trusted to report clients' addresses;"
            " can be repeated",
        ),
    ] = None
    proxy_header: Annotated[
        ProxyHeader, typer.Option(help="header with the clients' addresses; proxies must set it or append to it")
    ] = ProxyHeader.X_FORWARDED_FOR
    session_life: Annotated[float, typer.Option(min=0.1, help="hours after which a browser session ends")] = 12
    session_idle: Annotated[
        float, typer.Option(min=0, help="minutes after which an unused session ends; 0: no limit")
    ] = 60
    token_life: Annotated[
        float, typer.Option(min=0, help="maximum lifetime of every API token, in days; 0: no limit")
    ] = 0
    token_idle: Annotated[
        float, typer.Option(min=0, help="days after which an unused API token expires; 0: no limit")
    ] = 0
    redis: Annotated[
        str | None, typer.Option(envvar="NOVACRON_REDIS_URL", help="Redis or Valkey in which processes share limits")
    ] = None
    workers: Annotated[int, typer.Option(min=1, max=64, help="processes that answer requests")] = 1
    connections_max: Annotated[
        int,
        typer.Option(
            "--connections-max", min=32, max=limits.CONNECTIONS_MAX,
            help="client connections per process; above half of it, idle ones are closed",
        ),
    ] = limits.CONNECTIONS_MAX  # fmt: skip
    pool: Annotated[int, typer.Option(min=5, max=100, help="database connections of each process")] = 25
    leave_s: Annotated[
        float,
        typer.Option(
            "--leave-after", help="seconds to keep serving, marked not ready, before stopping: for rolling restarts"
        ),
    ] = 0
    reads_away_s: Annotated[
        float,
        typer.Option(
            "--reads-while-away",
            min=0,
            max=limits.READS_AWAY_S_MAX,
            help="seconds to answer reads from memory while the database is unavailable; 0: refuse them",
        ),
    ] = limits.READS_AWAY_S
    oidc: Annotated[
        Path | None,
        typer.Option(help="file that names the OpenID Connect provider for logins; see docs/how-to/access.md"),
    ] = None
    fence: Annotated[Path | None, typer.Option(help="program that fences a failed node, given its name")] = None
    drain_limit_s: Annotated[
        int,
        typer.Option(
            "--drain-limit", min=10, max=30 * 86_400, help="seconds after which a drain fails, with the remaining VMs"
        ),
    ] = 4 * 3600
    require_second_factor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROLE",
            help="users with this role must log in with a second factor; can be repeated",
        ),
    ] = None
    web_origin: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="URL that browsers use for this installation, for security keys; default: see --advertise",
        ),
    ] = None
    audit_days: Annotated[int, typer.Option(min=90, max=36_500, help="days to keep records of the audit log")] = 400
    audit_syslog: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="syslog server for the audit log: tls://HOST[:PORT], tcp://HOST or udp://HOST"
        ),
    ] = None
    audit_syslog_ca: Annotated[
        Path | None, typer.Option(help="file with the CA certificate for that server, if not a public one")
    ] = None
    audit_otlp: Annotated[
        str | None,
        typer.Option(metavar="URL", help="collector of OTLP logs for the audit log, such as https://HOST:4318/v1/logs"),
    ] = None
    platform_key: Annotated[
        str | None,
        typer.Option(
            envvar="NOVACRON_PLATFORM_KEY",
            help="key that wraps projects' keys, for encryption at rest: file:PATH, tpm:PATH or command:PROGRAM ...",
        ),
    ] = None
    former_platform_key: Annotated[
        str | None,
        typer.Option(
            envvar="NOVACRON_FORMER_PLATFORM_KEY",
            help="previous platform key, until: novacron platform-key rewrap",
        ),
    ] = None
    key_age_days: Annotated[
        int, typer.Option(min=0, help="age at which alerts ask to rotate a platform key; 0: never")
    ] = 730
    new_keys: Annotated[
        bool, typer.Option("--new-keys", help="replace keys in the database that this server's files can't open")
    ] = False
    image_catalogue: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="catalogue of images: a file, URL of a signed catalogue (.json), or URL of a simplestreams server;"
            " can be repeated",
        ),
    ] = None
    catalogue_key: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="public key (minisign) that signs catalogues; can be repeated"),
    ] = None
    catalogue_ca: Annotated[
        Path | None, typer.Option(help="file with the CA certificate for catalogue servers, if not a public one")
    ] = None
    backup_repository: Annotated[
        str | None,
        typer.Option(
            envvar="NOVACRON_BACKUP_REPOSITORY",
            metavar="DIRECTORY|s3://...|rest:https://...",
            help="repository to which the database is archived continuously; created if empty",
        ),
    ] = None
    backup_password_file: Annotated[
        Path | None,
        typer.Option(
            envvar="NOVACRON_BACKUP_PASSWORD_FILE",
            help="file with the repository's password; default: backup.password in the state directory",
        ),
    ] = None
    backup_every: Annotated[
        float, typer.Option(min=0.25, max=168, help="hours between base backups of the database")
    ] = 24
    backup_days: Annotated[
        int, typer.Option(min=1, max=3650, help="days for which the database can be restored to any point in time")
    ] = 30
    settings_file: SettingsFile = None
    check_settings: CheckSettings = False

    def archiver_settings(self, database: str, state_dir: Path) -> ArchiverSettings | None:
        """Return how the database at this URL is archived; None: it is not. Raises BadParameter."""
        from novacron.local.database_archiver import ArchiverSettings
        from novacron.local.database_backup import PASSWORD_FILE

        if self.backup_repository is None:
            return None
        place = _checked_place(self.backup_repository, "--backup-repository")
        if isinstance(place, Path) and not place.is_absolute():
            raise typer.BadParameter(
                f"{self.backup_repository!r}: write it like /mnt/backup/novacron", param_hint="--backup-repository"
            )
        return ArchiverSettings(
            url=database,
            repository=self.backup_repository,
            password_file=str(self.backup_password_file or state_dir / PASSWORD_FILE),
            spool=str(state_dir / "database-wal"),
            metrics=str(state_dir / "server" / "metrics"),
            base_every_s=HOUR_S * self.backup_every,
            keep_days=self.backup_days,
        )

    def _given_certificate(self) -> GivenCertificate | None:
        """Raises BadParameter."""
        from novacron.server.given_certificate import GivenCertificate

        files = {"--tls-certificate": self.tls_certificate, "--tls-key": self.tls_key}
        if not any((*files.values(), self.tls_authority)):
            return None
        for option, file in files.items():
            if file is None:
                raise typer.BadParameter("a certificate and its key are given together", param_hint=option)
        assert self.tls_certificate is not None and self.tls_key is not None
        return GivenCertificate(
            self.tls_certificate.absolute(), self.tls_key.absolute(),
            None if self.tls_authority is None else self.tls_authority.absolute(),
        )  # fmt: skip

    def settings(self, database: str, state_dir: Path, cli_config: Path) -> ServerSettings:
        """Return the settings of a server with a database at this URL. Raises BadParameter."""
        from novacron.api.access.client_address import ProxySettings
        from novacron.api.edge.rate_limits import RateSettings
        from novacron.api.read_model.catalogues import CatalogueSettings
        from novacron.model.token import Lifetimes
        from novacron.server.settings import AuditSettings, SecondFactorSettings, ServerSettings

        same = (
            "host", "port", "link_port", "advertise", "leave_s", "reads_away_s", "workers", "connections_max", "pool",
            "oidc", "fence", "key_age_days", "new_keys", "drain_limit_s", "platform_key", "former_platform_key",
        )  # fmt: skip
        return ServerSettings(
            database_url=database,
            state_dir=state_dir,
            given_certificate=self._given_certificate(),
            rates=RateSettings(self.reads_per_s, self.writes_per_s, self.strangers_per_s),
            proxies=ProxySettings(
                tuple(str(network) for network in _ranges(self.trusted_proxy, "--trusted-proxy")), self.proxy_header
            ),
            lifetimes=Lifetimes(
                self.session_life * HOUR_S,
                self.session_idle * 60 or None,
                self.token_life * 24 * HOUR_S or None,
                self.token_idle * 24 * HOUR_S or None,
            ),
            redis_url=self.redis,
            cli_config=cli_config,
            second_factors=SecondFactorSettings(_roles(self.require_second_factor), _origin(self.web_origin)),
            audit=AuditSettings(86_400.0 * self.audit_days, self.audit_syslog, self.audit_syslog_ca, self.audit_otlp),
            catalogues=CatalogueSettings(
                tuple(self.image_catalogue or ()), tuple(self.catalogue_key or ()), self.catalogue_ca
            ),
            **{name: getattr(self, name) for name in same},
        )


@settings_file.with_variables("NOVACRON_AGENT")
@dataclasses.dataclass(frozen=True)
class AgentOptions:
    """How an agent is started."""

    join: Annotated[
        str | None,
        typer.Option(
            metavar="@FILE",
            help="file with a join token, or - for standard input; needed once; or set NOVACRON_JOIN_TOKEN",
        ),
    ] = None
    rejoin: Annotated[
        str | None,
        typer.Option(
            metavar="@FILE",
            help="file with a join token, or - for standard input: get a new certificate for this node, and exit;"
            " a running agent uses it",
        ),
    ] = None
    state_moved: Annotated[
        bool,
        typer.Option("--state-moved", help="record that the state directory was moved to this host for good, and exit"),
    ] = False
    state_dir: StateDir = None
    images_dir: Annotated[Path | None, typer.Option(help="images; default: images/ in the state directory")] = None
    name: Annotated[str | None, typer.Option(help="name of this node; default: the host's name")] = None
    bridge: Annotated[str | None, typer.Option(help="host bridge for the VMs' network interfaces")] = None
    advertise: Advertise = None
    dwcp_host: Annotated[str, typer.Option(help="address to listen on for other nodes")] = "0.0.0.0"
    dwcp_port: Annotated[int, typer.Option(help="port for migrations from other nodes")] = 7445
    outage: Annotated[float, typer.Option(help="seconds that a link can be down before its migrations fail")] = 60
    reuse: Annotated[
        str, typer.Option(help="local pages to reuse in migrations: of images, of running VMs, of VMs that left")
    ] = "image,sibling,checkpoint"
    qemu_loads_memory: Annotated[
        bool,
        typer.Option(
            "--qemu-loads-memory",
            help="let QEMU load the memory of incoming VMs; by default the agent writes most of it into QEMU's memory",
        ),
    ] = False
    pages_limit: Annotated[int, typer.Option(help="MiB of disk for the memory pages of VMs that left")] = 8192
    imports_dir: Annotated[
        Path | None,
        typer.Option(help="directory of files that can be imported by path; default: imports next to the images"),
    ] = None
    imports_local: Annotated[
        bool, typer.Option("--imports-local", help="allow image downloads from any address, including this host's")
    ] = False
    imports_from: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CIDR",
            help="allow image downloads from these addresses, in addition to public ones; can be repeated",
        ),
    ] = None
    pool: Annotated[list[str] | None, typer.Option(help="directory for volumes, as NAME=PATH; can be repeated")] = None
    shared_pool: Annotated[
        list[str] | None, typer.Option(help="directory for volumes that other nodes share, as NAME=PATH")
    ] = None
    backup_dir: Annotated[
        str | None,
        typer.Option(
            metavar="DIRECTORY|s3://...|rest:https://...",
            help="directory, or URL of object storage or a REST server, for backup repositories of VMs;"
            " without it this node makes no backups",
        ),
    ] = None
    keep_images: Annotated[
        float, typer.Option(min=0, help="hours to keep an unused image that was copied for a VM")
    ] = 24
    mask_cpu_flag: Annotated[
        list[str] | None, typer.Option(help="CPU feature to hide from guests on this node; can be repeated")
    ] = None
    uid_base: Annotated[
        int, typer.Option(min=1, max=2**31 - 65_537, help="first of the 65,536 user ids for the VMs")
    ] = 1_879_048_192
    settings_file: SettingsFile = None
    check_settings: CheckSettings = False

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
            dwcp_host=self.dwcp_host,
            dwcp_port=self.dwcp_port,
            outage_s=self.outage,
            reuse=_reused(self.reuse),
            place_memory=not self.qemu_loads_memory,
            pages_bytes_max=self.pages_limit << 20,
            imports=self.imports_dir,
            imports_local=self.imports_local,
            imports_from=_ranges(self.imports_from, "--imports-from"),
            keep_images_s=3600 * self.keep_images,
            pools=_pools(self.pool, "--pool"),
            backup_dir=_backup_place(self.backup_dir),
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


def _roles(names: list[str] | None) -> frozenset[Role]:
    """Return roles by their names. Raises BadParameter."""
    from novacron.model.access import Role

    unknown = set(names or ()) - set(Role)
    if unknown:
        known = ", ".join(Role)
        raise typer.BadParameter(
            f"{', '.join(sorted(unknown))}: no role; there are {known}", param_hint="--require-second-factor"
        )
    return frozenset(Role(name) for name in names or ())


def _origin(url: str | None) -> str | None:
    """Return a URL at which browsers reach the API. Raises BadParameter."""
    parts = urlsplit(url or "https://localhost")
    if parts.scheme != "https" or not parts.hostname or parts.path.strip("/"):
        raise typer.BadParameter(f"{url!r}: write it like https://cloud.example.net", param_hint="--web-origin")
    return url


def _ranges(options: list[str] | None, option: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Return ranges of addresses. Raises BadParameter."""
    try:
        return tuple(ipaddress.ip_network(text) for text in options or ())
    except ValueError as error:
        raise typer.BadParameter(f"{error}; write it like 10.1.0.0/16", param_hint=option) from None


def _backup_place(text: str | None) -> Place | None:
    """Return where repositories are: a directory that is there, or a place in object storage. Raises BadParameter."""
    option = "--backup-dir"
    if text is None:
        return None
    place = _checked_place(text, option)
    if isinstance(place, Path) and not (place.is_absolute() and place.is_dir()):
        raise typer.BadParameter(f"{text!r} is no directory; write it like /srv/backups", param_hint=option)
    return place


def _checked_place(text: str, option: str) -> Place:
    """Return where a repository is, whose credentials can be read. Raises BadParameter."""
    from novacron.backup.addresses import BadAddress
    from novacron.backup.places import place_of

    try:
        place = place_of(text)
        if not isinstance(place, Path):
            place.credentials()
            place.certificates()
    except BadAddress as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
    return place


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
            raise typer.BadParameter(f"pool {name} exists already", param_hint=option)
        pools[name] = Path(path)
    return pools
