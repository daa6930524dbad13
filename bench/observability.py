"""What it costs to be seen: ``script/bench observability``. The same server with its requests and queries counted, and
not, and with its traces sent, too; and a scrape with 2,000 VMs.

Throughput differs by a fifth from one second to the next on a machine that servers, load and database share, and whose
processors others use, too. So all three servers run at once, and are asked in turn, a second each, many times: what is
said is the median of the pairs, and between what 95 % of medians lie that such samples may have."""

from __future__ import annotations

import random
import statistics
from typing import NamedTuple

from bench.api import LIST, PACKED, _mixed
from bench.api_load import Load, Stand, timed
from bench.report import Figure, median, parser, report
from lab.observers import serving
from lab.platform import clean_up_when_ended, open_directory
from lab.ports import free_ports
from novacron.client import Client
from novacron.telemetry.declared import FAMILIES


class Size(NamedTuple):
    """How much is measured."""

    rounds: int
    vms: int = 2000
    nodes: int = 100
    scrapes: int = 50
    connections: int = 100


FULL, QUICK, SMOKE = Size(60), Size(12), Size(1, 400, 2, 2, 4)
FAILED_SHARE_MAX = 0.0
"""Of the requests: none, reads or writes, however many servers share the database."""
LOADS, SHORT_S = ("lists", "mixed"), 1.0


def figures_of(stand: Stand, size: Size) -> list[Figure]:
    scraper = Client(stand.client.config)
    scrapes = [1e3 * timed(scraper.metrics) for _ in range(size.scrapes)]
    text = scraper.metrics()
    mixed = _mixed(stand)
    kinds = ("uncounted", "counted", "traced")
    slower: dict[str, list[float]] = {f"{kind} {load}": [] for kind in kinds[1:] for load in LOADS}
    with (
        serving(free_ports(1)[0], lambda *_: 200) as sent,
        stand.replica("bench.uncounted") as uncounted,
        stand.replica() as counted,
        stand.replica(environment={"OTEL_EXPORTER_OTLP_ENDPOINT": sent}) as traced,
    ):
        urls = {kind: client.config.url for kind, client in zip(kinds, (uncounted, counted, traced), strict=True)}
        for number in range(size.rounds + 1):
            for load in LOADS:
                rates = {}
                for kind in kinds[number % 3 :] + kinds[: number % 3]:
                    path, script = (LIST, "") if load == "lists" else ("/", mixed)
                    headers = PACKED if load == "lists" else ()
                    done = stand.load(path, size.connections, SHORT_S, headers=headers, script=script, url=urls[kind])
                    rates[kind] = _rate_of(done)
                if number:  # the first one warms
                    slower[f"counted {load}"].append(100 * (1 - rates["counted"] / rates["uncounted"]))
                    slower[f"traced {load}"].append(100 * (1 - rates["traced"] / rates["counted"]))
    return [
        Figure("metrics that are declared", len(FAMILIES), "", 120, at_least=True),
        median(f"scrape with {size.vms:,} VMs and {size.nodes} nodes, over TLS", scrapes, "ms", 30),
        Figure("  ... size", len(text) / 1e3, "kB"),
        *_paired("throughput that counting takes: lists, 100 connections", slower["counted lists"], 3),
        *_paired("  ... 95 % reads, 5 % writes", slower["counted mixed"], 3),
        *_paired("throughput that sending traces takes beyond it: lists", slower["traced lists"]),
        *_paired("  ... 95 % reads, 5 % writes", slower["traced mixed"]),
    ]


def _rate_of(load: Load) -> float:
    """Return the requests a second. Raises RuntimeError if some failed, for refusals would be measured as answers, or
    if there were none."""
    if load.failed_share > FAILED_SHARE_MAX:
        raise RuntimeError(f"requests failed: {load}")
    if load.rate == 0:
        raise RuntimeError(f"nothing was answered: {load}")
    return load.rate


def _paired(name: str, samples: list[float], bound: float | None = None) -> list[Figure]:
    """Return the median of pairs, and within what it is likely to be: medians of samples drawn of them anew."""
    drawn = sorted(statistics.median(random.choices(samples, k=len(samples))) for _ in range(2000))
    return [Figure(name, statistics.median(samples), "%", bound, (drawn[50], drawn[-50]))]


def main() -> None:
    options = parser("observability", __doc__, "fewer rounds").parse_args()
    size = SMOKE if options.smoke else QUICK if options.quick else FULL
    clean_up_when_ended()
    with open_directory("nvo-") as directory, Stand(directory, size.nodes).run() as stand:
        stand.fill(size.vms)
        report("observability", figures_of(stand, size), options.json, smoke=options.smoke)


if __name__ == "__main__":
    main()
