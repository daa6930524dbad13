"""Forecasts against what came, on traces of other people's machines: ``script/bench prediction``.

Load: fitted to the first weeks, scored on the later ones; and fitted to some VMs, scored on others. Migrations: each
scenario is foreseen from what the other scenarios teach. The naive answer stands beside each figure.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench import onsets
from bench.prediction_migrations import migration_figures
from bench.prediction_replay import FULL, SMOKE, replay_figures
from bench.prediction_round import round_figures
from bench.prediction_unusual import unusual_figures
from bench.report import Figure, parser, report
from novacron.prediction import load
from novacron.prediction.load import Flags, Floats, Hours

SAMPLES = Path(__file__).parent / "data"
NODES, DRAWS, SEED = 20, 10, 1
NODES_SMOKE, DRAWS_SMOKE = 4, 1
TRAINED_SHARE = 0.6
"""How much of the time is fitted to."""
HOT = 0.9
"""A node's hour is hot if its peak exceeds this quantile of its peaks in the weeks that were fitted to."""
PRECISION = 0.5
MISSING = 65535
MHZ_A_UNIT = 2.0
QUARTERS = 4
WEEK = 7 * 24 * onsets.SAMPLES_AN_HOUR


class Set(NamedTuple):
    """Hours of nodes, and what came after each. ``trained`` and ``scored`` are earlier and later weeks."""

    hours: Hours
    rows: Floats
    level: Floats
    target: Floats
    trained: Flags
    scored: Flags


def node_samples(mhz: Floats, nodes: int, draws: int) -> Floats:
    """Place all VMs on nodes at random, several times; NaN where most VMs have no measurement."""
    random = np.random.default_rng(SEED)
    gaps = np.isnan(mhz).mean(0) > 0.5
    filled = np.nan_to_num(mhz)
    placements = []
    for _ in range(draws):
        placed = np.zeros((nodes, len(mhz)))
        placed[np.arange(len(mhz)) % nodes, random.permutation(len(mhz))] = 1
        placements.append(placed @ filled)
    samples: Floats = np.concatenate(placements)
    samples[:, gaps] = np.nan
    return samples


def observed(mhz: Floats, nodes: int, draws: int) -> Set:
    hours = onsets.by_hour(node_samples(mhz, nodes, draws))
    rows, level = load.features(hours)
    target = load.earlier(hours.peak, -1)
    usable = np.isfinite(rows).all(-1) & np.isfinite(target)
    trained = usable & (np.arange(target.shape[1])[None, :] < TRAINED_SHARE * target.shape[1])
    return Set(hours, rows, level, target, trained, usable & ~trained)


def forecasts(taught: Set, asked: Set, share: float) -> Floats:
    """Fit to the earlier weeks of ``taught``, and foresee ``asked``."""
    weights = (taught.level / np.nanmean(taught.level))[taught.trained]
    targets = (taught.target / taught.level)[taught.trained]
    coefficients = load.fit_quantile(taught.rows[taught.trained], targets, weights, share)
    peaks: Floats = (asked.rows @ coefficients) * asked.level
    return peaks


def error(forecast: Floats, target: Floats, where: Flags) -> float:
    return float(100 * np.abs(forecast - target)[where].sum() / target[where].sum())


