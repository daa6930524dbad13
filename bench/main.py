"""The figures of the main job: creating, moving, reading, resting. ``script/bench main``."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from bench import bare
from bench.report import Figure, median, parser, report
from lab.guest import CounterClient
from lab.hosts import Wan, lab, missing
from lab.images import images_dir
from lab.platform import (
    NO_RATE_LIMITS,
    Platform,
    PlatformOptions,
    Service,
    clean_up_when_ended,
    default_cache,
    open_directory,
    platform,
    until,
)
from novacron.qemu.command import console_log_path

ADDRESS = "198.19.0.10"
CONNECTIONS = 50
SWITCH_S = 1.0
"""Downtime is the longest gap that a client saw from so long before the move's end to so long after it."""

CREATE_OVER_BARE_S = 0.5
MIGRATION_OVER_BARE = 1.1
DOWNTIME_MS = 300.0
GET_P95_MS = 10.0
SERVER_MIB, SERVER_PERCENT = 250.0, 2.0
AGENT_MIB, AGENT_PERCENT = 120.0, 1.0

Samples = list[float]


class Size(NamedTuple):
    """How much is measured."""

    rounds: int
    load_s: int
    """How long each load of reads lasts."""
    rest_s: float
    """For how long the platform is watched at rest."""
    settle_s: float = 5.0
    memory_mib: int = 512
    around_s: float = 2.0
    """How long the guest's client is watched after a move."""
    wan: Wan = Wan()
    """The link between the hosts."""


FULL, QUICK, SMOKE = Size(7, 5, 60.0), Size(3, 5, 20.0), Size(1, 1, 1.0, 0.5, 128, 0.3, Wan(1_000_000_000, 1.0, 0.0))

WRK_SCRIPT = """
done = function(summary, latency, requests)
  local bad = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout
  io.write(string.format("RESULT p95_us=%d rate=%f bad=%d\\n", latency:percentile(95),
    summary.requests / (summary.duration / 1e6), bad))
end
"""


def create_figures(p: Platform, directory: Path, images: Path, size: Size) -> list[Figure]:
    """Time to the guest's first console line, bare QEMU and NovaCron in turn."""
    own, peer = [], []
    vms = p.directory / "host-a" / "agent" / "vms"
    for number in range(size.rounds):
        machine = bare.Bare(directory / "bare", images, p.lab.hosts[0], size.memory_mib, None)
        started = time.monotonic()
        machine.start()
        peer.append(machine.until_first_line(started))
        machine.stop()
        name = f"create-{number}"
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "novacron", "vm", "create", name, "--image", "tiny",
             "--memory", str(size.memory_mib), "--node", "host-a", "--wait"],
            stdout=subprocess.DEVNULL, env={**os.environ, "NOVACRON_CONFIG": str(p.config)},
        )  # fmt: skip
        until(lambda: list(vms.glob("*/console.log")), "the VM's console is there")
        own.append(bare.first_line_at(next(vms.glob("*/console.log")), started))
        assert process.wait(60) == 0
        p.cli("vm", "delete", name, "--wait", "--yes")
        p.until_clean()
    over = [a - b for a, b in zip(own, peer, strict=True)]
    return [
        median("bare QEMU to the guest's first console line", peer, "s"),
        median("vm create --wait to the guest's first console line", own, "s"),
        median("  ... over bare QEMU", over, "s", CREATE_OVER_BARE_S),
    ]


