"""The packages on a real Debian with systemd: installed, restarted, upgraded and purged around a VM that runs on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from deploy.debian.build import Built, build, debian_packages, epoch_s, python_packages
from deploy.debian.manifest import AGENT, CLI, JOIN_TOKEN, PACKAGES, Debian
from lab import debian_hosts
from lab.debian_hosts import DebianHost
from lab.guide import OPTIONAL, THREE_HOSTS, TYPED, booted, execute, put_on_hosts
from tests.support.boot_sector import sector
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CONTEXT = "NOVACRON_CONFIG=/var/lib/novacron/server/cli.json"
SERVER_EXPOSURE_MAX, AGENT_EXPOSURE_MAX = 3.0, 7.5
COMMANDS_MAX = 12
QEMUS = 'for p in /proc/[0-9]*; do grep -qs "^qemu-system" $p/cmdline && echo $p $(cut -d" " -f22 $p/stat); done; true'


class Installed(NamedTuple):
    """A host with the packages of one build."""

    host: DebianHost
    debian: Debian

    def cli(self, *arguments: str) -> str:
        return self.host.run("env", CONTEXT, "novacron", *arguments).stdout

    def install(self, directory: Path) -> None:
        for deb in directory.glob("*.deb"):
            self.host.copy(deb, f"/root/{directory.name}/{deb.name}")
        self.host.run("sh", "-c", f"dpkg --install /root/{directory.name}/*.deb")

    def qemus(self) -> list[str]:
        """Return the QEMUs that run, each by process and start time."""
        return self.host.run("sh", "-c", QEMUS).stdout.splitlines()

    def is_active(self, unit: str) -> bool:
        return self.host.run("systemctl", "is-active", unit, check=False).stdout.strip() == "active"

    def main_pid(self, unit: str) -> str:
        return self.host.run("systemctl", "show", "--property=MainPID", "--value", unit).stdout.strip()

    def node_is_ready(self) -> bool:
        return '"ready": true' in self.cli("node", "list", "--output", "json")

    def exposure(self, unit: str) -> float:
        lines = self.host.run("systemd-analyze", "security", "--no-pager", unit).stdout.splitlines()
        return float(next(line for line in lines if "Overall exposure" in line).split(": ")[1].split()[0])


@pytest.fixture(scope="module", params=list(Debian), ids=lambda debian: f"debian-{debian}")
def debian(request: pytest.FixtureRequest) -> Debian:
    lacks = debian_hosts.missing()
    if lacks:
        pytest.skip(f"not installed here: {', '.join(lacks)}")
    return Debian(request.param)


@pytest.fixture(scope="module")
def first_build(debian: Debian) -> Iterator[Path]:
    """Return the packages of a build."""
    with tempfile.TemporaryDirectory(prefix="nvpk-") as directory:
        first = Path(directory) / "first"
        build(first, [debian], 1)
        yield first


@pytest.fixture(scope="module")
def builds(debian: Debian, first_build: Path) -> tuple[Path, Path]:
    """Return the packages of two builds, the second one later."""
    second = first_build.parent / "second"
    build(second, [debian], 2)
    return first_build, second


@pytest.fixture
def installed(debian: Debian, builds: tuple[Path, Path], lacks: list[str], images: Path) -> Iterator[Installed]:
    """A host with the first build's packages, whose only node is itself."""
    if lacks:
        pytest.skip("; ".join(lacks))
    with booted(debian, 1) as (host,):
        made = Installed(host, debian)
        made.install(builds[0])
        shutil.copytree(images / "tiny", host.path("/var/lib/novacron/images/tiny"))
        assert made.is_active("novacron-server"), host.journal("novacron-server")
        assert not made.is_active("novacron-agent"), "it has no token yet"
        made.cli("node", "join-token", "--node", host.name, "--accept", "--file", JOIN_TOKEN)
        host.run("systemctl", "restart", "novacron-agent")
        until(made.node_is_ready, "the node is ready", 120)
        yield made


