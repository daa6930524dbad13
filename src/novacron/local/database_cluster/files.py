"""Where a member keeps what it is: beside its data, readable for nobody else."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import msgspec

from novacron import private_file
from novacron.local.database_cluster import patroni_config
from novacron.local.database_cluster.settings import (
    DATABASE,
    SUPERUSER,
    Cluster,
    ClusterFailed,
    ClusterMember,
    EtcdAccess,
)
from novacron.local.postgres import MEMBER_FILE, Postgres, PostgresFailed, programs, server_user
from novacron.model.errors import MALFORMED

JOIN_FILE = "cluster.join"
OWN_FILE = "member.json"
URL_FILE = "database.url"
ASIDE = "data.set-aside"
"""The database that a member had before it became one."""
TLS = "tls"
LOGS = "logs"
JOIN_BYTES_MAX = 1 << 16
"""Of a join file that comes from standard input."""
JOINING_FILE = "joining"
"""While the data are a copy that may not be whole."""


class MemberFiles:
    """The folder of a member: the one of the embedded database."""

    def __init__(self, state_dir: Path) -> None:
        self.postgres = Postgres(state_dir / "postgres")
        self.directory = self.postgres.directory
        self.data = self.postgres.data
        self.aside = self.directory / ASIDE
        self.join_file = self.directory / JOIN_FILE
        self.url_file = self.directory / URL_FILE
        self.patroni = self.directory / MEMBER_FILE
        self.logs = self.directory / LOGS
        self.joining_file = self.directory / JOINING_FILE
        self.pid_file = self.directory / "patroni.pid"

    @property
    def ca(self) -> Path:
        return self.directory / TLS / "ca.crt"

    @property
    def certificate(self) -> Path:
        return self.directory / TLS / "server.crt"

    @property
    def certificates(self) -> dict[str, Path]:
        """The certificates that this member uses, by what they are called; those for etcd are others' files."""
        tls = self.directory / TLS
        return {
            "database authority": self.ca, "database member": self.certificate,
            "etcd authority": tls / "etcd-ca.crt", "etcd client": tls / "etcd.crt",
        }  # fmt: skip

    def cluster(self) -> Cluster | None:
        """Return the cluster that this is, or is to become, a member of; None: none. Raises ClusterFailed."""
        return read_join_file(self.join_file) if self.join_file.exists() else None

    def member(self) -> ClusterMember | None:
        """Return what this member is; None: nothing yet. Raises ClusterFailed."""
        path = self.directory / OWN_FILE
        try:
            return msgspec.json.decode(path.read_bytes(), type=ClusterMember)
        except FileNotFoundError:
            return None
        except (OSError, *MALFORMED) as error:
            raise ClusterFailed(f"{path} can't be read: {error}") from error

    def membership(self) -> tuple[Cluster, ClusterMember]:
        """Return cluster and member. Raises ClusterFailed."""
        cluster, member = self.cluster(), self.member()
        if cluster is None or member is None:
            raise ClusterFailed(
                f"{self.directory} is not a member of a cluster: see novacron database cluster init, and join"
            )
        return cluster, member

    def keep(self, cluster: Cluster, member: ClusterMember) -> None:
        """Write down what this member is to be. Raises OSError."""
        self.directory.mkdir(parents=True, exist_ok=True)
        own = self.directory / OWN_FILE
        for path, content in ((self.join_file, msgspec.json.format(msgspec.json.encode(cluster))),
                              (own, msgspec.json.encode(member))):  # fmt: skip
            private_file.write(path, content + b"\n", owner=_owner_of(path))

    def configure(self, cluster: Cluster, member: ClusterMember) -> None:
        """Write certificates and Patroni's file, last: from then on the data are Patroni's. Raises ClusterFailed."""
        import yaml  # not loaded by commands that only look

        owner = _owner()
        self.directory.chmod(0o700)
        tls = self.directory / TLS
        for folder in (self.directory, tls, self.logs):
            folder.mkdir(exist_ok=True, mode=0o700)
            os.chown(folder, *owner)
        self._write_certificates(cluster, member, time.time())
        self.link_etcd(cluster.etcd)
        try:
            binaries = programs()
        except PostgresFailed as error:
            raise ClusterFailed(str(error)) from error
        paths = patroni_config.Paths(self.directory, self.data, binaries, tls, self.logs)
        text = yaml.safe_dump(patroni_config.document(cluster, member, paths), sort_keys=False)
        private_file.write(self.patroni, text.encode(), owner=owner)

    def _write_certificates(self, cluster: Cluster, member: ClusterMember, now_s: float) -> None:
        """Issue this member's certificate, from the key that all members have. Raises OSError."""
        from novacron import pki  # not loaded by commands that only look

        tls = self.directory / TLS
        owner = _owner_of(tls)
        key, certificate = pki.issue_host(
            cluster.ca_key.encode(), cluster.ca.encode(), member.name, [member.host, "localhost"], now_s
        )
        for name, content in (("ca.crt", cluster.ca.encode()), ("server.key", key), ("server.crt", certificate)):
            private_file.write(tls / name, content, owner=owner)

    def link_etcd(self, access: EtcdAccess) -> None:
        """Let whoever looks at this member's certificates find those for etcd beside them. Raises OSError."""
        for name, target in (("etcd authority", access.ca), ("etcd client", access.certificate)):
            link = self.certificates[name]
            link.unlink(missing_ok=True)
            if target is not None:
                link.symlink_to(target)

    def renew_certificates(self, now_s: float, *, force: bool = False) -> bool:
        """Renew this member's certificate, and the authority's for the same key, if it is time to or with ``force``;
        say whether that was done. Patroni reads them when it starts, and on SIGHUP. Raises ClusterFailed, OSError."""
        from novacron import pki  # not loaded by commands that only look

        cluster, member = self.membership()
        try:
            is_due = force or pki.due("database", self.certificate.read_bytes(), now_s)
            of_authority = pki.due("database-authority", cluster.ca.encode(), now_s)
        except (FileNotFoundError, ValueError):  # lost, or damaged
            is_due, of_authority = True, False
        if of_authority:
            renewed = pki.renewed_authority(cluster.ca_key.encode(), now_s).decode()
            cluster = msgspec.structs.replace(cluster, ca=renewed)
            self.keep(cluster, member)
        if is_due or of_authority:
            self._write_certificates(cluster, member, now_s)
        return is_due or of_authority

    def certificate_ends(self) -> dict[str, float]:
        """Return when the certificates that this member uses end; those that can't be read are left out."""
        from novacron import pki  # not loaded by commands that only look

        ends = {}
        for name, path in self.certificates.items():
            with contextlib.suppress(OSError, ValueError):
                ends[name] = pki.expires_at_s(path.read_bytes())
        return ends

    def keep_url(self, cluster: Cluster, members: Sequence[str]) -> None:
        """Write down how servers reach the database at these addresses, beside those that were known: etcd forgets
        members that are off. Raises OSError."""
        from novacron.store.hosts import UrlParts  # brings asyncpg, which commands that only look don't need

        known = set[str]()
        if self.url_file.exists():
            known = set(UrlParts.of(self.url_file.read_text().strip()).hosts.split(","))
        tls = f"sslmode=verify-full&sslrootcert={self.ca}" if cluster.tls else "sslmode=disable"
        owner = self.directory.stat()  # root may look, too; the file stays the service's
        password = quote(cluster.superuser_password, safe="")
        private_file.write(
            self.url_file,
            f"postgresql://{SUPERUSER}:{password}@{','.join(sorted(known | set(members)))}/{DATABASE}"
            f"?target_session_attrs=read-write&{tls}\n".encode(),
            owner=(owner.st_uid, owner.st_gid) if os.geteuid() == 0 else None,
        )

    @property
    def has_own_data(self) -> bool:
        """Whether there is a database that is no member's. Raises ClusterFailed."""
        return self.member() is None and (self.data / "PG_VERSION").exists()

    def set_aside(self) -> None:
        """Move the database away that is here. Raises PostgresFailed if it is in use, OSError."""
        with self.postgres.held():
            self.data.rename(self.aside)

    def begin_copy(self) -> None:
        """Remember that the data are to be copied, unless there are data. Raises OSError."""
        if not self._has_data():
            self.joining_file.touch(mode=0o600)

    def end_copy(self) -> None:
        """Remember that the copy is whole. Raises OSError."""
        self.joining_file.unlink(missing_ok=True)

    def remove_partial_copy(self) -> bool:
        """Remove the data if they are a copy that was never finished; return whether they were.

        Raises OSError; ClusterFailed for other data that are not whole, which may be all that there is.
        """
        if (self.data / "global/pg_control").exists():
            self.end_copy()
            return False
        if not self._has_data():
            return False
        if not self.joining_file.exists():
            raise ClusterFailed(
                f"{self.data} lacks global/pg_control, so it is damaged, or a copy that was never finished: if another"
                f" member has the data, move it away, and start again: mv {self.data} {self.data}.damaged"
            )
        shutil.rmtree(self.data)
        return True

    def _has_data(self) -> bool:
        return self.data.exists() and any(self.data.iterdir())


def _owner() -> tuple[int, int]:
    """Return whom Patroni's files belong to."""
    user = server_user()
    return (user.pw_uid, user.pw_gid) if user is not None else (os.geteuid(), os.getegid())


def _owner_of(path: Path) -> tuple[int, int] | None:
    """Return whom a file belongs to that root writes again, or a folder that root writes into; None: to the caller."""
    if os.geteuid() != 0 or not path.exists():
        return None
    status = path.stat()
    return status.st_uid, status.st_gid


def read_join_file(path: Path) -> Cluster:
    """Return what a join file says. Raises ClusterFailed."""
    try:
        if private_file.readable_by_others(path):
            raise ClusterFailed(f"{path} holds passwords, and others can read it: chmod 600 {path}, and try again")
        return parse_join_file(path.read_bytes(), str(path))
    except OSError as error:
        raise ClusterFailed(f"{path} was not written by novacron database cluster init: {error}") from error


def parse_join_file(content: bytes, where: str) -> Cluster:
    """Return what a join file says that was read from somewhere. Raises ClusterFailed."""
    try:
        return msgspec.json.decode(content, type=Cluster)
    except MALFORMED as error:
        raise ClusterFailed(f"{where} was not written by novacron database cluster init: {error}") from error
