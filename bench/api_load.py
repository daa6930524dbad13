"""A server with PostgreSQL and simulated nodes, and wrk, which asks it: what ``api`` and ``scale`` share."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.agents import IMAGE
from lab.platform import until
from lab.ports import free_ports
from novacron.client import Client, Config, load_config
from novacron.local.postgres import Postgres

NO_LIMIT = "1000000000"
READY_S_MAX = 240
WRK = """
local counts = {ok = 0, bad = 0}
local threads = {}
function setup(thread) table.insert(threads, thread); thread:set("number", #threads) end
function init(args) ok, bad, turn = 0, 0, 0; math.randomseed(number) end
%s
function response(status) if status >= 200 and status < 400 then ok = ok + 1 else bad = bad + 1 end end
function done(summary, latency, requests)
  local ok, bad = 0, 0
  for _, thread in ipairs(threads) do ok = ok + thread:get("ok"); bad = bad + thread:get("bad") end
  local errors = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format("RESULT rate=%%f p50=%%f p95=%%f p99=%%f ok=%%d bad=%%d errors=%%d\\n",
    summary.requests / summary.duration * 1e6, latency:percentile(50) / 1e3, latency:percentile(95) / 1e3,
    latency:percentile(99) / 1e3, ok, bad, errors))
end
"""
PACED = """
local ffi, slot = require("ffi"), 0
ffi.cdef("typedef struct { long s; long us; } moment; int gettimeofday(moment *now, void *zone);")
local moment = ffi.new("moment")
function delay()
  ffi.C.gettimeofday(moment, nil)
  local now = tonumber(moment.s) + tonumber(moment.us) / 1e6
  slot = math.max(slot + 1 / %f, now - 0.1)
  return math.max(0, math.floor((slot - now) * 1000))