def migration_figures(p: Platform, directory: Path, images: Path, size: Size) -> list[Figure]:
    """There and back with NovaCron, and there with QEMU's own, in turn; a client on host-a reads the guest."""
    own, out, back, whole, sent = Samples(), Samples(), Samples(), Samples(), Samples()
    peer, peer_gap, peer_sent = Samples(), Samples(), Samples()
    p.cli("vm", "create", "mover", "--image", "tiny", "--memory", str(size.memory_mib), "--node", "host-a",
          "--address", f"{ADDRESS}/24", "--wait")  # fmt: skip
    vm = p.client.get("vms", "mover")
    until(lambda: "tiny guest: ready" in p.console_log(vm), "the guest has booted", 60)
    for _ in range(size.rounds):
        for target, gaps in (("host-b", out), ("host-a", back)):
            client = CounterClient(p.lab.hosts[0], ADDRESS)
            until(lambda client=client: client.last > 20, "the guest counts")  # type: ignore[misc]
            before, began = p.lab.link_bytes(), time.monotonic()
            p.cli("vm", "migrate", "mover", "--to", target)
            delivered = (p.lab.link_bytes() - before) / 1e6
            time.sleep(size.around_s)
            newest: Any = next(iter(p.client.list("migrations", limit=1)))
            ended, created = (datetime.fromisoformat(newest[key]).timestamp() for key in ("finished_at", "created_at"))
            at_switch, over_all = _gaps(client, began, ended - time.time() + time.monotonic())
            gaps.append(at_switch)
            whole.append(over_all)
            if target == "host-b":
                sent.append(delivered)
                own.append(ended - created)
        machines = [
            bare.Bare(directory / f"bare-{host.name}", images, host, size.memory_mib, f"198.19.0.{host.number + 10}/24")
            for host in p.lab.hosts
        ]
        source, destination = machines
        source.start()
        until(lambda source=source: console_log_path(source.directory).exists(), "the bare guest starts")  # type: ignore[misc]
        source.until_ready()
        destination.start(incoming=True)
        client = CounterClient(p.lab.hosts[0], "198.19.0.11")
        until(lambda client=client: client.last > 20, "the bare guest counts")  # type: ignore[misc]
        before, began = p.lab.link_bytes(), time.monotonic()
        peer.append(asyncio.run(bare.migrate(source, destination)))
        ended = time.monotonic()
        peer_sent.append((p.lab.link_bytes() - before) / 1e6)
        time.sleep(size.around_s)
        peer_gap.append(_gaps(client, began, ended)[0])
        for machine in machines:
            machine.stop()
    p.cli("vm", "delete", "mover", "--wait", "--yes")
    ratio = [a / b for a, b in zip(own, peer, strict=True)]
    return [
        median("QEMU's own migration (multifd x4, zstd)", peer, "s"),
        median("NovaCron's migration, request to end", own, "s"),
        median("  ... over QEMU's own", ratio, "x", MIGRATION_OVER_BARE),
        median("bytes on the link, QEMU's own", peer_sent, "MB"),
        median("bytes on the link, NovaCron", sent, "MB"),
        median("downtime for a client at the source's site", out, "ms", DOWNTIME_MS),
        median("downtime for a client at the target's site", back, "ms", DOWNTIME_MS),
        median("downtime, QEMU's own, client at the source's site", peer_gap, "ms"),
        median("longest gap for a client in the whole move, both ways", whole, "ms"),
    ]


def _gaps(client: CounterClient, began: float, ended: float) -> tuple[float, float]:
    """Return the longest gaps in milliseconds around the switch and over the whole move. The connection must hold.

    ``began`` and ``ended`` are when the move did, on the monotonic clock.
    """
    if client.broken or client.missing_numbers():
        raise RuntimeError(f"the guest's client lost {client.missing_numbers()} lines: {client.broken}")
    client.close()
    return client.longest_gap_ms(ended - SWITCH_S, ended + SWITCH_S), client.longest_gap_ms(began)


