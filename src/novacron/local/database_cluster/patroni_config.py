"""A member as Patroni's own configuration."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from novacron.local.database_cluster.settings import API_USER, REPLICATOR, SUPERUSER, Cluster, ClusterMember
from novacron.local.postgres import ARCHIVER_SLOT, OPTIONS, USER, caller

NAMESPACE = "/novacron/"
START_TIMEOUT_S = 0
"""A primary that crashed is not started again while another one could take over."""
NEVER_EMPTY = "refuse"
"""Name of the way in which a member begins a database: not at all."""
REFUSAL = (
    "etcd knows no cluster, and this member has no data: it would start an empty database. Start a member that has"
    " data first."
)
LOG_BYTES_MAX, LOG_FILES_MAX = 5 << 20, 4


class Paths(NamedTuple):
    """Where a member has its files."""

    directory: Path
    data: Path
    binaries: Path
    tls: Path
    logs: Path


def document(cluster: Cluster, member: ClusterMember, paths: Paths) -> dict[str, Any]:
    """Return Patroni's configuration of a member."""
    ca = str(paths.tls / "ca.crt")
    certificate, key = str(paths.tls / "server.crt"), str(paths.tls / "server.key")
    host = "hostssl" if cluster.tls else "host"
    access = {"username": API_USER, "password": cluster.api_password}
    return {
        "scope": cluster.name,
        "namespace": NAMESPACE,
        "name": member.name,
        "log": {
            "dir": str(paths.logs), "file_size": LOG_BYTES_MAX, "file_num": LOG_FILES_MAX, "level": "INFO",
            "mode": 0o600,
        },
        "etcd3": _etcd(cluster),
        "restapi": {
            "listen": member.api_address, "connect_address": member.api_address, "authentication": access,
            "certfile": certificate, "keyfile": key, "cafile": ca,
        },
        "ctl": {"cacert": ca, "authentication": access},
        "bootstrap": {"dcs": shared(cluster), "method": NEVER_EMPTY, NEVER_EMPTY: _refusal()},
        "postgresql": {
            "listen": member.address,
            "connect_address": member.address,
            "data_dir": str(paths.data),
            "bin_dir": str(paths.binaries),
            "pgpass": str(paths.directory / "pgpass"),
            "use_unix_socket": True,
            "use_unix_socket_repl": True,
            "remove_data_directory_on_rewind_failure": True,
            "create_replica_methods": ["basebackup"],
            "basebackup": [{"checkpoint": "fast"}],
            "authentication": {
                "superuser": _account(SUPERUSER, cluster.superuser_password, ca if cluster.tls else None),
                "replication": _account(REPLICATOR, cluster.replicator_password, ca if cluster.tls else None),
            },
            "parameters": {
                "unix_socket_directories": str(paths.directory),
                **({"ssl": "on", "ssl_ca_file": ca, "ssl_cert_file": certificate, "ssl_key_file": key}
                   if cluster.tls else {}),
                "logging_collector": "on", "log_directory": str(paths.logs),
                "log_filename": "postgresql-%a.log", "log_rotation_age": "1d", "log_truncate_on_rotation": "on",
            },
            "pg_hba": [
                f"local all {SUPERUSER} peer map=novacron",
                "local replication all peer map=novacron",
                f"{host} all {SUPERUSER} all scram-sha-256",
                f"{host} replication {SUPERUSER},{REPLICATOR} all scram-sha-256",
            ],
            "pg_ident": [
                f"novacron {user} {role}"
                for user in sorted({"root", USER, caller()}) for role in (SUPERUSER, REPLICATOR)
            ],
        },
    }  # fmt: skip


def shared(cluster: Cluster) -> dict[str, Any]:
    """Return what the members agree on in etcd; the first one puts it there."""
    return {
        "ttl": cluster.timing.ttl_s,
        "loop_wait": cluster.timing.loop_s,
        "retry_timeout": cluster.timing.retry_s,
        "maximum_lag_on_failover": cluster.loss_bytes_max,
        "primary_start_timeout": START_TIMEOUT_S,
        "synchronous_mode": True,
        "synchronous_mode_strict": not cluster.lone_writes,
        "synchronous_node_count": 1,
        # The archiver's slot goes on at whichever member is the primary; one that Patroni does not know, it drops.
        "slots": {ARCHIVER_SLOT: {"type": "physical"}},
        "postgresql": {"use_pg_rewind": True, "use_slots": True, "parameters": OPTIONS},
    }


def _refusal() -> dict[str, Any]:
    """Return a method that fails: ``init`` takes over data that are there, and etcd may have lost what it knew."""
    return {"command": shlex.join([sys.executable, "-c", f"raise SystemExit({REFUSAL!r})"]), "no_params": True}


def _account(user: str, password: str, ca: str | None) -> dict[str, str]:
    tls = {"sslmode": "disable"} if ca is None else {"sslmode": "verify-full", "sslrootcert": ca}
    return {"username": user, "password": password, **tls}


def _etcd(cluster: Cluster) -> dict[str, Any]:
    access = cluster.etcd
    parts = [urlsplit(url) for url in access.endpoints]
    files = {"cacert": access.ca, "cert": access.certificate, "key": access.key}
    return {
        "hosts": [each.netloc for each in parts],
        "protocol": parts[0].scheme,
        **{name: path for name, path in files.items() if path is not None},
    }
