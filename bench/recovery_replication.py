"""Replicas of VMs: how old the newest point gets while a guest writes, and how soon VMs go on from their replicas."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from bench.report import Figure
from lab.guest import shell
from lab.hosts import lab, missing
from lab.images import images_dir
from lab.platform import Platform, default_cache, open_directory, platform, until
from novacron.model.lease import LEASE_S, MARGIN_S

RPO_S = 5
AGE_S, CPU_SHARE, FAILOVER_S = 7.0, 0.05, 60.0
LOOK_S = 0.25
BLOCK = 64 << 10
BOOT_S_MAX, FIRST_S_MAX, MOVED_S_MAX = 120.0, 300.0, 600.0
READY = "tiny guest: ready"
WRITER = (
    "(awk 'BEGIN {{ srand(7); for (;;) print int(rand() * {blocks}) }}' | while read at; do"
    " dd if=/dev/urandom of=/dev/vda bs=64k count=2 seek=$at conv=notrunc,fsync; sleep 1; done) >/dev/null 2>&1 &"
    " echo begun"
)
"""128 KiB a second, 1.05 Mbit/s, at random places."""


class Size(NamedTuple):
    """How much is measured."""

    seconds: float
    vms: int
    """That fail over together."""


SIZES = {"full": Size(300.0, 10), "quick": Size(60.0, 4), "smoke": Size(6.0, 1)}


def replication_figures(size: Size) -> list[Figure]:
    """Measure on two hosts with the lab's WAN between them: 100 Mbit/s, 50 ms, 0.1 % loss."""
    lacks = missing()
    with (
        open_directory("nvr-") as directory,
        lab(f"nvr{os.getpid()}", default_cache(), namespaces=not lacks) as hosts,
        platform(directory / "p", hosts, images_dir()) as p,
    ):
        vms = [_boot(p, number) for number in range(size.vms)]
        replicas = [p.client.replicate_vm(vm["id"], node="host-b", rpo_s=RPO_S) for vm in vms]
        for replica in replicas:
            _await_point(p, replica["id"])
        return [*_follow(p, vms[0], replicas[0], size), *_fail_over(p, vms)]


def _boot(p: Platform, number: int) -> dict[str, Any]:
    vm = p.client.create_vm(name=f"vm-{number}", image="disk", memory_mib=128, node="host-a")
    _await_boot(p, vm, "host-a", BOOT_S_MAX)
    booted: dict[str, Any] = p.client.get("vms", vm["id"])
    return booted


def _await_boot(p: Platform, vm: dict[str, Any], host: str, limit_s: float) -> None:
    until(lambda: READY in p.console_log(vm, host), f"{vm['name']} has booted on {host}", limit_s)


def _await_point(p: Platform, replica: str) -> None:
    until(lambda: p.client.get("replicas", replica)["points"], "the replica has its first point", FIRST_S_MAX)


def _follow(p: Platform, vm: dict[str, Any], replica: dict[str, Any], size: Size) -> list[Figure]:
    """Let a guest write, and look how old its replica's newest point is."""
    disk_bytes = (images_dir() / "disk" / "disk.raw").stat().st_size
    shell(p.client, vm["id"], WRITER.format(blocks=disk_bytes // BLOCK - 2))
    time.sleep(min(2 * RPO_S, size.seconds))
    cpu, carried, began = _cpu_s(p), p.lab.link_bytes(), time.monotonic()
    ages = list[float]()
    while time.monotonic() < began + size.seconds:
        newest = p.client.get("replicas", replica["id"])["points"][-1]
        ages.append((datetime.now(UTC) - datetime.fromisoformat(newest["at"])).total_seconds())
        time.sleep(LOOK_S)
    took_s = time.monotonic() - began
    used = {host: (now - cpu[host]) / took_s for host, now in _cpu_s(p).items()}
    written = 2 * BLOCK * took_s
    ages.sort()
    return [
        Figure("replica, RPO 5 s, 1 Mbit/s written: age of its newest point, p99", _p99(ages), "s", AGE_S),
        Figure("... median", ages[len(ages) // 2], "s"),
        Figure("... processor of the sending agent, its tools included", used["host-a"], "cores", CPU_SHARE),
        Figure("... processor of the keeping agent, its tools included", used["host-b"], "cores", CPU_SHARE),
        Figure("... bytes on the link for each that was written", (p.lab.link_bytes() - carried) / written, "x"),
    ]


def _p99(ages: list[float]) -> float:
    return ages[min(len(ages) - 1, int(0.99 * len(ages)))]


def _cpu_s(p: Platform) -> dict[str, float]:
    """Return the processor time of each agent so far, with that of the tools that it ran."""
    ticks = os.sysconf("SC_CLK_TCK")
    used = {}
    for host, agent in p.agents.items():
        assert agent.process is not None
        fields = Path(f"/proc/{agent.process.pid}/stat").read_text().rpartition(")")[2].split()
        used[host] = sum(int(field) for field in fields[11:15]) / ticks
    return used


def _fail_over(p: Platform, vms: list[dict[str, Any]]) -> list[Figure]:
    """Lose the VMs' host; from the command to the last guest's console on the other one."""
    p.agents["host-a"].kill()
    for key, pid in p.qemus().items():
        if key.startswith("host-a/"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    time.sleep(LEASE_S + MARGIN_S + 2)
    began = time.monotonic()
    for vm in vms:
        p.client.fail_over_vm(vm["id"], confirm="host-a")
    for vm in vms:
        _await_boot(p, vm, "host-b", MOVED_S_MAX)
    took_s = time.monotonic() - began
    twice = [key for key in p.qemus() if key.startswith("host-a/")]
    return [
        Figure(f"failover of {len(vms)} VMs: command to the last guest's console, emulated", took_s, "s", FAILOVER_S),
        Figure("... VMs in two places", float(len(twice)), "", 0.0),
    ]
