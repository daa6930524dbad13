"""How fast something grows: a line that a few odd days do not turn, with an interval.

The slope is the median of the slopes between all pairs of days (Theil 1950; Sen, "Estimates of the Regression
Coefficient Based on Kendall's Tau", 1968). The interval is Sen's, for 90 %: pairs are taken as far from the middle as
Kendall's tau of independent errors lets them be. Days that follow one another are not independent, so in truth it is
wider.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from novacron.prediction.load import Floats

NORMAL_90 = 1.6449
"""The normal distribution's quantile for a two-sided 90 %."""


class Trend(NamedTuple):
    """Growth a day, and its interval."""

    slope: float
    lower: float
    upper: float


def trend(days: Floats, values: Floats) -> Trend | None:
    """Return the trend of values, one a day; None for fewer than two. Raises ValueError for days that are equal."""
    count = len(days)
    if count < 2:
        return None
    first, second = np.triu_indices(count, 1)
    apart = days[second] - days[first]
    if not apart.all():
        raise ValueError("a day has two values")
    slopes = np.sort((values[second] - values[first]) / apart)
    deviation = math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    away = NORMAL_90 * deviation
    low = max(0, round((len(slopes) - away) / 2) - 1)
    high = min(len(slopes) - 1, round((len(slopes) + away) / 2))
    return Trend(float(np.median(slopes)), float(slopes[low]), float(slopes[high]))
