"""What a VM usually uses at each hour of the day."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from novacron.prediction import load
from novacron.prediction.load import Floats

PROFILE_DAYS = 14
"""Days that are summarised. Seven left three times as much overload on other people's VMs."""
DAYS_MIN = 2
"""An hour that is known on fewer days is taken to be like the VM's other hours."""
PEAK_DEVIATIONS = 2.5
"""An hour's peak is taken to be so many standard deviations above its mean."""


class Profiles(NamedTuple):
    """``[vm, hour of the day]``; NaN of a VM that is known for too few days."""

    means: Floats
    variances: Floats


def usual(means: Floats, peaks: Floats) -> Profiles:
    """Summarise hours ``[vm, day, hour]``, NaN where not known: their mean, and how much single samples differ from
    it, from day to day and within an hour."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of what is not known at all
        middle: Floats = np.nanmean(means, axis=1)
        spread: Floats = np.nanvar(means, axis=1) + np.nanmean(((peaks - means) / PEAK_DEVIATIONS) ** 2, axis=1)
        few = np.isfinite(means).sum(axis=1) < DAYS_MIN
        middle[few], spread[few] = np.nan, np.nan
        level, widest = np.nanmean(middle, axis=1, keepdims=True), np.nanmax(spread, axis=1, keepdims=True)
    return Profiles(load.known_or(middle, level), load.known_or(spread, widest))