def test_a_vm_outlives_restarts_kills_and_upgrades_of_the_agent(
    installed: Installed, builds: tuple[Path, Path]
) -> None:
    host = installed.host
    assert installed.exposure("novacron-server.service") <= SERVER_EXPOSURE_MAX
    assert installed.exposure("novacron-agent.service") <= AGENT_EXPOSURE_MAX
    assert "BAD" not in host.run("novacron", "doctor", check=False).stdout

    installed.cli("vm", "create", "web", "--image", "tiny", "--memory", "128", "--wait")
    before = installed.qemus()
    assert len(before) == 1
    host.run("systemctl", "restart", "novacron-agent")
    assert installed.qemus() == before, "a restart of the agent touches no VM"

    agent = installed.main_pid("novacron-agent")
    host.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "novacron-agent")
    until(
        lambda: installed.main_pid("novacron-agent") not in (agent, "0") and installed.is_active("novacron-agent"),
        "systemd has started the agent again", 120,
    )  # fmt: skip
    assert installed.qemus() == before

    host.run("sh", "-c", "echo '# by the administrator' >> /etc/novacron/agent.toml")
    agent, server = installed.main_pid("novacron-agent"), installed.main_pid("novacron-server")
    installed.install(builds[1])
    assert installed.is_active("novacron-agent") and installed.is_active("novacron-server")
    assert installed.main_pid("novacron-agent") != agent and installed.main_pid("novacron-server") != server
    assert installed.qemus() == before, "an upgrade touches no VM"
    assert "# by the administrator" in host.path("/etc/novacron/agent.toml").read_text()
    until(installed.node_is_ready, "the node is ready again", 120)
    assert '"state": "running"' in installed.cli("vm", "show", "web", "--output", "json")
    installed.cli("vm", "delete", "web", "--wait", "--yes")
    until(lambda: not installed.qemus(), "the VM's QEMU has ended", 60)

    host.stop()  # as the power button does
    assert not host.running


def test_purging_leaves_data_alone_and_says_where(installed: Installed) -> None:
    host = installed.host
    host.run("sh", "-c", "echo 'prot = 1' >> /etc/novacron/server.toml")
    assert host.run("systemctl", "restart", "novacron-server", check=False).returncode != 0
    said = host.journal("novacron-server")
    assert "error: /etc/novacron/server.toml: there is no setting prot; did you mean port?" in said

    purged = host.run("dpkg", "--purge", *(package.name for package in reversed(PACKAGES)))
    for data in ("server", "postgres", "agent", "images"):
        assert f"data stays in /var/lib/novacron/{data}" in purged.stderr
        assert host.path(f"/var/lib/novacron/{data}").is_dir()
    left = host.run("find", "/", "-xdev", "-name", "*novacron*", "-not", "-path", "/var/lib/*").stdout.split()
    own = {f"/root/first/{path.name}" for path in host.path("/root/first").iterdir()}
    assert set(left) - own == set(), "nothing but data is left"


def test_the_same_commit_gives_the_same_packages(debian: Debian, tmp_path: Path) -> None:
    made = []
    for umask in (0o022, 0o077):
        directory = tmp_path / f"{umask:o}"
        directory.mkdir()
        before = os.umask(umask)
        try:
            to = Built(directory, "0.1.0", epoch_s())
            wheel = python_packages(directory, to.epoch_s)
            made.append([wheel, *debian_packages(to, wheel, [debian], packages=(CLI, AGENT))])
        finally:
            os.umask(before)
    for one, other in zip(*made, strict=True):
        assert one.name == other.name and one.read_bytes() == other.read_bytes(), one.name


def _image(scratch: Path) -> Path:
    """Return the image of a disk that boots and says so."""
    disk, image = scratch / "disk", scratch / "disk.qcow2"
    disk.write_bytes(sector("up").ljust(1 << 20, b"\0"))
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", disk, image], check=True, timeout=60)
    return image


