"""Many nodes and VMs: ``script/bench scale``. The agents' link is real, what is behind it is simulated."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from bench.api_load import Stand, timed
from bench.report import Figure, median, report
from lab.platform import clean_up_when_ended, open_directory

NODES, VMS = 2000, 100_000
PAGES = 40
QUIET_S = 30.0


def figures_of(stand: Stand, vms: int, rounds: int) -> list[Figure]:
    filled = timed(lambda: stand.fill(vms))
    print(f"{vms} VMs are there, after {filled:.0f} s", flush=True)
    latencies = []
    for _ in range(rounds):
        load = stand.load("/api/v1/vms?limit=20", 20, 5, script=PAGES_SCRIPT)
        if load.bad or load.errors:
            raise RuntimeError(f"requests failed: {load}")
        latencies.append(load.p95_ms)
    began, used = time.monotonic(), stand.cpu_s()
    time.sleep(QUIET_S)
    share = 100 * (stand.cpu_s() - used) / (time.monotonic() - began)
    return [
        Figure(f"{vms:,} VMs on {stand.nodes:,} nodes: created and running", filled, "s"),
        median("  ... list of 20 VMs, from anywhere: p95", latencies, "ms", 20),
        Figure("  ... at rest, heartbeats: processor of the server", share, "%", 50),
        Figure("  ... memory of the server", stand.memory_mib(), "MiB", 1536),
    ]


PAGES_SCRIPT = """
function request()
  turn = turn + 1
  return wrk.format("GET", "/api/v1/vms?limit=20&name=vm-" .. string.format("%04d", turn % 1000) .. "*")
end
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="script/bench scale", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of it")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    clean_up_when_ended()
    nodes, vms = (NODES // 10, VMS // 10) if options.quick else (NODES, VMS)
    with open_directory("nvc-") as directory, Stand(directory, nodes).run() as stand:
        print(f"{nodes} nodes are ready", flush=True)
        report("scale", figures_of(stand, vms, 2 if options.quick else 5), options.json)


if __name__ == "__main__":
    main()
