"""What it costs to be seen: ``script/bench observability``. The same server with its requests and queries counted, and
not, and with its traces sent, too; and a scrape with 2,000 VMs.

Throughput differs by a fifth from one second to the next on a machine that servers, load and database share, and whose
processors others use, too. So all three servers run at once, and are asked in turn, a second each, many times: what is
said is the median of the pairs, and between what 95 % of medians lie that such samples may have."""

from __future__ import annotations

import argparse
import random
import statistics
from pathlib import Path

from bench.api import LIST, PACKED, _mixed
from bench.api_load import Stand, timed
from bench.report import Figure, median, report
from lab.observers import serving
from lab.platform import clean_up_when_ended, free_ports, open_directory
from novacron.client import Client
from novacron.telemetry.declared import FAMILIES

VMS, NODES = 2000, 100
SCRAPES = 50
LOADS, SHORT_S = ("lists", "mixed"), 1.0


def figures_of(stand: Stand, rounds: int) -> list[Figure]:
    scraper = Client(stand.client.config)
    scrapes = [1e3 * timed(scraper.metrics) for _ in range(SCRAPES)]
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
        urls = {kind: one.config.url for kind, one in zip(kinds, (uncounted, counted, traced), strict=True)}
        for number in range(rounds + 1):
            for load in LOADS:
                rates = {}
                for kind in kinds[number % 3 :] + kinds[: number % 3]:
                    path, script = (LIST, "") if load == "lists" else ("/", mixed)
                    headers = PACKED if load == "lists" else ()
                    rates[kind] = stand.load(path, 100, SHORT_S, headers=headers, script=script, url=urls[kind]).rate
                if number:  # the first one warms
                    slower[f"counted {load}"].append(100 * (1 - rates["counted"] / rates["uncounted"]))
                    slower[f"traced {load}"].append(100 * (1 - rates["traced"] / rates["counted"]))
    return [
        Figure("metrics that are declared", len(FAMILIES), "", 120, at_least=True),
        median(f"scrape with {VMS:,} VMs and {NODES} nodes, over TLS", scrapes, "ms", 30),
        Figure("  ... size", len(text) / 1e3, "kB"),
        *_paired("throughput that counting takes: lists, 100 connections", slower["counted lists"], 3),
        *_paired("  ... 95 % reads, 5 % writes", slower["counted mixed"], 3),
        *_paired("throughput that sending traces takes beyond it: lists", slower["traced lists"]),
        *_paired("  ... 95 % reads, 5 % writes", slower["traced mixed"]),
    ]


def _paired(name: str, samples: list[float], bound: float | None = None) -> list[Figure]:
    """Return the median of pairs, and within what it is likely to be: medians of samples drawn of them anew."""
    drawn = sorted(statistics.median(random.choices(samples, k=len(samples))) for _ in range(2000))
    return [Figure(name, statistics.median(samples), "%", bound, (drawn[50], drawn[-50]))]


def main() -> None:
    parser = argparse.ArgumentParser(prog="script/bench observability", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    clean_up_when_ended()
    with open_directory("nvo-") as directory, Stand(directory, NODES).run() as stand:
        stand.fill(VMS)
        report("observability", figures_of(stand, 12 if options.quick else 60), options.json)


if __name__ == "__main__":
    main()
