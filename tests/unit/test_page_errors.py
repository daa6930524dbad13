"""Reports of errors in pages of the web UI: nobody fills the log with them."""

from __future__ import annotations

import itertools

import pytest

from novacron.api.routes.page_errors import PER_MINUTE_MAX, USERS_MAX, ReportLimit
from novacron.model.errors import TooManyRequests
from tests.support.clock import Clock


def test_ten_reports_a_minute_of_each_user_are_logged() -> None:
    clock = Clock()
    limit = ReportLimit(clock)
    for user in ("ann", "bob"):
        for _ in itertools.repeat(None, PER_MINUTE_MAX):
            limit.take(user)
        with pytest.raises(TooManyRequests, match="a minute"):
            limit.take(user)
    clock.now_s += 61
    limit.take("ann")


def test_users_are_forgotten_that_reported_least_lately() -> None:
    limit = ReportLimit()
    for number in range(USERS_MAX * 2):
        limit.take(f"user-{number}")
    assert len(limit._lately) == USERS_MAX
