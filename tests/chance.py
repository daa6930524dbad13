"""Where the numbers of random tests begin.

What runs on every change tries the same cases each time, so that it says something about the change and nothing else;
the slow matrix tries new ones. ``NOVACRON_SEED`` repeats either.
"""

from __future__ import annotations

import os
import random

EVERY_RUN = 20261130


def fixed_seed() -> int:
    """Return the seed of every run."""
    return int(os.environ.get("NOVACRON_SEED") or EVERY_RUN)


def new_seed() -> int:
    """Return another seed each time; who uses it prints it."""
    return int(os.environ.get("NOVACRON_SEED") or random.SystemRandom().getrandbits(32))
