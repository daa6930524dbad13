"""Run histories that seeds make on one platform: ``python -m lab.histories --first 0 --count 200``."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator

from lab.histories.history import Broken, History
from lab.hosts import missing
from lab.images import images_dir
from lab.platform import Platform, clean_up_when_ended, default_cache, open_directory, platform
from lab.switched import switched_lab

HOSTS, SPARES = 3, 1


@contextlib.contextmanager
def three_hosts() -> Iterator[Platform]:
    """Run a platform on three hosts for as long as the block runs."""
    with (
        open_directory("nvh-") as directory,
        switched_lab(f"nvh{os.getpid()}", default_cache(), HOSTS, SPARES) as hosts,
        platform(directory / "p", hosts, images_dir()) as running,
    ):
        yield running


def run(first: int, count: int, *, says: bool = False) -> int:
    """Run histories of so many seeds; return how many broke a promise. Each of those gets the next a new platform.

    ``says``: print what was done in each.
    """
    broken, done, began = 0, 0, time.monotonic()
    while done < count:
        with three_hosts() as running:
            fine = True
            while fine and done < count:
                seed, begun = first + done, time.monotonic()
                history = History(running, seed)
                try:
                    history.run()
                except Broken as error:
                    fine, broken = False, broken + 1
                    print(f"BROKEN: seed {seed}: {error}", flush=True)
                if says:
                    print("\n".join(history.done), flush=True)
                done += 1
                now = time.monotonic()
                print(
                    f"seed {seed} ({history.theme}): {now - begun:.0f} s, {history.failovers} failovers,"
                    f" {history.agents_of_copies.ran} VMs from copies, guests seen to run in {history.guests_seen[0]}"
                    f" of {history.guests_seen[1]} looks; {done} histories, {broken} broken, {now - began:.0f} s",
                    flush=True,
                )
    return broken


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lab.histories", description=__doc__)
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--say", action="store_true", help="print what was done in each history")
    arguments = parser.parse_args()
    lacks = missing()
    if lacks:
        print("; ".join(lacks), file=sys.stderr)
        return 2
    clean_up_when_ended()
    return 1 if run(arguments.first, arguments.count, says=arguments.say) else 0


if __name__ == "__main__":
    sys.exit(main())
