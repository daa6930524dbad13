"""How long a running pre-copy migration of QEMU will take, and whether it converges: physics, with two learned numbers.

A migration is simulated pass by pass. The rest of the first pass is what remains, less empty pages. Each later pass
sends what the guest wrote during the pass before (Clark et al., "Live Migration of Virtual Machines", NSDI 2005). A
guest writes the same pages again and again, so what it has written grows slower than time: ``size * seconds **
exponent`` with an exponent of at most 1 (a working set). Auto-converge slows the guest in steps, as QEMU does.

What the guest writes is measured once passes have ended. Before that, the forecast simulates the move with each
guest that history knows. Without a history, physics stands alone.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import msgspec

EMPTY_PAGES_EXPONENT = 0.5
"""Without a history, the share of the rest that has to be sent is halfway, in logarithms, between all of it and the
share so far: empty pages come in long runs, so what was seen says little of what is to come."""
EMPTY_PAGES_EXPONENTS = (0.3, 3.0)
"""The least and the most that the interval allows for: nearly all that is left may be one run of empty pages."""
EXPONENT_PRIOR, EXPONENT_PRIOR_WEIGHT = 0.5, 0.2
"""What a working set's exponent is held to where passes of one length say nothing of it."""
PASSES_MAX = 200
STALLED_PASSES_MAX = 12
"""So many passes that are not shorter than the shortest before them: the migration does not converge."""
RATE_MIN = 1.0
PASS_S_MIN = 1e-3
"""A shorter pass says nothing of a working set."""
THROTTLE_INITIAL, THROTTLE_INCREMENT, THROTTLE_MAX = 0.2, 0.1, 0.99
THROTTLE_TRIGGER_SHARE, THROTTLE_TRIGGER_PERIODS, THROTTLE_PERIOD_S = 0.5, 2, 1.0
"""QEMU's defaults: it throttles when a guest has written more than half of what was sent, in two periods."""
SPREAD = 0.5
"""Half the width of the interval of the time that is left, in logarithms, once passes have ended."""
SHARE_OF_WRITING = (0.5, 0.9)
"""How much a guest of which nothing is known writes, of the most with which its migration ends: median and most."""


class WorkingSet(msgspec.Struct, frozen=True):
    """A guest writes ``size * seconds ** exponent`` bytes of distinct pages in that many seconds."""

    size: float
    exponent: float

    def written(self, seconds: float) -> float:
        return float(self.size * max(seconds, 0.0) ** self.exponent)


class Pass(msgspec.Struct, frozen=True):
    """A pass that has ended: how long it took, and what the guest wrote meanwhile (bytes) while it was slowed down by
    ``throttle`` (0 to 1)."""

    seconds: float
    written: float
    throttle: float = 0.0


class PassProgress(msgspec.Struct, frozen=True):
    """A migration as its hypervisor reports it, at one moment. Sizes in bytes, rates in bytes a second."""

    elapsed_s: float
    remaining: float
    rate: float
    sent: float
    """Pages that were sent whole."""
    empty: float
    """Pages that were found empty."""
    passes: tuple[Pass, ...] = ()
    """Those that have ended."""
    pass_began_s: float = 0.0
    """When the pass that goes on began, as a value of ``elapsed_s``: what the guest writes counts from then."""
    auto_converge: bool = False
    downtime_limit_s: float = 0.3
    throttle: float = 0.0


class TimeForecast(msgspec.Struct, frozen=True):
    """The total time: a median, and bounds that should hold nine times of ten. ``converges`` is None where nothing
    is known yet of what the guest writes."""

    median_s: float
    lower_s: float
    upper_s: float
    converges: bool | None


class Past(msgspec.Struct, frozen=True):
    """What a migration that has ended teaches."""

    empty_pages_exponent: float | None
    working_set: WorkingSet | None


def working_set(passes: Sequence[Pass], prior: float = EXPONENT_PRIOR) -> WorkingSet | None:
    """Return what passes say of the working set, or None before one has ended.

    A straight line through logarithms; a weak prior keeps the exponent where all passes were of one length.
    """
    known = [item for item in passes if item.seconds >= PASS_S_MIN and item.written > 0]
    if not known:
        return None
    times = [math.log(item.seconds) for item in known]
    sizes = [math.log(item.written / (1 - min(item.throttle, THROTTLE_MAX))) for item in known]
    time_mean, size_mean = statistics.fmean(times), statistics.fmean(sizes)
    covariance = sum((t - time_mean) * (s - size_mean) for t, s in zip(times, sizes, strict=True))
    variance = sum((t - time_mean) ** 2 for t in times)
    exponent = (covariance + EXPONENT_PRIOR_WEIGHT * prior) / (variance + EXPONENT_PRIOR_WEIGHT)
    exponent = min(1.0, max(0.0, exponent))
    return WorkingSet(math.exp(size_mean - exponent * time_mean), exponent)


