"""The figures of a fleet: drains, failover, placement, rebalancing, connections, networks. ``script/bench fleet``."""

from __future__ import annotations

import os
import random
import signal
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from bench import overlay
from bench.fleet_load import node, simulate
from bench.report import Figure, median, parser, report
from lab.guest import EchoClient
from lab.hosts import Wan, lab, missing
from lab.images import images_dir
from lab.platform import Platform, clean_up_when_ended, default_cache, open_directory, platform, until
from novacron.client import Client
from novacron.model.constraints import Placement
from novacron.model.node import Node
from novacron.model.placement import Fleet, Wish
from novacron.model.vm import VmSpec

READY = "tiny guest: ready"
DRAINED_MIB, DRAIN_OVER_SINGLE, DOWNTIME_MS = 128, 1.2, 300.0
LINK = Wan(1_000_000_000, 1.0, 0.0)
BACK_S = 30.0
STEADY_S = 14.0
"""After so long without a loss a node counts as steady: its VMs may fail over."""
GAP_BEYOND_MS = 100.0
PLACED_S = 2.0
HALVED, MOVES_A_DAY = 0.5, 2.0


class Size(NamedTuple):
    """How much is measured."""

    drained: int = 10
    moves: int = 6
    failovers: int = 3
    placed: int = 1000
    placements: int = 5
    simulated_nodes: int = 100
    simulated_vms: int = 5000
    overlay_rounds: int = 9


FULL = Size()
QUICK = Size(4, 2, 1, 1000, 1, 20, 600, 2)
SMOKE = Size(2, 1, 1, 50, 1, 4, 40, 1)

Object = dict[str, Any]


def boot(p: Platform, name: str, memory_mib: int, number: int = 0, **more: object) -> Object:
    if number:
        more["address"] = f"198.19.0.{number}/24"
    vm = p.client.create_vm(name=name, image="tiny", memory_mib=memory_mib, node="host-a", **more)
    until(lambda: READY in p.console_log(vm, "host-a"), f"{name} has booted", 120)
    return vm


def delete(p: Platform, vms: list[Object]) -> None:
    for vm in vms:
        p.client.delete("vms", vm["id"])
    until(lambda: not list(p.client.list("vms")), "the VMs are deleted", 120)


def moves(p: Platform, vms: list[Object]) -> list[Object]:
    """Return the last migration of each VM."""
    return [next(iter(p.client.list("migrations", limit=1, vm=vm["id"]))) for vm in vms]


def drain_figures(p: Platform, count: int) -> list[Figure]:
    """A drain, against single migrations, as many at once as a drain has."""
    vms = [boot(p, f"single-{number}", DRAINED_MIB) for number in range(count)]
    config = p.client.config

    def move(vm: Object) -> None:
        client = Client(config)
        begun = client.act("vms", vm["id"], "migrate", {"target": "host-b"})
        client.wait("migrations", begun["id"], lambda now: now is None or now["finished_at"] is not None, 300)

    started = time.monotonic()
    at_once = min(msgspec.convert(node, Node).migrations_at_once for node in p.client.list("nodes"))
    with ThreadPoolExecutor(at_once) as together:
        list(together.map(move, vms))
    single = time.monotonic() - started
    assert all(migration["phase"] == "completed" for migration in moves(p, vms))
    delete(p, vms)
    vms = [boot(p, f"drained-{number}", DRAINED_MIB) for number in range(count)]
    started = time.monotonic()
    p.client.act("nodes", "host-a", "drain")
    drain = next(iter(p.client.list("drains", limit=1, node="host-a")))
    p.client.wait("drains", drain["id"], lambda now: now is None or now["finished_at"] is not None, 600)
    drained = time.monotonic() - started
    until(lambda: all(vm["status"]["state"] == "running" for vm in p.client.list("vms")), "all run", 60)
    done = moves(p, vms)
    until(
        lambda: all(migration["progress"]["downtime_ms"] is not None for migration in moves(p, vms)),
        "downtimes are told",
        30,
    )
    downtimes = [migration["progress"]["downtime_ms"] for migration in moves(p, vms)]
    stopped = sum(vm["status"]["crashes"] for vm in p.client.list("vms"))
    p.client.act("nodes", "host-a", "uncordon", {"bring_back": True})
    started = time.monotonic()
    p.client.wait("drains", drain["id"], lambda now: now is None or now["phase"] == "returned", 600)
    back = time.monotonic() - started
    until(lambda: all(vm["status"]["state"] == "running" for vm in p.client.list("vms")), "all run", 60)
    delete(p, vms)
    return [
        Figure(f"{count} VMs moved one by one, {at_once} at once", single, "s"),
        Figure(f"drain of {count} VMs, {LINK}", drained, "s"),
        Figure("  ... over moving them one by one", drained / single, "x", DRAIN_OVER_SINGLE),
        Figure(
            "  ... VMs that were moved",
            sum(migration["phase"] == "completed" for migration in done),
            "",
            count,
            at_least=True,
        ),
        Figure("  ... VMs that were stopped", stopped, "", 0),
        Figure("  ... downtime, p95", statistics.quantiles(downtimes, n=20)[-1], "ms", DOWNTIME_MS, tuple(downtimes)),
        Figure("  ... all brought back", back, "s"),
    ]


