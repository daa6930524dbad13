"""Rollouts of agents on real Debian hosts, over SSH, with real packages: VMs run on, and bad versions go back."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.debian.build import build
from deploy.debian.manifest import AGENT, CLI, Debian
from lab import debian_hosts
from lab.debian_hosts import DebianHost
from lab.guest import CounterClient
from lab.guide import NEEDED, RELEASES
from lab.hosts import BRIDGE
from lab.platform import default_cache, open_directory
from lab.repacked import ReleaseDefect, repacked
from lab.switched import switched_lab
from tests.e2e.test_debian_hosts import QEMUS
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

OLD, NEW, NO_START, ENDS_GUESTS = "0.1.0", "0.1.1", "0.1.2", "0.1.3"
DEFECTS = {
    NEW: ReleaseDefect.NONE, NO_START: ReleaseDefect.DOES_NOT_START, ENDS_GUESTS: ReleaseDefect.ENDS_GUESTS
}  # fmt: skip
KEPT = "/var/lib/novacron/packages"
GUEST_ADDRESS = "198.19.0.10"
CONSOLES_S_MAX = 60.0
"""The bound of the benchmark is 5 s, on a machine that does nothing else."""
PAGE = Path(__file__).parents[2] / "docs/how-to/upgrade-agents.md"
TYPED = re.compile(r"^# novacron rollout (start --agents --version )0\.2\.0( --packages \S+)$", re.MULTILINE)
QUICK = ("--waves", "1,100%", "--wave-watch", "5", "--check-every", "1", "--agent-back", "120")
"""What makes a rollout take seconds where the page's takes minutes."""
WATCHER = """
import time
from pathlib import Path
from novacron.client import ApiError, Client, Unreachable, load_config
from novacron.client.console import ConsoleEnded
client = Client(load_config())
console = client.open_console("web")
Path("/root/console-open").touch()
try:
    while True:
        console.recv(300)
except ConsoleEnded:
    ended = time.monotonic()
while time.monotonic() < ended + 120:
    try:
        console = client.open_console("web")
        console.send(b"\\n")
        console.recv(5)
        print(time.monotonic() - ended)
        break
    except (ApiError, Unreachable, ConsoleEnded, TimeoutError):
        time.sleep(0.1)
"""


class Fleet:
    """A server on host-a, which reaches nodes on host-b and host-c by SSH; a VM on each of them."""

    def __init__(self, hosts: list[DebianHost]) -> None:
        self.hosts = hosts
        self.server, self.nodes = hosts[0], hosts[1:]

    def cli(self, *arguments: str, check: bool = True, timeout_s: float = 300.0) -> Any:
        return self.server.run("novacron", *arguments, check=check, timeout_s=timeout_s)

    def start(self, version: str) -> tuple[int, str]:
        """Start a rollout as the page on it says; return its exit code and all that it said."""
        match = TYPED.search(PAGE.read_text())
        assert match is not None, "the page has the command"
        return self.rollout(*f"{match[1]}{version}{match[2]}".split())

    def rollout(self, *arguments: str) -> tuple[int, str]:
        """Run a command of rollouts; return its exit code and all that it said."""
        done = self.cli("rollout", *arguments, *QUICK, check=False, timeout_s=1200)
        print(done.stdout, done.stderr)
        return done.returncode, done.stdout + done.stderr

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.cli("rollout", "status", "--agents", "-o", "json").stdout)
        return found

    def agents(self) -> dict[str, str]:
        """Return the versions of the agents that are connected."""
        nodes = json.loads(self.cli("node", "list", "-o", "json").stdout)
        return {node["name"]: node["status"]["inventory"]["agent_version"] for node in nodes if node["status"]["ready"]}

    def qemus(self) -> list[list[str]]:
        return [host.run("sh", "-c", QEMUS).stdout.splitlines() for host in self.nodes]


@pytest.fixture(scope="module")
def fleet(lacks: list[str], images: Path) -> Iterator[Fleet]:
    missing = [*lacks, *debian_hosts.missing()]
    if missing:
        pytest.skip("; ".join(missing))
    debian = Debian.DEBIAN_12
    root = debian_hosts.root(
        RELEASES[debian], (f"python{debian.python}", "openssh-server", "openssh-client", *NEEDED), default_cache()
    )
    with (
        open_directory("nvar-") as directory,
        switched_lab(f"nva{os.getpid()}", default_cache(), 3) as lab,
        debian_hosts.debian_hosts(lab.hosts, root, directory) as hosts,
    ):
        build(directory / OLD, [debian], 1)
        made = Fleet(hosts)
        _install(made, directory, images)
        for number, host in enumerate(made.nodes):
            made.cli("vm", "create", ("web", "db")[number], "--image", "tiny", "--memory", "128", "--node", host.name,
                     "--address", f"198.19.0.{10 + number}/24", "--wait")  # fmt: skip
        until(lambda: all(len(found) == 1 for found in made.qemus()), "a VM runs on each node", 120)
        yield made


