"""What it costs to be seen: ``script/bench observability``. The same server with its requests and queries counted, and
not; and a scrape with 2,000 VMs."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.api import LIST, PACKED, _mixed
from bench.api_load import Stand, timed
from bench.report import Figure, median, report
from lab.platform import clean_up_when_ended, open_directory
from novacron.client import Client
from novacron.telemetry.declared import FAMILIES

VMS, NODES = 2000, 100
SCRAPES = 50


def figures_of(stand: Stand, rounds: int, seconds: float) -> list[Figure]:
    scraper = Client(stand.client.config)
    scrapes = [1e3 * timed(scraper.metrics) for _ in range(SCRAPES)]
    text = scraper.metrics()
    mixed = _mixed(stand)
    shares: dict[str, list[float]] = {"lists": [], "mixed": []}
    for number in range(rounds):
        rates = {}
        for module in ("novacron", "bench.uncounted") if number % 2 else ("bench.uncounted", "novacron"):
            stand.restart_server(module)
            stand.load(LIST, 100, 2, headers=PACKED)  # warm
            rates[module] = {
                "lists": stand.load(LIST, 100, seconds, headers=PACKED).rate,
                "mixed": stand.load("/", 100, seconds, script=mixed).rate,
            }
        for name, found in shares.items():
            found.append(100 * (1 - rates["novacron"][name] / rates["bench.uncounted"][name]))
    return [
        Figure("metrics of a server", len(FAMILIES), "", 120, at_least=True),
        median(f"scrape with {VMS:,} VMs and {NODES} nodes, over TLS", scrapes, "ms", 30),
        Figure("  ... size", len(text) / 1e3, "kB"),
        median("throughput that counting takes: lists, 100 connections", shares["lists"], "%", 3),
        median("  ... 95 % reads, 5 % writes", shares["mixed"], "%", 3),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="script/bench observability", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    clean_up_when_ended()
    with open_directory("nvo-") as directory, Stand(directory, NODES).run() as stand:
        stand.fill(VMS)
        rounds, seconds = (2, 3) if options.quick else (7, 6)
        report("observability", figures_of(stand, rounds, seconds), options.json)


if __name__ == "__main__":
    main()
