"""What encryption at rest costs: the same reads, creates, and life of a VM in a project without and with it, in turn.
``script/bench encryption``."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from bench.main import WRK_SCRIPT, parse_wrk
from bench.report import Figure, median, parser, report
from lab.guest import shell
from lab.hosts import lab, missing
from lab.images import images_dir
from lab.platform import (
    NO_RATE_LIMITS,
    Object,
    Platform,
    PlatformOptions,
    clean_up_when_ended,
    default_cache,
    open_directory,
    platform,
    until,
)

NODE, TARGET = "host-a", "host-b"
READY = "tiny guest: ready"
MEMORY_MIB = 256
WRITE_MIB, WRITE = 8, "dd if=/run/data bs=1M"
CONNECTIONS = 20
API_RATIO = 1.1
"""The API only hands on the name of a key: more than this is more than noise."""
PARTS = ("reads", "creates", "guests")
PROJECTS = {False: "plain", True: "sealed"}
"""By whether they encrypt."""

Samples = dict[bool, list[float]]


class Size(NamedTuple):
    """How much is measured."""

    rounds: int
    vms: int
    """In each project, that are listed."""
    load_s: int
    """How long each load of reads lasts."""
    creates: int
    """In each round and project."""
    guests: int
    """In each project, one after the other."""


FULL, QUICK, SMOKE = Size(7, 100, 5, 30, 5), Size(3, 50, 3, 15, 2), Size(1, 2, 1, 2, 1)


def samples() -> Samples:
    return {on: [] for on in PROJECTS}


def compared(what: str, taken: Samples, unit: str, bound: float | None = None) -> list[Figure]:
    """Return a figure without encryption, with it, and the second over the first."""
    ratios = [with_ / without for with_, without in zip(taken[True], taken[False], strict=True)]
    return [
        median(f"without encryption: {what}", taken[False], unit),
        median(f"with encryption: {what}", taken[True], unit),
        median("  ... over without", ratios, "x", bound),
    ]


def in_turn(number: int) -> Iterable[bool]:
    """Return both, the other one first in every second round: what comes first meets a machine at rest."""
    return PROJECTS if number % 2 == 0 else reversed(PROJECTS)


def create(p: Platform, project: str, name: str, **fields: object) -> Object:
    """Create a VM whose disk is its own; return it as the API answers."""
    body = {"name": name, "image": "disk", "memory_mib": MEMORY_MIB, **fields}
    made: Object = p.client.request("POST", f"/api/v1/vms?project={project}", body)
    return made


def make_projects(p: Platform, vms: int) -> dict[bool, str]:
    """Make a project of each kind with this many stopped VMs; return the id of one VM of each. Raises RuntimeError if a
    VM is not as its project demands."""
    shown = {}
    for on, project in PROJECTS.items():
        p.client.create_project(project, host_network=True)
        p.client.configure_project(project, encryption=on)
        for number in range(vms):
            made = create(p, project, f"r{number}", power="stopped")
            p.wait_state(made["id"], "stopped")
            shown[on] = str(made["id"])
        if bool(p.client.get("vms", shown[on])["spec"]["encryption_key"]) is not on:
            raise RuntimeError(f"VMs of project {project} are not as that is configured: the figures would be false")
    return shown


def read_ms(p: Platform, path: str, script: Path, load_s: int) -> float:
    """Return the 95th percentile of a GET's time, in milliseconds, by wrk. Raises RuntimeError if a request failed."""
    done = subprocess.run(
        ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{load_s}s", "-s", str(script),
         "-H", f"Authorization: Bearer {p.client.config.token}", f"{p.client.config.url}/api/v1/{path}"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return parse_wrk(done.stdout)[0]


def read_figures(p: Platform, shown: dict[bool, str], script: Path, size: Size) -> list[Figure]:
    """A list of VMs, and one VM."""
    lists, singles = samples(), samples()
    for number in range(size.rounds):
        for on in in_turn(number):
            listed = f"vms?project={PROJECTS[on]}&limit={size.vms}"
            lists[on].append(read_ms(p, listed, script, size.load_s))
            singles[on].append(read_ms(p, f"vms/{shown[on]}", script, size.load_s))
    return [
        *compared(f"list of {size.vms} VMs, {CONNECTIONS} connections, p95", lists, "ms", API_RATIO),
        *compared(f"one VM, {CONNECTIONS} connections, p95", singles, "ms", API_RATIO),
    ]


def create_figures(p: Platform, size: Size) -> list[Figure]:
    """Creates of stopped VMs, one after the other, until the API has answered; the median of each round."""
    taken = samples()
    for number in range(size.rounds):
        for on in in_turn(number):
            seconds = []
            for count in range(size.creates):
                started = time.monotonic()
                create(p, PROJECTS[on], f"c{number}-{count}", power="stopped")
                seconds.append(time.monotonic() - started)
            taken[on].append(sorted(seconds)[len(seconds) // 2] * 1e3)
    return compared("POST of a stopped VM", taken, "ms", API_RATIO)


def guest_figures(p: Platform, size: Size) -> list[Figure]:
    """A VM's life with an encrypted disk and with one that is not: created and booted, written to, migrated live."""
    whats = ("created and booted", f"guest writes {WRITE_MIB} MiB", "live migration")
    taken = {what: samples() for what in whats}
    for number in range(size.guests):
        for on in in_turn(number):
            for what, seconds in zip(whats, _life(p, f"g{number}", PROJECTS[on]), strict=True):
                taken[what][on].append(seconds)
    return [figure for what in whats for figure in compared(what, taken[what], "s")]


def _life(p: Platform, name: str, project: str) -> tuple[float, float, float]:
    """Return the seconds that creation and boot, a write, and a live migration of a VM took."""
    started = time.monotonic()
    vm = create(p, project, name, node=NODE)
    until(lambda: READY in p.console_log(vm, NODE), "the guest has booted", 120)
    booted_s = time.monotonic() - started
    shell(p.client, vm["id"], f"dd if=/dev/urandom of=/run/data bs=1M count={WRITE_MIB} 2>/dev/null; echo x")
    started = time.monotonic()
    shell(p.client, vm["id"], f"{WRITE} of=/dev/vda conv=fsync,notrunc 2>/dev/null; echo x")
    written_s = time.monotonic() - started
    started = time.monotonic()
    p.cli("vm", "migrate", vm["id"], "--to", TARGET)
    moved_s = time.monotonic() - started
    p.cli("vm", "delete", vm["id"], "--wait", "--yes")
    return booted_s, written_s, moved_s


def main() -> None:
    line = parser("encryption", __doc__, "fewer rounds and VMs, under five minutes")
    line.add_argument("--only", nargs="*", choices=PARTS)
    options = line.parse_args()
    clean_up_when_ended()
    if lacking := missing():
        sys.exit(f"this machine can't emulate hosts: {', '.join(lacking)}")
    size = SMOKE if options.smoke else QUICK if options.quick else FULL
    parts = options.only or PARTS
    figures: list[Figure] = []
    with (
        open_directory("nvb-") as directory,
        lab(f"nvb{os.getpid()}", default_cache()) as hosts,
        platform(directory / "p", hosts, images_dir(), PlatformOptions(server=NO_RATE_LIMITS)) as p,
    ):
        script = directory / "p95.lua"
        script.write_text(WRK_SCRIPT)
        shown = make_projects(p, size.vms if "reads" in parts else 1)
        measure: dict[str, Callable[[], list[Figure]]] = {
            "reads": lambda: read_figures(p, shown, script, size),
            "creates": lambda: create_figures(p, size),
            "guests": lambda: guest_figures(p, size),
        }
        for part in PARTS:
            if part in parts:
                figures += measure[part]()
                print(f"{part}: done", flush=True)
    report("encryption", figures, options.json, smoke=options.smoke)


if __name__ == "__main__":
    main()