def rest_of_first_pass(at: PassProgress, exponent: float = EMPTY_PAGES_EXPONENT) -> float:
    """Return how many bytes of the rest will have to be sent: empty pages cost nothing."""
    seen = at.sent + at.empty
    share = max(at.sent, 1.0) / seen if seen > 0 else 1.0
    return float(at.remaining * min(1.0, share) ** exponent)


class _Throttling:
    """How QEMU's auto-converge slows the guest, period by period."""

    def __init__(self, throttle: float) -> None:
        self.throttle = throttle
        self._periods = 0
        self._seconds = self._written = self._sent = 0.0

    def after(self, seconds: float, written: float, sent: float) -> None:
        self._seconds, self._written, self._sent = self._seconds + seconds, self._written + written, self._sent + sent
        if self._seconds < THROTTLE_PERIOD_S:
            return
        if self._written > THROTTLE_TRIGGER_SHARE * self._sent:
            self._periods += 1
        self._seconds = self._written = self._sent = 0.0
        if self._periods >= THROTTLE_TRIGGER_PERIODS:
            self._periods = 0
            self.throttle = min(THROTTLE_MAX, max(THROTTLE_INITIAL, self.throttle + THROTTLE_INCREMENT))


def simulate(at: PassProgress, first: float, guest: WorkingSet | None) -> tuple[float, bool]:
    """Return the total time of a migration, and whether it converges. ``first`` is what the pass that goes on has to
    send. A guest of which nothing is known writes nothing."""
    rate = max(at.rate, RATE_MIN)
    size, total = first, at.elapsed_s
    limit = rate * at.downtime_limit_s
    memory = at.remaining + at.sent + at.empty
    throttling = _Throttling(at.throttle)
    shortest, stalled = math.inf, 0
    for number in range(PASSES_MAX):
        if number > 0 and size <= limit:
            return total + size / rate, True
        began = total if number > 0 else min(at.pass_began_s, total)
        total += size / rate
        seconds = total - began
        if guest is None:
            return total, True
        written = min(guest.written(seconds), memory) * (1 - throttling.throttle)
        if at.auto_converge:
            throttling.after(seconds, written, size)
        stalled = 0 if written < shortest else stalled + 1
        shortest, size = min(shortest, written), written
        if stalled >= STALLED_PASSES_MAX and not at.auto_converge:
            break
    return total, False


def forecast(at: PassProgress, history: Sequence[Past] = ()) -> TimeForecast:
    """Forecast a migration from what it has done so far and from migrations that have ended."""
    guests = [past.working_set for past in history if past.working_set is not None]
    prior = statistics.median(guest.exponent for guest in guests) if guests else EXPONENT_PRIOR
    if at.passes:
        total_s, converges = simulate(at, at.remaining, working_set(at.passes, prior))
        left_s = total_s - at.elapsed_s
        lower_s, upper_s = (at.elapsed_s + left_s * math.exp(side * SPREAD) for side in (-1, 1))
        return TimeForecast(total_s, lower_s, upper_s, converges if len(at.passes) > 1 else None)
    learned = [past.empty_pages_exponent for past in history if past.empty_pages_exponent is not None]
    middle = statistics.median(learned) if learned else EMPTY_PAGES_EXPONENT
    most, least = min([EMPTY_PAGES_EXPONENTS[0], *learned]), max([EMPTY_PAGES_EXPONENTS[1], *learned])
    lower_s = simulate(at, rest_of_first_pass(at, least), None)[0]
    upper_s = max(_totals(at, rest_of_first_pass(at, most), guests, SHARE_OF_WRITING[1]))
    total_s = statistics.median(_totals(at, rest_of_first_pass(at, middle), guests, SHARE_OF_WRITING[0]))
    return TimeForecast(total_s, lower_s, max(upper_s, total_s), None)


def _totals(at: PassProgress, first: float, guests: Sequence[WorkingSet], share: float) -> list[float]:
    """Return how long it would take with each guest that history knows. A time is foreseen for a move that ends: if
    it would not with that guest, this one writes less, at most what the link carries within the permitted downtime;
    take ``share`` of that."""
    most = max(at.rate, RATE_MIN) * at.downtime_limit_s
    totals = []
    for guest in guests or [WorkingSet(math.inf, EXPONENT_PRIOR)]:
        total_s, converges = simulate(at, first, guest) if guest.size < math.inf else (math.inf, False)
        if not converges:
            ends = WorkingSet(share * most / at.downtime_limit_s**guest.exponent, guest.exponent)
            total_s, _ = simulate(at, first, ends)
        totals.append(total_s)
    return totals
