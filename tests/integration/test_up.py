"""``novacron up``: everything on one machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.guest import shell
from lab.hosts import Host, remove_namespace, run
from lab.platform import open_directory, until
from lab.ports import free_ports
from novacron import context_file
from novacron.agent.host.instances import instance_of, prefix_of
from novacron.client import Client, load_config
from novacron.net import namespace
from tests.support.outsider import OUTSIDE, listening


class Up:
    def __init__(self, directory: Path, images: Path, host: Host | None = None) -> None:
        """``host``: where it runs, with a network for its VMs; None: this machine, without one."""
        self.directory = directory
        self.log = directory / "up.log"
        self.env = {**os.environ, "NOVACRON_CONFIG": str(directory / "cli.json")}
        self._port = free_ports(1)[0]
        self._images = images
        self._enter = [] if host is None else host.enter
        self._options = ["--no-network"] if host is None else []
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.log.unlink(missing_ok=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*self._enter, sys.executable, "-m", "novacron", "up", *self._options, "--state-dir",
                 str(self.directory / "s"), "--images-dir", str(self._images), "--port", str(self._port)],
                stdout=log, stderr=log, env=self.env, start_new_session=True,
            )  # fmt: skip
        until(lambda: b"up: API at" in self.log.read_bytes(), f"it is up: {self.log}", 60)
        until(lambda: any(n["status"]["ready"] for n in self.cli("node", "list")), "its node is ready", 60)

    def listening(self) -> set[str]:
        """Return the addresses at which its API, agents' link and DWCP listen, as the kernel writes them."""
        ports = {f"{self._port + offset:04X}" for offset in range(3)}
        lines = [
            line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()
        ]
        local = [columns[1].rpartition(":") for columns in lines if columns[3] == "0A"]
        assert {port for _, _, port in local} >= ports
        return {address for address, _, port in local if port in ports}

    def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(30)

    def cli(self, *arguments: str) -> Any:
        done = subprocess.run(
            [*self._enter, sys.executable, "-m", "novacron", *arguments, "-o", "json"],
            capture_output=True, text=True, check=True, env=self.env, timeout=120,
        )  # fmt: skip
        return json.loads(done.stdout)

    def pids(self, *words: str) -> list[int]:
        """Return the processes of this installation whose command line has all the words."""
        process_ids = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                place = f"{line} {(entry / 'cwd').readlink()}"
                if str(self.directory) in place and all(word in line for word in words):
                    process_ids.append(int(entry.name))
        return process_ids


@pytest.fixture
def up(images: Path) -> Iterator[Up]:
    with open_directory("nvu-") as directory:
        platform = Up(directory, images)
        try:
            yield platform
        finally:
            if platform.process is not None and platform.process.poll() is None:
                platform.end(signal.SIGTERM)
            for pid in platform.pids("qemu-system"):
                os.kill(pid, signal.SIGKILL)


def test_up_starts_and_runs_vms_and_leaves_them_running(up: Up) -> None:
    up.start()
    assert "the administrator's token is in the CLI's settings only" in up.log.read_text()
    assert "nva_" not in up.log.read_text(), "a service's log is no place for it"
    assert up.listening() == {"0100007F"}, "no other host reaches it (127.0.0.1)"
    assert (up.directory / "cli.json").stat().st_mode & 0o777 == 0o600
    pid = up.cli("vm", "create", "web", "--image", "tiny", "--memory", "128", "--wait")["status"]["pid"]
    assert up.end(signal.SIGTERM) == 0
    assert up.pids() == [pid], "only the VM is left"
    up.start()
    assert "administrator's token" not in up.log.read_text(), "it is told once"
    until(lambda: up.cli("vm", "show", "web")["status"] == {**up.cli("vm", "show", "web")["status"], "pid": pid},
          "the VM is adopted")  # fmt: skip
    up.cli("vm", "stop", "web", "--force", "--wait")
    assert up.pids("qemu-system") == []


@pytest.fixture
def host(lacks: list[str]) -> Iterator[Host]:
    """A machine of its own, which reaches one other."""
    if lacks:
        pytest.skip("; ".join(lacks))
    names = [f"nova-up-{os.getpid()}-{name}" for name in ("host", "outside")]
    try:
        for name in names:
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", names[0], "link", "add", "eth0", "type", "veth", "peer", "eth0", "netns", names[1])
        for name, address in zip(names, ("203.0.113.1", OUTSIDE), strict=True):
            run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            run("ip", "-n", name, "link", "set", "eth0", "up")
        run("ip", "-n", names[0], "route", "add", "default", "via", OUTSIDE)
        yield Host("host", names[0], 1)
    finally:
        for name in names:
            remove_namespace(name)


