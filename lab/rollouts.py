"""An installation behind HAProxy, for rollouts: two places for servers over one PostgreSQL, releases good and bad."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import urllib3
import yaml

from lab.copied_postgres import CopiedPostgres
from lab.observers import DEPLOYED, STOP_S, Daemon
from lab.platform import NO_RATE_LIMITS, open_directory, until
from lab.ports import free_ports
from novacron.rollout.instances import Environments
from novacron.rollout.model import Colour
from novacron.rollout.probes import BUILD
from novacron.rollout.processes import ServerProcesses

RELEASES = {
    "1.0.0": "none",
    "1.1.0": "none",
    "1.1.1-unready": "never-ready",
    "1.1.2-errors": "errors=0.05",
    "1.1.3-slow": "delay=0.5",
}
"""The releases that can be brought, and what is wrong with them."""
OLD, NEW = "1.0.0", "1.1.0"
COMMAND_S_MAX = 200.0
QUICK = {
    "health-tries": 120, "health-every": 0.25, "watch": 1.0, "step": 2.0, "check-every": 0.5, "settle": 6.0,
    "window": 5, "drain": 5.0, "haproxy-wait": 5.0, "least-requests": 20,
}  # fmt: skip
"""Settings with which a rollout takes seconds."""
FAULTY_PYTHON = """#!/bin/sh
PYTHONPATH={root} exec {python} -m lab.released {version} {fault} "$@"
"""


class Answered(NamedTuple):
    """A request: when it began (monotonic), how long it took, and its status (0: none)."""

    began: float
    took_s: float
    status: int


class Load:
    """Clients of the API behind HAProxy, which make projects and read them; each request is kept."""

    def __init__(self, installation: Installation, clients: int = 4, pause_s: float = 0.02) -> None:
        self._installation, self._pause_s = installation, pause_s
        self.answered: list[Answered] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        at = self._installation
        headers = {"Authorization": f"Bearer {at.token}", "Content-Type": "application/json"}
        with urllib3.PoolManager(ca_certs=str(at.ca), headers=headers) as pool:
            turn = 0
            while not self._stop.wait(self._pause_s):
                turn += 1
                name = f"load-{number}-{turn}-{os.urandom(3).hex()}"
                made = self._ask(pool, "POST", "projects", json.dumps({"name": name}))
                if made is not None and made.status == 201:
                    self._ask(pool, "GET", f"projects/{name}?min_revision={made.json()['revision']}")
                    self._ask(pool, "DELETE", f"projects/{name}")
                self._ask(pool, "GET", "projects")

    def _ask(
        self, pool: urllib3.PoolManager, method: str, path: str, body: str | None = None
    ) -> urllib3.BaseHTTPResponse | None:
        began, answer = time.monotonic(), None
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            answer = pool.request(
                method, f"{self._installation.url}/api/v1/{path}", body=body, retries=False, timeout=15
            )
        status = 0 if answer is None else answer.status
        self.answered.append(Answered(began, time.monotonic() - began, status))
        return answer

    def failed(self) -> list[Answered]:
        return [request for request in self.answered if not 200 <= request.status < 300]


class Installation:
    """PostgreSQL, HAProxy, and two places for servers; Prometheus if it is asked for."""

    def __init__(self, directory: Path, more: Mapping[str, object]) -> None:
        self.directory = directory
        ports = free_ports(7)
        self.port, self.agents_port, self.exporter_port = ports[:3]
        self.ports = {Colour.BLUE: (ports[3], ports[4]), Colour.GREEN: (ports[5], ports[6])}
        self.url = f"https://127.0.0.1:{self.port}"
        self.ca = directory / "ca.crt"
        self.token = ""
        self.postgres = CopiedPostgres(directory / "pg")
        self.haproxy: subprocess.Popen[bytes] | None = None
        self.prometheus: Daemon | None = None
        self.prometheus_url = ""
        self.settings = directory / "rollout.toml"
        self._more = dict(more)
        self.environments = Environments(directory / "root", None, {})
        self.instances = ServerProcesses(self.environments, directory / "rollouts", lambda c: directory / f"{c}.toml")

    def up(self) -> None:
        """Start everything but the first server."""
        self.postgres.start()
        (self.directory / "rollouts").mkdir(mode=0o700)
        for version, fault in RELEASES.items():
            python = self.directory / "releases" / version / "bin/python"
            python.parent.mkdir(parents=True)
            python.write_text(FAULTY_PYTHON.format(
                root=Path(__file__).parents[1], python=sys.executable, version=version, fault=fault))  # fmt: skip
            python.chmod(0o755)
        for colour, (port, link_port) in self.ports.items():
            lines = {
                "database": self.postgres.url, "state-dir": str(self.directory / colour), "port": port,
                "link-port": link_port, "trusted-proxy": ["127.0.0.1/32"], "leave-after": 0.5, "pool": 10,
            }  # fmt: skip
            limits = {NO_RATE_LIMITS[0][2:]: 1e9, NO_RATE_LIMITS[2][2:]: 1e9}
            _write_toml(self.directory / f"{colour}.toml", {**lines, **limits})
            (self.directory / colour / "server").mkdir(parents=True, mode=0o700)
        self.write_settings()

    def write_settings(self, **more: object) -> None:
        """Write the settings of rollouts: those of all tests, and these."""
        at = self.directory
        given = {
            "state-dir": str(at / "rollouts"), "instances": "processes", "root": str(at / "root"),
            "environment": [f"{version}={at / 'releases' / version}" for version in RELEASES],
            "server-settings": str(at / "{colour}.toml"), "ca": str(self.ca), "token-file": str(at / "token"),
            "blue-url": f"https://127.0.0.1:{self.ports[Colour.BLUE][0]}",
            "green-url": f"https://127.0.0.1:{self.ports[Colour.GREEN][0]}",
            "haproxy-config": str(at / "haproxy.cfg"), "haproxy-socket": str(at / "haproxy.sock"),
            "textfile": str(at / "rollout.prom"), **QUICK, **self._more,
            **{name.replace("_", "-"): value for name, value in more.items()},
        }  # fmt: skip
        _write_toml(self.settings, given)

    def begin(self) -> None:
        """Start the first server by hand, as an installation that is older than rollouts has it, and HAProxy."""
        os.environ["NOVACRON_CONFIG"] = str(self.directory / "cli.json")
        Environments(self.directory / "root", None, {OLD: self.directory / "releases" / OLD}).give(Colour.BLUE, OLD)
        self.instances.start(Colour.BLUE)
        blue = self.directory / "blue/server"
        until(lambda: (blue / "server.crt").exists() and (self.directory / "cli.json").exists(), "it has begun", 60)
        for name in ("ca.crt", "ca.key", "seal.key"):
            if (blue / name).exists():
                shutil.copy(blue / name, self.directory / "green/server" / name)
        shutil.copy(blue / "ca.crt", self.ca)
        config = json.loads((self.directory / "cli.json").read_text())
        self.token = next(iter(config["contexts"].values()))["token"]
        token = self.directory / "token"
        token.touch(mode=0o600)
        token.write_text(self.token)
        pem = self.directory / "novacron.pem"
        pem.touch(mode=0o600)
        pem.write_text((blue / "server.crt").read_text() + (blue / "server.key").read_text())
        self.write_haproxy()
        self.start_haproxy()

    def write_haproxy(self) -> None:
        """Write the configuration that operators get, with this installation's addresses."""
        text = (DEPLOYED / "rollout/haproxy.cfg").read_text()
        (blue, blue_link), (green, green_link) = self.ports[Colour.BLUE], self.ports[Colour.GREEN]
        for was, now in {
            "inter 1s": "inter 500ms",
            "127.0.0.1:7443": f"127.0.0.1:{self.port}", "bind :7444": f"bind 127.0.0.1:{self.agents_port}",
            "127.0.0.1:7405": f"127.0.0.1:{self.exporter_port}",
            "127.0.0.1:7543": f"127.0.0.1:{blue}", "127.0.0.1:7643": f"127.0.0.1:{green}",
            "127.0.0.1:7544": f"127.0.0.1:{blue_link}", "127.0.0.1:7644": f"127.0.0.1:{green_link}",
            "/run/haproxy/admin.sock": str(self.directory / "haproxy.sock"),
            "/etc/haproxy/novacron.pem": str(self.directory / "novacron.pem"),
            "/etc/haproxy/novacron-ca.crt": str(self.ca),
            "    log /dev/log local0\n": "    log stderr local0 warning\n",
        }.items():  # fmt: skip
            assert was in text, was
            text = text.replace(was, now)
        (self.directory / "haproxy.cfg").write_text(text)

    def start_haproxy(self) -> None:
        with (self.directory / "haproxy.log").open("ab") as log:
            self.haproxy = subprocess.Popen(
                ["haproxy", "-db", "-f", str(self.directory / "haproxy.cfg")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            until(self.answers, "the API answers through HAProxy", 15)
        except AssertionError as error:
            logs = [self.directory / "haproxy.log", self.directory / "rollouts/blue.log"]
            raise AssertionError("\n".join([str(error), *(log.read_text()[-3000:] for log in logs)])) from None

    def other_version(self) -> str:
        """Return the good release that does not serve."""
        return NEW if self.serving() == {OLD} else OLD

    def kill_haproxy(self) -> None:
        assert self.haproxy is not None
        self.haproxy.kill()
        self.haproxy.wait()

    def answers(self) -> bool:
        try:
            with urllib3.PoolManager(ca_certs=str(self.ca)) as pool:
                return bool(pool.request("GET", f"{self.url}/readyz", retries=False, timeout=2).status == 200)
        except urllib3.exceptions.HTTPError:
            return False

    def serving(self) -> set[str]:
        """Return the versions that answer through HAProxy, asked a few times."""
        found = set()
        headers = {"Authorization": f"Bearer {self.token}"}
        for _ in range(6):
            with urllib3.PoolManager(ca_certs=str(self.ca), headers=headers) as pool:
                answer = pool.request("GET", f"{self.url}/metrics", retries=False, timeout=15)
            match = BUILD.search(answer.data.decode())
            if match is None:
                raise AssertionError(f"/metrics answered {answer.status}: {answer.data[:500]!r}")
            found.add(match[1])
        return found

    def start_prometheus(self) -> str:
        """Start a Prometheus as operators set it up for rollouts, once a second; return its URL."""
        at, (port,) = self.directory, free_ports(1)
        config = yaml.safe_load((DEPLOYED / "rollout/prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s"}
        text = yaml.safe_dump(config)
        for was, now in {
            "localhost:7543": f"127.0.0.1:{self.ports[Colour.BLUE][0]}",
            "localhost:7643": f"127.0.0.1:{self.ports[Colour.GREEN][0]}",
            "localhost:7405": f"127.0.0.1:{self.exporter_port}",
            "/etc/prometheus/novacron.token": str(at / "token"),
            "/etc/prometheus/novacron-ca.crt": str(self.ca),
        }.items():
            assert was in text, was
            text = text.replace(was, now)
        (at / "prometheus.yml").write_text(text)
        url = self.prometheus_url = f"http://127.0.0.1:{port}"
        self.prometheus = Daemon(
            ["prometheus", f"--config.file={at / 'prometheus.yml'}", f"--storage.tsdb.path={at / 'data'}",
             f"--web.listen-address=127.0.0.1:{port}"],
            at / "prometheus.log", f"{url}/-/ready",
        )  # fmt: skip
        return url

    def stop_prometheus(self) -> None:
        if self.prometheus is not None:
            self.prometheus.stop()
            self.prometheus = None

    def command(self, *arguments: str, killed_at: str = "") -> subprocess.Popen[str]:
        """Begin a command of rollouts; one that is killed at a step if that is said (``lab.killed_rollout``)."""
        program = "lab.killed_rollout" if killed_at else "novacron"
        return subprocess.Popen(
            [sys.executable, "-m", program, "rollout", *arguments, "--settings", str(self.settings)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True, cwd=Path(__file__).parents[1],
            env={**os.environ, "NOVACRON_LAB_KILL": killed_at},
        )  # fmt: skip

    def rollout(self, *arguments: str) -> tuple[int, str]:
        """Run a command of rollouts; return its exit code and what it printed."""
        process = self.command(*arguments)
        return finished(process)

    def status(self) -> dict[str, Any]:
        """Return the newest rollout."""
        code, text = self.rollout("status", "-o", "json")
        assert code == 0, text
        status: dict[str, Any] = json.loads(text)
        return status

    def down(self) -> None:
        self.stop_prometheus()
        for colour in Colour:
            pid = self.instances.pid(colour)
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
                until(lambda c=colour: self.instances.pid(c) is None, "it has ended", STOP_S)  # type: ignore[misc]
        if self.haproxy is not None and self.haproxy.poll() is None:
            self.kill_haproxy()
        self.postgres.stop()


def finished(process: subprocess.Popen[str], limit_s: float = COMMAND_S_MAX) -> tuple[int, str]:
    """Return the exit code of a command, and what it printed."""
    try:
        said, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        raise AssertionError(f"it has not ended within {limit_s:.0f} s:\n{said}") from None
    return process.returncode, said


def _write_toml(file: Path, values: Mapping[str, object]) -> None:
    file.touch(mode=0o600)
    file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))


@contextlib.contextmanager
def installation(**more: object) -> Iterator[Installation]:
    """Run an installation whose first version serves, for as long as the block runs."""
    before = os.environ.get("NOVACRON_CONFIG")
    with open_directory("nvr-") as directory:
        started = Installation(directory, {name.replace("_", "-"): value for name, value in more.items()})
        try:
            started.up()
            started.begin()
            code, said = started.rollout("begin", "--version", OLD)
            assert code == 0, said
            yield started
        finally:
            started.down()
            if before is None:
                os.environ.pop("NOVACRON_CONFIG", None)
            else:
                os.environ["NOVACRON_CONFIG"] = before
