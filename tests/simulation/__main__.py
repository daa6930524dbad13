"""Run histories that seeds make, one after another: ``python -m tests.simulation bad-days --first 0 --count 10000``."""

from __future__ import annotations

import argparse
import sys
import time

import structlog

from tests.simulation.ownership import simulation_database
from tests.simulation.seeded import KINDS, run_history
from tests.simulation.world import Broken

SAYS_EVERY = 100


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument("--count", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.count > 1:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    broken, epochs, began = 0, 0, time.monotonic()
    with simulation_database() as place:
        for done in range(1, arguments.count + 1):
            try:
                epochs += run_history(place, arguments.kind, arguments.first + done - 1).epochs
            except Broken as error:
                broken += 1
                print(f"BROKEN: {error}", flush=True)
            if done % SAYS_EVERY == 0 or done == arguments.count:
                took_s = time.monotonic() - began
                print(f"{done} histories, {broken} broken, {epochs} epochs, {took_s:.0f} s", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
