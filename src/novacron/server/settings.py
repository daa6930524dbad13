"""How one server is set up."""

from __future__ import annotations

import contextlib
import ipaddress
from pathlib import Path

import msgspec

from novacron.api.access.client_address import ProxySettings
from novacron.api.edge.rate_limits import RateSettings
from novacron.api.read_model.catalogues import CatalogueSettings
from novacron.model import limits
from novacron.model.access import Role
from novacron.model.drain import TIME_LIMIT_S_DEFAULT
from novacron.model.token import Lifetimes
from novacron.server.given_certificate import GivenCertificate
from novacron.store.database import POOL_DEFAULT

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class AuditSettings(msgspec.Struct, frozen=True):
    """For how long the audit log is kept, and where it is sent."""

    retention_s: float = limits.AUDIT_RETENTION_S
    syslog: str | None = None
    """URL of a syslog server."""
    syslog_ca: Path | None = None
    otlp: str | None = None
    """URL of a collector of OTLP logs."""


class SecondFactorSettings(msgspec.Struct, frozen=True):
    """Who must have a second factor, and where browsers reach this installation; None: as the API's URL says."""

    required_of: frozenset[Role] = frozenset()
    origin: str | None = None


class ServerSettings(msgspec.Struct, frozen=True):
    """How one server is set up, its workers included."""

    database_url: str
    state_dir: Path
    host: str = "127.0.0.1"
    port: int = 7443
    link_port: int = 7444
    advertise: str | None = None
    """Address or name by which nodes and users reach this server; ``host`` if not given."""
    given_certificate: GivenCertificate | None = None
    """What the API shows; None: a certificate of this installation's own authority."""
    rates: RateSettings = RateSettings()
    proxies: ProxySettings = ProxySettings()
    lifetimes: Lifetimes = Lifetimes()
    leave_s: float = 0.0
    """How long it goes on serving after a stop request, while it reports that it is not ready."""
    reads_away_s: float = limits.READS_AWAY_S
    """For how long reads are answered from memory while the database is away."""
    workers: int = 1
    """Processes that answer people."""
    connections_max: int = limits.CONNECTIONS_MAX
    """Connections of clients that each process keeps."""
    pool: int = POOL_DEFAULT
    """Connections to the database that each process may have, beside two of its own."""
    redis_url: str | None = None
    """Redis or Valkey, where this server's processes and other replicas share counters."""
    oidc: Path | None = None
    """File that names a provider of logins (``model/oidc.py``)."""
    fence: Path | None = None
    """Program that cuts a node off, given its name."""
    drain_limit_s: int = TIME_LIMIT_S_DEFAULT
    """After how many seconds a drain fails for which no other limit was given."""
    audit: AuditSettings = AuditSettings()
    second_factors: SecondFactorSettings = SecondFactorSettings()
    catalogues: CatalogueSettings = CatalogueSettings()
    platform_key: str | None = None
    """Where the key is that wraps projects' keys (``platform_key.py``); None: nothing is encrypted at rest."""
    former_platform_key: str | None = None
    """The one before it, while keys are still wrapped by that."""
    key_age_days: int = 730
    """How old one of the platform's keys may become before that is said; 0: as old as it likes."""
    new_keys: bool = False
    """Keys in the database that can't be opened are replaced."""
    cli_config: Path | None = None
    """Where the first start writes the administrator's CLI settings; None writes none."""

    @property
    def public_host(self) -> str:
        return self.advertise or self.host

    @property
    def own_certificate(self) -> tuple[Path, Path]:
        """Return this server's certificate by the installation's own authority, and its key."""
        return self.state_dir / "server.crt", self.state_dir / "server.key"

    @property
    def api_certificate(self) -> tuple[Path, Path]:
        """Return the certificate that the API shows, and its key."""
        given = self.given_certificate
        return self.own_certificate if given is None else (given.certificate, given.key)

    @property
    def log_level(self) -> Path:
        """Return where it is said what all processes log, if not what they began with."""
        return self.state_dir / "log-level"

    @property
    def audit_key(self) -> Path:
        """Return the key with which this server signs heads of the audit log."""
        return self.state_dir / "audit.key"

    @property
    def relay(self) -> Path:
        """Return the socket at which workers reach the agents."""
        return self.state_dir / "workers.sock"

    def url(self, port: int) -> str:
        host = self.public_host
        with contextlib.suppress(ValueError):
            if ipaddress.ip_address(host).version == 6:
                host = f"[{host}]"
        return f"https://{host}:{port}"
