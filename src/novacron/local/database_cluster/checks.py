"""What has to be so before anything is changed or stopped: all of it is looked at, and all that is wrong is said."""

from __future__ import annotations

import ipaddress
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from novacron.child_environment import clean
from novacron.local.database_cluster.etcd import VERSION_MIN, Etcd, EtcdHealth, is_old
from novacron.local.database_cluster.files import MemberFiles
from novacron.local.database_cluster.settings import Cluster, ClusterFailed, ClusterMember
from novacron.local.postgres import SLOT_WAL_MIB_MAX, PostgresFailed, barred, programs

NOTHING_CHANGED, PROBLEM = "nothing was changed, because:", "\n  - "
FREE_BYTES_MIN = (SLOT_WAL_MIB_MAX + 1024) << 20
"""What a member may keep of WAL for one that is away, and some room beside."""


def of_etcd(health: EtcdHealth) -> list[str]:
    """Return what is wrong with etcd."""
    problems = [
        f"etcd at {endpoint} is {version}: version {'.'.join(map(str, VERSION_MIN))} or later is needed"
        for endpoint, version in health.versions.items() if is_old(version)
    ]  # fmt: skip
    if not health.agrees:
        said = "; ".join(f"{endpoint}: {error}" for endpoint, error in health.errors.items())
        problems.append(f"etcd has no majority, so no primary can be elected: {said or 'no endpoint answers'}")
    return problems


def of_machine(files: MemberFiles, member: ClusterMember) -> list[str]:
    """Return what is wrong with this machine: programs, room, ports."""
    problems = [
        f"the user that PostgreSQL runs as can't enter {directory}, and so can't reach {path}"
        for path in (Path(sys.prefix), files.directory)
        if path.exists() and (directory := barred(path.resolve())) is not None
    ]
    free = shutil.disk_usage(_existing(files.directory)).free
    if free < FREE_BYTES_MIN:
        problems.append(
            f"{files.directory} has {free >> 20} MiB free: {FREE_BYTES_MIN >> 20} are needed, for WAL kept while"
            " a member is down"
        )
    for option, port in (("--port", member.port), ("--api-port", member.api_port)):
        why = _taken(member.host, port)
        if why:
            problems.append(f"{option}: can't listen on {member.host}:{port}: {why}")
    try:
        programs()
    except PostgresFailed as error:
        problems.append(str(error))
    return problems


def of_secrecy(cluster: Cluster, member: ClusterMember, *, private_network: bool) -> list[str]:
    """Return what is wrong with sending the database's content from machine to machine."""
    if private_network:
        return []
    open_etcd = [url for url in cluster.etcd.endpoints if _is_open(url)]
    problems = [] if not open_etcd else [
        f"anyone who can write to etcd can run programs on the members, and {', '.join(open_etcd)} has no TLS: give"
        " etcd certificates (https://), or use a private network between the machines and confirm it with"
        " --private-network"
    ]  # fmt: skip
    if cluster.tls or _is_loopback(member.host):
        return problems
    return [
        *problems,
        "this PostgreSQL is built without TLS, so members replicate in plain text: use a"
        " private network between the machines (WireGuard, or a separate VLAN) and confirm it with"
        " --private-network",
    ]


def speaks_tls() -> bool:
    """Say whether PostgreSQL's programs are built with TLS. Raises PostgresFailed."""
    arguments = [str(programs() / "pg_config"), "--configure"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=clean())
    return "openssl" in done.stdout


def _is_open(url: str) -> bool:
    """Say whether what is said to an endpoint can be read, and changed, on its way."""
    parts = urlsplit(url)
    return parts.scheme != "https" and not _is_loopback(parts.hostname or "")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def of_data(files: MemberFiles) -> list[str]:
    """Return what is wrong with the data that a cluster is to begin with."""
    version = files.data / "PG_VERSION"
    if not version.exists():
        return [
            f"there is no embedded database in {files.directory}: give its directory with --state-dir, or copy another"
            " member's data with novacron database cluster join"
        ]
    own, program = version.read_text().strip(), _program_version()
    if own != program:
        return [f"the data is from PostgreSQL {own}, and the programs are version {program}: use the same version"]
    return []


def of_own_data(files: MemberFiles, *, set_aside: bool) -> list[str]:
    """Return what is wrong with copying another member's data to where a database may be by now."""
    if not files.has_own_data:
        return []
    if not set_aside:
        return [
            f"{files.directory} already has its own database: to keep it in {files.aside.name} beside the"
            " member's data, add --set-aside, or give an empty directory with --state-dir"
        ]
    if files.aside.exists():
        return [f"--set-aside: {files.aside} already exists from an earlier run: move it away"]
    return []


def of_cluster(files: MemberFiles, etcd: Etcd, cluster: Cluster) -> list[str]:
    """Return what is wrong with beginning a cluster of this name."""
    known = etcd.keys(cluster.name).values.get("initialize")
    if known and known != system_identifier(files.data):
        return [f"--name {cluster.name}: etcd knows a cluster of this name with other data: choose another name"]
    return []


def require(problems: list[str]) -> None:
    """Raise ClusterFailed if there are problems, and name all of them."""
    if problems:
        raise ClusterFailed(NOTHING_CHANGED + "".join(f"{PROBLEM}{problem}" for problem in problems))


def problems_said(text: str) -> list[str]:
    """Return the problems that ``require`` has named in what a command wrote; none: it failed in another way."""
    _, is_there, named = text.partition(NOTHING_CHANGED)
    return named.rstrip("\n").split(PROBLEM)[1:] if is_there else []


def system_identifier(data: Path) -> str:
    """Return what all copies of a database have in common. Raises ClusterFailed."""
    done = subprocess.run(
        [str(programs() / "pg_controldata"), "-D", str(data)], capture_output=True, text=True, check=False,
        env={"LC_ALL": "C"},
    )  # fmt: skip
    for line in done.stdout.splitlines():
        name, _, value = line.partition(":")
        if name == "Database system identifier":
            return value.strip()
    raise ClusterFailed(f"{data} can't be read: {done.stderr.strip()[-500:]}")


def _program_version() -> str:
    arguments = [str(programs() / "postgres"), "--version"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=clean())
    return done.stdout.split()[-1].partition(".")[0]


def _existing(path: Path) -> Path:
    return next(each for each in (path, *path.parents) if each.exists())


def _taken(host: str, port: int) -> str:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except (OSError, OverflowError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""
