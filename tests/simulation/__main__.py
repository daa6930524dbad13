"""Run histories that seeds make: ``python -m tests.simulation bad-days --first 0 --count 10000 --processes 2``."""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time

import structlog

from tests.simulation.ownership import simulation_database
from tests.simulation.seeded import KINDS, run_history
from tests.simulation.world import Broken

SAYS_EVERY = 100
PROCESSES_MAX = 64


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument(
        "--processes", type=int, default=1, choices=range(1, PROCESSES_MAX + 1), metavar="N",
        help="share the seeds among so many processes, each with a database of its own: one for each processor",
    )  # fmt: skip
    arguments = parser.parse_args()
    if arguments.processes > 1:
        return _share(arguments.kind, arguments.first, arguments.count, arguments.processes)
    return _run(arguments.kind, arguments.first, arguments.count)


def _share(kind: str, first: int, count: int, processes: int) -> int:
    """Let several processes run the histories; what they print comes as it is said."""
    bounds = [first + count * number // processes for number in range(processes + 1)]
    command = [sys.executable, "-m", "tests.simulation", kind]
    began = time.monotonic()
    running = [
        subprocess.Popen([*command, "--first", str(start), "--count", str(end - start)])
        for start, end in itertools.pairwise(bounds) if end > start
    ]  # fmt: skip
    try:
        failed = sum(process.wait() != 0 for process in running)
    finally:
        for process in running:
            process.terminate()
    print(f"{count} histories in {len(running)} processes, {time.monotonic() - began:.0f} s, {failed} with errors")
    return 1 if failed else 0


def _run(kind: str, first: int, count: int) -> int:
    if count > 1:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    broken, moved, began = 0, 0, time.monotonic()
    with simulation_database() as place:
        for done in range(1, count + 1):
            try:
                moved += run_history(place, kind, first + done - 1).epochs > 0
            except Broken as error:
                broken += 1
                print(f"BROKEN: {error}", flush=True)
            if done % SAYS_EVERY == 0 or done == count:
                took_s = time.monotonic() - began
                print(f"{first}+{done} histories, {broken} broken, in {moved} the VM moved, {took_s:.0f} s", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