def _install(fleet: Fleet, directory: Path, images: Path) -> None:
    names = "".join(f"{host.host.address} {host.name}\n" for host in fleet.hosts)
    debs = {deb.name.partition("_")[0]: deb for deb in (directory / OLD).glob("*.deb")}
    for host in fleet.hosts:
        host.write("/etc/hosts", f"127.0.0.1 localhost\n{names}")
        for deb in debs.values():
            host.copy(deb, f"/root/{deb.name}")
    for name in (CLI.name, AGENT.name):
        fleet.server.copy(debs[name], f"{KEPT}/{debs[name].name}")
        for version, defect in DEFECTS.items():
            made = repacked(
                debs[name], version, directory / version, defect if name == AGENT.name else ReleaseDefect.NONE
            )
            fleet.server.copy(made, f"{KEPT}/{made.name}")
    _trust(fleet)
    fleet.server.run("sh", "-c", "dpkg --install /root/novacron_*.deb /root/novacron-server_*.deb")
    fleet.cli("setup", "server", "--advertise", fleet.server.name)
    for host in fleet.nodes:
        host.run("sh", "-c", "dpkg --install /root/novacron_*.deb /root/novacron-agent_*.deb")
        shutil.copytree(images / "tiny", host.path("/var/lib/novacron/images/tiny"))
        host.run("ip", "address", "add", f"198.19.0.{host.host.number}/24", "dev", BRIDGE)
        host.run("ip", "link", "set", BRIDGE, "up")
        token = fleet.cli("node", "join-token", "--node", host.name, "--accept").stdout
        host.run("novacron", "setup", "agent", "--join", "-", "--bridge", BRIDGE, stdin=token)
    until(lambda: len(fleet.agents()) == 2, "both nodes are ready", 180)


def _trust(fleet: Fleet) -> None:
    """Let root of the server's host in at the nodes, and let it know their keys."""
    fleet.server.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/.ssh/id_ed25519")
    key, known = fleet.server.path("/root/.ssh/id_ed25519.pub").read_text(), ""
    for host in fleet.nodes:
        host.write("/root/.ssh/authorized_keys", key, 0o600)
        host.path("/root/.ssh").chmod(0o700)
        host.run("ssh-keygen", "-A")
        host.run("systemctl", "restart", "ssh")
        known += f"{host.name} {host.path('/etc/ssh/ssh_host_ed25519_key.pub').read_text()}"
    fleet.server.write("/root/.ssh/known_hosts", known, 0o600)


@contextlib.contextmanager
def watched_console(fleet: Fleet) -> Iterator[list[float]]:
    """Keep a console open; afterwards the list has how long it took until it was open again, in seconds."""
    fleet.server.write("/root/watcher.py", WATCHER)
    took: list[float] = []

    def watch() -> None:
        done = fleet.server.run("/opt/novacron/cli/bin/python", "/root/watcher.py", check=False, timeout_s=900)
        took.extend(float(line) for line in done.stdout.split())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    until(lambda: fleet.server.path("/root/console-open").exists(), "the console is open", 120)
    yield took
    thread.join(180)


def test_an_upgrade_in_waves_touches_no_guest_and_consoles_come_back(fleet: Fleet) -> None:
    before = fleet.qemus()
    counter = CounterClient(fleet.nodes[0].host, GUEST_ADDRESS)
    until(lambda: counter.last > 20, "the guest counts", 60)
    began = time.monotonic()
    with watched_console(fleet) as consoles:
        code, said = fleet.start(NEW)
    assert code == 0, said
    print(f"longest gap of the guest: {counter.longest_gap_ms(began):.0f} ms, the console was back in {consoles} s")
    assert counter.broken is None and counter.missing_numbers() == 0, "the guest went on all the time"
    counter.close()
    assert fleet.qemus() == before, "every QEMU is the same process"
    assert fleet.agents() == {"host-b": NEW, "host-c": NEW}
    assert "2 upgraded" in said and "watch-2: watched for" in said
    assert len(consoles) == 1 and consoles[0] <= CONSOLES_S_MAX

    code, said = fleet.start(NEW)
    assert code == 0 and "it has version 0.1.1" in said and fleet.qemus() == before


@pytest.mark.parametrize(("version", "why"), [(NO_START, "is not connected"), (ENDS_GUESTS, "VM ")])
def test_a_bad_version_reaches_one_node_and_goes_back(fleet: Fleet, version: str, why: str) -> None:
    versions = fleet.agents()
    code, said = fleet.start(version)
    assert code == 1 and why in said, said
    status = fleet.status()
    assert status["state"] == "rolled-back" and status["went_back_s"] > 0
    until(lambda: fleet.agents() == versions, "both agents have their version again", 120)
    touched = [node["name"] for node in status["nodes"] if node["stage"] != "waiting"]
    assert len(touched) == 1, "the others were never touched"
    until(lambda: all(len(found) == 1 for found in fleet.qemus()), "each VM runs (again)", 180)


def test_a_killed_rollout_goes_on_and_a_host_that_is_off_is_left_out(fleet: Fleet) -> None:
    versions = fleet.agents()
    target = OLD if set(versions.values()) == {NEW} else NEW
    fleet.nodes[1].run("systemctl", "stop", "novacron-agent")
    until(lambda: "host-c" not in fleet.agents(), "host-c is not heard any more", 120)
    before = fleet.qemus()
    unit = ("systemd-run", "--unit=rollout", "--property=RemainAfterExit=yes", "--setenv=HOME=/root", "--")
    words = ("rollout", "start", "--agents", "--version", target, "--packages", KEPT)
    fleet.server.run(*unit, "novacron", *words, *QUICK)
    until(lambda: fleet.status()["step"] == "install-1", "the first node is worked on", 120)
    fleet.server.run("systemctl", "kill", "--signal=KILL", "rollout")
    until(lambda: fleet.status()["abandoned"], "it is killed", 60)
    code, said = fleet.rollout("resume", "--agents", "--packages", KEPT)
    assert code == 0, said
    stages = {node["name"]: node["stage"] for node in fleet.status()["nodes"]}
    assert stages == {"host-b": "upgraded", "host-c": "left-out"}
    fleet.nodes[1].run("systemctl", "start", "novacron-agent")
    until(lambda: fleet.agents() == {**versions, "host-b": target}, "host-c is back, as it was", 120)
    assert fleet.qemus() == before
