"""The whole platform on a lab's hosts: PostgreSQL, the server and one agent a host, each a process to be killed."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from lab.agent_networks import remove_all as remove_networks
from lab.blocked_loops import DEBUG_MODE, blocked_loops
from lab.hosts import Host, Lab
from lab.ports import free_ports
from novacron import private_file
from novacron.agent.host.volumes import MARK
from novacron.agent.vm.directory import TRANSFER_SOCKETS
from novacron.client import ApiError, Client, Unreachable, load_config
from novacron.local.postgres import Postgres
from novacron.model.limits import CONSOLE_LOG_TAIL_BYTES_MAX

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
SOCKET_PATH_MAX = 60
"""Longest state directory: the paths of Unix sockets below it must stay under 108 bytes."""

NO_LIMIT = "1000000000"
NO_RATE_LIMITS = ("--reads-per-s", NO_LIMIT, "--writes-per-s", NO_LIMIT)
"""Server options for benchmarks: they measure what the server can do, not what one token may ask of it."""

Object = dict[str, Any]
T = TypeVar("T")


def default_cache() -> Path:
    """Return where images and built helpers are kept between runs."""
    return Path("/var/cache/novacron") if os.geteuid() == 0 else Path.home() / ".cache" / "novacron"


def clean_up_when_ended() -> None:
    """Let SIGTERM and SIGHUP act like Ctrl-C, so that what a program made is removed however it is ended."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)


@contextlib.contextmanager
def open_directory(prefix: str) -> Iterator[Path]:
    """Make a short-named directory that other users may enter (PostgreSQL's does), and remove it afterwards."""
    path = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


patience = 1.0
"""How many times longer than its limit a wait lasts: a machine may have other things to do."""


def until(condition: Callable[[], T | None], what: str, timeout_s: float = 30.0) -> T:
    """Wait until ``condition()`` is true and return it. Raises AssertionError naming ``what``."""
    timeout_s *= patience
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.02)


class Service:
    """A process of the platform, with its log."""

    def __init__(self, name: str, arguments: list[str], log: Path, prefix: list[str], env: dict[str, str]) -> None:
        self.name = name
        self.log = log
        self.arguments = [*prefix, sys.executable, "-m", "novacron", *arguments]
        """Its command line."""
        self.env = {**os.environ, **env}
        """What it is started with from now on."""
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0

    def start(self, *more: str) -> None:
        self.started_at = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.arguments, *more],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.env,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """End it as a power cut would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(number)
        try:
            self.process.wait(STOP_TIMEOUT_S * patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            limit_s = STOP_TIMEOUT_S * patience
            raise AssertionError(f"{self.name} did not end within {limit_s:.0f} s of {number.name}") from None
        finally:
            if DEBUG_MODE:
                blocked_loops.read(self.name, self.log)

    def tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


@dataclass(frozen=True)
class PlatformOptions:
    """What a platform is started with beyond its defaults."""

    agent: tuple[str, ...] = ()
    """Further options of every agent."""
    server: tuple[str, ...] = ()
    """Further options of the server."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Further environment variables of all processes."""
    reachable_ports: tuple[int, ...] = ()
    """Further loopback ports of this machine that the hosts can reach."""
    ports: tuple[int, int] | None = None
    """The server's ports for the API and for the agents; free ones if None."""


