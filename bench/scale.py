"""Many nodes and VMs: ``script/bench scale``. The agents' link is real, what is behind it is simulated."""

from __future__ import annotations

import time
from typing import NamedTuple

from bench.api_load import Stand, timed
from bench.report import Figure, median, parser, report
from bench.scale_writes import placement_figures, reader_figures
from lab.platform import clean_up_when_ended, open_directory


class Size(NamedTuple):
    """How much is measured."""

    nodes: int
    vms: int
    rounds: int
    load_s: int = 5
    quiet_s: float = 30.0


FULL, QUICK, SMOKE = Size(2000, 100_000, 5), Size(200, 10_000, 2), Size(2, 100, 1, 1, 1.0)


def figures_of(stand: Stand, size: Size) -> list[Figure]:
    vms = size.vms
    filled = timed(lambda: stand.fill(vms))
    print(f"{vms} VMs are there, after {filled:.0f} s", flush=True)
    latencies = []
    for _ in range(size.rounds):
        load = stand.load("/api/v1/vms?limit=20", 20, size.load_s, script=PAGES_SCRIPT)
        if load.bad or load.errors:
            raise RuntimeError(f"requests failed: {load}")
        latencies.append(load.p95_ms)
    began, used = time.monotonic(), stand.cpu_s()
    time.sleep(size.quiet_s)
    share = 100 * (stand.cpu_s() - used) / (time.monotonic() - began)
    return [
        Figure(f"{vms:,} VMs on {stand.nodes:,} nodes: created and running", filled, "s"),
        median("  ... list of 20 VMs, from anywhere: p95", latencies, "ms", 20),
        Figure("  ... at rest, heartbeats: processor of the server", share, "%", 50),
        Figure("  ... memory of the server", stand.memory_mib(), "MiB", 1536),
        *placement_figures(stand),
        *reader_figures(stand, size.rounds, size.load_s),
    ]


PAGES_SCRIPT = """
function request()
  turn = turn + 1
  return wrk.format("GET", "/api/v1/vms?limit=20&name=vm-" .. string.format("%04d", turn % 1000) .. "*")
end
"""


def main() -> None:
    options = parser("scale", __doc__, "a tenth of it").parse_args()
    clean_up_when_ended()
    size = SMOKE if options.smoke else QUICK if options.quick else FULL
    with open_directory("nvc-") as directory, Stand(directory, size.nodes).run() as stand:
        print(f"{size.nodes} nodes are ready", flush=True)
        report("scale", figures_of(stand, size), options.json, smoke=options.smoke)


if __name__ == "__main__":
    main()
