"""Forecasts of migrations against what they took, from what their hypervisor said every 200 ms.

A run that its operator ended otherwise (post-copy, a guest that was stopped) teaches, but is not scored. Who ran the
migration knew whether it would throttle the guest, so that is read from the scenario's name; nothing else is.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import zstandard

from bench import qemu_migration_forecast as migrations
from bench.qemu_migration_forecast import Pass, PassProgress, Past
from bench.report import Figure

PAGE = 4096
JUDGED_AT = 0.25
MOMENTS = (0.1, 0.25, 0.5, 0.75)
"""At which shares of its time a migration's interval is looked at."""
ENDS_BY_ITSELF = ("Precopy_Convergent", "Autoconverge")
NEVER_ENDS = "Precopy_Nonconvergent"
THROTTLES = "Autoconverge"
BYTES_A_MBIT = 125e3
Row = dict[str, float]


def learned_exponent(first_pass: Sequence[PassProgress], pass_s: float) -> float | None:
    """Return which exponent would have foreseen a first pass that took ``pass_s``, at the middle one of its moments
    (None if none says anything)."""
    fitting = []
    for at in first_pass:
        seen = at.sent + at.empty
        needed = (pass_s - at.elapsed_s) * at.rate
        if 0 < needed < at.remaining and 0 < at.sent < seen:
            fitting.append(math.log(needed / at.remaining) / math.log(at.sent / seen))
    return statistics.median(fitting) if fitting else None


class Run(NamedTuple):
    """A migration at each moment. ``total_s`` and ``converges`` are None if its operator ended it otherwise."""

    moments: tuple[PassProgress, ...]
    total_s: float | None
    converges: bool | None


def read(path: Path) -> dict[str, list[Run]]:
    """Read runs by scenario; those that say nothing of pre-copy are left out."""
    with path.open("rb") as file:
        document = json.loads(zstandard.ZstdDecompressor().stream_reader(file).read())
    scenarios: dict[str, list[Run]] = {}
    for found in document["runs"]:
        rows = [dict(zip(document["columns"], row, strict=True)) for row in found["rows"]]
        rows = [row for row in rows if row["total_time_ms"] is not None]
        if rows:
            scenarios.setdefault(found["scenario"], []).append(run(found["scenario"], rows))
    return scenarios


def run(scenario: str, rows: Sequence[Row]) -> Run:
    active = [row for row in rows if str(row["status"]) == "active"]
    ends_by_itself = scenario.startswith(ENDS_BY_ITSELF)
    total_s = rows[-1]["total_time_ms"] / 1e3 if ends_by_itself else None
    converges = True if ends_by_itself else False if scenario.startswith(NEVER_ENDS) else None
    return Run(moments(active, auto_converge=scenario.startswith(THROTTLES)), total_s, converges)


def moments(rows: Sequence[Row], *, auto_converge: bool) -> tuple[PassProgress, ...]:
    """Return what is known at each row. A pass has ended where the bitmap of written pages was read again."""
    found: list[PassProgress] = []
    passes: list[Pass] = []
    began_s = 0.0
    before: Row | None = None
    for row in rows:
        now_s, throttle = row["total_time_ms"] / 1e3, (row["cpu_throttle_percentage"] or 0) / 100
        if before is not None and row["dirty_sync_count"] == before["dirty_sync_count"] + 1:
            left = max(0.0, before["remaining"] - (row["normal_bytes"] - before["normal_bytes"]))
            passes.append(Pass(now_s - began_s, max(0.0, row["remaining"] - left), throttle))
        if before is not None and row["dirty_sync_count"] != before["dirty_sync_count"]:
            began_s = now_s
        before = row
        found.append(
            PassProgress(
                now_s, row["remaining"], row["mbps"] * BYTES_A_MBIT, row["normal_bytes"],
                row["duplicate_pages"] * PAGE, tuple(passes), began_s, auto_converge,
                (rows[0]["expected_downtime_ms"] or 300) / 1e3, throttle,
            )
        )  # fmt: skip
    return tuple(found)


def past(run: Run) -> Past:
    """Return what a run teaches, once it has ended."""
    exponent = None
    last = run.moments[-1]
    if last.passes:
        first_pass = [at for at in run.moments if not at.passes]
        sent_s = last.passes[0].seconds
        exponent = learned_exponent(first_pass, sent_s)
    guest = migrations.working_set(last.passes) if len(last.passes) > 1 else None
    return Past(exponent, guest)


def at_share(run: Run, share: float) -> PassProgress:
    """Return the last moment before this share of the run's time."""
    assert run.total_s is not None
    return [at for at in run.moments if at.elapsed_s <= share * run.total_s][-1]


def migration_figures(path: Path) -> list[Figure]:
    scenarios = read(path)
    errors: list[float] = []
    naive: list[float] = []
    inside: list[bool] = []
    physics: list[float] = []
    verdicts: list[float] = []
    by_scenario: dict[str, list[float]] = {}
    for name, runs in scenarios.items():
        history = [past(run) for other, found in scenarios.items() if other != name for run in found]
        for found in runs:
            verdicts += [share for share in [verdict_share(found, history)] if share is not None]
            if found.total_s is None:
                continue
            at = at_share(found, JUDGED_AT)
            naive.append(percent(at.elapsed_s + at.remaining / max(at.rate, 1.0), found.total_s))
            errors.append(percent(migrations.forecast(at, history).median_s, found.total_s))
            by_scenario.setdefault(name, []).append(errors[-1])
            physics.append(percent(migrations.forecast(at).median_s, found.total_s))
            for share in MOMENTS:
                answer = migrations.forecast(at_share(found, share), history)
                inside.append(answer.lower_s <= found.total_s <= answer.upper_s)
    if not errors:
        return []
    name = "migrations at 25 % of their time: median error of total time"
    figures = [
        Figure(name, statistics.median(errors), "%", 15, tuple(errors)),
        Figure("  ... physics alone", statistics.median(physics), "%", None, tuple(physics)),
        Figure("  ... remaining / rate", statistics.median(naive), "%", None, tuple(naive)),
        Figure("  ... 90 % interval covers, at 10 to 75 % of the time", 100 * statistics.fmean(inside), "%", 86,
               at_least=True),
    ]  # fmt: skip
    for scenario, found_errors in by_scenario.items():
        figures.append(Figure(f"  ... {scenario}", statistics.median(found_errors), "%", None, tuple(found_errors)))
    if verdicts:
        figures.append(
            Figure("verdict after two passes: right", 100 * statistics.fmean(verdicts), "%", 98, at_least=True)
        )
    return figures


def percent(foreseen_s: float, took_s: float) -> float:
    return 100 * abs(foreseen_s - took_s) / took_s


def verdict_share(run: Run, history: Sequence[Past]) -> float | None:
    """Return how often the verdict was right, over all ends of passes at which there was one."""
    if run.converges is None:
        return None
    ends = {len(at.passes): at for at in reversed(run.moments)}
    given = [migrations.forecast(at, history).converges for at in ends.values()]
    known = [verdict == run.converges for verdict in given if verdict is not None]
    return statistics.fmean(known) if known else None