end
"""
"""Sends a request whenever it is time for one; what could not be sent is made up for 0.1 s at most."""


class Load(NamedTuple):
    """What wrk saw: requests a second, latencies in ms, and how many failed."""

    rate: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    ok: int
    bad: int
    errors: int

    @property
    def failed_share(self) -> float:
        return (self.bad + self.errors) / max(1, self.ok + self.bad + self.errors)


class Stand:
    """A server with PostgreSQL and simulated nodes."""

    def __init__(self, directory: Path, nodes: int) -> None:
        self.directory, self.nodes = directory, nodes
        self.postgres = Postgres(directory / "pg")
        self.ports = free_ports(2)
        self.client: Client
        self.server: subprocess.Popen[bytes]
        self.agents: list[subprocess.Popen[str]] = []
        self._changes = directory / "changes"
        self.environment: dict[str, str] = {}
        """Further environment variables of the first server."""
        self.orders = directory / "orders"
        """Which simulated agents get which version: a line each."""

    @contextlib.contextmanager
    def run(self) -> Iterator[Stand]:
        """Run all of it for as long as the block runs."""
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection is a file, of wrk's as of the server's
        self.postgres.start()
        try:
            self.start_server()
            self._start_agents()
            yield self
        finally:
            every: list[subprocess.Popen[Any]] = [*self.agents, self.server]
            for process in every:
                process.terminate()
            for process in every:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                process.kill()
            self.postgres.stop()

    def start_server(self) -> None:
        """Start the server, and wait until it answers."""
        os.environ["NOVACRON_CONFIG"] = str(self.directory / "config.json")
        self.server = self._serve(self.directory, self.ports, environment=self.environment)
        until(lambda: _answers(load_config), "the server is ready", READY_S_MAX)
        self.client = Client(load_config())

    def _serve(
        self, directory: Path, ports: Sequence[int], module: str = "novacron",
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:  # fmt: skip
        with (directory / "server.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", module, "server", "--database", self.postgres.url,
                 "--state-dir", str(directory), "--port", str(ports[0]), "--link-port", str(ports[1]),
                 "--reads-per-s", NO_LIMIT, "--writes-per-s", NO_LIMIT],
                stdout=log, stderr=log, env={**os.environ, **(environment or {})},
            )  # fmt: skip

    @contextlib.contextmanager
    def replica(self, module: str = "novacron", environment: Mapping[str, str] | None = None) -> Iterator[Client]:
        """Run another server over the same database, without nodes, for as long as the block runs."""
        ports = free_ports(2)
        directory = self.directory / f"replica-{ports[0]}"
        (directory / "server").mkdir(mode=0o700, parents=True)
        for name in ("ca.crt", "ca.key"):  # an installation has one CA
            shutil.copy(self.directory / "server" / name, directory / "server" / name)
        config = self.client.config._replace(url=f"https://127.0.0.1:{ports[0]}")
        server = self._serve(directory, ports, module, environment)
        try:
            until(lambda: _answers(lambda: config), "the second server is ready", 60)
            yield Client(config)
        finally:
            server.terminate()
            server.wait(30)

    def _start_agents(self, each: int = 500) -> None:
        for first in range(0, self.nodes, each):
            process = subprocess.Popen(
                [sys.executable, "-m", "bench.agents", "--directory", str(self.directory / "nodes"),
                 "--first", str(first), "--count", str(min(each, self.nodes - first)),
                 "--changes", str(self._changes), "--orders", str(self.orders)],
                stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            self.agents.append(process)
        for process in self.agents:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise RuntimeError("simulated nodes could not join")
        until(lambda: self._ready() == self.nodes, f"{self.nodes} nodes are ready", 300)

    def _ready(self) -> int:
        return sum(node["status"]["ready"] for node in self.client.list("nodes"))

    def fill(self, count: int, *, running: bool = True, start: int = 0) -> None:
        """Have so many VMs, placed and as they should be."""
        power = "running" if running else "stopped"
        for first in range(start, start + count, 100):
            items = [
                {"name": f"vm-{number:06d}", "image": IMAGE, "power": power, "memory_mib": 64}
                for number in range(first, min(first + 100, start + count))
            ]
            done = self.client.request("POST", "/api/v1/vms/batch", {"items": items})
            if done["failed"]:
                raise RuntimeError(f"{done['items'][0]}")
        until(lambda: not list(self.client.list("vms", limit=1, state="pending")), "all VMs are as they should be", 600)

    @contextlib.contextmanager
    def changing(self, per_s: float) -> Iterator[None]:
        """Let so many running VMs change a second, each in turn, for as long as the block runs."""
        try:
            self._changes.write_text(str(per_s / len(self.agents)))
            yield
        finally:
            self._changes.write_text("0")

    def memory_mib(self) -> float:
        return _rss_mib(self.server.pid)

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.server.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def load(
        self, path: str, connections: int, seconds: float, *, script: str = "", headers: tuple[str, ...] = (),
        threads: int = 1, rate: float | None = None, token: str = "", url: str = "",
    ) -> Load:  # fmt: skip
        """Ask for ``path`` over so many connections, as fast as it goes or so often a second. ``script``: Lua that
        makes requests; ``token``: another one than the administrator's; ``url``: another server's."""
        lua = self.directory / "load.lua"
        lua.write_text(WRK % (script if rate is None else script + PACED % (rate / threads)))
        command = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", "10s", "-s", str(lua)]
        for header in (f"Authorization: Bearer {token or self.client.config.token}", *headers):
            command += ["-H", header]
        done = subprocess.run(
            [*command, f"{url or self.client.config.url}{path}"], check=True, capture_output=True, text=True
        )  # fmt: skip
        match = re.search(
            r"RESULT rate=([\d.]+) p50=([\d.]+) p95=([\d.]+) p99=([\d.]+) ok=(\d+) bad=(\d+) errors=(\d+)", done.stdout
        )
        if match is None:
            raise RuntimeError(f"wrk: {done.stdout}{done.stderr}")
        numbers = [float(text) for text in match.groups()]
        rate, p50, p95, p99, ok, bad, errors = numbers
        return Load(rate, p50, p95, p99, int(ok), int(bad), int(errors))


def _answers(config: Callable[[], Config]) -> bool:
    try:
        return bool(Client(config()).me())
    except Exception:  # not yet: the caller's wait has a limit
        return False


def _rss_mib(pid: int) -> float:
    match = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) / 1024


def timed(work: object) -> float:
    """Return how many seconds a callable takes."""
    assert callable(work)
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
