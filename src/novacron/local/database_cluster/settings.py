"""What a cluster of the database is, and what each member of it is."""

from __future__ import annotations

import ipaddress
import re
import secrets
import time
from urllib.parse import urlsplit

import msgspec

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
ETCD_MAX = 9
PORT, API_PORT = 5432, 8008
SUPERUSER, REPLICATOR, API_USER = "postgres", "novacron-replicator", "novacron"
DATABASE = "postgres"


class ClusterFailed(Exception):
    """Something about the cluster can't be done; the text says what, and what to do."""


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """How soon the members act (seconds). Patroni takes no ``ttl_s`` under 20, and wants room for two retries in it."""

    ttl_s: int = 20
    """How long a primary that nobody hears stays the primary."""
    loop_s: int = 2
    """How often a primary says that it lives. What it said last is newer with 1, so a lost one is missed later."""
    retry_s: int = 3


class EtcdAccess(msgspec.Struct, frozen=True, kw_only=True):
    """How etcd is reached; paths of files on each member's machine."""

    endpoints: tuple[str, ...]
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """What all members have in common; secret."""

    name: str
    etcd: EtcdAccess
    superuser_password: str
    replicator_password: str
    api_password: str
    ca_key: str
    ca: str
    timing: Timing = Timing()
    tls: bool
    """Whether connections to PostgreSQL are encrypted: it has to be built for that, and the embedded one is not."""
    lone_writes: bool = True
    """Whether the last member that is left takes writes, which are then in one place only."""
    loss_bytes_max: int = 1 << 20
    """A member that lacks more never becomes the primary by itself."""

    @classmethod
    def new(cls, name: str, etcd: EtcdAccess, *, tls: bool, lone_writes: bool) -> Cluster:
        from novacron import pki  # not loaded by commands that only look

        key, ca = pki.new_authority(time.time())
        superuser, replicator, api = (secrets.token_urlsafe(24) for _ in range(3))
        return cls(
            name=name, etcd=etcd, superuser_password=superuser, replicator_password=replicator, api_password=api,
            ca_key=key.decode(), ca=ca.decode(), tls=tls, lone_writes=lone_writes,
        )  # fmt: skip


class ClusterMember(msgspec.Struct, frozen=True, kw_only=True):
    """One place of the database."""

    name: str
    host: str
    """Under which the other members and the servers reach it."""
    port: int = PORT
    api_port: int = API_PORT

    @property
    def bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def address(self) -> str:
        return f"{self.bracketed}:{self.port}"

    @property
    def api_address(self) -> str:
        return f"{self.bracketed}:{self.api_port}"


def check_name(name: str, option: str) -> str:
    """Return a member's or a cluster's name. Raises ClusterFailed."""
    if not NAME.fullmatch(name):
        raise ClusterFailed(f"{option} {name!r}: write 1 to 63 of a-z, 0-9 and -, such as database-1")
    return name


def check_host(host: str, option: str) -> str:
    """Return a host name or an address that others can use. Raises ClusterFailed."""
    plain = host.strip("[]")
    try:
        address = ipaddress.ip_address(plain)
    except ValueError:
        if not HOST.fullmatch(host):
            raise ClusterFailed(f"{option} {host!r}: write a host name or an address, such as 192.0.2.11") from None
        return host
    if address.is_unspecified:
        raise ClusterFailed(f"{option} {host}: other machines can't reach it; use this machine's own address")
    return plain


def check_etcd(endpoints: list[str], ca: str | None, certificate: str | None, key: str | None) -> EtcdAccess:
    """Return how etcd is reached. Raises ClusterFailed."""
    if not 0 < len(endpoints) <= ETCD_MAX:
        raise ClusterFailed(
            f"--etcd: give 1 to {ETCD_MAX} endpoints, such as https://192.0.2.11:2379; three are recommended"
        )
    urls = [each if "://" in each else f"http://{each}" for each in endpoints]
    for url in urls:
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port and parts.path in ("", "/")
        except ValueError:
            usable = False
        if not usable:
            raise ClusterFailed(f"--etcd {url!r}: write it like https://192.0.2.11:2379")
    if len({urlsplit(url).scheme for url in urls}) > 1:
        raise ClusterFailed("--etcd: use http for all endpoints, or https for all")
    if (certificate is None) != (key is None):
        raise ClusterFailed("--etcd-certificate and --etcd-key: give both or neither")
    return EtcdAccess(endpoints=tuple(url.rstrip("/") for url in urls), ca=ca, certificate=certificate, key=key)