def connection_figures(p: Platform, rounds: int) -> list[Figure]:
    """What a TCP client sees of its guest's live migrations, beyond the guest's downtime and a round trip."""
    vm = boot(p, "talks", 256, 11)
    client = EchoClient(p.lab.hosts[0], "198.19.0.11")
    beyond, resets = [], 0
    try:
        for number in range(rounds):
            began = time.monotonic()
            begun = p.client.act("vms", vm["id"], "migrate", {"target": ("host-b", "host-a")[number % 2]})
            done = p.client.wait("migrations", begun["id"], lambda now: now is None or now["finished_at"], 300)
            until(
                lambda id=begun["id"]: p.client.get("migrations", id)["progress"]["downtime_ms"] is not None,  # type: ignore[misc]
                "its downtime is told", 30,
            )  # fmt: skip
            time.sleep(2)
            downtime = p.client.get("migrations", begun["id"])["progress"]["downtime_ms"]
            assert done is not None and done["phase"] == "completed"
            resets += not client.whole()
            beyond.append(client.longest_gap_ms(began) - downtime - LINK.rtt_ms)
    finally:
        client.close()
    delete(p, [vm])
    return [
        Figure("a TCP session through live migrations: resets and losses", resets, "", 0),
        median("  ... longest gap, beyond downtime and a round trip", beyond, "ms", GAP_BEYOND_MS),
    ]


def failover_figures(p: Platform, rounds: int) -> list[Figure]:
    """From a node's loss of power until its highly available VM has booted elsewhere."""
    took, twice = [], 0
    for number in range(rounds):
        since = max(service.started_at for service in (p.server, *p.agents.values()))
        until(lambda since=since: time.monotonic() > since + STEADY_S, "the nodes are steady", 60)  # type: ignore[misc]
        vm = boot(p, f"ha-{number}", 128, ha=True)
        until(lambda vm=vm: p.client.get("vms", vm["id"])["status"]["state"] == "running", "it runs", 30)  # type: ignore[misc]
        began = time.monotonic()
        lose_power(p, "host-a")
        while READY not in p.console_log(vm, "host-b"):
            twice += sum(vm["id"] in key for key in p.qemus()) > 1
            assert time.monotonic() < began + 120, p.tails()
            time.sleep(0.05)
        took.append(time.monotonic() - began)
        p.agents["host-a"].start()
        p.wait_node("host-a")
        delete(p, [vm])
    return [
        median("node killed: its highly available VM has booted elsewhere", took, "s", BACK_S),
        Figure("  ... seen in two places", twice, "", 0),
    ]


