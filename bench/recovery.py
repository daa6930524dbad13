"""How long what fails stays away: ``script/bench recovery``.

``database``: three members of the database on loopback, writers, and a server whose API is read. ``replication``: VMs
on two hosts with a WAN between them, that follow and fail over. ``failback``: how much the way back costs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from bench import recovery_database, recovery_failback, recovery_replication
from bench.report import Figure, parser, report
from lab.platform import clean_up_when_ended

PARTS: dict[str, Callable[[str], list[Figure]]] = {
    "database": lambda extent: recovery_database.database_figures(recovery_database.SIZES[extent]),
    "replication": lambda extent: recovery_replication.replication_figures(recovery_replication.SIZES[extent]),
    "failback": lambda extent: recovery_failback.failback_figures(recovery_failback.SIZES[extent]),
}


def main() -> int:
    line = parser("recovery", __doc__, "fewer rounds, under five minutes")
    line.add_argument("--only", nargs="*", choices=list(PARTS))
    options = line.parse_args()
    clean_up_when_ended()
    extent = "smoke" if options.smoke else "quick" if options.quick else "full"
    figures: list[Figure] = []
    for part in options.only or PARTS:
        figures += PARTS[part](extent)
        print(f"{part}: done", flush=True)
    report("recovery", figures, options.json, smoke=options.smoke)
    return 0


if __name__ == "__main__":
    sys.exit(main())
