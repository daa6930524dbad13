"""How long what fails stays away: ``script/bench recovery``.

``database``: three members of the database on loopback, writers, and a server whose API is read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from bench.recovery_database import FULL, QUICK, SMOKE, Size, database_figures
from bench.report import Figure, parser, report
from lab.platform import clean_up_when_ended

PARTS: dict[str, Callable[[Size], list[Figure]]] = {"database": database_figures}


def main() -> int:
    line = parser("recovery", __doc__, "fewer rounds, under five minutes")
    line.add_argument("--only", nargs="*", choices=list(PARTS))
    options = line.parse_args()
    clean_up_when_ended()
    size = SMOKE if options.smoke else QUICK if options.quick else FULL
    figures: list[Figure] = []
    for part in options.only or PARTS:
        figures += PARTS[part](size)
        print(f"{part}: done", flush=True)
    report("recovery", figures, options.json, smoke=options.smoke)
    return 0


if __name__ == "__main__":
    sys.exit(main())
