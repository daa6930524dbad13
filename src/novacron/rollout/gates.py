"""Whether a new version may keep its requests: what is measured, by Prometheus and by HAProxy, and what ends it.

The queries are those of the alerts HighAPIErrorRate and HighAPILatency, for one colour, without what health checks and
scrapes ask.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import NamedTuple

import urllib3

from novacron.rollout.balancer import NO_TRAFFIC, Traffic
from novacron.rollout.model import Colour

ASK_S_MAX, ASKED_TIMES, RETRY_S = 5.0, 3, 1.0
ANSWER_BYTES_MAX = 1 << 20
SLOW_S = 0.1
"""Below this, nobody minds that the new version is slower."""
ASKED = 'route!~"/metrics.*|/readyz|/healthz"'


class GateLimits(NamedTuple):
    """What ends a rollout. Shares are of 1."""

    errors_max: float
    p95_s_max: float
    errors_above: float
    """How much larger the share of errors may be than the old version's in the same minutes."""
    p95_times: float
    """How many times slower than the old version it may be."""
    least_requests: int


class GateReading(NamedTuple):
    """What Prometheus says of one colour; None: nothing."""

    up: float | None
    """Whether every scrape reaches it: 1 or 0."""
    version: str | None
    errors: float | None
    """Share of the requests that failed; None also where there were none."""
    p95_s: float | None


def refusal(new: GateReading, version: str, limits: GateLimits, *, settled: bool) -> str:
    """Return why a new version has to go, whatever the old one does; empty: it may stay. Pure.

    Until it is ``settled``, measurements may be missing.
    """
    missing = _missing(new, version) if settled else ""
    if missing:
        return missing
    if new.errors is not None and new.errors > limits.errors_max:
        return f"{new.errors:.1%} of its requests fail, more than {limits.errors_max:.1%}"
    if new.p95_s is not None and new.p95_s > limits.p95_s_max:
        return f"its p95 is {_ms(new.p95_s)}, more than {_ms(limits.p95_s_max)}"
    return ""


def worse(new: GateReading, old: GateReading, limits: GateLimits) -> str:
    """Return in what a new version is clearly worse than the old one in the same minutes; empty: in nothing. Pure."""
    if new.errors is not None and old.errors is not None and new.errors - old.errors > limits.errors_above:
        return f"{new.errors:.1%} of its requests fail, and {old.errors:.1%} of the old version's"
    if new.p95_s is not None and old.p95_s is not None:
        limit_s = max(SLOW_S, limits.p95_times * old.p95_s)
        if new.p95_s > limit_s:
            return f"its p95 is {_ms(new.p95_s)}, and the old version's {_ms(old.p95_s)}"
    return ""


def _missing(new: GateReading, version: str) -> str:
    if new.up is None:
        return "Prometheus has no measurements of it"
    if new.up < 1:
        return "Prometheus can't reach it"
    if new.version != version:
        return f"Prometheus measures version {new.version or 'unknown'} instead of {version}"
    if new.errors is None or new.p95_s is None:
        return "Prometheus has not seen a request that it answered"
    return ""


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms"


def failing(before: Traffic, now: Traffic, limits: GateLimits) -> str:
    """Return why a new version has to go by what HAProxy has counted since its share began; empty: it may stay."""
    if now.answered < before.answered:  # HAProxy has begun anew
        before = NO_TRAFFIC
    failed = now.failed - before.failed
    asked = max(now.answered - before.answered, failed)
    if asked >= limits.least_requests and failed / asked > limits.errors_max:
        return f"HAProxy counts {failed} of {asked} requests that failed, more than {limits.errors_max:.1%}"
    return ""


class PrometheusAway(Exception):
    """Prometheus does not answer, or not with a result: says how."""


class Prometheus:
    """Asks a Prometheus that scrapes both colours with the label ``colour``."""

    def __init__(self, url: str, ca: Path | None, window_s: int) -> None:
        self._url, self._ca, self._window = url.rstrip("/"), ca, f"{window_s}s"

    def measured(self, colour: Colour) -> GateReading:
        """Return what is measured of a colour now. Raises PrometheusAway."""
        mine, window = f'colour="{colour}"', self._window
        requests = f"sum(rate(novacron_api_requests_total{{{mine},{ASKED}}}[{window}]))"
        failed = f'sum(rate(novacron_api_requests_total{{{mine},{ASKED},status=~"5.."}}[{window}]))'
        buckets = f"novacron_api_request_duration_seconds_bucket{{{mine},{ASKED}}}"
        versions = self._query(f"novacron_build_info{{{mine}}} and on(instance) up{{{mine}}} == 1")
        return GateReading(
            self._number(f'min(up{{{mine},job="novacron-server"}})'),
            next((labels.get("version") for labels, _ in versions), None),
            self._number(f"({failed} or vector(0)) / ({requests} > 0)"),
            self._number(f"histogram_quantile(0.95, sum by (le) (rate({buckets}[{window}])))"),
        )

    def _number(self, query: str) -> float | None:
        samples = self._query(query)
        return samples[0][1] if len(samples) == 1 and not math.isnan(samples[0][1]) else None

    def _query(self, query: str) -> list[tuple[dict[str, str], float]]:
        """Return labels and values of a query. Raises PrometheusAway."""
        for attempt in range(ASKED_TIMES):
            try:
                return self._ask(query)
            except PrometheusAway:
                if attempt == ASKED_TIMES - 1:
                    raise
            time.sleep(RETRY_S)
        raise AssertionError("unreachable")

    def _ask(self, query: str) -> list[tuple[dict[str, str], float]]:
        try:
            with urllib3.PoolManager(ca_certs=None if self._ca is None else str(self._ca)) as pool:
                answer = pool.request(
                    "GET", f"{self._url}/api/v1/query", fields={"query": query}, retries=False, timeout=ASK_S_MAX,
                    preload_content=False,
                )  # fmt: skip
                body = answer.read(ANSWER_BYTES_MAX)
            if answer.status != 200:
                raise PrometheusAway(f"Prometheus at {self._url} answered {answer.status}: {body[:200]!r}")
            result = json.loads(body)["data"]["result"]
            return [(item["metric"], float(item["value"][1])) for item in result]
        except (urllib3.exceptions.HTTPError, OSError, ValueError, LookupError, TypeError) as error:
            raise PrometheusAway(f"Prometheus at {self._url} does not answer: {error}") from None
