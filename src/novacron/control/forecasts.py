"""Foresees load, once an hour: a process of its own makes the round, this watches over it and says how good it was."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import msgspec

from novacron import child_environment
from novacron.control.objects import Objects
from novacron.model.errors import Unavailable
from novacron.model.load_forecast import ForecastAccuracy
from novacron.model.load_hours import HOUR_S
from novacron.store import forecasts, unusual_loads
from novacron.store.database import Database
from novacron.store.forecasts import RoundSummary
from novacron.telemetry import logs
from novacron.telemetry.values import Labels, counter, gauge

log = logs.get(__name__)

AFTER_S = 180
"""How long after an hour's end its successor is foreseen: every server has stored what nodes reported."""
ROUND_S_MAX = 300.0
ERROR_TEXT_MAX = 2000
KEY = "round"


class Forecasts(msgspec.Struct):
    """``clock`` says seconds since 1970."""

    clock: Callable[[], float] = time.time
    round_s_max: float = ROUND_S_MAX

    async def step(self, database: Database, objects: Objects) -> None:
        now_s = self.clock()
        hour_s = int(now_s) // HOUR_S * HOUR_S
        now = datetime.fromtimestamp(now_s, UTC)
        async with database.connection() as connection:
            is_made = await forecasts.round_is_made(connection, datetime.fromtimestamp(hour_s, UTC))
            last = await forecasts.last_round(connection)
            accuracies = await forecasts.accuracies(connection, now)
            unusual = await unusual_loads.count(connection, now)
        gauge("novacron_forecast_unusual_vms").set(unusual)
        measure(accuracies)
        if last is not None:
            gauge("novacron_forecast_last_round_timestamp_seconds").set(last[0].timestamp())
            gauge("novacron_forecast_round_duration_seconds").set(last[1])
        if is_made or now_s < hour_s + AFTER_S:
            return

        async def make(key: str) -> None:
            await self._make(database.url, hour_s)

        objects.start([KEY], make, count_max=1, limit_s=self.round_s_max + 10)

    async def _make(self, url: str, hour_s: int) -> None:
        """Make the round of an hour, within a time limit. Raises Unavailable when it failed."""
        order = msgspec.json.encode({"database_url": url, "hour_s": hour_s})
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "novacron.control.forecast_round", env=_environment(),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        outcome = "failed"
        try:
            async with asyncio.timeout(self.round_s_max):
                answer, said = await process.communicate(order)
            if process.returncode != 0:
                text = said.decode(errors="replace").strip().rpartition("\n")[2]
                raise Unavailable(f"a round of forecasts failed: {text[:ERROR_TEXT_MAX] or process.returncode}")
            summary = msgspec.json.decode(answer, type=RoundSummary)
            outcome = "done"
            log.info("forecasts are made", nodes=summary.nodes, vms=summary.vms, took_s=summary.took_s)
        except TimeoutError:
            outcome = "timeout"
            raise Unavailable(f"a round of forecasts took more than {self.round_s_max:.0f} s and was ended") from None
        finally:
            counter("novacron_forecast_rounds_total").add(outcome)
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()


def _environment() -> dict[str, str]:
    """Return what libpq's clients look at, and one thread: the round is to take one processor at most."""
    kept = {
        name: value for name, value in os.environ.items()
        if name.startswith("PG") or name in ("HOME", "PYTHONPATH", "VIRTUAL_ENV")
    }  # fmt: skip
    return child_environment.clean({"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", **kept})


def measure(accuracies: Sequence[ForecastAccuracy]) -> None:
    """Let the gauges say how good each kind is; of what is not known yet they say nothing."""
    errors, coverages, leads = dict[Labels, float](), dict[Labels, float](), dict[Labels, float]()
    for accuracy in accuracies:
        kind = accuracy.kind.value
        gauge("novacron_forecast_scored").set(accuracy.scored, kind)
        gauge("novacron_forecast_model_aside").set(accuracy.aside_since is not None, kind)
        answers = {"served": accuracy.error, "last": accuracy.last_error, "learned": accuracy.learned_error}
        errors |= {(kind, answer): error for answer, error in answers.items() if error is not None}
        coverages |= {} if accuracy.coverage is None else {(kind,): accuracy.coverage}
        leads |= {} if accuracy.lead_s is None else {(kind,): accuracy.lead_s}
    gauge("novacron_forecast_error_ratio").read = lambda: errors
    gauge("novacron_forecast_coverage_ratio").read = lambda: coverages
    gauge("novacron_forecast_lead_seconds").read = lambda: leads
