"""How long a live migration will take, and how long its downtime will be: pure arithmetic.

Pre-copy sends all memory, then the pages that the guest wrote meanwhile, and so on. A pass takes as long as the link
needs to send the pages or the processors need to examine them, whichever is longer. The pages that the guest writes in
that time make the next pass. The guest stops when the next pass would be short enough (Clark et al., "Live Migration of
Virtual Machines", NSDI 2005).
"""

from __future__ import annotations

import msgspec

from novacron.model.finite import Finite

PASSES_MAX = 40
PROCESSING_BYTES_PER_S = 200_000_000
"""How fast both ends process memory that need not be sent."""
SWITCH_S = 0.06
"""Time of the switchover besides sending the last pages: device state, two promises, one transaction."""
SHRINKS = 0.9
"""If a pass is not shorter than this share of the pass before, passes are not getting shorter."""


class Path(msgspec.Struct, frozen=True):
    """The path between source and target. Rates are in bytes a second, times in seconds."""

    rate: float
    rtt_s: float
    ratio: float
    """Bytes on the link for each byte of memory sent."""
    backlog: float = 0.0
    """Bytes that already wait for the link."""


class Forecast(msgspec.Struct, frozen=True):
    """Whether a migration converges, and if not, why; how long it takes from now, and with how much downtime."""

    converges: bool
    total_s: Finite
    downtime_ms: Finite
    reason: str = ""


class ForecastError(msgspec.Struct, frozen=True):
    """How much longer a migration and its downtime were than the first forecast; less than 0: shorter."""

    total_s: Finite
    downtime_ms: Finite


def error(foreseen: Forecast, took_s: float, downtime_ms: float) -> ForecastError:
    """Compare a forecast with the result. ``took_s`` counts from the moment of the forecast."""
    return ForecastError(round(took_s - foreseen.total_s, 2), round(downtime_ms - foreseen.downtime_ms, 1))


def pass_s(size: float, path: Path) -> float:
    """Return how many seconds it takes to send ``size`` bytes of memory."""
    return max(size * path.ratio / max(path.rate, 1.0), size / PROCESSING_BYTES_PER_S)


def downtime_s(size: float, path: Path) -> float:
    """Return the downtime if the guest stops now, with ``size`` bytes of memory left to send."""
    return pass_s(size, path) + path.backlog / max(path.rate, 1.0) + path.rtt_s / 2 + SWITCH_S


def forecast(
    memory_bytes: float, dirty_rate: float, path: Path, limit_s: float, passes_max: int = PASSES_MAX
) -> Forecast:
    """Forecast a migration that has ``left`` bytes of memory to send and a guest that writes ``dirty_rate`` bytes a
    second, and that lets the guest stop when it would stand still for ``limit_s`` at most, or after ``passes_max``.

    What waits for the link now has been sent when the first pass ends.
    """
    total, size = path.backlog / max(path.rate, 1.0), memory_bytes
    path = msgspec.structs.replace(path, backlog=0.0)
    for number in range(passes_max + 1):
        if number > 0 and downtime_s(size, path) <= limit_s:
            down = downtime_s(size, path)
            return Forecast(True, round(total + down, 2), round(down * 1e3, 1))
        if number == passes_max:
            break
        took = pass_s(size, path)
        total += took
        following = min(dirty_rate * took, memory_bytes)
        if number > 0 and following > size * SHRINKS:
            size = following
            break
        size = following
    down = downtime_s(size, path)
    takes = path.rate / max(path.ratio, 1e-6)
    reason = (
        f"the guest writes {dirty_rate / 1e6:.1f} MB/s, the link takes {takes / 1e6:.1f} MB/s of its memory: "
        f"it would stand still for {down * 1e3:.0f} ms, {limit_s * 1e3:.0f} ms are allowed"
    )
    return Forecast(False, round(total + down, 2), round(down * 1e3, 1), reason)
