"""VMs that are unlike themselves are found, and those that are as usual are not."""

from __future__ import annotations

import numpy as np
import pytest

from novacron.model.load_forecast import unusual_words
from novacron.prediction import unusual


@pytest.mark.parametrize(
    ("used", "usual", "variance", "direction"),
    [
        (3.0, 1.0, 0.01, 1),
        (0.1, 2.0, 0.01, -1),
        (1.4, 1.0, 0.01, 0),  # four deviations, yet not half as much again
        (1.6, 1.0, 0.01, 1),
        (0.2, 0.01, 0.0, 0),  # twenty times as much, and next to nothing
        (0.3, 0.01, 0.0, 1),
        (9.0, 5.0, 1.1, 0),  # it varies as much
        (np.nan, 1.0, 0.01, 0),
        (3.0, np.nan, np.nan, 0),
    ],
)
def test_an_hour_is_compared_with_what_is_usual(used: float, usual: float, variance: float, direction: int) -> None:
    assert unusual.of_hours(np.array([used]), np.array([usual]), np.array([variance])).tolist() == [direction]


def test_only_what_lasts_in_one_direction_counts() -> None:
    directions = np.array([[1, 1], [1, 0], [0, 1], [1, -1], [-1, -1], [0, 0]], dtype=np.int8)
    assert unusual.lasting(directions).tolist() == [1, 0, 0, 0, -1, 0]


def test_words_say_how_much_is_usual_and_that_others_wait() -> None:
    assert unusual_words(0.0, 0.5, 0.75, noisy=False).endswith("usually 0.00 to 1.25 at this time of the day")
    assert unusual_words(2.0, 0.5, 0.1, noisy=True).endswith("its node is busy, so that other VMs wait")