def peak_figures(mhz: Floats, nodes: int, draws: int) -> list[Figure]:
    months = observed(mhz, nodes, draws)
    halves = [observed(mhz[first::2], max(2, nodes // 2), draws) for first in (0, 1)]
    lower, middle, upper = (forecasts(months, months, share) for share in (0.05, 0.5, 0.95))
    inside = ((months.target >= lower) & (months.target <= upper))[months.scored]
    others = [
        error(forecasts(taught, asked, 0.5), asked.target, asked.scored) for taught, asked in (halves, reversed(halves))
    ]
    return [
        Figure("node's next-hour CPU peak: weighted absolute error",
               error(middle, months.target, months.scored), "%", 15),
        Figure("  ... as in the last hour", error(months.hours.peak, months.target, months.scored), "%"),
        Figure("  ... 90 % interval covers", 100 * float(inside.mean()), "%", 86, at_least=True),
        Figure("  ... of VMs that were not trained on", statistics.mean(others), "%", None, tuple(others)),
        *hindsight_figures(months),
        *onset_figures(months),
    ]  # fmt: skip


def hindsight_figures(months: Set) -> list[Figure]:
    """How much better it gets with the hours and days *after* the hour in question, which no forecast has."""
    after = load.over_days(np.nanmedian, np.stack([load.earlier(months.target, -24 * day) for day in range(1, 8)]))
    future = [load.earlier(months.target, -hours) for hours in (1, 2, 24)]
    rows = np.concatenate([months.rows, np.stack([*future, after], -1) / months.level[..., None]], -1)
    usable = np.isfinite(rows).all(-1)
    foreseen = months._replace(trained=months.trained & usable, scored=months.scored & usable)
    in_hindsight = foreseen._replace(rows=rows)
    compared = {"hours of which the days after are known": foreseen, "the same hours, in hindsight": in_hindsight}
    return [
        Figure(f"  ... {name}", error(forecasts(variant, variant, 0.5), variant.target, variant.scored), "%")
        for name, variant in compared.items()
    ]


def onset_figures(months: Set) -> list[Figure]:
    """Alarms before hours that are hot after one that was not; the threshold is chosen in the trained weeks."""
    peak, target = months.hours.peak, months.target
    with np.errstate(all="ignore"):
        hot = np.nanquantile(np.where(months.trained, peak, np.nan), HOT, axis=1, keepdims=True)
    rows = onsets.onset_features(months.hours, hot)
    cold = np.isfinite(rows).all(-1) & (peak < hot)
    trained, scored, came = cold & months.trained, cold & months.scored, target >= hot
    model = onsets.fit_logit(rows[trained], came[trained])
    alarm = np.zeros_like(came)
    limit = onsets.threshold(model.chance(rows[trained]), came[trained], PRECISION)
    alarm[scored] = model.chance(rows[scored]) >= limit
    yesterday = load.earlier(peak, 23) >= hot

    def recall(alarms: Flags) -> float:
        return float((alarms & came)[scored].sum() / max(1, came[scored].sum()))

    def precision(alarms: Flags) -> float:
        return float((alarms & came)[scored].sum() / max(1, alarms[scored].sum()))

    return [
        Figure("onsets of hot hours: recall", recall(alarm), "", 0.6, at_least=True),
        Figure("  ... precision", precision(alarm), "", PRECISION, at_least=True),
        Figure("  ... as yesterday: recall", recall(yesterday), ""),
        Figure("  ... as yesterday: precision", precision(yesterday), ""),
    ]


def quarter(maximum: Floats, capacity: Floats) -> NDArray[np.int64]:
    """Return in which quarter of its capacity a maximum is: 0 to 3."""
    share = QUARTERS * maximum / np.maximum(capacity, 1)
    return np.clip(share, 0, QUARTERS - 1).astype(np.int64)


def quarter_figures(mhz: Floats, capacity: Floats) -> list[Figure]:
    weeks = mhz.shape[1] // WEEK
    maxima = np.nan_to_num(mhz)[:, : weeks * WEEK].reshape(len(mhz), weeks, WEEK).max(2)
    foreseen, before = [], []
    for number in range(load.WEEKS, weeks):
        came = quarter(maxima[:, number], capacity)
        foreseen.append(100 * float((quarter(load.next_week(maxima[:, :number]), capacity) == came).mean()))
        before.append(100 * float((quarter(maxima[:, number - 1], capacity) == came).mean()))
    if not foreseen:
        return []
    name = "next week's quarter of a VM's maximum"
    return [
        Figure(name, statistics.mean(foreseen), "%", 85, tuple(foreseen), at_least=True),
        Figure("  ... as in the last week", statistics.mean(before), "%", None, tuple(before)),
    ]


def main() -> None:
    command_line = parser("prediction", __doc__, "the same")
    command_line.add_argument("--traces", type=Path, metavar="FILE", help="load of VMs, .npz; a sample without it",
                              default=SAMPLES / "traces.npz")  # fmt: skip
    command_line.add_argument("--migrations", type=Path, metavar="FILE", help="migrations, .json.zst",
                              default=SAMPLES / "migrations.json.zst")  # fmt: skip
    options = command_line.parse_args()
    with np.load(options.traces) as file:
        raw, capacity = file["cpu_mhz"], file["cpu_capacity_mhz"].astype(float)
        vcpus = file["vcpus"].astype(float)
    mhz = np.where(raw == MISSING, np.nan, raw * MHZ_A_UNIT)
    size = (NODES_SMOKE, DRAWS_SMOKE) if options.smoke else (NODES, DRAWS)
    figures = [
        *peak_figures(mhz, *size), *quarter_figures(mhz, capacity), *unusual_figures(mhz, capacity, vcpus),
        *migration_figures(options.migrations),
        *replay_figures(mhz, SMOKE if options.smoke else FULL), *round_figures(smoke=options.smoke),
    ]  # fmt: skip
    report("prediction", figures, options.json, smoke=options.smoke)


if __name__ == "__main__":
    main()
