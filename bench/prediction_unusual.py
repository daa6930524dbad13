"""How often VMs of the trace are said to be unlike themselves, and how many are found that were made so.

What is odd in the trace nobody has said: the share of hours that are flagged is an upper bound of false alarms. Known
ones are made: a VM that has a processor to spare uses one more for six hours (something in it hangs and spins).
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.report import Figure
from novacron.prediction import unusual
from novacron.prediction.load import Floats
from novacron.prediction.profiles import PROFILE_DAYS, usual
from novacron.prediction.unusual import Directions

SAMPLES_OF_HOUR, HOURS_OF_DAY, HOURS_OF_WEEK = 12, 24, 168
SPINS_HOURS = 6
SEED = 1


class Days(NamedTuple):
    """Processors, ``[vm, day, hour]``; NaN where not known."""

    means: Floats
    peaks: Floats


def days_of(mhz: Floats, capacity_mhz: Floats, vcpus: Floats) -> Days:
    """Return the whole days of samples ``[vm, sample]``."""
    cpus = mhz / (capacity_mhz / vcpus)[:, None]
    whole = cpus.shape[1] // (HOURS_OF_DAY * SAMPLES_OF_HOUR) * HOURS_OF_DAY * SAMPLES_OF_HOUR
    hours = cpus[:, :whole].reshape(len(cpus), -1, HOURS_OF_DAY, SAMPLES_OF_HOUR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of hours that are not known
        return Days(np.nanmean(hours, -1), np.nanmax(hours, -1))


def directions(used: Floats, known: Days, day: int) -> Directions:
    """Compare a day ``[vm, hour]`` with the days before it, as a server does."""
    before = slice(day - PROFILE_DAYS, day)
    means, variances = usual(known.means[:, before], known.peaks[:, before])
    return unusual.of_hours(used, means, variances)


def lasting(flags: Directions) -> NDArray[np.bool_]:
    """Return which hours ``[vm, hour]`` are the last of enough that differ in one direction."""
    padded = np.pad(flags, ((0, 0), (unusual.HOURS - 1, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, unusual.HOURS, axis=1)
    same: NDArray[np.bool_] = unusual.lasting(windows) != 0
    return same


def unusual_figures(mhz: Floats, capacity_mhz: Floats, vcpus: Floats) -> list[Figure]:
    known = days_of(mhz, capacity_mhz, vcpus)
    last = known.means.shape[1]
    if last <= PROFILE_DAYS:
        return []
    of_days, hours = list[Directions](), 0
    spinning = np.zeros((3, 0), dtype=np.bool_)
    random = np.random.default_rng(SEED)
    for day in range(PROFILE_DAYS, last):
        of_days.append(directions(known.means[:, day], known, day))
        hours += int(np.isfinite(known.means[:, day]).sum())
        spinning = np.concatenate([spinning, _spinning(known, day, vcpus, random)], axis=1)
    flagged = lasting(np.concatenate(of_days, axis=1))
    begins = flagged & ~np.pad(flagged, ((0, 0), (1, 0)))[:, :-1]
    soon, late, _ = spinning
    return [
        Figure("VMs unlike themselves: episodes in a VM's week", float(begins.sum()) / (hours / HOURS_OF_WEEK), ""),
        Figure("  ... of its hours", 100 * float(flagged.sum()) / hours, "%"),
        Figure("  ... VMs that spin found: after two hours", 100 * float(soon.mean()), "%"),
        Figure("  ... after six", 100 * float(late.mean()), "%"),
    ]


def _spinning(known: Days, day: int, vcpus: Floats, random: np.random.Generator) -> NDArray[np.bool_]:
    """Let each VM that has one use one processor more, from a random hour of a day on; return ``[3, vm]``: found after
    two hours, after all, and that it has one."""
    used = known.means[:, day].copy()
    start = int(random.integers(0, HOURS_OF_DAY - SPINS_HOURS + 1))
    spins = slice(start, start + SPINS_HOURS)
    used[:, spins] = np.minimum(used[:, spins] + 1, vcpus[:, None])
    possible = np.isfinite(used).all(1) & (known.means[:, day, spins].max(1) + 1 <= vcpus)
    flags = lasting(directions(used, known, day)[:, spins])
    return np.stack([flags[:, unusual.HOURS - 1], flags.any(1), possible])[:, possible]