class Platform:
    """One installation. ``directory`` must be short and enterable by others."""

    new_postgres: ClassVar[type[Postgres]] = Postgres
    """What its database is: tests replace it by one that starts faster."""

    def __init__(self, directory: Path, lab: Lab, images_dir: Path, options: PlatformOptions | None = None) -> None:
        options = options or PlatformOptions()
        if len(str(directory)) > SOCKET_PATH_MAX:
            raise ValueError(f"{directory}: longer than {SOCKET_PATH_MAX} bytes")
        self.directory = directory
        self.lab = lab
        self.config = directory / "cli.json"
        self.ports = options.ports or tuple(free_ports(2))
        self.postgres = self.new_postgres(directory / "pg")
        self.platform_key = directory / "platform.key"
        self._images_dir = images_dir
        self._options = options
        self._env = {"NOVACRON_CONFIG": str(self.config), **options.environment}
        self.server: Service
        self.agents: dict[str, Service] = {}
        self._client: Client | None = None
        self._settled: dict[str, float] = {}

    # lifecycle

    def up(self) -> None:
        """Start everything and let both hosts join."""
        self.directory.mkdir(parents=True, exist_ok=True)
        url = self.postgres.start()
        if not self.platform_key.exists():
            private_file.write(self.platform_key, base64.b64encode(os.urandom(32)))
        self.server = Service(
            "server",
            ["server", "--database", url, "--state-dir", str(self.directory / "s"),
             "--port", str(self.ports[0]), "--link-port", str(self.ports[1]),
             "--platform-key", f"file:{self.platform_key}", *self._options.server],
            self.directory / "server.log", [], self._env,
        )  # fmt: skip
        self.server.start()
        self.wait_ready()
        if self.lab.namespaces:
            self.lab.connect_management((*self.ports, *self._options.reachable_ports))
        dwcp_ports = [7445] * len(self.lab.hosts) if self.lab.namespaces else free_ports(len(self.lab.hosts))
        for host, dwcp_port in zip(self.lab.hosts, dwcp_ports, strict=True):
            arguments = [
                *("agent", "--name", host.name, "--state-dir", str(self.directory / host.name)),
                *("--images-dir", str(self.images_of(host.name)), "--advertise", host.address),
                *("--dwcp-port", str(dwcp_port)),
                *(("--bridge", "br0") if self.lab.namespaces else ()),
                *("--pool", f"small={self._pool(host.name)}", "--shared-pool", f"nfs={self.shared_pool}"),
                *("--backup-dir", str(self._backup_dir())),
                *self._options.agent,
            ]
            agent = Service(host.name, arguments, self.directory / f"{host.name}.log", host.enter, self._env)
            self.agents[host.name] = agent
            agent.start(*self.join(host.name))
        for name in self.agents:
            self.wait_node(name)

    def join(self, name: str) -> tuple[str, str]:
        """Return the option with which a host joins as a node that is accepted at once."""
        path = self.directory / f"{name}.join"
        private_file.write(path, self.client.join_token(name, accept=True).encode())
        return "--join", f"@{path}"

    @property
    def backup_dir(self) -> Path:
        """The directory of the repositories of backups, which all hosts share."""
        return self.directory / "backups"

    @property
    def shared_pool(self) -> Path:
        """The directory of the pool that all hosts share."""
        return self.directory / "nfs"

    def _backup_dir(self) -> Path:
        """Return the directory of the repositories that all hosts share."""
        self.backup_dir.mkdir(exist_ok=True)
        return self.backup_dir

    def _pool(self, name: str) -> Path:
        self.shared_pool.mkdir(exist_ok=True)
        (self.shared_pool / MARK).touch()
        path = self.directory / name / "small"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def images_of(self, name: str) -> Path:
        """Return a host's own directory of images: at first it has all that there are, without a copy."""
        directory = self.directory / name / "images"
        if not directory.exists():
            directory.mkdir(parents=True)
            for image in self._images_dir.iterdir():
                if not image.name.startswith("."):
                    (directory / image.name).symlink_to(image)
        return directory

    def wait_ready(self) -> None:
        """Wait until the server answers."""

        def ready() -> bool:
            if not self.server.running:
                raise AssertionError(f"the server ended:\n{self.server.tail()}")
            try:
                next(iter(self.client.list("nodes", limit=1)), None)
            except Exception:  # not listening yet, no settings yet, or not ready: the limit below counts
                self._client = None
                return False
            return True

        until(ready, "the server is ready", READY_TIMEOUT_S)

    def wait_node(self, name: str, ready: bool = True) -> None:
        def is_so() -> bool:
            matches = any(
                node["name"] == name and node["status"]["ready"] is ready for node in self.client.list("nodes")
            )
            return matches and (not ready or self._answers(name))

        try:
            until(is_so, f"node {name} is {'ready' if ready else 'lost'}", READY_TIMEOUT_S)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.agents[name].tail()}") from None

    def _answers(self, name: str) -> bool:
        """Say whether a node's agent is connected: a node stays ready for a while without one."""
        try:
            self.client.metrics(name)
        except (ApiError, Unreachable):
            return False
        return True

    def wait_settled(self) -> None:
        """Wait until what was started since the last time, and still runs, has found together."""
        if not self.server.running:
            return
        begun = {service.name: service.started_at for service in (self.server, *self.agents.values())}
        if begun == self._settled:
            return
        self.wait_ready()
        names = {node["name"] for node in self.client.list("nodes")}
        for name, agent in self.agents.items():
            if agent.running and name in names:
                self.wait_node(name)
        self._settled = begun

    def down(self) -> None:
        """Stop every process, QEMU included."""
        for service in [*self.agents.values(), *([self.server] if hasattr(self, "server") else [])]:
            if service.running:
                service.kill()
        for pid in self.qemus().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if os.geteuid() == 0:
            for host in self.lab.hosts:
                remove_networks(self.directory / host.name / "agent")
        self.postgres.stop()

    # what tests and people use

    @property
    def client(self) -> Client:
        os.environ["NOVACRON_CONFIG"] = str(self.config)  # what runs commands without settings means this platform
        if self._client is None:
            self._client = Client(load_config())
        return self._client

    def cli(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a CLI command. Raises AssertionError with what it said when it fails and ``check`` is set."""
        done = subprocess.run(
            [sys.executable, "-m", "novacron", *arguments],
            check=False, capture_output=True, text=True, timeout=300, env={**os.environ, **self._env},
        )  # fmt: skip
        if check and done.returncode != 0:
            raise AssertionError(f"novacron {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
        return done

    def host(self, name: str) -> Host:
        return next(host for host in self.lab.hosts if host.name == name)

    def wait_vm(self, ref: str, condition: Callable[[Object], bool], what: str, timeout_s: float = 40.0) -> Object:
        """Wait until a VM is as ``condition`` says."""
        last: list[Object | None] = [None]

        def seen() -> Object | None:
            vm = self.client.get("vms", ref)
            last[0] = vm
            return vm if condition(vm) else None

        try:
            vm: Object = until(seen, what, timeout_s)
            return vm
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {json.dumps(last[0])}\n{self.tails()}") from None

    def tails(self, lines: int = 15) -> str:
        """Return the ends of all logs, for a failure's message."""
        return "\n".join(f"--- {s.name}\n{s.tail(lines)}" for s in (self.server, *self.agents.values()))

    def wait_state(self, ref: str, state: str, timeout_s: float = 40.0) -> Object:
        return self.wait_vm(ref, lambda vm: vm["status"]["state"] == state, f"VM {ref} is {state}", timeout_s)

    def kill_qemu(self, vm: Object) -> None:
        """End a VM's QEMU, wherever it is, without its agent."""
        for key, pid in self.qemus().items():
            if vm["id"] in key:
                os.kill(pid, signal.SIGKILL)

    def qemus(self) -> dict[str, int]:
        """Return every QEMU of this platform, as ``host/vm`` and process id."""
        pids = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            with contextlib.suppress(OSError):
                path = (entry / "cwd").readlink()
                if path.is_relative_to(self.directory) and b"guest=" in (entry / "cmdline").read_bytes():
                    host, _, _, vm = path.relative_to(self.directory).parts
                    pids[f"{host}/{vm}"] = int(entry.name)
        return pids

    def console_log(self, vm: Object, host: str | None = None) -> str:
        """Return what a VM printed on its serial console."""
        path = self.directory / str(host or vm["node"]) / "agent" / "vms" / vm["id"] / "console.log"
        if vm["spec"]["encryption_key"]:
            with contextlib.suppress(ApiError):  # its node is away
                return self.client.console_log(vm["id"], CONSOLE_LOG_TAIL_BYTES_MAX).decode(errors="replace")
            return ""
        return path.read_text(errors="replace") if path.exists() else ""

    def until_clean(self, timeout_s: float = 90.0) -> None:
        """Wait until nothing is left that no VM accounts for."""
        try:
            until(lambda: not self.leftovers(), "nothing is left over", timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.leftovers()}") from None

    def leftovers(self) -> list[str]:
        """Return what no VM accounts for: QEMU processes, VM directories, sockets, taps."""
        vms = {vm["id"]: vm["node"] for vm in self.client.list("vms")}
        wrong = [f"process {key}" for key in self.qemus() if vms.get(key.split("/")[1]) != key.split("/")[0]]
        for host in self.lab.hosts:
            for directory in (self.directory / host.name / "agent" / "vms").glob("*"):
                if vms.get(directory.name) != host.name:
                    wrong.append(f"directory {directory}")
                wrong += [str(directory / name) for name in TRANSFER_SOCKETS if (directory / name).exists()]
            if host.netns is not None:
                names = subprocess.run(
                    [*host.prefix, "ls", "/sys/class/net"], check=True, capture_output=True, text=True
                ).stdout.split()
                own = {"nv" + vm.removeprefix("vm-")[:12] for vm, node in vms.items() if node == host.name}
                wrong += [f"tap {name} on {host.name}" for name in names if name.startswith("nv") and name not in own]
        return wrong


@contextlib.contextmanager
def platform(directory: Path, lab: Lab, images_dir: Path, options: PlatformOptions | None = None) -> Iterator[Platform]:
    """Run a platform for as long as the block runs."""
    started = Platform(directory, lab, images_dir, options)
    try:
        started.up()
        yield started
    finally:
        started.down()
