"""Rollouts' servers as units, on a Debian with systemd: packages, colours, servers that do not end or start."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lab import debian_hosts
from lab.debian_hosts import DebianHost, Release
from lab.platform import default_cache, open_directory
from lab.switched import switched_lab
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
PYTHON = """#!/usr/bin/python3
import os, signal, socket, sys, time
if "--version" in sys.argv:
    print("novacron {version}")
    sys.exit()
if "{kind}" == "broken":
    sys.exit("a defect")
if "{kind}" == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
    to.connect(os.environ["NOTIFY_SOCKET"])
    to.send(b"READY=1")
while True:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        to.connect(os.environ["NOTIFY_SOCKET"])
        to.send(b"WATCHDOG=1")
    print("serves", sys.argv, flush=True)
    time.sleep(1)
"""
"""Stands in for a version's Python: what is tested are packages and units, not the server."""
DRIVER = """
import json, sys
from pathlib import Path
from novacron.rollout.instances import Environments
from novacron.rollout.model import Colour
from novacron.rollout.systemd import ServerUnits
units = ServerUnits(Environments(Path("/opt/novacron/rollout"), Path("/packages"), {}))
method, colour, *rest = json.loads(sys.argv[1])
print(json.dumps(getattr(units, method)(Colour(colour), *rest)))
"""


@pytest.fixture(scope="module")
def host(lacks: list[str]) -> Iterator[DebianHost]:
    """A host with packages of three versions, the unit, and what rollouts need of NovaCron."""
    if lacks or debian_hosts.missing():
        pytest.skip("; ".join([*lacks, *debian_hosts.missing()]))
    root = debian_hosts.root(Release.DEBIAN_12, ("python3",), default_cache())
    with (
        open_directory("nvru-") as directory,
        switched_lab(f"nvu{os.getpid()}", default_cache(), 1) as lab,
        debian_hosts.debian_hosts(lab.hosts, root, directory) as (made,),
    ):
        for version, kind in (("1.0.0", "good"), ("1.1.0", "stubborn"), ("1.2.0", "broken")):
            made.copy(_package(directory, version, kind), f"/packages/novacron-server_{version}_amd64.deb")
        made.copy(ROOT / "src/novacron/rollout", "/root/lib/novacron/rollout")
        for name in ("__init__.py", "child_environment.py"):
            made.copy(ROOT / "src/novacron" / name, f"/root/lib/novacron/{name}")
        made.copy(Path(msgspec.__file__).parent, "/root/lib/msgspec")
        made.copy(ROOT / "deploy/rollout/novacron-server@.service", "/etc/systemd/system/novacron-server@.service")
        made.copy(ROOT / "deploy/debian/novacron-server.sysusers", "/usr/lib/sysusers.d/novacron.conf")
        made.run("systemd-sysusers")
        made.run("systemctl", "daemon-reload")
        yield made


def _package(directory: Path, version: str, kind: str) -> Path:
    tree = directory / f"package-{version}"
    python = tree / "opt/novacron/server/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON.format(version=version, kind=kind))
    python.chmod(0o755)
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(
        f"Package: novacron-server\nVersion: {version}\nArchitecture: amd64\n"
        "Maintainer: x <x@localhost>\nDescription: x\n"
    )
    built = directory / f"{version}.deb"
    subprocess.run(["dpkg-deb", "--build", tree, built], check=True, capture_output=True)
    return built


def ask(host: DebianHost, *call: object) -> Any:
    """Call a method of ``ServerUnits`` on the host."""
    done = host.run("env", "PYTHONPATH=/root/lib", "python3", "-c", DRIVER, json.dumps(call))
    return json.loads(done.stdout)


def state(host: DebianHost, colour: str) -> str:
    return host.run("systemctl", "is-active", f"novacron-server@{colour}", check=False).stdout.strip()


def test_a_version_runs_as_a_unit_and_outlives_the_installation_of_another(host: DebianHost) -> None:
    ask(host, "install", "blue", "1.0.0")
    ask(host, "start", "blue")
    until(lambda: state(host, "blue") == "active", "blue is ready", 60)
    assert ask(host, "running", "blue") is True and ask(host, "running", "green") is False
    ask(host, "start", "blue")
    ask(host, "install", "green", "1.1.0")
    assert (ask(host, "version", "blue"), ask(host, "version", "green")) == ("1.0.0", "1.1.0")
    assert "serves" in ask(host, "last_words", "blue")
    assert "/etc/novacron/server-blue.toml" in ask(host, "last_words", "blue")
    assert host.run("systemctl", "is-enabled", "novacron-server@blue").stdout.strip() == "enabled"
    exposure = host.run("systemd-analyze", "security", "--no-pager", "novacron-server@blue.service").stdout
    line = next(line for line in exposure.splitlines() if "Overall exposure" in line)
    assert float(line.split(": ")[1].split()[0]) <= 3.0
    ask(host, "stop", "blue", 30)
    assert state(host, "blue") == "inactive" and ask(host, "running", "blue") is False
    ask(host, "stop", "blue", 30)


def test_a_server_that_does_not_end_is_killed(host: DebianHost) -> None:
    ask(host, "install", "green", "1.1.0")
    ask(host, "start", "green")
    until(lambda: state(host, "green") == "active", "green is ready", 60)
    ask(host, "stop", "green", 3)
    assert ask(host, "running", "green") is False


def test_a_version_that_does_not_start_holds_up_nobody_and_says_why(host: DebianHost) -> None:
    ask(host, "install", "green", "1.2.0")
    ask(host, "start", "green")
    until(lambda: "a defect" in ask(host, "last_words", "green"), "its log says so", 60)
    assert state(host, "green") != "active"
    ask(host, "stop", "green", 30)
    assert ask(host, "running", "green") is False
