"""From bare Debian hosts to a running VM by the guide's commands: ``script/bench install``. Packages are built before,
and Debian's are on the hosts: what is measured is ours. Three hosts with systemd share the machine."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.report import Figure, median, parser, report
from deploy.debian.build import build
from deploy.debian.manifest import Debian
from lab import debian_hosts
from lab.guide import OPTIONAL, THREE_HOSTS, booted, execute, put_on_hosts
from lab.hosts import missing
from lab.platform import clean_up_when_ended, until

READY_S, COMMANDS = 300.0, 12
RUNS_S_MAX, DISK = 120.0, "1M"


def figures_of(debian: Debian, rounds: int) -> list[Figure]:
    """Install a platform on three hosts of a release, a few times."""
    took, commands = list[float](), 0
    with TemporaryDirectory(prefix="nvpk-") as scratch:
        packages, image = Path(scratch) / "packages", Path(scratch) / "disk.qcow2"
        build(packages, [debian], 1)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, DISK], check=True, timeout=60)
        for _ in range(rounds):
            with booted(debian, 3) as hosts:
                put_on_hosts(hosts, packages, image)
                began = time.monotonic()
                commands = execute(THREE_HOSTS.read_text().partition(OPTIONAL)[0], {host.name: host for host in hosts})
                shown = ("novacron", "vm", "show", "web", "--output", "json")
                until(lambda: '"state": "running"' in hosts[0].run(*shown).stdout, "the VM runs", RUNS_S_MAX)  # noqa: B023
                took.append(time.monotonic() - began)
    return [
        median(f"Debian {debian}: three bare hosts to a running VM", took, "s", READY_S),
        Figure("  ... commands", commands, "", COMMANDS),
    ]


def main() -> None:
    line = parser("install", __doc__, "one round")
    line.add_argument("--only", nargs="*", choices=[debian.value for debian in Debian], help="releases of Debian")
    options = line.parse_args()
    clean_up_when_ended()
    if lacks := [*missing(), *debian_hosts.missing()]:
        raise SystemExit(f"this needs: {', '.join(lacks)}")
    rounds = 1 if options.smoke or options.quick else 3
    figures: list[Figure] = []
    for debian in Debian:
        if debian.value in (options.only or [debian.value]):
            figures += figures_of(debian, rounds)
    report("install", figures, options.json, smoke=options.smoke)


if __name__ == "__main__":
    main()