def read_figures(p: Platform, directory: Path, size: Size) -> list[Figure]:
    """GET of one VM, by wrk. Raises RuntimeError if any request failed: refusals would be measured as answers."""
    vm = p.client.create_vm(name="read", image="tiny", memory_mib=128, power="stopped")
    p.wait_state(vm["id"], "stopped")
    script = directory / "p95.lua"
    script.write_text(WRK_SCRIPT)
    p95, rate = [], []
    for _ in range(size.rounds):
        done = subprocess.run(
            ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{size.load_s}s", "-s", str(script),
             "-H", f"Authorization: Bearer {p.client.config.token}",
             f"{p.client.config.url}/api/v1/vms/{vm['id']}"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        p95_ms, per_second = parse_wrk(done.stdout)
        p95.append(p95_ms)
        rate.append(per_second)
    p.cli("vm", "delete", "read", "--wait", "--yes")
    return [
        median(f"GET /api/v1/vms/{{id}}, {CONNECTIONS} connections, p95", p95, "ms", GET_P95_MS),
        median("  ... requests per second", rate, "1/s"),
    ]


def parse_wrk(output: str) -> tuple[float, float]:
    """Return the 95th percentile in milliseconds and the requests a second that wrk reports. Raises RuntimeError if a
    request failed, or none was answered."""
    result = re.search(r"RESULT p95_us=(\d+) rate=([\d.]+) bad=(\d+)", output)
    if result is None or int(result[3]) > 0 or float(result[2]) == 0:
        raise RuntimeError(f"requests failed, so the figures would mean nothing. wrk: {output}")
    return int(result[1]) / 1e3, float(result[2])


def _usage(service: Service) -> tuple[float, float]:
    """Return resident memory in MiB and processor time in seconds."""
    assert service.process is not None
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    fields = Path(f"/proc/{service.process.pid}/stat").read_text().rpartition(")")[2].split()
    resident = re.search(r"VmRSS:\s+(\d+)", status)
    assert resident is not None
    return int(resident[1]) / 1024, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rest_figures(p: Platform, size: Size) -> list[Figure]:
    """Memory and processor of server and agent while one VM runs and nobody asks for anything."""
    p.cli("vm", "create", "idle", "--image", "tiny", "--memory", "128", "--node", "host-a", "--wait")
    time.sleep(size.settle_s)
    services = {"server": p.server, "agent": p.agents["host-a"]}
    before = {name: _usage(service) for name, service in services.items()}
    time.sleep(size.rest_s)
    after = {name: _usage(service) for name, service in services.items()}
    p.cli("vm", "delete", "idle", "--wait", "--yes")
    bounds = {"server": (SERVER_MIB, SERVER_PERCENT), "agent": (AGENT_MIB, AGENT_PERCENT)}
    figures = []
    for name, (mib, percent) in bounds.items():
        used = (after[name][1] - before[name][1]) / size.rest_s * 100
        figures.append(Figure(f"{name} at rest: memory", after[name][0], "MB", mib))
        figures.append(Figure(f"{name} at rest: processor", used, "%", percent))
    return figures


PARTS = ("rest", "read", "create", "migration")


def main() -> int:
    line = parser("main", __doc__, "fewer rounds, under five minutes")
    line.add_argument("--only", nargs="*", choices=PARTS)
    options = line.parse_args()
    lacks = missing()
    if lacks:
        print("this benchmark needs network namespaces: " + "; ".join(lacks), file=sys.stderr)
        return 1
    clean_up_when_ended()
    size = SMOKE if options.smoke else QUICK if options.quick else FULL
    images = images_dir()
    with (
        open_directory("nvb-") as directory,
        lab(f"nvb{os.getpid()}", default_cache(), size.wan) as hosts,
        platform(directory / "p", hosts, images, PlatformOptions(server=NO_RATE_LIMITS)) as p,
    ):
        print(f"two hosts, a WAN of {hosts.wan}, a guest of {size.memory_mib} MiB; {size.rounds} rounds", flush=True)
        measure: dict[str, Callable[[], list[Figure]]] = {
            "rest": lambda: rest_figures(p, size),
            "read": lambda: read_figures(p, directory, size),
            "create": lambda: create_figures(p, directory, images, size),
            "migration": lambda: migration_figures(p, directory, images, size),
        }
        figures: list[Figure] = []
        for part in options.only or PARTS:
            figures = measure[part]() + figures
            print(f"{part}: done", flush=True)
    report("main", figures, options.json, smoke=options.smoke)
    return 0


if __name__ == "__main__":
    sys.exit(main())