def test_a_vm_has_an_address_and_reaches_out_without_being_asked_for(
    host: Host, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_directory("nvu-") as directory:
        up = Up(directory, images, host)
        monkeypatch.setenv("NOVACRON_CONFIG", up.env["NOVACRON_CONFIG"])
        prefix = prefix_of(instance_of(directory / "s" / "agent"))
        try:
            up.start()
            assert "VMs are in network default, 10.64.0.0/24, unless they name another" in up.log.read_text()
            vm = up.cli("vm", "create", "web", "--image", "tiny", "--memory", "128", "--wait")
            assert [(nic["network"], nic["address"]) for nic in vm["spec"]["nics"]] == [("default", "10.64.0.3")]
            console = directory / "s" / "agent" / "vms" / vm["id"] / "console.log"
            until(lambda: "ready 10.64.0.3/24" in console.read_text(), f"its guest has it: {console}", 60)
            client = Client(load_config())
            outside = Host("outside", str(host.netns).replace("host", "outside"), 2)
            with listening(outside, OUTSIDE, 9000) as came:
                host.within(lambda: shell(client, vm["id"], f"nc -w 20 {OUTSIDE} 9000 </dev/null; echo done"))
            assert came == ["203.0.113.1"], "it reaches out, under its gateway's address"
            assert host.within(lambda: shell(client, vm["id"], "nslookup web.default.internal | grep 10.64.0.3")) != ""
            alone = up.cli("vm", "create", "alone", "--image", "tiny", "--network", "none", "--no-start")
            assert alone["spec"]["nics"] == []
        finally:
            if up.process is not None and up.process.poll() is None:
                up.end(signal.SIGTERM)
            for pid in up.pids("qemu-system"):
                os.kill(pid, signal.SIGKILL)
            for name in namespace.all(prefix):
                remove_namespace(name)


def test_killed_processes_are_restarted_and_none_outlives_a_killed_platform(up: Up) -> None:
    up.start()
    pid = up.cli("vm", "create", "web", "--image", "tiny", "--memory", "128", "--wait")["status"]["pid"]
    for part in ("novacron server", "novacron agent", "bin/postgres -D"):
        victims = up.pids(part)
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        until(lambda part=part, victims=victims: set(up.pids(part)) - set(victims), f"{part} is back")  # type: ignore[misc]
    until(lambda: (up.directory / "cli.json").exists() and _answers(up), "the API answers again", 60)
    assert up.cli("vm", "show", "web")["status"]["pid"] == pid
    up.end(signal.SIGKILL)
    until(lambda: not up.pids("novacron server") and not up.pids("novacron agent"), "its parts are gone")
    up.start()
    assert up.cli("vm", "show", "web")["status"]["pid"] == pid


def _answers(up: Up) -> bool:
    with contextlib.suppress(subprocess.CalledProcessError):
        return any(node["status"]["ready"] for node in up.cli("node", "list"))
    return False


def test_a_second_up_on_one_folder_is_refused_and_harms_nothing(up: Up) -> None:
    config = up.directory / "cli.json"
    config.write_text('{"url": "https://another.example:7440", "token": "the only copy"}')
    own = up.directory / "s" / "config.json"
    up.env["NOVACRON_CONFIG"] = str(config)
    command = [
        sys.executable, "-m", "novacron", "up", "--no-network", "--state-dir", str(up.directory / "s"),
        "--images-dir", str(up._images), "--port", str(up._port),
    ]  # fmt: skip
    with up.log.open("wb") as log:
        up.process = subprocess.Popen(command, stdout=log, stderr=log, env=up.env, start_new_session=True)
    until(lambda: b"up: API at" in up.log.read_bytes(), f"it is up: {up.log}", 60)
    contexts = context_file.read(config)
    assert contexts.get(contexts.current).token == "the only copy", "the settings of another installation stay in use"
    assert contexts.names() == ["default", "local"]
    assert f"settings in {config}; try: novacron --context local node list".encode() in up.log.read_bytes()
    up.env["NOVACRON_CONFIG"] = str(own)
    until(lambda: any(node["status"]["ready"] for node in up.cli("node", "list")), "its node is ready", 60)
    second = subprocess.run(command, capture_output=True, text=True, check=False, env=up.env, timeout=60)
    assert second.returncode == 1 and f"process {up.process.pid} already works with" in second.stderr
    server = [sys.executable, "-m", "novacron", "server", "--state-dir", str(up.directory / "s"), "--port", "0"]
    third = subprocess.run(server, capture_output=True, text=True, check=False, env=up.env, timeout=60)
    assert third.returncode == 1 and "already works with" in third.stderr
    assert up.cli("node", "list"), "the first one goes on"