def lose_power(p: Platform, host: str) -> None:
    """End all of a host: its agent, and every process that runs in its directories."""
    p.agents[host].kill()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if (entry / "cwd").readlink().is_relative_to(p.directory / host):
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                continue


def placement_figures(count: int, rounds: int) -> list[Figure]:
    """Placing many VMs on many nodes, with labels and groups."""
    rng = random.Random(1)
    nodes = [node(f"n{n:04}", 65536 * rng.choice([1, 2, 4]), 64, f"s{n % 5}") for n in range(count)]

    def spec(number: int) -> VmSpec:
        where = Placement()
        kind = rng.random()
        if kind < 0.1:
            where = Placement(spread=f"g{number % 10}")
        elif kind < 0.2:
            where = Placement(anti_affinity=f"a{number % 10}")
        elif kind < 0.25:
            where = Placement(affinity=f"f{number % 20}")
        return VmSpec(
            "debian", rng.choice([1, 2, 4, 8]), rng.choice([512, 1024, 2048, 4096, 8192]), placement=where
        )  # fmt: skip

    specs = [spec(number) for number in range(count)]
    took = []
    for _ in range(rounds):
        started = time.perf_counter()
        fleet = Fleet(nodes, {})
        places = [fleet.place(Wish(str(number), spec_)) for number, spec_ in enumerate(specs)]
        took.append(time.perf_counter() - started)
        assert None not in places
    return [median(f"placement of {count:,} VMs on {count:,} nodes", took, "s", PLACED_S)]


def rebalancing_figures(nodes: int, vms: int) -> list[Figure]:
    """A day of a fleet, with rebalancing and without."""
    day = simulate(1, nodes, vms)
    share = day.deviation_with / day.deviation_without
    return [
        Figure(f"deviation of {nodes} nodes' loads over a day, {vms:,} VMs", day.deviation_without, ""),
        Figure("  ... with rebalancing, over that", share, "x", HALVED),
        Figure("  ... moves of one VM at most", day.moves_of_one_max, "", MOVES_A_DAY),
        Figure("  ... moves in all", day.moves, ""),
        Figure("  ... back to where it was", day.back_and_forth, "", 0),
    ]


PARTS = ("drain", "connection", "failover", "placement", "rebalancing", "overlay")


def main() -> None:
    line = parser("fleet", __doc__, "fewer rounds and VMs")
    line.add_argument("--only", nargs="*", choices=PARTS)
    options = line.parse_args()
    clean_up_when_ended()
    size = SMOKE if options.smoke else QUICK if options.quick else FULL
    parts = set(options.only or PARTS)
    figures: list[Figure] = []
    if "placement" in parts:
        figures += placement_figures(size.placed, size.placements)
    if "rebalancing" in parts:
        figures += rebalancing_figures(size.simulated_nodes, size.simulated_vms)
        print("rebalancing: done", flush=True)
    if parts & {"drain", "connection", "failover"}:
        figures += _platform_figures(size, parts)
    if "overlay" in parts:
        figures += overlay.figures(size.overlay_rounds)
    report("fleet", figures, options.json, smoke=options.smoke)


def _platform_figures(size: Size, parts: set[str]) -> list[Figure]:
    """Measure what needs a platform on two hosts."""
    if lacking := missing():
        sys.exit(f"this machine can't emulate hosts: {', '.join(lacking)}")
    figures: list[Figure] = []
    with (
        open_directory("nvb-") as directory,
        lab(f"nvb{os.getpid()}", default_cache(), LINK) as hosts,
        platform(directory / "p", hosts, images_dir()) as p,
    ):
        for name, measure, count in (
            ("drain", drain_figures, size.drained), ("connection", connection_figures, size.moves),
            ("failover", failover_figures, size.failovers),
        ):  # fmt: skip
            if name in parts:
                figures += measure(p, count)
                print(f"{name}: done", flush=True)
    return figures


if __name__ == "__main__":
    main()
