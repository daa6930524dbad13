"""Pages of documentation whose commands are run as they are typed there, on real Debian hosts."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from deploy.debian.manifest import CLI, PACKAGES, Debian
from lab import debian_hosts
from lab.debian_hosts import DebianHost, Release
from lab.platform import default_cache, open_directory
from lab.switched import switched_lab

RELEASES = {Debian.DEBIAN_12: Release.DEBIAN_12, Debian.DEBIAN_13: Release.DEBIAN_13}
NEEDED = sorted({name for package in PACKAGES for name in (*package.depends, *package.recommends)} - {CLI.name})
"""Debian's packages that ours need, so that they are on the hosts and nothing is fetched while they are installed."""
THREE_HOSTS = Path(__file__).parents[1] / "docs/how-to/three-hosts.md"
IMAGE = "debian-12-genericcloud-amd64.qcow2"
"""What the page calls its image of a disk."""
TYPED = re.compile(
    r"^root@(?P<host>[a-z-]+):~# (?P<command>.+?)(?: \| ssh root@(?P<other>[a-z-]+) (?P<there>.+))?$", re.M
)
OPTIONAL = "\n## Optional: "
"""How the title of that page's optional step begins."""
SHOWN_MAX = 2000


@contextlib.contextmanager
def booted(debian: Debian, count: int, more: Iterable[str] = ()) -> Iterator[list[DebianHost]]:
    """Boot hosts that have what the packages need, ``more`` packages of Debian, and nothing of ours."""
    root = debian_hosts.root(RELEASES[debian], (f"python{debian.python}", *NEEDED, *more), default_cache())
    with (
        open_directory("nvdh-") as directory,
        switched_lab(f"nvd{os.getpid()}", default_cache(), count) as lab,
        debian_hosts.debian_hosts(lab.hosts, root, directory) as hosts,
    ):
        yield hosts


def put_on_hosts(hosts: list[DebianHost], packages: Path, image: Path) -> None:
    """Give hosts what the page on three hosts takes as given: names, packages, and an image of a disk."""
    names = "".join(f"{host.host.address} {host.name}\n" for host in hosts)
    hosts[0].copy(image, f"/root/{IMAGE}")
    for host in hosts:
        host.write("/etc/hosts", f"127.0.0.1 localhost\n{names}")
        for deb in packages.glob("*.deb"):
            host.copy(deb, f"/root/{deb.name}")


def execute(page: str, hosts: Mapping[str, DebianHost]) -> int:
    """Run the commands of a page as they are typed there; return how many there are. What is piped to a host by SSH is
    given to it directly."""
    typed = list(TYPED.finditer(page))
    for line in typed:
        began = time.monotonic()
        said = hosts[line["host"]].run("sh", "-c", f"cd /root && {line['command']}").stdout
        if line["other"] is not None:
            said = hosts[line["other"]].run("sh", "-c", f"cd /root && {line['there']}", stdin=said).stdout
        print(f"{time.monotonic() - began:6.1f} s  {line.group()}\n{said if len(said) < SHOWN_MAX else ''}")
    return len(typed)
