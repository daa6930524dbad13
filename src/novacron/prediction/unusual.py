"""Which VMs use more or less than they usually do at this hour of the day.

A VM is unlike itself in an hour if its mean is more than ``DEVIATIONS`` standard deviations of its profile away from
what is usual (``prediction.profiles``), more than ``SMALLEST`` processors, and more than ``SHARE`` of it. One such hour
may be chance: all of the last ``HOURS`` have to be, in the same direction. What goes on for days becomes usual, as
profiles are made anew each day.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from novacron.prediction.load import Floats

DEVIATIONS = 4.0
SMALLEST = 0.25
SHARE = 0.5
HOURS = 2

Directions = NDArray[np.int8]
"""1: more than usual; -1: less; 0: as usual, or not known."""


def of_hours(used: Floats, usual: Floats, variances: Floats) -> Directions:
    """Compare hours with what is usual in them; all are of one shape, in processors, NaN where not known."""
    difference = used - usual
    bound = np.maximum(np.maximum(DEVIATIONS * np.sqrt(variances), SMALLEST), SHARE * usual)
    return np.where(np.abs(difference) > bound, np.sign(difference), 0).astype(np.int8)


def lasting(directions: Directions) -> Directions:
    """Return the direction in which all hours of the last axis differ; 0 if they do not."""
    first: Directions = directions[..., 0]
    same = (directions == first[..., None]).all(-1)
    return np.where(same, first, 0).astype(np.int8)
