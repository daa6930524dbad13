"""Rollouts of the server under load: ``script/bench rollout``. How many requests fail, and how long a rollout, a way
back, and noticing a bad version take. Two servers, PostgreSQL, HAProxy, Prometheus and the load share the machine.

Shares are watched for seconds here, not for 15 minutes: how long noticing takes depends on that, and on how often is
checked."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from bench.api_load import PACED, WRK
from bench.report import Figure, median, parser, report
from bench.rollout_agents import FleetSize, UpgradeSize, fleet_figures, upgrade_figures
from lab.hosts import missing
from lab.platform import clean_up_when_ended, until
from lab.rollouts import Installation, finished, installation
from novacron.client import Client, Config

SCRIPT = """
local headers = {["Authorization"] = "Bearer TOKEN", ["Content-Type"] = "application/json"}
function request()
  local name, kind = "load-" .. math.random(0, 19), math.random()
  if kind < 0.05 then
    return wrk.format("PATCH", "/api/v1/projects/" .. name, headers, '{"description": "' .. kind .. '"}')
  end
  if kind < 0.25 then return wrk.format("GET", "/api/v1/projects", headers) end
  return wrk.format("GET", "/api/v1/projects/" .. name, headers)
end
"""
"""95 % reads, 5 % writes, drawn: HAProxy gives a share of 1 % every hundredth request, which must not be all writes."""
ERRORS, SLOW = "1.1.2-errors", "1.1.3-slow"
RUN_S_MAX, LOAD_S_MAX = 240.0, 600
BACK_BOUND_S = 30


class Size(NamedTuple):
    """How much is measured."""

    rounds: int
    rate: int
    step_s: float
    canary: bool = True

    fleet: FleetSize = FleetSize(2000, 4000, 10.0)
    upgrade: UpgradeSize = UpgradeSize(3, 20, 10.0)


FULL = Size(3, 2000, 15.0)
QUICK = Size(1, 2000, 8.0, True, FleetSize(200, 400, 3.0), UpgradeSize(1, 20, 5.0))
SMOKE = Size(1, 50, 2.0, False, FleetSize(4, 8, 0.5), UpgradeSize(1, 2, 0.5))
PARTS = ("switches", "canaries", "fleet", "upgrade")


class Seen(NamedTuple):
    """What the clients saw while something was done."""

    rate: float
    ok: int
    failed: int
    p95_ms: float


@contextmanager
def load(at: Installation, rate: int) -> Iterator[list[Seen]]:
    """Ask through HAProxy for as long as the block runs; the list then has what was seen."""
    lua = at.directory / "load.lua"
    # Before the file holds a token, it is nobody else's.
    lua.touch(mode=0o600)
    lua.write_text(WRK % (SCRIPT.replace("TOKEN", at.token) + PACED % rate))
    process = subprocess.Popen(
        ["wrk", "-t1", "-c64", f"-d{LOAD_S_MAX}s", "--timeout", "10s", "-s", str(lua), f"{at.url}/"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    seen: list[Seen] = []
    try:
        yield seen
    finally:
        process.send_signal(signal.SIGINT)  # it ends with what it has counted
        said, _ = process.communicate(timeout=30)
    match = re.search(r"RESULT rate=([\d.]+) p50=\S+ p95=([\d.]+) p99=\S+ ok=(\d+) bad=(\d+) errors=(\d+)", said)
    if match is None or int(match[3]) == 0:
        raise RuntimeError(f"wrk: {said}")
    seen.append(Seen(float(match[1]), int(match[3]), int(match[4]) + int(match[5]), float(match[2])))


def fill(at: Installation) -> None:
    """Make what the load reads and writes."""
    client = Client(Config(at.url, at.token, at.ca.read_text()))
    for number in range(20):
        client.create_project(f"load-{number}")


def done(at: Installation, *arguments: str, code: int = 0) -> dict[str, Any]:
    """Run a command of rollouts and return the newest one. Raises RuntimeError if it ends otherwise."""
    ended, said = finished(at.command(*arguments), RUN_S_MAX)
    if ended != code:
        raise RuntimeError(f"novacron rollout {' '.join(arguments)} ended with {ended}:\n{said}")
    return at.status()


def took_s(status: dict[str, Any]) -> float:
    return float(status["ended_s"] - status["began_s"])


def noticed_s(status: dict[str, Any]) -> float:
    """Return how long a bad version had requests: from its first share until the old one had all of them again."""
    at = {event["step"]: event["at_s"] for event in reversed(status["events"])}
    first = min(value for step, value in at.items() if step.startswith("share-"))
    return float(at["restore"] - first)


def unharmed(name: str, seen: list[Seen], size: Size) -> list[Figure]:
    """Return figures of rollouts in which no request may fail."""
    return [
        Figure(
            f"{name}: failed requests", sum(s.failed for s in seen), f"of {sum(s.ok + s.failed for s in seen):,}", 0
        ),
        median("  ... requests a second meanwhile", [s.rate for s in seen], "/s", size.rate * 0.95, at_least=True),
        median("  ... p95 meanwhile", [s.p95_ms for s in seen], "ms"),
    ]


def switches(at: Installation, size: Size) -> list[Figure]:
    """Measure blue-green, the way back after it, and an abort."""
    forth, back, aborted = list[Seen](), list[Seen](), list[Seen]()
    forth_s, back_s, abort_s = list[float](), list[float](), list[float]()
    for _ in range(size.rounds):
        version = at.other_version()
        at.write_settings(watch=size.step_s)
        with load(at, size.rate) as seen:
            forth_s.append(took_s(done(at, "start", "--version", version)) - size.step_s)
        forth += seen
        with load(at, size.rate) as seen:
            back_s.append(took_s(done(at, "rollback")))
        back += seen
        at.write_settings(watch=60.0)
        with load(at, size.rate) as seen:
            process = at.command("start", "--version", version)
            until(lambda: at.status()["step"] == "watch-100", "it is watched", 60)
            abort_s.append(float(done(at, "abort")["went_back_s"]))
            finished(process)
        aborted += seen
    return [
        *unharmed("blue-green", forth, size),
        median("  ... from the command to its end, without the watch", forth_s, "s"),
        *unharmed("rollback to a version that was stopped", back, size),
        median("  ... from the command to the old version alone", back_s, "s", BACK_BOUND_S),
        *unharmed("abort while it is watched", aborted, size),
        median("  ... until the old version has all requests", abort_s, "s", BACK_BOUND_S),
    ]


def canaries(at: Installation, size: Size) -> list[Figure]:
    """Measure a good canary, and two bad ones."""
    canary = {"shares": "1,10,50,100", "step": size.step_s, "check_every": 2.0, "settle": 8.0, "window": 10}
    at.write_settings(prometheus=at.start_prometheus(), **canary)
    good, good_s = list[Seen](), list[float]()
    for _ in range(size.rounds):
        version = at.other_version()
        with load(at, size.rate) as seen:
            good_s.append(took_s(done(at, "start", "--strategy", "canary", "--version", version)))
        good += seen
    figures = [
        *unharmed("canary, 1, 10, 50, 100 %", good, size),
        median("  ... from the command to its end", good_s, "s"),
    ]
    at.write_settings(prometheus=at.prometheus_url, smoke=False, **{**canary, "step": 60.0})
    for name, version in (("5 % of requests fail", ERRORS), ("requests take 0.5 s longer", SLOW)):
        noticed, back, failed = list[float](), list[float](), list[Seen]()
        for _ in range(size.rounds):
            with load(at, size.rate) as seen:
                status = done(at, "start", "--strategy", "canary", "--version", version, code=1)
            noticed.append(noticed_s(status))
            back.append(float(status["went_back_s"]))
            failed += seen
        figures += [
            median(f"canary of which {name}: noticed and gone", noticed, "s"),
            median("  ... from noticing to the old version alone", back, "s", BACK_BOUND_S),
            Figure(
                "  ... failed requests", sum(s.failed for s in failed), f"of {sum(s.ok + s.failed for s in failed):,}"
            ),
        ]
    return figures


def main() -> None:
    line = parser("rollout", __doc__, "one round, shorter shares, a tenth of the nodes")
    line.add_argument("--only", nargs="*", choices=PARTS)
    options = line.parse_args()
    size = SMOKE if options.smoke else QUICK if options.quick else FULL
    parts = set(options.only or PARTS)
    clean_up_when_ended()
    figures: list[Figure] = []
    if parts & {"switches", "canaries"}:
        figures += _of_servers(size, parts)
    if "fleet" in parts:
        figures += fleet_figures(size.fleet)
    if "upgrade" in parts and not missing():
        figures += upgrade_figures(size.upgrade)
    report("rollout", figures, options.json, smoke=options.smoke)


def _of_servers(size: Size, parts: set[str]) -> list[Figure]:
    figures: list[Figure] = []
    with installation() as at:
        fill(at)
        if "switches" in parts:
            figures += switches(at, size)
            report("rollout, first part", figures, None)  # what follows takes minutes
        if size.canary and "canaries" in parts:
            figures += canaries(at, size)
    return figures


if __name__ == "__main__":
    main()