@pytest.mark.timeout(1200)
def test_the_page_on_three_hosts_is_executed(
    debian: Debian, first_build: Path, lacks: list[str], tmp_path: Path
) -> None:
    if lacks:
        pytest.skip("; ".join(lacks))
    with booted(debian, 3) as hosts:
        put_on_hosts(hosts, first_build, _image(tmp_path))
        named, server, node = {host.name: host for host in hosts}, hosts[0], hosts[1]
        began = time.monotonic()
        commands = execute(THREE_HOSTS.read_text().partition(OPTIONAL)[0], named)
        print(f"{commands} commands, {time.monotonic() - began:.0f} s on Debian {debian}")
        assert 0 < commands <= COMMANDS_MAX
        assert '"state": "running"' in server.run("novacron", "vm", "show", "web", "--output", "json").stdout
        assert server.run("novacron", "node", "list", "--output", "json").stdout.count('"ready": true') == 2
        assert not node.path(JOIN_TOKEN).exists()

        before = [
            host.path(f"/etc/novacron/{name}.toml").read_text() for host, name in ((server, "server"), (node, "agent"))
        ]
        again = server.run("novacron", "setup", "server", "--advertise", "host-a").stdout
        assert "novacron-server is set up: nothing was changed" in again
        assert "novacron-agent is set up: nothing was changed" in node.run("novacron", "setup", "agent").stdout
        refused = server.run("novacron", "setup", "server", "--advertise", "other", "--port", "22222", check=False)
        assert refused.returncode == 1 and 'advertise = "host-a", but you gave "other"' in refused.stderr
        dry = server.run("novacron", "setup", "server", "--pool", "30", "--dry-run").stdout
        assert "+pool = 30" in dry and "would do: systemctl restart" in dry
        assert before[0] == server.path("/etc/novacron/server.toml").read_text()
        assert before[1] == node.path("/etc/novacron/agent.toml").read_text()

        server.write("/root/database.toml", 'database = "postgresql://me:secret@127.0.0.1:1/novacron"\n', 0o600)
        refused = server.run("novacron", "setup", "server", "--settings", "/root/database.toml", check=False)
        assert refused.returncode == 1 and "error: database: can't be reached" in refused.stderr
        assert "secret" not in refused.stdout + refused.stderr
        assert before[0] == server.path("/etc/novacron/server.toml").read_text()

        killed = server.run("timeout", "--signal=KILL", "4", "novacron", "setup", "server", "--pool", "30", check=False)
        print(f"killed: {killed.returncode} {killed.stdout}")
        server.run("novacron", "setup", "server", "--pool", "30")
        assert "\npool = 30\n" in server.path("/etc/novacron/server.toml").read_text()
        assert "nothing was changed" in server.run("novacron", "setup", "server", "--pool", "30").stdout


def cluster_status(host: DebianHost) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(host.run("novacron", "database", "cluster", "status", "--output", "json",
                                                check=False).stdout or "{}")  # fmt: skip
    return found


@pytest.mark.timeout(1500)
def test_the_pages_optional_step_puts_the_database_on_three_hosts(
    debian: Debian, first_build: Path, lacks: list[str], tmp_path: Path
) -> None:
    if lacks:
        pytest.skip("; ".join(lacks))
    server_part, optional_part = THREE_HOSTS.read_text().partition(OPTIONAL)[::2]
    server_part = server_part.partition("\n## The nodes")[0]
    optional_part, with_everything, _ = optional_part.partition("\nroot@host-a:~# novacron setup database --member ")
    with booted(debian, 3, ("etcd-server", "openssh-server", "python3")) as hosts:
        put_on_hosts(hosts, first_build, _image(tmp_path))
        named, first = {host.name: host for host in hosts}, hosts[0]
        execute(server_part, named)
        for host in hosts[1:]:
            host.run("sh", "-c", "cd /root && apt-get install -y ./novacron_*.deb")
        first.run("novacron", "project", "create", "kept")
        assert with_everything
        execute(optional_part, named)
        rest = THREE_HOSTS.read_text().partition(OPTIONAL)[2][len(optional_part) :]

        command = next(TYPED.finditer(rest))["command"]
        dry = first.run("sh", "-c", f"{command} --dry-run").stdout
        assert "would do: systemctl stop novacron-server.service" in dry and "nothing was changed" in dry
        wrong = first.run("sh", "-c", f"{command.replace(' --private-network', '')} --port 22", check=False)
        print(wrong.stderr)
        assert wrong.returncode == 1 and "--private-network" in wrong.stderr and "nothing was changed" in wrong.stderr
        assert not first.path("/var/lib/novacron/postgres/patroni.yml").exists()
        killed = first.run("timeout", "--signal=KILL", "9", "sh", "-c", f"exec {command}", check=False)
        print(f"killed: {killed.returncode} {killed.stdout}")
        execute(rest, named)

        until(lambda: cluster_status(first).get("well") is True, "the cluster is well", 120)
        roles = sorted(member["role"] for member in cluster_status(first)["members"])
        assert roles == ["primary", "standby", "sync_standby"]
        settings = first.path("/etc/novacron/server.toml").read_text()
        assert "host-a:5432,host-b:5432,host-c:5432" in settings
        assert "nothing was changed" in first.run("novacron", "setup", "database").stdout
        assert "nothing was changed" in hosts[1].run("novacron", "setup", "database").stdout
        password = settings.partition("postgres:")[2].partition("@")[0]
        assert password and password not in dry + killed.stdout + killed.stderr

        lost = next(host for host in hosts if host.name[-1] == cluster_status(first)["primary"][-1])
        assert lost is first, "nobody has moved it"
        first.run("systemctl", "stop", "novacron-database")
        until(lambda: "kept" in first.run("novacron", "project", "list", check=False).stdout, "another one serves", 90)
        first.run("novacron", "project", "create", "after")
        first.run("systemctl", "start", "novacron-database")
        until(lambda: cluster_status(first).get("well") is True, "the cluster is well again", 180)
